//! Breaks the rules on purpose, one after the other, and sees who notices.
//!
//! The list is `mutations.toml` beside this crate. Work is done in a copy of the tree with a target
//! folder of its own; nothing of the tree is touched.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::places::root;

/// A broken rule may well make a test wait for ever.
const PATIENCE: Duration = Duration::from_secs(180);

/// Tests that are programs of their own, by the word that `tests` begins with, and their packages.
const PROGRAMS: [(&str, &str); 9] = [
    ("attention", "umbra-cpu-soft"),
    ("crossing", "umbra-cpu-soft"),
    ("guests", "umbra-cpu-soft"),
    ("loops", "umbra-cpu-soft"),
    ("machine", "umbra"),
    ("places", "umbra-cpu-soft"),
    ("recent", "umbra-cpu-soft"),
    ("translated", "umbra-cpu-soft"),
    ("transfers", "umbra-cpu-soft"),
];

/// A rule, and how it is broken.
#[derive(Debug, Deserialize)]
struct Mutation {
    rule: String,
    broken: String,
    file: PathBuf,
    find: String,
    replace: String,
    tests: String,
}

#[derive(Deserialize)]
struct List {
    mutation: Vec<Mutation>,
}

/// What became of a broken tree.
enum Verdict {
    DoesNotCompile,
    Noticed(Vec<String>),
    Hangs,
    Unnoticed,
}

