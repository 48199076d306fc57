//! The process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The command.
pub fn umbra(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_umbra"));
    command.args(arguments);
    command
}

/// A back end that listens. Killed when it is dropped.
pub struct Back {
    child: Child,
    /// Where.
    pub path: PathBuf,
}

impl Back {
    /// Starts one, and waits until it says that it listens.
    pub fn start(dir: &TempDir, device: &[&str]) -> Self {
        Self::start_by(umbra(&["backend"]), dir, device)
    }

    /// The same by a command that ends in `umbra backend`.
    pub fn start_by(mut command: Command, dir: &TempDir, device: &[&str]) -> Self {
        let path = dir.path().join("back");
        let mut child = command
            .args(device)
            .arg("--socket")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert!(line.contains("listens at"), "{line:?}");
        Self { child, path }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it by a signal, in good order.
    pub fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
