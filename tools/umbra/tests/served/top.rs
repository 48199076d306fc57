//! `umbra top` through a pipe and on a terminal.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::ctl::Rig;

#[test]
fn through_a_pipe_there_is_a_table_each_interval() {
    let rig = Rig::started();
    rig.done(&["add", "r", r#"{"kind": "rng"}"#]);
    let none = rig.place.text("none");
    let arguments = [&none, "--interval", "0.1", "--iterations", "2"];
    let output = rig.command("top", &arguments, "");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        (rows("VM "), rows("umbra "), rows(&none)),
        (4, 4, 2),
        "{text}"
    );
    assert!(
        text.contains("running") && text.contains("gone") && !text.contains('\x1b'),
        "{text}"
    );
    rig.stop();
}

#[test]
fn a_terminal_is_put_back_however_it_ends() {
    let rig = Rig::started();
    for end in ["q", "\x03", "TERM"] {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let other = rustix::fs::open(&name, flags, Mode::empty()).unwrap();
        let before = format!("{:?}", rustix::termios::tcgetattr(&other).unwrap());
        let mut child = Command::new(env!("CARGO_BIN_EXE_umbra"))
            .args([
                "top",
                "--interval",
                "0.2",
                "--api-sock",
                &rig.place.text("api.sock"),
            ])
            .stdin(Stdio::from(other.try_clone().unwrap()))
            .stdout(Stdio::from(other.try_clone().unwrap()))
            .spawn()
            .unwrap();
        let mut screen = std::fs::File::from(terminal.as_fd().try_clone_to_owned().unwrap());
        let mut seen = String::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !seen.contains("running") {
            assert!(Instant::now() < deadline, "{seen:?}");
            read_more(&mut screen, &mut seen);
        }
        assert!(seen.starts_with("\x1b[?1049h"), "{seen:?}");
        match end {
            "TERM" => kill_process(Pid::from_child(&child), Signal::TERM).unwrap(),
            key => drop(rustix::io::write(&terminal, key.as_bytes()).unwrap()),
        }
        let code = child.wait().unwrap().code();
        assert_eq!(
            code,
            Some(if end == "TERM" { 128 + 15 } else { 0 }),
            "{end:?}"
        );
        read_more(&mut screen, &mut seen);
        assert!(seen.contains("\x1b[?1049l"), "{seen:?}");
        let after = format!("{:?}", rustix::termios::tcgetattr(&other).unwrap());
        assert_eq!(after, before);
    }
    rig.stop();
}

/// Reads what is there, which is something or will be.
fn read_more(screen: &mut std::fs::File, seen: &mut String) {
    let mut bytes = [0; 4096];
    let count = screen.read(&mut bytes).unwrap();
    seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
}
