//! Benchmarks: always beside the rival, in one run, as a ratio.

mod api;
mod boot;
mod figures;
mod io;
mod machine;
mod memory;
mod processor;
mod program;
mod programs;
mod startup;
mod vhost;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Runs a benchmark by its name.
pub fn run(name: &str) -> Result<()> {
    match name {
        "api" => api::run(),
        "boot" => boot::run(),
        "io" => io::run(),
        "processor" => processor::run(),
        "programs" => programs::run(),
        "startup" => startup::run(),
        "vhost" => vhost::run(),
        "invalidate" => of_package("umbra-mmu", name),
        "mmio" => of_package("umbra-vmm", name),
        _ => bail!("there is no benchmark {name}"),
    }
}

/// Runs a benchmark that is a program of its package.
fn of_package(package: &str, name: &str) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo)
        .args(["bench", "--quiet", "--package", package, "--bench", name])
        .env("UMBRA_GUESTS", guests()?)
        .status()
        .context("cannot run cargo bench")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

/// Builds the bare-metal guests that need nothing but a C compiler; returns their folder.
fn guests() -> Result<PathBuf> {
    let folder = crate::places::target()?.join("guests");
    let script = crate::places::root().join("tests/guest/poll/build.sh");
    let status = Command::new(&script)
        .arg(&folder)
        .status()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !status.success() {
        bail!("{} failed ({status}); is gcc installed?", script.display());
    }
    Ok(folder)
}

/// Builds the command as users have it; returns its path.
fn release_build() -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "umbra",
            "--message-format",
            "json",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo build")?;
    if !output.status.success() {
        bail!("the release build failed");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .context("cargo build names no executable")
}

/// Has the command fetch a kernel; returns kernel and initrd.
fn fetch(umbra: &Path, package: &str) -> Result<(PathBuf, PathBuf)> {
    let output = Command::new(umbra)
        .args(["fetch", "--kernel-package", package])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run umbra fetch")?;
    if !output.status.success() {
        bail!("umbra fetch {package} failed");
    }
    let text = String::from_utf8(output.stdout)?;
    let path = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(PathBuf::from)
    };
    match (path("kernel="), path("initrd=")) {
        (Some(kernel), Some(initrd)) => Ok((kernel, initrd)),
        _ => bail!("umbra fetch printed {text:?}, not kernel= and initrd="),
    }
}

/// The rival, if it is installed.
fn qemu() -> Result<&'static str> {
    let qemu = "qemu-system-x86_64";
    if Command::new(qemu).arg("--version").output().is_err() {
        bail!("{qemu} is missing: apt-get install qemu-system-x86");
    }
    Ok(qemu)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}
