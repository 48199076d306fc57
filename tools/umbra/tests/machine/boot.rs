//! Debian's kernels start, reach user space and switch the machine off.

use std::time::Duration;

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, LINUX_6_12, LINUX_686, LINUX_686_PAE, command_line};
use crate::support::{Input, Umbra};

const LIMIT: Duration = Duration::from_secs(240);

/// Silences the kernel, so that its messages do not fall into the line.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox echo \"init: $(/bin/busybox uname -sr) with $(/bin/busybox nproc) processor(s).\"
/bin/busybox poweroff -f
";

fn boots(backend: &str, package: &str, version: &str, cpus: u32) {
    boots_with(backend, package, version, cpus, &[]);
}

/// The same, with more arguments.
fn boots_with(backend: &str, package: &str, version: &str, cpus: u32, more: &[&str]) {
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
        "--cmdline",
        command_line(package),
        "--backend",
        backend,
    ];
    let arguments = [&arguments[..], more].concat();

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

fn linux_6_1_boots_with_one_processor_and_powers_off(backend: &str) {
    boots(backend, LINUX_6_1, "6.1", 1);
}

fn linux_6_1_boots_with_two_processors_and_powers_off(backend: &str) {
    boots(backend, LINUX_6_1, "6.1", 2);
}

fn linux_6_12_boots_with_one_processor_and_powers_off(backend: &str) {
    boots(backend, LINUX_6_12, "6.12", 1);
}

fn linux_6_12_boots_with_two_processors_and_powers_off(backend: &str) {
    boots(backend, LINUX_6_12, "6.12", 2);
}

fn linux_686_without_pae_boots_with_one_processor_and_powers_off(backend: &str) {
    boots(backend, LINUX_686, "6.1", 1);
}

fn linux_686_without_pae_boots_with_two_processors_and_powers_off(backend: &str) {
    boots(backend, LINUX_686, "6.1", 2);
}

fn linux_686_with_pae_boots_with_one_processor_and_powers_off(backend: &str) {
    boots(backend, LINUX_686_PAE, "6.1", 1);
}

fn linux_686_with_pae_boots_with_two_processors_and_powers_off(backend: &str) {
    boots(backend, LINUX_686_PAE, "6.1", 2);
}

/// Each block of the boot is executed by the interpreter and as translated code. A difference would end the
/// machine, and be told on standard error.
#[test]
fn linux_6_1_boots_alike_interpreted_and_translated() {
    boots_with("soft", LINUX_6_1, "6.1", 1, &["--processor", "both"]);
}

/// Reads what the kernel makes of the maximal model.
const FLAGS: &str = r#"#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox mkdir /proc
/bin/busybox mount -t proc proc /proc
for flag in la57 pku ospke xsavec bmi2 adx rdseed rdpid; do
  /bin/busybox grep -qw "$flag" /proc/cpuinfo && echo "has $flag"
done
/bin/busybox poweroff -f
"#;

#[test]
fn linux_6_1_finds_everything_that_the_maximal_processor_has() {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let guest = guest.with_init(directory.path(), FLAGS);
    let arguments = [
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--backend",
        "soft",
        "--cpu",
        "max",
        "--cpus",
        "2",
    ];

    let ended = Umbra::run(&arguments, Input::Empty, LIMIT);

    assert_eq!(ended.status, Some(0), "{ended}");
    let flags = "la57 pku ospke xsavec bmi2 adx rdseed rdpid";
    for flag in flags.split(' ') {
        let expected = format!("has {flag}");
        let found = ended.stdout.lines().any(|line| line == expected);
        assert!(found, "{expected}: {ended}");
    }
}

