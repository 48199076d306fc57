//! Images made, checked and compared by `qemu-img`.

use std::process::Command;

use super::*;
use crate::{Format, open};

const LEN: usize = 8 << 20;

/// Tells whether there is `qemu-img`; without it a test is skipped, which is a failure unless the
/// environment allows it.
fn has_tool() -> bool {
    let Err(error) = Command::new("qemu-img").arg("--version").output() else {
        return true;
    };
    eprintln!("SKIPPED: cannot run qemu-img (apt-get install qemu-utils): {error}");
    assert!(
        std::env::var_os("UMBRA_ALLOW_SKIP").is_some(),
        "skipped, for {error}; set UMBRA_ALLOW_SKIP=1 where there is no qemu-img"
    );
    false
}

fn qemu_img(folder: &Path, arguments: &[&str]) {
    let output = Command::new("qemu-img")
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
}

fn options() -> DiskOptions {
    DiskOptions {
        format: Format::Qcow2,
        backing: BackingFiles::Follow,
        ..DiskOptions::default()
    }
}

fn memory(bytes: &[u8]) -> Buffers {
    let memory = Buffers::host(bytes.len(), 1);
    memory.copy_from(0, bytes);
    memory
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    let memory = Buffers::host(disk.len() as usize, 1);
    disk.read(0, &memory).unwrap();
    let mut bytes = vec![0; memory.len()];
    memory.copy_to(0, &mut bytes);
    bytes
}

/// A raw file, an image over it, and one more over that.
fn chain() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|at| (at >> 9) as u8 ^ at as u8).collect();
    std::fs::write(folder.path().join("base.raw"), &bytes).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-b"];
    let middle = [&create[..], &["base.raw", "-F", "raw", "middle.qcow2"]].concat();
    qemu_img(folder.path(), &middle);
    let top = [&create[..], &["middle.qcow2", "-F", "qcow2", "top.qcow2"]].concat();
    qemu_img(folder.path(), &top);
    (folder, bytes)
}

#[test]
fn what_is_written_over_backing_files_is_what_qemu_img_finds() {
    if !has_tool() {
        return;
    }
    let (folder, original) = chain();
    let mut expected = original.clone();
    let disk = open(&folder.path().join("top.qcow2"), &options()).unwrap();
    assert_eq!(disk.len(), LEN as u64);
    assert!(
        contents(&*disk) == expected,
        "all of it is from the raw file"
    );
    // Within a cluster, across some, more than a piece, and the last sector.
    for (offset, len, byte) in [
        (512, 512, 1),
        (65024, 1024, 2),
        (1 << 20, (2 << 20) + 512, 3),
        (LEN - 512, 512, 4),
    ] {
        let bytes = vec![byte; len];
        disk.write(offset as u64, &memory(&bytes)).unwrap();
        expected[offset..offset + len].copy_from_slice(&bytes);
    }
    for (offset, len, unmap) in [
        (4 << 20, 1 << 20, Unmap::Allowed),
        (6 << 20, 1024, Unmap::Forbidden),
    ] {
        let extent = Extent { offset, len };
        disk.write_zeroes(extent, unmap).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    assert!(contents(&*disk) == expected);
    disk.flush().unwrap();
    drop(disk);
    let path = folder.path();
    qemu_img(path, &["check", "-q", "top.qcow2"]);
    std::fs::write(path.join("expected.raw"), &expected).unwrap();
    let files = ["-f", "qcow2", "-F", "raw", "top.qcow2", "expected.raw"];
    qemu_img(path, &[&["compare", "-q"], &files[..]].concat());
    let base = std::fs::read(path.join("base.raw")).unwrap();
    assert!(base == original, "a backing file is only read");
}

#[test]
fn discards_leave_a_good_image_and_everything_beside_them() {
    if !has_tool() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(
        folder.path(),
        &["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"],
    );
    let disk = open(&folder.path().join("disk.qcow2"), &options()).unwrap();
    disk.write(0, &memory(&vec![7; 2 << 20])).unwrap();
    let (offset, len) = (512 << 10, 1 << 20);
    disk.discard(Extent { offset, len }).unwrap();
    let bytes = contents(&*disk);
    assert!(bytes[..512 << 10].iter().all(|byte| *byte == 7));
    assert!(bytes[1536 << 10..2 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[2 << 20..].iter().all(|byte| *byte == 0));
    drop(disk);
    qemu_img(folder.path(), &["check", "-q", "disk.qcow2"]);
}

#[test]
fn snapshots_inside_an_image_are_not_written() {
    if !has_tool() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qemu_img(path, &["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    let disk = || open(&path.join("disk.qcow2"), &options()).unwrap();
    disk().write(0, &memory(&[1; 131_072])).unwrap();
    qemu_img(path, &["snapshot", "-c", "one", "disk.qcow2"]);
    disk().write(512, &memory(&[2; 1024])).unwrap();
    let check = |expected: &[u8]| {
        qemu_img(path, &["check", "-q", "disk.qcow2"]);
        assert!(contents(&*disk())[..131_072] == *expected);
    };
    let mut bytes = [1; 131_072];
    bytes[512..1536].fill(2);
    check(&bytes);
    qemu_img(path, &["snapshot", "-a", "one", "disk.qcow2"]);
    check(&[1; 131_072]);
}

#[test]
fn many_threads_write_one_image() {
    if !has_tool() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(
        folder.path(),
        &["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"],
    );
    let disk = open(&folder.path().join("disk.qcow2"), &options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..256 {
                    let sector = round * 4 + thread;
                    let bytes = [(sector % 255) as u8 + 1; 512];
                    disk.write(sector * 8 * 512, &memory(&bytes)).unwrap();
                }
            });
        }
    });
    let bytes = contents(&*disk);
    for sector in 0..1024 {
        let at = sector * 8 * 512;
        assert_eq!(bytes[at], (sector % 255) as u8 + 1, "{sector}");
        assert_eq!(bytes[at + 512], 0, "{sector}");
    }
    drop(disk);
    qemu_img(folder.path(), &["check", "-q", "disk.qcow2"]);
}

