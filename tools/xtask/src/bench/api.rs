//! What an API server costs before anybody has a machine: CPU time from the start of the process to its first answer,
//! the OpenAPI document when it is first asked for, and resident memory.
//!
//! There is no rival to run beside: Firecracker is no part of this. The floor is: an empty program of the same compiler,
//! and this one saying what it can (`umbra run --help`), measured in turns with it.
//!
//! CPU time is the scheduler's, in nanoseconds, of all threads (`/proc/PID/task/*/schedstat`), user and system, from the
//! fork on. It is read a moment after the answer, when the server sleeps again: a thread that runs is counted only up to
//! its last tick, so what the server does after the answer is counted in.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{median, release_build};

/// Runs of each kind; they take turns, and the median counts.
const ROUNDS: usize = 50;
/// What the issue promises, in milliseconds of CPU time.
const TARGET_MS: f64 = 3.0;
/// A server that has not answered by then never does.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a server that has answered needs to fall asleep.
const REST: Duration = Duration::from_millis(5);

/// What is asked first, and what it is called.
const QUESTIONS: [(&str, &str); 2] = [("GET /", "/"), ("GET /v1/vm", "/v1/vm")];
const OPENAPI: &str = "/v1/openapi.json";

/// Runs the benchmark.
pub fn run() -> Result<()> {
    let umbra = release_build()?;
    let folder = tempfile::tempdir()?;
    let empty = empty_program(folder.path())?;
    let socket = folder.path().join("api.sock");
    let mut first = QUESTIONS.map(|_| Vec::new());
    let (mut nothing, mut help) = (Vec::new(), Vec::new());
    let (mut openapi, mut again) = (Vec::new(), Vec::new());
    let mut resident = Vec::new();
    for _ in 0..ROUNDS {
        for ((_, path), times) in QUESTIONS.iter().zip(&mut first) {
            let mut server = Server::start(&umbra, &socket)?;
            server.ask(path)?;
            times.push(server.cpu_time()?);
            resident.push(server.resident()?);
            openapi.push(server.costs(OPENAPI)?);
            again.push(server.costs(OPENAPI)?);
        }
        nothing.push(whole(&mut Command::new(&empty))?);
        help.push(whole(Command::new(&umbra).args(["run", "--help"]))?);
    }
    println!("CPU time, median of {ROUNDS} runs each:");
    let mut values = serde_json::Map::new();
    let mut tell = |name: &str, unit: &str, value: f64| {
        println!("  {name}: {value:.2} {unit}");
        values.insert(
            format!("{name}, {unit}"),
            json!((value * 100.0).round() / 100.0),
        );
    };
    tell("an empty Rust program", "ms", ms(&mut nothing));
    tell("umbra run --help", "ms", ms(&mut help));
    let mut targets = serde_json::Map::new();
    let mut met = true;
    for ((name, _), times) in QUESTIONS.iter().zip(&mut first) {
        let (name, time) = (format!("start to the answer of {name}"), ms(times));
        tell(&name, "ms", time);
        targets.insert(format!("{name}, ms"), json!(format!("<={TARGET_MS:.1}")));
        met &= time <= TARGET_MS;
    }
    tell("the OpenAPI document, first asked", "ms", ms(&mut openapi));
    tell("the OpenAPI document, asked again", "ms", ms(&mut again));
    resident.sort_by(f64::total_cmp);
    tell(
        "resident memory of an idle server",
        "MiB",
        resident[resident.len() / 2],
    );
    println!(
        "{}",
        json!({"bench": "api", "ratios": values, "targets": targets, "met": met})
    );
    Ok(())
}

/// Builds a program that does nothing.
fn empty_program(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("empty.rs"), folder.join("empty"));
    std::fs::write(&source, "fn main() {}\n")?;
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let status = Command::new(compiler)
        .args(["-O", "-o"])
        .args([&program, &source])
        .status()
        .context("cannot run rustc")?;
    if !status.success() {
        bail!("rustc failed ({status})");
    }
    Ok(program)
}

fn ms(times: &mut [Duration]) -> f64 {
    median(times).as_secs_f64() * 1000.0
}

/// Returns the CPU time of a program from its start to its end. One that has ended is still there until it is waited
/// for.
fn whole(command: &mut Command) -> Result<Duration> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = Running(child.with_context(|| format!("cannot run {command:?}"))?);
    let stat = format!("/proc/{}/stat", child.0.id());
    let begin = Instant::now();
    while !std::fs::read_to_string(&stat)?.contains(") Z ") {
        if begin.elapsed() > PATIENCE {
            bail!("{command:?} does not end");
        }
        thread::sleep(Duration::from_micros(200));
    }
    let time = cpu_time(child.0.id())?;
    let status = child.0.wait()?;
    match status.success() {
        true => Ok(time),
        false => bail!("{command:?} failed ({status})"),
    }
}

/// Returns the CPU time of all threads of a process.
fn cpu_time(process: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let path = thread?.path().join("schedstat");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: CONFIG_SCHED_INFO is needed",
                path.display()
            )
        })?;
        let time = text
            .split(' ')
            .next()
            .and_then(|first| first.parse::<u64>().ok());
        nanoseconds += time.with_context(|| format!("{} says {text:?}", path.display()))?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// A process that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An API server, and a connection to it once somebody has asked.
struct Server<'a> {
    process: Running,
    socket: &'a Path,
    connection: Option<UnixStream>,
}

impl<'a> Server<'a> {
    fn start(umbra: &Path, socket: &'a Path) -> Result<Self> {
        // The one before was killed, and has left it.
        let _ = std::fs::remove_file(socket);
        let process = Command::new(umbra)
            .args(["serve", "--api-sock"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run umbra serve")?;
        Ok(Self {
            process: Running(process),
            socket,
            connection: None,
        })
    }

    fn connect(&mut self) -> Result<&mut UnixStream> {
        let begin = Instant::now();
        while self.connection.is_none() {
            match UnixStream::connect(self.socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    self.connection = Some(stream);
                }
                Err(error) if begin.elapsed() > PATIENCE => {
                    return Err(error).context("nobody serves");
                }
                Err(_) => thread::sleep(Duration::from_micros(200)),
            }
        }
        self.connection.as_mut().context("it is there now")
    }

    /// Asks for something, and takes the answer.
    fn ask(&mut self, path: &str) -> Result<()> {
        let stream = self.connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut all = Vec::new();
        let mut piece = [0; 65536];
        loop {
            let len = stream.read(&mut piece).context("no answer")?;
            all.extend_from_slice(&piece[..len]);
            if len == 0 || is_whole(&all) {
                break;
            }
        }
        match all.starts_with(b"HTTP/1.1 200 ") && is_whole(&all) {
            true => Ok(()),
            false => bail!("GET {path}: {}", String::from_utf8_lossy(&all)),
        }
    }

    fn cpu_time(&self) -> Result<Duration> {
        thread::sleep(REST);
        cpu_time(self.process.0.id())
    }

    /// Returns the CPU time that a question takes.
    fn costs(&mut self, path: &str) -> Result<Duration> {
        let before = self.cpu_time()?;
        self.ask(path)?;
        Ok(self.cpu_time()?.saturating_sub(before))
    }

    /// Returns what is resident, in MiB.
    fn resident(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
        Ok(kib.context("/proc says nothing of VmRSS")? / 1024.0)
    }
}

/// Tells whether these bytes are a whole answer.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse::<usize>().ok())?
    });
    lengths
        .next_back()
        .is_none_or(|length| body.len() >= length)
}
