//! Programs for guests that busybox has nothing like: C, linked statically.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Compiles a source of `userland` for a 64-bit guest; returns the program.
pub fn compile(source: &str) -> Vec<u8> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/userland");
    let place = TempDir::new().unwrap();
    let program = place.path().join("program");
    let output = Command::new("gcc")
        .args([
            "-std=gnu11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
        ])
        .arg(sources.join(source))
        .arg("-o")
        .arg(&program)
        .output()
        .expect("gcc is installed");
    assert!(
        output.status.success(),
        "are gcc and libc6-dev installed? {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::read(&program).unwrap()
}