#[test]
fn backing_files_are_followed_only_if_that_is_said() {
    if !has_tool() {
        return;
    }
    let (folder, _) = chain();
    let strict = DiskOptions {
        backing: BackingFiles::Refuse,
        ..options()
    };
    let path = folder.path().join("top.qcow2");
    let error = open(&path, &strict).err().unwrap();
    assert!(matches!(error, OpenError::Backing { .. }), "{error}");
    assert!(error.to_string().contains("middle.qcow2"), "{error}");
    // One that somebody writes cannot be below another.
    let writer = DiskOptions {
        format: Format::Raw,
        ..DiskOptions::default()
    };
    let base = open(&folder.path().join("base.raw"), &writer).unwrap();
    let error = open(&path, &options()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(base);
    let readers = DiskOptions {
        read_only: true,
        ..options()
    };
    let both = [(); 2].map(|()| open(&path, &readers).unwrap());
    assert!(both[0].is_read_only());
    assert!(both[0].write(0, &memory(&[0; 512])).is_err());
}

#[test]
fn images_that_are_not_supported_are_refused_with_the_reason() {
    if !has_tool() {
        return;
    }
    let (folder, _) = chain();
    let place = |name: &str| folder.path().join(name);
    let data = "data_file=data.raw,data_file_raw=on";
    let external = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        data,
        "external.qcow2",
        "1M",
    ];
    qemu_img(folder.path(), &external);
    // A chain that bites its tail; QEMU only writes it without looking.
    let rebase = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
    let tail = [&rebase[..], &["top.qcow2", "middle.qcow2"]].concat();
    qemu_img(
        folder.path(),
        &["create", "-q", "-f", "qcow2", "dirty.qcow2", "1M"],
    );
    let mut dirty = std::fs::read(place("dirty.qcow2")).unwrap();
    dirty[79] |= 1;
    let mut encrypted = dirty.clone();
    (encrypted[79], encrypted[35]) = (0, 1);
    std::fs::write(place("dirty.qcow2"), dirty).unwrap();
    std::fs::write(place("encrypted.qcow2"), encrypted).unwrap();
    let table = [
        ("base.raw", "base.raw"),
        ("external.qcow2", "external data file"),
        ("dirty.qcow2", "dirty.qcow2"),
        ("encrypted.qcow2", "encryption"),
    ];
    let readers = DiskOptions {
        read_only: true,
        ..options()
    };
    let why = |name: &str| {
        let error = open(&place(name), &readers).err().unwrap();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    for (name, part) in table {
        assert!(why(name).contains(part), "{name}: {}", why(name));
    }
    qemu_img(folder.path(), &tail);
    assert!(
        why("top.qcow2").contains("32 backing files"),
        "{}",
        why("top.qcow2")
    );
    // Without a format in the header nobody looks what it might be.
    let mut header = std::fs::read(place("top.qcow2")).unwrap();
    let extension = 0xe279_2acau32.to_be_bytes();
    let at = header
        .windows(4)
        .position(|bytes| bytes == extension)
        .unwrap();
    header[at..at + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    std::fs::write(place("top.qcow2"), header).unwrap();
    assert!(
        why("top.qcow2").contains("\"none\""),
        "{}",
        why("top.qcow2")
    );
}
