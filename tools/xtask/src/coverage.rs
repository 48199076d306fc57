//! Which lines of `slots`, `mmu` and `bus` their own unit tests reach.
//!
//! Measured by cargo-tarpaulin with the compiler's own counters; the report of a whole run stays in
//! the target folder. `docs/coverage.md` says why the other lines are not reached.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::places;

/// Crates, by folder.
const CRATES: [&str; 3] = ["slots", "mmu", "bus"];
/// Percent of its lines that each must have covered.
const LEAST: f64 = 95.0;

/// Files that hold tests and nothing else.
const TESTS: [&str; 6] = [
    "tests.rs",
    "/tests/",
    "_tests.rs",
    "models.rs",
    "/hook.rs",
    "/benches/",
];

#[derive(Deserialize)]
struct Report {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    path: Vec<String>,
    traces: Vec<Trace>,
}

#[derive(Deserialize)]
struct Trace {
    line: u32,
    stats: Stats,
}

#[derive(Deserialize)]
struct Stats {
    #[serde(rename = "Line")]
    line: u64,
}

/// Lines of one file: how many could be reached, and which were not.
struct Lines {
    all: usize,
    missed: Vec<u32>,
}

/// Measures, prints a table, and fails if a crate has too little.
pub fn run() -> Result<()> {
    let folder = places::target()?.join("coverage");
    measure(&folder)?;
    let text = std::fs::read(folder.join("tarpaulin-report.json"))
        .context("cargo-tarpaulin left no report")?;
    let report: Report = serde_json::from_slice(&text).context("its report is another format")?;
    let files = sort(report);
    println!("| file | lines | covered | not covered |\n|---|---|---|---|");
    let mut poor = Vec::new();
    for name in CRATES {
        let prefix = format!("crates/{name}/src/");
        let own = files.iter().filter(|(path, _)| path.starts_with(&prefix));
        let (mut all, mut missed) = (0, 0);
        for (path, lines) in own {
            println!(
                "{}",
                row(path, lines.all, lines.missed.len(), &list(&lines.missed))
            );
            all += lines.all;
            missed += lines.missed.len();
        }
        println!("{}", row(&format!("**{name}**"), all, missed, ""));
        if percent(all, missed) < LEAST {
            poor.push(name);
        }
    }
    if !poor.is_empty() {
        bail!("less than {LEAST} % of the lines: {}", poor.join(", "));
    }
    Ok(())
}

fn measure(folder: &std::path::Path) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let present = Command::new(&cargo)
        .args(["tarpaulin", "--version"])
        .output();
    if !present.is_ok_and(|output| output.status.success()) {
        bail!("cargo-tarpaulin is not there; install it: cargo install cargo-tarpaulin");
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let log = folder.join("log");
    let output =
        std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let packages = CRATES.map(|name| format!("--package=umbra-{name}"));
    let status = Command::new(&cargo)
        .args(["tarpaulin", "--engine", "llvm", "--lib", "--out", "json"])
        .args(["--timeout", "600", "--exclude-files", "target/*"])
        .args(packages)
        .arg("--target-dir")
        .arg(folder.join("build"))
        .arg("--output-dir")
        .arg(folder)
        .stdout(output)
        .status()
        .context("cannot run cargo tarpaulin")?;
    if !status.success() {
        bail!("cargo tarpaulin failed ({status}), see {}", log.display());
    }
    Ok(())
}

/// Files by their path in the project, without those that are tests.
fn sort(report: Report) -> BTreeMap<String, Lines> {
    let root = places::root();
    let mut files = BTreeMap::new();
    for file in report.files {
        let path = file.path.join("/").replacen("//", "/", 1);
        let path = path.strip_prefix(&*root.to_string_lossy()).unwrap_or(&path);
        let path = path.trim_start_matches('/').to_owned();
        if TESTS.iter().any(|part| path.contains(part)) || file.traces.is_empty() {
            continue;
        }
        let missed = file.traces.iter().filter(|trace| trace.stats.line == 0);
        let lines = Lines {
            all: file.traces.len(),
            missed: missed.map(|trace| trace.line).collect(),
        };
        files.insert(path, lines);
    }
    files
}

fn percent(all: usize, missed: usize) -> f64 {
    match all {
        0 => 0.0,
        _ => 100.0 * (all - missed) as f64 / all as f64,
    }
}

fn row(name: &str, all: usize, missed: usize, which: &str) -> String {
    let percent = percent(all, missed);
    format!("| {name} | {all} | {percent:.1} % | {which} |")
}

/// Line numbers, those in a row as a range.
fn list(lines: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &line in lines {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == line => *last = line,
            _ => ranges.push((line, line)),
        }
    }
    let range = |&(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}–{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}