fn list() -> Result<Vec<Mutation>> {
    let path = root().join("tools/xtask/mutations.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let list: List = toml::from_str(&text).context("mutations.toml")?;
    Ok(list.mutation)
}

impl Mutation {
    fn apply(&self, root: &Path) -> Result<String> {
        let path = root.join(&self.file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        match text.matches(&*self.find).count() {
            1 => Ok(text.replacen(&*self.find, &self.replace, 1)),
            n => bail!(
                "{}, {:?}: {:?} is there {n} times",
                self.rule,
                self.broken,
                &self.find
            ),
        }
    }

    fn command(&self, root: &Path) -> Command {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut command = Command::new(cargo);
        let first = self.tests.split_whitespace().next().unwrap_or_default();
        let of_its_own = PROGRAMS.iter().find(|(program, _)| *program == first);
        command.current_dir(root).arg("test");
        match of_its_own {
            Some((program, _)) => command.args(["--test", program]),
            None => command.arg("--lib"),
        };
        // Built once more for each of their mutations, and run for a moment.
        for package in ["umbra-mmu", "umbra-cpu-soft"] {
            let setting = format!("profile.dev.package.{package}.opt-level=1");
            command.args(["--config", &setting]);
        }
        command.env("RUST_BACKTRACE", "0");
        let mut words = self.tests.split_whitespace();
        let mut package = words.next().unwrap_or_default();
        if package == "loom" {
            package = words.next().unwrap_or_default();
            command.env("RUSTFLAGS", "--cfg umbra_loom -A warnings");
            command.env("CARGO_TARGET_DIR", root.join("target/loom"));
            command.args(["--package", package, "--", "models::"]);
        } else {
            command.env("RUSTFLAGS", "-A warnings");
            command.env("CARGO_TARGET_DIR", root.join("target"));
            let package = of_its_own.map_or(package, |(_, package)| package);
            command.args(["--package", package, "--"]);
        }
        command.args(words);
        command
    }

    fn run(&self, root: &Path) -> Result<Verdict> {
        let output = root.join("output");
        let file = std::fs::File::create(&output)?;
        let mut command = self.command(root);
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let (ended, _) = wait(command, PATIENCE)?;
        let text = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
        let failed = |line: &str| {
            line.strip_prefix("test ")?
                .strip_suffix(" ... FAILED")
                .map(str::to_owned)
        };
        Ok(match ended {
            None => Verdict::Hangs,
            Some(true) => Verdict::Unnoticed,
            Some(false) if text.contains("error: could not compile") => Verdict::DoesNotCompile,
            Some(false) => Verdict::Noticed(text.lines().filter_map(failed).collect()),
        })
    }
}

/// Runs a command; `None` if it had to be ended.
fn wait(mut command: Command, patience: Duration) -> Result<(Option<bool>, Duration)> {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((Some(status.success()), start.elapsed()));
        }
        if start.elapsed() > patience {
            // The group: cargo's child is the one that hangs.
            let group = format!("-{}", child.id());
            Command::new("kill")
                .args(["-KILL", "--", &group])
                .status()?;
            child.wait()?;
            return Ok((None, start.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Checks that the list still fits the tree.
pub fn check(wrong: &mut Vec<String>) -> Result<()> {
    for mutation in list()? {
        if let Err(error) = mutation.apply(&root()) {
            wrong.push(format!("mutations.toml: {error:#}"));
        }
    }
    Ok(())
}

/// Breaks all rules, or those named.
pub fn run(rules: &[&str]) -> Result<()> {
    let copy = tempfile::tempdir().context("cannot make a folder")?;
    let list: Vec<_> = list()?
        .into_iter()
        .filter(|m| rules.is_empty() || rules.contains(&m.rule.as_str()))
        .collect();
    if list.is_empty() {
        bail!("no mutation of {}", rules.join(", "));
    }
    copy_tree(copy.path())?;
    warm_up(copy.path(), &list)?;
    let mut unnoticed = 0;
    println!("| rule | broken by | noticed by |\n|---|---|---|");
    for mutation in &list {
        let path = copy.path().join(&mutation.file);
        let whole = std::fs::read_to_string(&path)?;
        std::fs::write(&path, mutation.apply(copy.path())?)?;
        let verdict = mutation.run(copy.path())?;
        std::fs::write(&path, whole)?;
        unnoticed += u32::from(matches!(verdict, Verdict::Unnoticed));
        println!(
            "| {} | {} | {} |",
            mutation.rule,
            mutation.broken,
            describe(&verdict)
        );
    }
    println!(
        "mutations: {} passed, {unnoticed} failed",
        list.len() as u32 - unnoticed
    );
    if unnoticed > 0 {
        bail!("{unnoticed} broken rules were not noticed");
    }
    Ok(())
}

fn describe(verdict: &Verdict) -> String {
    match verdict {
        Verdict::DoesNotCompile => "does not compile".into(),
        Verdict::Hangs => format!("does not end within {} s", PATIENCE.as_secs()),
        Verdict::Unnoticed => "**nobody**".into(),
        Verdict::Noticed(tests) => {
            let short = |name: &String| {
                let name = name.trim_end_matches(" - should panic");
                format!("`{}`", name.rsplit("::").next().unwrap_or(name))
            };
            let shown: Vec<_> = tests.iter().take(3).map(short).collect();
            let more = tests.len().saturating_sub(3);
            let names = match shown.is_empty() {
                true => "the run ends badly".into(),
                false => shown.join(", "),
            };
            if more > 0 {
                format!("{names}, and {more} more")
            } else {
                names
            }
        }
    }
}

/// Copies what is tracked or would be.
fn copy_tree(to: &Path) -> Result<()> {
    let listed = Command::new("git")
        .current_dir(root())
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .output()
        .context("cannot run git")?;
    for name in listed
        .stdout
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
    {
        let name = std::str::from_utf8(name)?;
        let (from, to) = (root().join(name), to.join(name));
        if from.is_file() {
            std::fs::create_dir_all(to.parent().expect("below the copy"))?;
            std::fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Builds everything once, unbroken, outside the time limit; it must pass.
fn warm_up(root: &Path, list: &[Mutation]) -> Result<()> {
    let mut done: Vec<&str> = Vec::new();
    for mutation in list {
        if done.contains(&mutation.tests.as_str()) {
            continue;
        }
        done.push(&mutation.tests);
        let output = root.join("output");
        let mut command = mutation.command(root);
        command
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&output)?)
            .stderr(Stdio::null());
        let (ended, time) = wait(command, Duration::from_secs(1200))?;
        if ended != Some(true) {
            bail!("{}: the tests fail with nothing broken", mutation.tests);
        }
        let text = std::fs::read_to_string(&output)?;
        let ran =
            |line: &str| line.starts_with("test result: ok. ") && !line.contains(". 0 passed");
        if !text.lines().any(ran) {
            bail!("{}: that is no test at all", mutation.tests);
        }
        eprintln!(
            "{}: passes unbroken ({:.0} s)",
            mutation.tests,
            time.as_secs_f64()
        );
    }
    Ok(())
}
