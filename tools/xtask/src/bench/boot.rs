//! Kernel and initramfs to power-off, and memory at its peak, beside `qemu-system-x86_64 -accel tcg`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::figures::Ratios;
use super::memory::peak_kib;
use super::{fetch, median, qemu, release_build};

/// Runs of each side; the median counts.
const ROUNDS: usize = 5;
/// A boot that takes longer has hung.
const PATIENCE: Duration = Duration::from_secs(180);
/// Kernels, and the most that each may take of QEMU's wall time.
const KERNELS: [(&str, &str, f64); 2] = [
    ("6.1", "linux-image-cloud-amd64", 0.6),
    ("6.12", "linux-image-6.12-cloud-amd64", 1.0),
];
/// At most as much memory at its peak as QEMU.
const MEMORY: f64 = 1.0;
/// The init of the demo's RAM disk powers off at once when told so.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 rdinit=/bin/busybox -- poweroff -f";

/// Kernel and initramfs to power-off, process start to process end.
pub fn run() -> Result<()> {
    let umbra = release_build()?;
    let qemu = qemu()?;
    let mut ratios = Ratios::new("boot");
    for (label, package, target) in KERNELS {
        let files = fetch(&umbra, package)?;
        let ours = || ours(&umbra, &files);
        let theirs = || theirs(qemu, &files);
        let time = times(label, ours, theirs)?;
        ratios.at_most(format!("{label}: umbra/qemu-tcg"), time, target);
        let memory = memory(label, ours(), theirs())?;
        ratios.at_most(format!("{label}: memory umbra/qemu-tcg"), memory, MEMORY);
    }
    ratios.print();
    Ok(())
}

fn ours(umbra: &Path, (kernel, initrd): &(PathBuf, PathBuf)) -> Command {
    let mut command = Command::new(umbra);
    command.args(["run", "--backend", "soft", "--memory", "512M"]);
    command.args(["--cmdline", COMMAND_LINE]);
    command.arg("--kernel").arg(kernel);
    command.arg("--initrd").arg(initrd);
    command
}

/// The PC machine: the microvm one calibrates its clock against a timer that it may never catch under TCG, and then
/// hangs.
fn theirs(qemu: &str, (kernel, initrd): &(PathBuf, PathBuf)) -> Command {
    let mut command = Command::new(qemu);
    command.args(["-accel", "tcg", "-M", "pc", "-cpu", "qemu64", "-m", "512"]);
    command.args(["-display", "none", "-serial", "stdio"]);
    command.args(["-nodefaults", "-no-reboot", "-append", COMMAND_LINE]);
    command.arg("-kernel").arg(kernel);
    command.arg("-initrd").arg(initrd);
    command
}

/// Runs both in turns; returns the ratio of their medians.
fn times(label: &str, ours: impl Fn() -> Command, theirs: impl Fn() -> Command) -> Result<f64> {
    let (mut mine, mut other) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        mine.push(timed(ours())?);
        other.push(timed(theirs())?);
        println!(
            "{label} round {round}: umbra {:.2} s, qemu tcg {:.2} s",
            mine[round - 1].as_secs_f64(),
            other[round - 1].as_secs_f64()
        );
    }
    Ok(median(&mut mine).as_secs_f64() / median(&mut other).as_secs_f64())
}

/// Runs each once more, and looks at its memory, which would take of its time; returns the ratio.
fn memory(label: &str, mut ours: Command, mut theirs: Command) -> Result<f64> {
    let mine = peak_kib(&mut ours, PATIENCE)?;
    let other = peak_kib(&mut theirs, PATIENCE)?;
    println!("{label} memory: umbra {mine} KiB, qemu tcg {other} KiB");
    Ok(mine as f64 / other as f64)
}

/// Runs to the end; returns the wall time.
fn timed(mut command: Command) -> Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("{command:?} ended with {status}");
            }
            return Ok(start.elapsed());
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