/// What 32-bit programs do all day: processes, pipes, signals, arithmetic, the vDSO's way into the
/// kernel and the old one.
const PROGRAMS: &str = r#"#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox mount -t proc proc proc 2>/dev/null || {
  /bin/busybox mkdir proc
  /bin/busybox mount -t proc proc proc
}
echo "machine: $(/bin/busybox uname -m)"
echo "class: $(/bin/busybox dd if=/bin/busybox bs=1 skip=4 count=1 2>/dev/null | /bin/busybox od -An -tu1)"
echo "sum: $(/bin/busybox yes umbra | /bin/busybox head -n 20000 | /bin/busybox md5sum)"
echo "float: $(/bin/busybox awk 'BEGIN { for (i = 1; i < 200; i++) x = (x + i / 7) / 1.5; printf "%.10f", x }')"
echo "sorted: $(/bin/busybox seq 1 300 | /bin/busybox sort -rn | /bin/busybox gzip | /bin/busybox gunzip | /bin/busybox tail -n 1)"
echo "vdso: $(/bin/busybox grep -c vdso /proc/self/maps)"
trap 'echo caught' USR1
/bin/busybox kill -USR1 $$
/bin/busybox sh -c 'exit 7'
echo "exit: $?"
/bin/busybox poweroff -f
"#;

fn runs_32_bit_programs(backend: &str, kernel: &str, machine: &str) {
    let (Some(kernel), Some(programs)) = (Guest::fetch(kernel), Guest::fetch(LINUX_686)) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let guest = Guest {
        kernel: kernel.kernel,
        ..programs
    };
    let guest = guest.with_init(directory.path(), PROGRAMS);
    let arguments = [
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--backend",
        backend,
    ];

    let ended = Umbra::run(&arguments, Input::Empty, LIMIT);

    assert_eq!(ended.status, Some(0), "{ended}");
    for expected in [
        &format!("machine: {machine}"),
        "class:    1",
        // `yes umbra | head -n 20000 | md5sum`
        "sum: b38194e2d9d9684c84dbbfda079aeda0  -",
        "float: 56.2857142857",
        "sorted: 1",
        "vdso: 1",
        "caught",
        "exit: 7",
    ] {
        let found = ended.stdout.lines().any(|line| line == expected);
        assert!(found, "no line {expected:?}: {ended}");
    }
}

fn a_32_bit_kernel_without_pae_runs_32_bit_programs(backend: &str) {
    runs_32_bit_programs(backend, LINUX_686, "i686");
}

fn a_32_bit_kernel_with_pae_runs_32_bit_programs(backend: &str) {
    runs_32_bit_programs(backend, LINUX_686_PAE, "i686");
}

fn a_64_bit_kernel_runs_32_bit_programs(backend: &str) {
    runs_32_bit_programs(backend, LINUX_6_1, "x86_64");
}

fn commands_from_a_pipe_reach_the_guests_shell(backend: &str) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let arguments = [
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--backend",
        backend,
    ];
    let input = Input::Pipe("echo $((6 * 7)) is the answer; poweroff -f\n");

    let ended = Umbra::run(&arguments, input, LIMIT);

    assert_eq!(ended.status, Some(0), "{ended}");
    assert!(ended.stdout.contains("42 is the answer"), "{ended}");
}

on_each_stock_backend! {
    linux_6_1_boots_with_one_processor_and_powers_off,
    linux_6_1_boots_with_two_processors_and_powers_off,
    linux_6_12_boots_with_one_processor_and_powers_off,
    linux_6_12_boots_with_two_processors_and_powers_off,
    linux_686_without_pae_boots_with_one_processor_and_powers_off,
    linux_686_without_pae_boots_with_two_processors_and_powers_off,
    linux_686_with_pae_boots_with_one_processor_and_powers_off,
    linux_686_with_pae_boots_with_two_processors_and_powers_off,
    a_32_bit_kernel_without_pae_runs_32_bit_programs,
    a_32_bit_kernel_with_pae_runs_32_bit_programs,
    a_64_bit_kernel_runs_32_bit_programs,
    commands_from_a_pipe_reach_the_guests_shell,
}
