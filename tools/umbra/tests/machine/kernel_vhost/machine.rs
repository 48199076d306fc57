//! A machine of the command's, whose device is the kernel's.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::poll::drivers_guest;

/// Where the command and its guest are, if this is not where they were made.
pub const PROGRAMS: &str = "UMBRA_PROGRAMS";

/// Starts a machine whose bare-metal guest drives its first device so; the guest's end is the command's.
pub fn machine(device: &[&str], command: &str) -> Child {
    let (mut umbra, image) = match std::env::var_os(PROGRAMS).map(PathBuf::from) {
        Some(place) => {
            let mut loader = Command::new(place.join("ld.so"));
            loader
                .arg("--library-path")
                .arg(&place)
                .arg(place.join("umbra"));
            (loader, place.join("drivers"))
        }
        None => (Command::new(env!("CARGO_BIN_EXE_umbra")), drivers_guest()),
    };
    umbra.args([
        "run",
        "--backend",
        "soft",
        "--memory",
        "32M",
        "--debug-exit",
        "--kernel",
    ]);
    umbra.arg(image).args(["--cmdline", command]).args(device);
    umbra
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    umbra.spawn().unwrap()
}

/// Waits for its end, which is success; returns the lines that its guest printed.
pub fn lines(mut machine: Child) -> Vec<String> {
    let begin = Instant::now();
    while machine.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(20) {
            machine.kill().unwrap();
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let output = machine.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    // The exit port says 1 for a success.
    let ended = (output.status.code(), &*stderr);
    assert_eq!(ended, (Some(1), ""), "{stdout}");
    stdout.lines().map(str::to_owned).collect()
}

/// What is there for the first device of a machine.
pub const FIRST: &str = "0xfeb00000";
