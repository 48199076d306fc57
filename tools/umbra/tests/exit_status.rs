//! The command from outside: exit status, one line for bad input, the console through pipes.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Runs the command with `input` on its standard input.
fn umbra(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that has refused its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Writes a multiboot image that executes `code` in 32-bit protected mode.
fn guest(dir: &TempDir, code: &[u8]) -> PathBuf {
    let (magic, flags, load) = (0x1bad_b002u32, 1u32 << 16, 0x10_0000u32);
    let (entry, end) = (load + 0x40, load + 0x40 + code.len() as u32);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, load, load, end, end, entry];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(0x40, 0);
    bytes.extend(code);
    let path = dir.path().join("guest");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// `mov al, value; mov dx, port; out dx, al; jmp $`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee, 0xeb, 0xfe]
}

fn run(kernel: &Path, more: &[&str], input: &[u8]) -> Output {
    let mut arguments = vec![
        "run",
        // The other one says why it was not taken.
        "--backend",
        "soft",
        "--memory",
        "16M",
        "--kernel",
        kernel.to_str().unwrap(),
    ];
    arguments.extend(more);
    umbra(&arguments, input)
}

#[test]
fn the_status_says_how_the_guest_ended() {
    let dir = tempfile::tempdir().unwrap();
    let table = [
        (out(0x600, 0x34), 0),
        (out(0x602, 1), 3),
        (out(0x64, 0xfe), 3),
    ];
    for (code, status) in table {
        let output = run(&guest(&dir, &code), &[], b"");
        assert_eq!(
            (output.status.code(), output.stderr.len()),
            (Some(status), 0),
            "{output:?}"
        );
    }
}

#[test]
fn a_machine_that_is_printed_is_not_built_and_runs_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = guest(&dir, &out(0xf4, 0x10));
    let printed = run(Path::new("/no/such/kernel"), &["--print-config"], b"");
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    let printed = run(&kernel, &["--debug-exit", "--print-config"], b"");
    let config = dir.path().join("config");
    std::fs::write(&config, printed.stdout).unwrap();
    let output = umbra(&["run", "--config", config.to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(33), "{output:?}");
}

#[test]
fn a_guest_that_resets_begins_again_if_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    // Says `v`, and resets.
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'v', 0xee];
    code.extend(out(0x64, 0xfe));
    let kernel = guest(&dir, &code);
    let mut child = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args([
            "run",
            "--backend",
            "soft",
            "--memory",
            "16M",
            "--on-reset",
            "restart",
            "--kernel",
        ])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    assert_eq!(&said, b"vvv");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

/// Which of the two this host has depends on the host: nothing is said, or why not, once.
#[test]
fn what_is_not_used_is_told_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = guest(&dir, &out(0x600, 0x34));
    let arguments = [
        "run",
        "--memory",
        "16M",
        "--kernel",
        kernel.to_str().unwrap(),
    ];
    let output = umbra(&arguments, b"");
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.lines().count() <= 1, "{told}");
    let mut sentences: Vec<&str> = told.split(": ").map(str::trim).collect();
    let count = sentences.len();
    sentences.sort_unstable();
    sentences.dedup();
    assert_eq!(sentences.len(), count, "{told}");
}

#[test]
fn piped_input_reaches_the_guest_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    // Echoes what it reads; powers off at a full stop.
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0x3c, b'.', 0x75, 0xed,
    ];
    code.extend(out(0x600, 0x34));
    let mut input: Vec<u8> = (0..20_000u32)
        .map(|n| n as u8)
        .filter(|byte| *byte != b'.')
        .collect();
    input.push(b'.');
    let output = run(&guest(&dir, &code), &["--stats"], &input);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        output.stdout, input,
        "also Ctrl-A x: a pipe has no escape key"
    );
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("instructions")
    );
}

#[test]
fn what_code_stands_for_is_listed_where_perf_looks() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = guest(&dir, &out(0x600, 0x34));
    let child = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args(["run", "--backend", "soft", "--memory", "16M", "--perf-map"])
        .arg("--kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let map = PathBuf::from(format!("/tmp/perf-{}.map", child.id()));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    std::fs::remove_file(map).expect("the list");
}

#[test]
fn a_log_that_cannot_be_wanted_is_refused_in_one_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args(["run", "--kernel", "none"])
        .env("UMBRA_LOG", "umbra_vmm=loud")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (output.status.code(), told.lines().count()),
        (Some(2), 1),
        "{told}"
    );
    assert!(told.contains("umbra_vmm=loud"), "{told}");
}

#[test]
fn help_tells_every_status() {
    let output = umbra(&["run", "--help"], b"");
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    for status in ["  0 ", "  1 ", "  2 ", "  3 ", "  4 ", "  5 ", "  128+N "] {
        assert!(help.contains(status), "{status:?} in {help}");
    }
    assert!(
        !help.contains("--tag-bits"),
        "debugging switches are hidden"
    );
}

#[test]
fn with_an_exit_port_odd_statuses_are_the_guests() {
    let dir = tempfile::tempdir().unwrap();
    let table = [
        (out(0xf4, 0), &["--debug-exit"][..], 1),
        (out(0xf4, 0x10), &["--debug-exit", "0xf4"], 33),
        (out(0xf4, 1), &["--test-device"], 3),
        (out(0x600, 0x34), &["--debug-exit"], 0),
        (out(0x602, 1), &["--debug-exit"], 8),
        (out(0x602, 1), &["--fw-cfg"], 3),
    ];
    for (code, more, status) in table {
        let output = run(&guest(&dir, &code), more, b"");
        assert_eq!(output.status.code(), Some(status), "{more:?} {output:?}");
    }
}
