//! A program that times itself ([work.c](work.c)): on the software processor, on QEMU's TCG, and natively.
//!
//! Same binary, same kernel and initramfs, one processor. They take turns; for each figure the median of the
//! rounds counts, and all three must have computed the same.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::figures::Ratios;
use super::machine::{Access, Disk, Machine, output};
use super::program::Program;
use super::{fetch, qemu, release_build};

/// Runs of each; the median counts.
const ROUNDS: usize = 5;
const KERNEL: &str = "linux-image-cloud-amd64";
/// How long a machine may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// What computes, and nothing else.
const COMPUTE: [&str; 11] = [
    "integer",
    "sieve",
    "sum",
    "chase-32k",
    "chase-4m",
    "scalar-fp",
    "sse2",
    "calls",
    "dispatch",
    "quicksort",
    "sha256",
];
/// What asks the kernel.
const SYSTEM: [&str; 5] = ["syscalls", "faults", "fork-exec", "ping-pong", "signals"];
/// QEMU's serial port loses some of what comes before the kernel has it.
const COMMANDS: &str = "\
# some of this may be lost, some of this may be lost
cat /dev/vda > /tmp/work; chmod +x /tmp/work
/tmp/work
poweroff -f
";

/// What the issue promises, as ratios of times: at most so long beside TCG, and beside the host.
const COMPUTE_TCG: f64 = 1.0 / 3.0;
const COMPUTE_NATIVE: f64 = 1.6;
const SYSTEM_TCG: f64 = 1.0 / 1.5;
/// No single one may take longer than TCG by more than this.
const WORST: f64 = 1.05;

/// Runs the benchmark.
pub fn run() -> Result<()> {
    let (umbra, qemu) = (release_build()?, qemu()?);
    let (kernel, initrd) = fetch(&umbra, KERNEL)?;
    let place = tempfile::tempdir()?;
    let program = Program::build(place.path(), "work", include_str!("work.c"))?;
    let commands = place.path().join("commands");
    fs::write(&commands, COMMANDS)?;
    let machine = Machine {
        kernel,
        initrd,
        memory_mib: 512,
        disks: vec![Disk {
            path: program.disk,
            access: Access::Read,
        }],
        commands,
        patience: PATIENCE,
    };
    let (mut ours, mut theirs, mut native) = (Times::default(), Times::default(), Times::default());
    for round in 1..=ROUNDS {
        println!("round {round}");
        native.add("native", &output(&mut Command::new(&program.path), None)?)?;
        ours.add("umbra", &machine.umbra(&umbra)?)?;
        theirs.add("qemu tcg", &machine.qemu(qemu)?)?;
    }
    report(&ours, &theirs, &native)
}

fn report(ours: &Times, theirs: &Times, native: &Times) -> Result<()> {
    let mut ratios = Ratios::new("processor");
    for word in COMPUTE.iter().chain(&SYSTEM) {
        for (who, other) in [("qemu tcg", theirs), ("the host", native)] {
            if ours.result(word) != other.result(word) {
                bail!("umbra and {who} do not agree about {word}");
            }
        }
        let (mine, tcg, host) = (
            ours.median(word)?,
            theirs.median(word)?,
            native.median(word)?,
        );
        println!("{word}: umbra {mine:.3} s, qemu tcg {tcg:.3} s, native {host:.3} s");
        ratios.at_most(format!("{word}: umbra/qemu tcg"), mine / tcg, WORST);
    }
    let mean = |words: &[&str], rival: &Times| -> Result<f64> {
        let mut sum = 0.0;
        for word in words {
            sum += (ours.median(word)? / rival.median(word)?).ln();
        }
        Ok((sum / words.len() as f64).exp())
    };
    for (name, words, rival, target) in [
        ("compute: umbra/qemu tcg", &COMPUTE[..], theirs, COMPUTE_TCG),
        ("compute: umbra/native", &COMPUTE, native, COMPUTE_NATIVE),
        ("system: umbra/qemu tcg", &SYSTEM, theirs, SYSTEM_TCG),
    ] {
        ratios.at_most(name, mean(words, rival)?, target);
    }
    ratios.print();
    Ok(())
}

/// Seconds by word, and what was computed.
#[derive(Default)]
struct Times(BTreeMap<String, (Vec<f64>, String)>);

impl Times {
    fn add(&mut self, who: &str, text: &str) -> Result<()> {
        for word in COMPUTE.iter().chain(&SYSTEM) {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(word)?.strip_prefix(": "));
            let mut parts = line.unwrap_or_default().split_whitespace();
            let seconds = parts.next().and_then(|seconds| seconds.parse().ok());
            let (Some(seconds), Some(result)) = (seconds, parts.next()) else {
                bail!("{who} says nothing of {word}: {text}");
            };
            let known = self.0.entry((*word).into());
            let known = known.or_insert_with(|| (Vec::new(), result.into()));
            if known.1 != result {
                bail!("{who} computed {result} for {word}, and {} before", known.1);
            }
            known.0.push(seconds);
        }
        Ok(())
    }

    fn result(&self, word: &str) -> Option<&str> {
        self.0.get(word).map(|(_, result)| result.as_str())
    }

    fn median(&self, word: &str) -> Result<f64> {
        let (times, _) = self.0.get(word).context("not measured")?;
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}
