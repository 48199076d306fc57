//! Compares the public interface of library crates with that of an earlier commit, by cargo-semver-checks.
//!
//! It reads what rustdoc says of both, so every change that it tells of is one of types, functions and traits; what
//! a function does it cannot see. A change that could break somebody's build is allowed if the version in
//! `Cargo.toml` is another one by Cargo's rules: while it is 0.x, if x is higher. Additions are always allowed. A crate
//! that is new, or gone, is not compared.
//!
//! The commit is the newest release, a tag `v*`. As long as there is none, it is where this branch left `main`,
//! or on `main` the commit before.
//!
//! All crates take three to four minutes on two cores the first time, and seconds each after that.
//!
//! rustdoc's JSON is different with every few compilers, and a version of the tool knows some of them. The one named
//! here knows that of rustc 1.95; it is raised with the compiler.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::package::{Library, libraries};
use crate::places;

const TOOL: &str = "cargo-semver-checks";
const VERSION: &str = "0.51.0";
/// The tool's status if it has worked and found breaks.
const BROKEN: i32 = 100;

/// `[--baseline REV] [--changed]`.
pub fn run(arguments: &[&str]) -> Result<()> {
    let (baseline, changed) = match *arguments {
        [] => (None, false),
        ["--changed"] => (None, true),
        ["--baseline", rev] => (Some(rev), false),
        ["--baseline", rev, "--changed"] | ["--changed", "--baseline", rev] => (Some(rev), true),
        _ => bail!("usage: cargo xtask semver [--baseline REV] [--changed]"),
    };
    let baseline = match baseline {
        Some(rev) => Baseline::Named(commit(rev).with_context(|| format!("no commit {rev}"))?),
        None => Baseline::find()
            .context("no release, no main and no commit before: name a --baseline")?,
    };
    let libraries = match changed {
        true => changed_since(baseline.rev(), libraries()?),
        false => libraries()?,
    };
    let tool = match installed() {
        Some(tool) => tool,
        None => install()?,
    };
    match compare(&tool, baseline.rev(), &libraries)? {
        Verdict::Kept => Ok(()),
        Verdict::Broken => bail!(
            "the interface is another one than that of {}; raise the version in Cargo.toml (crates/README.md)",
            baseline.rev()
        ),
    }
}

/// What of this `cargo xtask test` does: crates that have changed, if the tool is there. Breaks fail only what
/// comes after a release.
pub fn short() -> Result<()> {
    const WHAT: &str = "SKIPPED interfaces of the crates";
    let Some(tool) = installed() else {
        println!("{WHAT}: {TOOL} {VERSION} is not there (cargo xtask semver installs it)");
        return Ok(());
    };
    let Some(baseline) = Baseline::find() else {
        println!("{WHAT}: there is no commit to compare with");
        return Ok(());
    };
    println!("== interfaces of the crates");
    let libraries = changed_since(baseline.rev(), libraries()?);
    match (compare(&tool, baseline.rev(), &libraries)?, baseline) {
        (Verdict::Kept, _) => Ok(()),
        (Verdict::Broken, Baseline::Release(tag)) => {
            bail!(
                "the interface is another one than that of {tag}; raise the version (crates/README.md)"
            )
        }
        (Verdict::Broken, _) => {
            println!("(allowed: nothing was released yet)");
            Ok(())
        }
    }
}

enum Verdict {
    Kept,
    Broken,
}

/// What is compared with.
enum Baseline {
    Release(String),
    Named(String),
}

impl Baseline {
    fn find() -> Option<Self> {
        let release = git(&["describe", "--tags", "--abbrev=0", "--match", "v[0-9]*"]);
        release
            .map(Self::Release)
            .or_else(|| parent().map(Self::Named))
    }

    fn rev(&self) -> &str {
        let (Self::Release(rev) | Self::Named(rev)) = self;
        rev
    }
}

/// Where this branch left `main`; on `main`, the commit before.
fn parent() -> Option<String> {
    let head = commit("HEAD")?;
    let left = ["main", "origin/main"]
        .iter()
        .find_map(|main| git(&["merge-base", "HEAD", main]));
    left.filter(|left| *left != head)
        .or_else(|| commit("HEAD^"))
}

fn commit(rev: &str) -> Option<String> {
    git(&[
        "rev-parse",
        "--verify",
        "--quiet",
        &format!("{rev}^{{commit}}"),
    ])
}

/// What git says, in the project's folder; nothing if it fails, or is not there.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(places::root())
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Those of which a source or the manifest is another one now.
fn changed_since(rev: &str, mut libraries: Vec<Library>) -> Vec<Library> {
    libraries.retain(|library| {
        let folder = library.folder.to_string_lossy();
        let parts = ["src", "Cargo.toml"].map(|part| format!("{folder}/{part}"));
        // It fails where there is a difference.
        git(&["diff", "--quiet", rev, "--", &parts[0], &parts[1]]).is_none()
    });
    libraries
}

fn compare(tool: &PathBuf, rev: &str, libraries: &[Library]) -> Result<Verdict> {
    let (old, new): (Vec<_>, Vec<_>) = libraries.iter().partition(|library| {
        let folder = library.folder.strip_prefix(places::root());
        let manifest = folder.unwrap_or(&library.folder).join("Cargo.toml");
        git(&["cat-file", "-e", &format!("{rev}:{}", manifest.display())]).is_some()
    });
    for library in new {
        println!("{}: new since {rev}", library.name);
    }
    if old.is_empty() {
        println!("semver: nothing to compare with {rev}");
        return Ok(Verdict::Kept);
    }
    let status = Command::new(tool)
        .args(["semver-checks", "--quiet", "--baseline-rev", rev])
        .args(old.iter().flat_map(|library| ["--package", &library.name]))
        .current_dir(places::root())
        // One folder: what two crates depend on is built once.
        .env("CARGO_TARGET_DIR", places::target()?.join("semver"))
        .status()
        .with_context(|| format!("cannot run {}", tool.display()))?;
    let names: Vec<_> = old.iter().map(|library| &*library.name).collect();
    println!("semver: compared with {rev}: {}", names.join(", "));
    match status.code() {
        Some(0) => Ok(Verdict::Kept),
        Some(BROKEN) => Ok(Verdict::Broken),
        _ => bail!("{TOOL} failed ({status}); does version {VERSION} know this compiler?"),
    }
}

/// A folder of the user's cache, where programs that tests need are, too.
fn place() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("umbra").join(format!("{TOOL}-{VERSION}")))
}

fn installed() -> Option<PathBuf> {
    let program = place().ok()?.join("bin").join(TOOL);
    program.is_file().then_some(program)
}

fn install() -> Result<PathBuf> {
    let place = place()?;
    println!("== installing {TOOL} {VERSION} in {}", place.display());
    let work = tempfile::tempdir().context("cannot make a folder to build in")?;
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args([
            "install",
            "--quiet",
            "--locked",
            TOOL,
            "--version",
            VERSION,
            "--root",
        ])
        .arg(&place)
        .env("CARGO_TARGET_DIR", work.path())
        // Its own profile optimises for long, and what it does is over in a second either way.
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .status()
        .context("cannot run cargo install")?;
    if !status.success() {
        bail!("cargo install {TOOL} failed ({status})");
    }
    installed().with_context(|| format!("there is no {TOOL} in {}", place.display()))
}
