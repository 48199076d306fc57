//! A network of the test's own, or mounts: a shell, or a test, in namespaces as any user can have.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use umbra::demo::apt::Client;
use umbra::demo::cache::Cache;

use super::guest::lock;

/// What ran there, and what it printed.
pub struct Printed {
    pub stdout: String,
    pub stderr: String,
}

/// Runs a shell script, for at most so many seconds. `$busybox` and `$umbra` name the programs; whatever it
/// started is killed when it ends.
pub fn run(script: &str, seconds: u32) -> Result<Printed> {
    let busybox = Cache::open()?.other("busybox");
    let output = Command::new("timeout")
        .arg(seconds.to_string())
        .args([
            "unshare",
            "--map-root-user",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["sh", "-eu", "-c", script])
        .env("busybox", busybox)
        .env("umbra", env!("CARGO_BIN_EXE_umbra"))
        .stdin(Stdio::null())
        .output()
        .context("cannot start unshare")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if stderr.starts_with("unshare: ") {
        bail!("no network namespace can be had here: {}", stderr.trim());
    }
    assert!(
        output.status.success(),
        "{}: {stdout}\n{stderr}",
        output.status
    );
    Ok(Printed { stdout, stderr })
}

/// Says which directory a test has inside.
const INSIDE: &str = "UMBRA_TEST_INSIDE";

/// Where a test runs.
pub enum Place {
    /// In namespaces of its own, with an empty directory to mount things in.
    Inside(PathBuf),
    /// Outside; it has passed inside.
    Outside,
}

/// Runs a test, of this name, again in a user and mount namespace: there it may mount file systems that any user
/// may, and they go with it.
pub fn again_inside(test: &str) -> Result<Place> {
    if let Some(place) = std::env::var_os(INSIDE) {
        return Ok(Place::Inside(place.into()));
    }
    let place = tempfile::tempdir()?;
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args([
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
        ]);
        command.stdin(Stdio::null());
        command
    };
    let tried = unshare()
        .arg("true")
        .output()
        .context("cannot start unshare")?;
    if !tried.status.success() {
        let why = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
        bail!("no mount namespace can be had here: {why}");
    }
    let output = unshare()
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, place.path())
        .stderr(Stdio::inherit())
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("1 passed"),
        "{}: {stdout}",
        output.status
    );
    Ok(Place::Outside)
}

/// Returns the `passt` of Debian's package, from the cache.
pub fn passt() -> Result<PathBuf> {
    const PACKAGE: &str = "passt";
    let cache = Cache::open()?;
    let _lock = lock(&cache)?;
    let program = cache.other("passt-program");
    if !program.exists() {
        let work = cache.work_directory()?;
        let apt = Client::find(cache.lists())?;
        let (_, package) = apt.resolve(&[PACKAGE])?;
        let files = apt.unpack(&[package], work.path())?;
        let bytes = std::fs::read(files.join("usr/bin/passt"))?;
        cache.store_program(&program, &bytes)?;
    }
    Ok(program)
}
