//! Benchmarks: always beside the rival, in one run, as a ratio.

mod boot;

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a benchmark by its name.
pub fn run(name: &str) -> Result<()> {
    match name {
        "boot" => boot::run(),
        "invalidate" => of_package("umbra-mmu", name),
        _ => bail!("there is no benchmark {name}"),
    }
}

/// Runs a benchmark that is a program of its package.
fn of_package(package: &str, name: &str) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo)
        .args(["bench", "--quiet", "--package", package, "--bench", name])
        .status()
        .context("cannot run cargo bench")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}
