//! Packages of PyPI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use umbra::demo::cache::Cache;

use super::guest::lock_for;

/// Where the programs are that use them.
pub const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients");

/// Makes an environment with a package, `NAME==VERSION`; returns its Python.
pub fn with(package: &str) -> Result<PathBuf> {
    let cache = Cache::open()?;
    let _lock = lock_for(&cache, "client-python")?;
    let environment = cache.other(&package.replace("==", "-"));
    let python = environment.join("bin/python3");
    if environment.join("complete").exists() {
        return Ok(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if !output.status.success() {
            bail!("{package}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    let place = environment
        .to_str()
        .context("a cache with a name in UTF-8")?;
    run(Path::new("python3"), &["-m", "venv", "--clear", place])?;
    run(&python, &["-m", "pip", "install", "--quiet", package])?;
    fs::write(environment.join("complete"), "")?;
    Ok(python)
}
