//! From the start of the process to the guest's first instruction and the end, on KVM, beside QEMU's
//! `microvm`; and what the process holds in memory beside its guest.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{guests, median, qemu, release_build};

/// Runs of each side; they take turns, and the median counts.
const ROUNDS: usize = 40;
/// What the issue promises: at most half of QEMU's wall time, and 5 MiB beside the guest's memory.
const TIME: f64 = 0.5;
const RESIDENT_MIB: f64 = 5.0;
/// `isa-debug-exit`: a write of 0 ends with this status.
const ENDED: i32 = 1;

/// Runs the benchmark.
pub fn run() -> Result<()> {
    let (umbra, qemu, guests) = (release_build()?, qemu()?, guests()?);
    let tiny = guests.join("umbra-tiny");
    let ours = |backend: &str| {
        let mut command = Command::new(&umbra);
        command
            .args([
                "run",
                "--backend",
                backend,
                "--memory",
                "128M",
                "--debug-exit",
                "--kernel",
            ])
            .arg(&tiny);
        command
    };
    let theirs = |accel: &str| {
        let mut command = Command::new(qemu);
        command
            .args(["-accel", accel, "-M", "microvm", "-m", "128", "-nodefaults"])
            .args(["-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel"])
            .arg(&tiny);
        command
    };
    let mut ratios = serde_json::Map::new();
    let mut told = |name: &str, value: f64| {
        ratios.insert(name.into(), json!((value * 1000.0).round() / 1000.0));
        value
    };
    let kvm = beside(|| ours("kvm"), || theirs("kvm"))?;
    let time = told("kvm: umbra/qemu microvm", kvm);
    told(
        "soft: umbra/qemu microvm tcg",
        beside(|| ours("soft"), || theirs("tcg"))?,
    );
    let resident = told(
        "kvm: resident MiB beside the guest's",
        resident(&umbra, &guests)?,
    );
    let targets = json!({
        "kvm: umbra/qemu microvm": format!("<={TIME}"),
        "kvm: resident MiB beside the guest's": format!("<={RESIDENT_MIB}"),
    });
    let met = time <= TIME && resident <= RESIDENT_MIB;
    println!(
        "{}",
        json!({"bench": "startup", "ratios": ratios, "targets": targets, "met": met})
    );
    Ok(())
}

/// Runs both in turns; returns the ratio of their medians.
fn beside(ours: impl Fn() -> Command, theirs: impl Fn() -> Command) -> Result<f64> {
    let (mut mine, mut other) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        mine.push(timed(ours())?);
        other.push(timed(theirs())?);
    }
    let (mine, other) = (median(&mut mine), median(&mut other));
    println!("{:?}: {mine:.2?}; {:?}: {other:.2?}", ours(), theirs());
    Ok(mine.as_secs_f64() / other.as_secs_f64())
}

fn timed(mut command: Command) -> Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let took = start.elapsed();
    if output.status.code() != Some(ENDED) {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {told}", output.status);
    }
    Ok(took)
}

/// Measures a machine whose guest halts: all that is resident but for the guest's own memory, which
/// is shared memory.
fn resident(umbra: &Path, guests: &Path) -> Result<f64> {
    let mut child = Command::new(umbra)
        .args([
            "run",
            "--backend",
            "kvm",
            "--memory",
            "128M",
            "--cmdline",
            "halt",
            "--kernel",
        ])
        .arg(guests.join("umbra-poll"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run umbra")?;
    std::thread::sleep(Duration::from_millis(500));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    child.kill()?;
    child.wait()?;
    let status = status.context("the machine ended by itself")?;
    let kib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| {
            rest.trim_start_matches(':')
                .trim()
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("/proc says nothing of {name}"))
    };
    let all: f64 = kib("RssAnon")? + kib("RssFile")?;
    println!(
        "resident: {all} KiB, and {} KiB of the guest's",
        kib("RssShmem")?
    );
    Ok(all / 1024.0)
}
