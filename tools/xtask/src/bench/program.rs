//! Programs that guests run: built from C, static, on a disk of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A disk has whole sectors.
const SECTOR: usize = 4096;

/// A program for the host, and the same bytes as a disk for guests.
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// The disk that holds it, and nothing else.
    pub disk: PathBuf,
}

impl Program {
    /// Builds `source` in `folder`.
    pub fn build(folder: &Path, name: &str, source: &str) -> Result<Self> {
        let text = folder.join(name).with_extension("c");
        fs::write(&text, source)?;
        let path = folder.join(name);
        let status = Command::new("gcc")
            .args(["-O2", "-march=x86-64", "-static", "-o"])
            .arg(&path)
            .arg(&text)
            .status()
            .context("cannot run gcc")?;
        if !status.success() {
            bail!("gcc failed ({status}); are gcc and libc6-dev installed?");
        }
        let mut bytes = fs::read(&path)?;
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        let disk = folder.join(name).with_extension("disk");
        fs::write(&disk, bytes)?;
        Ok(Self { path, disk })
    }
}
