//! Runs the fuzz targets: `fuzz/`, a workspace of its own, built with the compiler's coverage
//! counters for libFuzzer, with debug assertions and overflow checks.
//!
//! Everything is kept in the target folder: `fuzz/corpus/TARGET` grows from run to run,
//! `fuzz/findings/TARGET` holds inputs that failed. Findings that are there already are played
//! again first.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use crate::places;

/// The targets, and the length of their longest inputs.
const TARGETS: &[(&str, u32)] = &[
    ("mmu", 4096),
    ("cpu", 1024),
    ("boot", 4096),
    ("virtio", 1024),
    ("block", 1024),
    ("vsock", 1024),
    ("balloon", 1024),
    ("console", 1024),
    ("pmem", 1024),
    ("net", 1024),
    ("pci", 1024),
    ("mem", 1024),
    ("vhost", 1024),
    ("backend", 1024),
    ("api", 4096),
    ("config", 4096),
    ("mmds", 2048),
];

/// How long each target runs if nothing else is said.
const SECONDS: u32 = 10;
/// An input that takes longer has failed.
const PATIENCE: u32 = 20;
/// A target that takes more memory has failed.
const MEMORY_MIB: u32 = 2048;

/// The triple is named, so that flags do not reach build scripts and macros.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer wants of the compiler: counters of edges, where they are, and what is compared.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// `[TARGET] [--seconds N]`.
pub fn run(arguments: &[&str]) -> Result<()> {
    let (name, seconds) = parse(arguments)?;
    let chosen = |(target, _): &&(&str, u32)| name.is_none_or(|name| name == *target);
    let targets: Vec<_> = TARGETS.iter().filter(chosen).copied().collect();
    if targets.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!("no such fuzz target; there are {}", names.join(", "));
    }
    let folder = places::target()?.join("fuzz");
    let programs = build(&folder)?;
    let failed = play_all(&folder, &programs, &targets, seconds);
    if !failed.is_empty() {
        bail!("findings in {}", failed.join(", "));
    }
    Ok(())
}

/// Tells whether the targets can be built here: libFuzzer is C++.
pub fn has_compiler() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let version = Command::new(compiler).arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

fn parse<'a>(arguments: &[&'a str]) -> Result<(Option<&'a str>, u32)> {
    let seconds = |text: &str| {
        text.parse()
            .ok()
            .filter(|seconds| *seconds > 0)
            .with_context(|| format!("{text:?} is no number of seconds"))
    };
    Ok(match *arguments {
        [] => (None, SECONDS),
        ["--seconds", n] => (None, seconds(n)?),
        [name] => (Some(name), SECONDS),
        [name, "--seconds", n] | ["--seconds", n, name] => (Some(name), seconds(n)?),
        _ => bail!("usage: cargo xtask fuzz [TARGET] [--seconds N]"),
    })
}

/// Builds all targets; returns the folder of the programs.
fn build(folder: &Path) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = folder.join("build");
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--target", TRIPLE, "--manifest-path"])
        .arg(places::root().join("fuzz/Cargo.toml"))
        .env("CARGO_TARGET_DIR", &output)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cannot run cargo build")?;
    if !status.success() {
        bail!("the fuzz targets do not build ({status}); a C++ compiler is needed (g++)");
    }
    Ok(output.join(TRIPLE).join("release"))
}

/// Plays targets, as many at a time as the host has processors; returns the names of those that failed.
fn play_all<'a>(
    folder: &Path,
    programs: &Path,
    targets: &[(&'a str, u32)],
    seconds: u32,
) -> Vec<&'a str> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let player = || {
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = play(folder, programs, *target, seconds) {
                eprintln!("{}: {error:#}", target.0);
                failed.lock().expect("no player panics").push(target.0);
            }
        }
    };
    let players = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..players.min(targets.len()) {
            scope.spawn(player);
        }
    });
    failed.into_inner().expect("no player panics")
}

/// Plays old findings again, then looks for new ones.
fn play(folder: &Path, programs: &Path, (name, max_len): (&str, u32), seconds: u32) -> Result<()> {
    let make = |kind: &str| -> Result<PathBuf> {
        let path = folder.join(kind).join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    };
    let (corpus, seeds, findings) = (make("corpus")?, make("seeds")?, make("findings")?);
    let program = programs.join(name);
    let limits = [
        format!("-timeout={PATIENCE}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
    ];
    let old = files(&findings)?;
    let log = folder.join(format!("{name}.log"));
    if !old.is_empty() {
        let mut replay = Command::new(&program);
        replay.args(&limits).args(&old);
        if !logged(replay, &log)? {
            return Err(failure(&log, &program, &old));
        }
    }
    let mut fuzz = Command::new(&program);
    fuzz.args(&limits)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={max_len}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        // Long inputs from the beginning: ten seconds are short.
        .arg("-len_control=0")
        .args([&corpus, &seeds])
        .env("UMBRA_FUZZ_SEEDS", &seeds);
    let good = logged(fuzz, &log)?;
    let new: Vec<_> = files(&findings)?;
    let new: Vec<_> = new.into_iter().filter(|path| !old.contains(path)).collect();
    if !good {
        return Err(failure(&log, &program, &new));
    }
    let text = read(&log);
    let runs = text.lines().rev().find(|line| line.starts_with("Done "));
    println!(
        "fuzz {name}: {}, {} inputs kept, no finding",
        runs.unwrap_or("no summary").to_lowercase(),
        files(&corpus)?.len()
    );
    Ok(())
}

/// Runs a command with its output in a file; tells whether it succeeded.
fn logged(mut command: Command, log: &Path) -> Result<bool> {
    let file =
        std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .env("RUST_BACKTRACE", "1")
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(status.success())
}

/// Says what failed, with which input, and how to see it again.
fn failure(log: &Path, program: &Path, inputs: &[PathBuf]) -> anyhow::Error {
    let text = read(log);
    let lines: Vec<_> = text.lines().collect();
    let telling = |line: &str| line.contains("panicked at") || line.contains("ERROR: libFuzzer");
    let reason = match lines.iter().position(|line| telling(line)) {
        Some(at) => lines[at..lines.len().min(at + 3)].join("\n  "),
        None => lines.last().copied().unwrap_or("it said nothing").into(),
    };
    let commands = inputs
        .iter()
        .map(|input| format!("\n  replay: {} {}", program.display(), input.display()));
    let commands: String = commands.collect();
    anyhow::anyhow!("{reason}\n  log: {}{commands}", log.display())
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
