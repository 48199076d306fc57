//! The user's terminal, on the ways out that the guest does not choose.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::backend::on_each_backend;
use crate::support::{Ended, Input, Terminal, Umbra, image};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a guest that never ends until `end` ends it; the terminal has to be as before.
fn spin(backend: &str, cpus: &str, end: impl FnOnce(&Terminal, &dyn Fn(Signal))) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &image::SPIN);
    let kernel = kernel.to_str().unwrap();
    let arguments = [
        "run",
        "--kernel",
        kernel,
        "--memory",
        "16M",
        "--cpus",
        cpus,
        "--backend",
        backend,
    ];
    let terminal = Terminal::open();
    let running = Umbra::new(&arguments, &terminal.input()).start();
    terminal.wait_until_raw();

    end(&terminal, &|signal| running.signal(signal));

    let ended = running.finish(LIMIT);
    assert!(terminal.is_unchanged());
    assert!(ended.left_behind.is_empty(), "{:?}", ended.left_behind);
    ended
}

fn a_signal_ends_the_run_and_puts_the_terminal_back(backend: &str) {
    let table = [
        (Signal::TERM, 128 + 15, "1"),
        (Signal::INT, 128 + 2, "2"),
        (Signal::HUP, 128 + 1, "1"),
        (Signal::QUIT, 128 + 3, "1"),
    ];
    for (signal, status, cpus) in table {
        let ended = spin(backend, cpus, |_, send| send(signal));
        assert_eq!(
            (ended.status, ended.stderr.as_str()),
            (Some(status), ""),
            "{signal:?}"
        );
    }
}

fn ctrl_a_x_ends_the_run_and_puts_the_terminal_back(backend: &str) {
    let ended = spin(backend, "1", |terminal, _| terminal.press(b"\x01x"));
    assert_eq!((ended.status, ended.stderr.as_str()), (Some(5), ""));
}

fn ctrl_a_h_explains_the_keys(backend: &str) {
    let ended = spin(backend, "1", |terminal, _| terminal.press(b"\x01h\x01x"));
    assert!(ended.stdout.contains("Ctrl-A x"), "{ended}");
}

fn a_guest_needs_no_standard_input(backend: &str) {
    // mov al, 'k'; mov dx, 0x3f8; out dx, al; then the same with the power-off register.
    let out = |port: u16, value: u8| {
        let [low, high] = port.to_le_bytes();
        vec![0xb0, value, 0x66, 0xba, low, high, 0xee]
    };
    let code = [
        out(0x3f8, b'k'),
        out(0x600, 1 << 5 | 5 << 2),
        image::SPIN.to_vec(),
    ]
    .concat();
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &code);
    let arguments = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--memory",
        "16M",
        "--backend",
        backend,
    ];
    for (name, input) in [("closed", Input::Closed), ("empty", Input::Empty)] {
        let ended = Umbra::run(&arguments, input, LIMIT);
        assert_eq!(
            (ended.status, ended.stdout.as_str()),
            (Some(0), "k"),
            "{name}: {ended}"
        );
    }
}

on_each_backend! {
    a_signal_ends_the_run_and_puts_the_terminal_back,
    ctrl_a_x_ends_the_run_and_puts_the_terminal_back,
    ctrl_a_h_explains_the_keys,
    a_guest_needs_no_standard_input,
}
