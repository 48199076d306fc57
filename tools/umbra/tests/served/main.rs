//! `umbra serve` and `umbra firecracker` from outside: what is printed, how they end, what they leave.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

mod ctl;
mod top;

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// `cli; hlt`, for ever.
const HALT: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
/// `mov al, 0xfe; out 0x64, al; jmp $`: what `reboot=k` does.
const REBOOT: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// `push 0; push 0; lidt [esp]; int3`: a triple fault.
const CRASH: &[u8] = &[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0xcc];
/// `mov dx, 0x3f8; mov al, 'v'; out dx, al`.
const SAY: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'v', 0xee];

/// A folder with a kernel of some instructions, and `umbra` under the name of Firecracker.
struct Place(TempDir);

impl Place {
    fn new(code: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let (magic, flags, load) = (0x1bad_b002u32, 1u32 << 16, 0x10_0000u32);
        let (entry, end) = (load + 0x40, load + 0x40 + code.len() as u32);
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let header = [magic, flags, checksum, load, load, end, end + 0x1000, entry];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(0x40, 0);
        bytes.extend(code);
        std::fs::write(place.path("kernel"), bytes).unwrap();
        symlink(env!("CARGO_BIN_EXE_umbra"), place.path("firecracker")).unwrap();
        let config = format!(
            r#"{{"boot-source": {{"kernel_image_path": "{}"}}, "machine-config": {{"vcpu_count": 1, "mem_size_mib": 16}}}}"#,
            place.text("kernel")
        );
        std::fs::write(place.path("config"), config).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("firecracker"));
        command
            .args(arguments)
            .env("UMBRA_BACKEND", "soft")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts it with a socket, and waits until that is there.
    fn start(&self, more: &[&str]) -> Child {
        let socket = self.text("api.sock");
        let mut command = self.command(&[&["--api-sock", &socket], more].concat());
        self.wait_for_socket(command.spawn().unwrap())
    }

    /// The same of `umbra serve`.
    fn serve(&self) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command
            .args(["serve", "--api-sock", &self.text("api.sock")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Served(Some(self.wait_for_socket(command.spawn().unwrap())))
    }

    fn wait_for_socket(&self, child: Child) -> Child {
        let socket = self.path("api.sock");
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }
}

/// A server that does not outlive its test.
struct Served(Option<Child>);

impl Served {
    fn into_child(mut self) -> Child {
        self.0.take().unwrap()
    }

    fn wait(self) -> ExitStatus {
        self.into_child().wait().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ask(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn end_by(mut child: Child, signal: Signal) -> ExitStatus {
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap()
}

#[test]
fn clients_know_the_version_by_its_first_word() {
    let place = Place::new(HALT);
    let output = place.run(&["--version"]);
    assert!(output.status.success());
    assert!(
        output.stdout.starts_with(b"Firecracker v1.17."),
        "{output:?}"
    );
}

#[test]
fn exit_codes_are_firecrackers() {
    for (arguments, code) in [
        (&["--nonsense"][..], 153),
        (&["--no-api"], 153),
        (&["--id", "a_b"], 153),
        (
            &["--level", "Loud", "--no-api", "--config-file", "config"],
            152,
        ),
        (&["--seccomp-filter", "f"], 1),
        (&["--no-api", "--config-file", "/no/such/file"], 1),
        (&["--api-sock", "/no/such/folder/api.sock"], 1),
    ] {
        let output = Place::new(HALT).run(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    for code in [REBOOT, CRASH] {
        let place = Place::new(&[SAY, code].concat());
        let output = place.run(&["--no-api", "--config-file", &place.text("config")]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        // The guest's console, among the log.
        assert!(
            stdout.contains('v') && stdout.contains("Running Firecracker v"),
            "{stdout}"
        );
        assert!(stdout.contains("exit_code=0"), "{stdout}");
    }
}

#[test]
fn signals_end_it_as_they_end_firecracker_and_nothing_is_left() {
    for (signal, code, by) in [
        (Signal::TERM, None, Some(15)),
        (Signal::INT, None, Some(2)),
        (Signal::HUP, Some(156), None),
    ] {
        for more in [&[][..], &["--config-file"]] {
            let place = Place::new(HALT);
            let config = place.text("config");
            let more: Vec<_> = more
                .iter()
                .copied()
                .flat_map(|word| [word, &config])
                .collect();
            let child = place.start(&more);
            let status = end_by(child, signal);
            assert_eq!((status.code(), status.signal()), (code, by), "{signal:?}");
            assert!(!place.path("api.sock").exists());
        }
    }
}

#[test]
fn a_machine_of_a_file_is_there_when_the_first_client_comes() {
    let place = Place::new(HALT);
    let log = place.text("log");
    let metadata = place.text("metadata");
    std::fs::write(&metadata, r#"{"a": 1}"#).unwrap();
    let arguments = [
        "--config-file",
        &place.text("config"),
        "--log-path",
        &log,
        "--metadata",
        &metadata,
    ];
    let child = place.start(&arguments);
    let socket = place.path("api.sock");
    let get = |path: &str| {
        ask(
            &socket,
            &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n"),
        )
    };
    let started = Instant::now();
    while !get("/").contains(r#""state":"Running""#) {
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    assert!(get("/mmds").ends_with(r#"{"a":1}"#));
    assert!(get("/vm/config").contains(r#""mem_size_mib":16"#));
    // Somebody else does not get the socket.
    let other = place.run(&["--api-sock", &place.text("api.sock")]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert!(
        String::from_utf8_lossy(&other.stderr).contains("another process serves"),
        "{other:?}"
    );
    end_by(child, Signal::TERM);
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text.contains("[anonymous-instance:"), "{text}");
}

#[test]
fn a_configuration_has_either_form() {
    let place = Place::new(&[SAY, REBOOT].concat());
    let umbra = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let kernel = place.text("kernel");
    let machine = ["--kernel", &kernel, "--backend", "soft", "--memory", "16M"];
    let printed = umbra(&[&["run", "--print-config"], &machine[..]].concat());
    std::fs::write(place.path("spec"), printed.stdout).unwrap();
    let bad = format!(r#"{{"kernel": "{kernel}", "cpus": 0}}"#);
    std::fs::write(place.path("bad"), bad).unwrap();
    for (file, status, said) in [
        ("spec", 3, "v"),
        ("config", 3, "v"),
        ("bad", 2, "1 to 255 processors"),
        ("kernel", 2, "cannot read"),
    ] {
        let path = place.text(file);
        let output = umbra(&["serve", "--backend", "soft", "--no-api", "--config", &path]);
        assert_eq!(output.status.code(), Some(status), "{file}: {output:?}");
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8_lossy(&all).into_owned();
        assert!(all.contains(said), "{file}: {all}");
    }
}

#[test]
fn serve_ends_with_the_statuses_of_run() {
    for (code, status) in [(REBOOT, 3), (CRASH, 4)] {
        let place = Place::new(code);
        let output = Command::new(env!("CARGO_BIN_EXE_umbra"))
            .args([
                "serve",
                "--backend",
                "soft",
                "--no-api",
                "--config",
                &place.text("config"),
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
    }
}
