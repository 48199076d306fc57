//! Kernel and initramfs to power-off, beside `qemu-system-x86_64 -accel tcg`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

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
/// The init of the demo's RAM disk powers off at once when told so.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 rdinit=/bin/busybox -- poweroff -f";

/// Kernel and initramfs to power-off, process start to process end.
pub fn run() -> Result<()> {
    let umbra = release_build()?;
    let qemu = qemu()?;
    let mut ratios = serde_json::Map::new();
    let mut targets = serde_json::Map::new();
    let mut met = true;
    for (label, package, target) in KERNELS {
        let (kernel, initrd) = fetch(&umbra, package)?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let mut command = Command::new(&umbra);
            command.args([
                "run",
                "--backend",
                "soft",
                "--memory",
                "512M",
                "--cmdline",
                COMMAND_LINE,
            ]);
            command
                .arg("--kernel")
                .arg(&kernel)
                .arg("--initrd")
                .arg(&initrd);
            ours.push(timed(command)?);
            // The PC machine: the microvm one calibrates its clock against a timer that it may
            // never catch under TCG, and then hangs.
            let mut command = Command::new(qemu);
            command.args(["-accel", "tcg", "-M", "pc", "-cpu", "qemu64", "-m", "512"]);
            command.args([
                "-display",
                "none",
                "-serial",
                "stdio",
                "-nodefaults",
                "-no-reboot",
            ]);
            command.args(["-append", COMMAND_LINE]);
            command
                .arg("-kernel")
                .arg(&kernel)
                .arg("-initrd")
                .arg(&initrd);
            theirs.push(timed(command)?);
            println!(
                "{label} round {round}: umbra {:.2} s, qemu tcg {:.2} s",
                ours[round - 1].as_secs_f64(),
                theirs[round - 1].as_secs_f64()
            );
        }
        let ratio = median(&mut ours).as_secs_f64() / median(&mut theirs).as_secs_f64();
        let name = format!("{label}: umbra/qemu-tcg");
        ratios.insert(name.clone(), json!((ratio * 100.0).round() / 100.0));
        targets.insert(name, json!(format!("<={target}")));
        met &= ratio <= target;
    }
    println!(
        "{}",
        json!({"bench": "boot", "ratios": ratios, "targets": targets, "met": met})
    );
    Ok(())
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
