//! Debian's kernels start, reach user space and switch the machine off.

use std::time::Duration;

use crate::support::guest::{Guest, LINUX_6_1, LINUX_6_12};
use crate::support::{Input, Umbra};

const LIMIT: Duration = Duration::from_secs(240);

/// Silences the kernel, so that its messages do not fall into the line.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox echo \"init: $(/bin/busybox uname -sr) with $(/bin/busybox nproc) processor(s).\"
/bin/busybox poweroff -f
";

fn boots(package: &str, version: &str, cpus: u32) {
    let Some(guest) = Guest::fetch(package) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let guest = guest.with_init(directory.path(), INIT);
    let number = cpus.to_string();
    let arguments = [
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--cpus",
        &number,
    ];

    let ended = Umbra::run(&arguments, Input::Empty, LIMIT);

    assert_eq!(ended.status, Some(0), "{ended}");
    let line = ended.stdout.lines().find(|line| line.starts_with("init: "));
    let line = line.unwrap_or_else(|| panic!("init was silent: {ended}"));
    assert!(
        line.starts_with(&format!("init: Linux {version}.")),
        "{line}"
    );
    assert!(
        line.contains(&format!(" with {cpus} processor(s).")),
        "{line}"
    );
    assert_eq!(ended.stderr, "");
    assert!(ended.left_behind.is_empty(), "{:?}", ended.left_behind);
}

#[test]
fn linux_6_1_boots_with_one_processor_and_powers_off() {
    boots(LINUX_6_1, "6.1", 1);
}

#[test]
fn linux_6_1_boots_with_two_processors_and_powers_off() {
    boots(LINUX_6_1, "6.1", 2);
}

#[test]
fn linux_6_12_boots_with_one_processor_and_powers_off() {
    boots(LINUX_6_12, "6.12", 1);
}

#[test]
fn linux_6_12_boots_with_two_processors_and_powers_off() {
    boots(LINUX_6_12, "6.12", 2);
}

#[test]
fn commands_from_a_pipe_reach_the_guests_shell() {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let arguments = ["--kernel", guest.kernel(), "--initrd", guest.initrd()];
    let input = Input::Pipe("echo $((6 * 7)) is the answer; poweroff -f\n");

    let ended = Umbra::run(&arguments, input, LIMIT);

    assert_eq!(ended.status, Some(0), "{ended}");
    assert!(ended.stdout.contains("42 is the answer"), "{ended}");
}
