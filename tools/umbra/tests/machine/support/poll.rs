//! The polling guest and its companions, built when their sources are newer: `tests/guest/poll`, and
//! `tests/guest/drivers`, which boots with its code.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::bare_metal;

/// The guest that executes one command of its command line.
pub fn poll_guest() -> PathBuf {
    built().join("umbra-poll")
}

/// The guest that ends with status 0 at once.
pub fn tiny_guest() -> PathBuf {
    built().join("umbra-tiny")
}

/// 64-bit FNV-1a, as the guests compute it.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The guest with the drivers of the `virtio-drivers` crate, which is fetched.
pub fn drivers_guest() -> PathBuf {
    bare_metal::build("tests/guest/drivers", "drivers", &["--locked"]).join("umbra-drivers")
}

/// Builds both where they are older than their sources; returns their folder.
fn built() -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guest/poll");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("poll");
    std::fs::create_dir_all(&folder).unwrap();
    // Tests are processes of their own: one builds, the others wait for it.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let changed = newest(&sources);
    let made = |name| modified(&folder.join(name)).is_some_and(|made| made > changed);
    if !["umbra-poll", "umbra-tiny"].into_iter().all(made) {
        build(&sources, &folder);
    }
    folder
}

/// Builds into a folder beside, so that nobody ever sees half a file.
fn build(sources: &Path, folder: &Path) {
    let new = folder.join("new");
    let output = Command::new(sources.join("build.sh"))
        .arg(&new)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "is gcc installed? {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for name in ["umbra-poll", "umbra-tiny"] {
        std::fs::rename(new.join(name), folder.join(name)).unwrap();
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

fn newest(folder: &Path) -> SystemTime {
    let entries = std::fs::read_dir(folder).unwrap();
    let times = entries.map(|entry| modified(&entry.unwrap().path()).unwrap());
    times.max().unwrap()
}
