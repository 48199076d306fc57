//! Runs the `umbra` command in a place of its own, and watches what it leaves there.

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use tempfile::TempDir;

/// What the command's standard input is.
pub enum Input<'a> {
    /// Not open at all.
    Closed,
    /// At its end from the beginning.
    Empty,
    /// A pipe that holds this and then ends.
    Pipe(&'a str),
    /// A terminal.
    Terminal(OwnedFd),
}

/// The command, in an empty working directory and with an empty directory for temporary files.
pub struct Umbra {
    command: Command,
    place: TempDir,
}

/// How it ended.
pub struct Ended {
    /// The exit status; `None` if a signal killed it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// What it left in its working directory, among the temporary files, and running.
    pub left_behind: Vec<String>,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
            ..
        } = self;
        write!(
            f,
            "status {status:?}\n-- stdout\n{stdout}\n-- stderr\n{stderr}"
        )
    }
}

/// The command while it runs; killed when dropped.
pub struct Running {
    child: Child,
    arguments: String,
    output: Option<[Output; 2]>,
    place: TempDir,
}

impl Umbra {
    /// `umbra` with `arguments`, standard input as given.
    pub fn new(arguments: &[&str], input: &Input<'_>) -> Self {
        let place = tempfile::tempdir().unwrap();
        for directory in ["cwd", "tmp"] {
            std::fs::create_dir(place.path().join(directory)).unwrap();
        }
        let program = env!("CARGO_BIN_EXE_umbra");
        let mut command = if matches!(input, Input::Closed) {
            let mut shell = Command::new("sh");
            shell.args(["-c", "exec \"$0\" \"$@\" <&-", program]);
            shell
        } else {
            Command::new(program)
        };
        command
            .args(arguments)
            .current_dir(place.path().join("cwd"))
            .env("TMPDIR", place.path().join("tmp"))
            .stdin(match input {
                Input::Closed | Input::Empty => Stdio::null(),
                Input::Pipe(_) => Stdio::piped(),
                Input::Terminal(slave) => slave.try_clone().unwrap().into(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Self { command, place }
    }

    /// Lets another user run it, for which this one has to be root.
    pub fn run_by(mut self, user: u32) -> Self {
        self.command.uid(user);
        self
    }

    /// Runs a kernel to its end, which has to come within `limit`.
    pub fn run(arguments: &[&str], input: Input<'_>, limit: Duration) -> Ended {
        let mut running = Self::new(&[&["run"], arguments].concat(), &input).start();
        if let Input::Pipe(text) = input {
            // Whoever does not read to the end need not.
            let _ = running
                .child
                .stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes());
        }
        running.finish(limit)
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap();
        let output = Some([
            Output::read(child.stdout.take().unwrap()),
            Output::read(child.stderr.take().unwrap()),
        ]);
        Running {
            child,
            arguments: format!("{:?}", self.command),
            output,
            place: self.place,
        }
    }
}

/// What came out of a pipe so far, and the thread that reads on.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Output {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let bytes = Arc::default();
        let theirs: Arc<Mutex<Vec<u8>>> = Arc::clone(&bytes);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer).unwrap() {
                    0 => return,
                    len => theirs.lock().unwrap().extend(&buffer[..len]),
                }
            }
        });
        Self { bytes, thread }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Waits for the end of the pipe.
    fn finish(self) -> String {
        let Self { bytes, thread } = self;
        thread.join().unwrap();
        String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned()
    }
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has printed `text`; not to come within `limit` is a failure.
    pub fn wait_for(&self, text: &str, limit: Duration) {
        let [stdout, _] = self.output.as_ref().unwrap();
        self.wait_until(text, limit, || stdout.so_far().contains(text).then_some(()));
    }

    /// What it has printed, for whoever reads about a failure.
    pub fn so_far(&self) -> String {
        let [stdout, stderr] = self.output.as_ref().unwrap();
        format!("{}\n-- stderr\n{}", stdout.so_far(), stderr.so_far())
    }

    /// Types, where its input is a pipe.
    pub fn say(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for a line of its output that begins so; returns the rest of it.
    pub fn line(&self, begin: &str, limit: Duration) -> String {
        let [stdout, _] = self.output.as_ref().unwrap();
        self.wait_until(begin, limit, || {
            let text = stdout.so_far();
            // The last line may not be whole.
            let (lines, _) = text.rsplit_once('\n')?;
            let line = lines.lines().find_map(|line| line.strip_prefix(begin))?;
            Some(line.trim().to_owned())
        })
    }

    /// Waits until it has printed `text` where errors go.
    pub fn wait_for_error(&self, text: &str, limit: Duration) {
        let [_, stderr] = self.output.as_ref().unwrap();
        self.wait_until(text, limit, || stderr.so_far().contains(text).then_some(()));
    }

    fn wait_until<T>(&self, what: &str, limit: Duration, found: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "no {what:?} after {limit:?}: {}",
                self.so_far()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end; one that does not come within `limit` is a failure.
    pub fn finish(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let mut late = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if !late && Instant::now() > deadline {
                late = true;
                kill_process_group(self.pid(), Signal::KILL).unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut left_behind = files_in(self.place.path());
        if test_kill_process_group(self.pid()) != Err(Errno::SRCH) {
            left_behind.push("a process".into());
        }
        let [stdout, stderr] = self.output.take().unwrap().map(Output::finish);
        let arguments = &self.arguments;
        let ended = Ended {
            status: status.code(),
            stdout,
            stderr,
            left_behind,
        };
        assert!(!late, "killed after {limit:?}, {arguments}: {ended}");
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn files_in(place: &Path) -> Vec<String> {
    ["cwd", "tmp"]
        .iter()
        .flat_map(|directory| std::fs::read_dir(place.join(directory)).unwrap())
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect()
}
