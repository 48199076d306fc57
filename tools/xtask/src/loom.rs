//! Every interleaving of small scenes, over the code that ships.
//!
//! `umbra-sync` hands `slots`, `bus` and `mmu` loom's locks and atomics when it is compiled with
//! `--cfg umbra_loom`; their tests under `models` then run under its scheduler.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Packages with models.
const PACKAGES: [&str; 2] = ["umbra-bus", "umbra-mmu"];

/// Runs all models. `LOOM_MAX_PREEMPTIONS` widens, or narrows, what is tried.
pub fn run() -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    let status = Command::new(cargo)
        .args(["test", "--quiet", "--lib"])
        .args(packages)
        .args(["--", "models::"])
        .env("CARGO_TARGET_DIR", crate::places::target()?.join("loom"))
        .env("RUSTFLAGS", "--cfg umbra_loom")
        .status()
        .context("cannot run cargo test")?;
    if !status.success() {
        bail!("a model failed ({status})");
    }
    Ok(())
}
