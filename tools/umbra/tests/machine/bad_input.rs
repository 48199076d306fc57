//! What the user can get wrong: one line with cause and remedy, status 2, nothing left behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::guest::{Guest, LINUX_6_1};
use crate::support::{Terminal, Umbra, image};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs the command on a terminal with arguments that are wrong; its line has to hold `facts`.
fn refused(name: &str, arguments: &[&str], facts: &[&str]) {
    let terminal = Terminal::open();
    let arguments = [&["run"], arguments].concat();

    let ended = Umbra::new(&arguments, &terminal.input())
        .start()
        .finish(LIMIT);

    assert_eq!(ended.status, Some(2), "{name}: {ended}");
    assert_eq!(ended.stdout, "", "{name}");
    assert!(ended.stderr.starts_with("umbra: "), "{name}: {ended}");
    assert_eq!(ended.stderr.matches('\n').count(), 1, "{name}: {ended}");
    assert!(ended.stderr.ends_with('\n'), "{name}: {ended}");
    for fact in facts {
        assert!(ended.stderr.contains(fact), "{name}: no {fact:?}: {ended}");
    }
    assert!(
        ended.left_behind.is_empty(),
        "{name}: {:?}",
        ended.left_behind
    );
    assert!(terminal.is_unchanged(), "{name}");
}

/// Writes a file and returns its path.
fn file(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Bytes without any sense, the same every time (xorshift64).
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let good = image::multiboot(place, &image::SPIN);
    let missing = place.join("missing");
    let empty = file(place, "empty", b"");
    let random = file(place, "random", &noise(1 << 20));
    let short = file(place, "short", &std::fs::read(&good).unwrap()[..0x41]);
    let table: [(&Path, &[&str]); 6] = [
        (
            &missing,
            &["cannot open the kernel", "missing\"", "; check the path"],
        ),
        (
            &empty,
            &[
                "the kernel",
                "empty\" is empty",
                "; fetch or build it again",
            ],
        ),
        (&random, &["the kernel", "random\" is", "; give "]),
        (
            &short,
            &[
                "the kernel",
                "short\" is truncated",
                "; fetch or build it again",
            ],
        ),
        (
            place,
            &["the kernel", "is not a regular file", "; give the path"],
        ),
        (
            Path::new("/dev/null"),
            &["the kernel", "is not a regular file", "; give the path"],
        ),
    ];
    for (kernel, facts) in table {
        let kernel = kernel.to_str().unwrap();
        refused(kernel, &["--kernel", kernel], facts);
    }
    let good = good.to_str().unwrap();
    let table: [(&Path, &[&str]); 3] = [
        (
            &missing,
            &["cannot open the initrd", "missing\"", "; check the path"],
        ),
        (
            &empty,
            &[
                "the initrd",
                "empty\" is empty",
                "; fetch or build it again",
            ],
        ),
        (
            place,
            &["the initrd", "is not a regular file", "; give the path"],
        ),
    ];
    for (initrd, facts) in table {
        let initrd = initrd.to_str().unwrap();
        refused(initrd, &["--kernel", good, "--initrd", initrd], facts);
    }
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &image::SPIN);
    let kernel = kernel.to_str().unwrap();
    let long = "x".repeat(70_000);
    let table: [(&[&str], &[&str]); 12] = [
        (&["--turbo"], &["--turbo", "umbra --help"]),
        (&["--cpus", "0"], &["0", "255"]),
        (&["--cpus", "256"], &["256", "255"]),
        (&["--cpus", "many"], &["'many'", "--cpus", "umbra --help"]),
        (
            &["--memory", "lots"],
            &["\"lots\" is no size", "512M or 2G"],
        ),
        (&["--memory", "64K"], &["MiB"]),
        (&["--memory", "100T"], &["MiB"]),
        (&["--memory", "4097K"], &["4195328"]),
        (&["--backend", "xen"], &["xen", "soft"]),
        (
            &["--tsc-khz", "5", "--backend", "soft"],
            &["1000000 kHz and not at 5"],
        ),
        (
            &["--audit", "--backend", "kvm"],
            &["verify itself", "soft or auto"],
        ),
        (&["--cmdline", &long], &["70000 bytes", "; shorten it"]),
    ];
    for (arguments, facts) in table {
        refused(
            arguments[0],
            &[&["--kernel", kernel], arguments].concat(),
            facts,
        );
    }
    refused("no kernel", &[], &["--kernel", "umbra --help"]);
}

#[test]
fn a_debian_kernel_that_was_cut_off_or_does_not_fit_is_refused() {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(&guest.kernel).unwrap();
    for len in [0x200, 0x1000, bytes.len() / 2, bytes.len() - 0x1000] {
        let cut = file(directory.path(), "cut", &bytes[..len]);
        let cut = cut.to_str().unwrap();
        refused(
            &format!("{len} bytes"),
            &["--kernel", cut],
            &["the kernel", "cut\"", "; "],
        );
    }
    let limit = "x".repeat(2048);
    let (kernel, initrd) = (guest.kernel(), guest.initrd());
    let table: [(&[&str], &[&str]); 3] = [
        (
            &["--memory", "16M"],
            &["the machine has 16 MiB", "; give the machine at least"],
        ),
        (&["--memory", "4M"], &["MiB", "; give the machine at least"]),
        (
            &["--cmdline", &limit],
            &["2048 bytes", "at most 2047", "; shorten it"],
        ),
    ];
    for (arguments, facts) in table {
        let files = ["--kernel", kernel, "--initrd", initrd];
        refused(
            &arguments[0..1].join(" "),
            &[&files, arguments].concat(),
            facts,
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let large = file(directory.path(), "large", &noise(60 << 20));
    let large = large.to_str().unwrap();
    let facts = ["the machine has 64 MiB", "; give the machine at least"];
    refused(
        "a large initrd",
        &["--kernel", kernel, "--initrd", large, "--memory", "64M"],
        &facts,
    );
}
