//! Kernels of the project's own that are written in Rust: each a workspace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the kernel in `folder` (`tests/guest`, say), with more arguments for `cargo build`, into a
/// target folder named `target`; returns the latter's folder of release programs.
pub fn build(folder: &str, target: &str, more: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(target);
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "--target-dir"])
        .arg(&target)
        .arg("--manifest-path")
        .arg(root.join(folder).join("Cargo.toml"))
        .args(more)
        // What is meant for the workspace's programs is not meant for a kernel.
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    target.join("release")
}
