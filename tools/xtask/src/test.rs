//! Everything that has to pass before a change lands.
//!
//! Most of its time is the processor's, so nothing is built twice. All tests and the command are built in one go, for
//! the whole workspace: `cargo build --package umbra` would choose fewer features of some libraries (`rustix` without
//! `pty`), and build them and everything above them once more. Only what needs other flags of the compiler is built
//! apart, clippy's view, the models and the fuzz targets. What is worth optimising is said in `Cargo.toml`.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs a command with its output on ours; `cargo` itself where `program` is empty.
fn step(title: &str, program: &str, args: &[&str]) -> Result<()> {
    println!("== {title}");
    let begin = Instant::now();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let program = if program.is_empty() {
        cargo.as_str()
    } else {
        program
    };
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{title}: {program} {} failed ({status})", args.join(" "));
    }
    println!("({title}: {} s)", begin.elapsed().as_secs());
    Ok(())
}

/// Has the processor's own tests run as `processor` says; else they run with all code translated.
fn with_processor(runner: &[&str], processor: &str) -> Result<()> {
    println!("== tests of the processor: {processor}");
    let runner: Vec<&str> = runner
        .iter()
        .copied()
        .filter(|a| *a != "--workspace")
        .collect();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo)
        .args(runner)
        .args(["-p", "umbra-cpu-soft"])
        .env("UMBRA_PROCESSOR", processor)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("tests of the processor: UMBRA_PROCESSOR={processor}, umbra-cpu-soft: {status}");
    }
    Ok(())
}

fn has_nextest() -> bool {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    Command::new(cargo)
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Modules of tests that this host cannot run, each with its reason.
fn missing() -> Result<Vec<(&'static str, String)>> {
    let output = Command::new(crate::places::neighbour("umbra")?)
        .arg("probe")
        .output()
        .context("cannot run umbra probe")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix));
    let mut missing = Vec::new();
    if let Some(reason) = after("kvm: no: ") {
        missing.push(("kvm", reason.to_owned()));
        missing.push(("kvm_stock", reason.to_owned()));
    } else if let Some(reason) = after("auto: soft: ") {
        missing.push(("kvm_stock", reason.to_owned()));
    }
    for (module, program, arguments, reason) in NEEDED {
        let output = Command::new(program).args(arguments).output();
        if !output.is_ok_and(|output| output.status.success()) {
            missing.push((module, reason.to_owned()));
        }
    }
    Ok(missing)
}

/// Modules of tests, and what has to work for them: a program with arguments, and what to do if it does not.
const NEEDED: [(&str, &str, &[&str], &str); 12] = [
    (
        "qemu_img",
        "sh",
        &["-c", "qemu-img --version && test -x /sbin/e2fsck"],
        "there is no qemu-img or no e2fsck (apt-get install qemu-utils e2fsprogs)",
    ),
    (
        "vhost_user",
        "sh",
        &["-c", "test -x /sbin/mke2fs && test -x /sbin/e2fsck"],
        "there is no mke2fs or no e2fsck (apt-get install e2fsprogs)",
    ),
    (
        "kernel_vhost",
        "sh",
        &["-c", "test -x /sbin/mke2fs && test -x /sbin/vdpa"],
        "there is no mke2fs or no vdpa (apt-get install e2fsprogs iproute2)",
    ),
    (
        "vhost_net",
        "sh",
        &["-c", "test -w /dev/vhost-net && test -w /dev/net/tun"],
        "there is no /dev/vhost-net that may be used (modprobe vhost_net); they run in a guest",
    ),
    (
        "vhost_vsock",
        "sh",
        &["-c", "test -w /dev/vhost-vsock"],
        "there is no /dev/vhost-vsock that may be used (modprobe vhost_vsock); they run in a guest",
    ),
    (
        "vhost_vdpa",
        "sh",
        &[
            "-c",
            "test -n \"$UMBRA_VDPA_DISK\" && test -w /dev/vhost-vdpa-0",
        ],
        "UMBRA_VDPA_DISK names no disk of vDPA that is there for tests; they run in a guest",
    ),
    (
        "vhost_slots",
        "sh",
        &["-c", "test -x /sbin/mke2fs"],
        "there is no mke2fs (apt-get install e2fsprogs)",
    ),
    (
        "pmem_ext4",
        "sh",
        &["-c", "test -x /sbin/mke2fs && test -x /sbin/debugfs"],
        "there is no mke2fs or no debugfs (apt-get install e2fsprogs)",
    ),
    (
        "faults",
        "sh",
        &[
            "-c",
            "unshare --map-root-user --mount --pid --fork test -w /dev/fuse && grep -qw fuse /proc/filesystems",
        ],
        "no mount namespace can be made here, or there is no /dev/fuse that may be used",
    ),
    (
        "firecracker_clients",
        "sh",
        &[
            "-c",
            "test -x /sbin/mke2fs && python3 -c 'import venv, ensurepip' && unshare --map-root-user --net --pid \
             --fork test -c /dev/net/tun",
        ],
        "no network namespace can be made here, or there is no /dev/net/tun, no mke2fs, or no venv of Python's \
         (apt-get install e2fsprogs python3-venv)",
    ),
    (
        "openapi_clients",
        "sh",
        &[
            "-c",
            "python3 -c 'import venv, ensurepip' && unshare --map-root-user --net --pid --fork true",
        ],
        "no network namespace can be made here, or there is no venv of Python's (apt-get install python3-venv)",
    ),
    (
        "network",
        "sh",
        &[
            "-c",
            "test -x /sbin/mke2fs && unshare --map-root-user --net --pid --fork test -c /dev/net/tun",
        ],
        "no network namespace can be made here, or there is no /dev/net/tun or no mke2fs",
    ),
];

/// `rest` goes to the test runner: a filter, say.
pub fn run(rest: &[&str]) -> Result<()> {
    step("formatting", "", &["fmt", "--all", "--check"])?;
    step("layers", "", &["xtask", "lint"])?;
    step(
        "clippy",
        "",
        &[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    // Workspaces of their own.
    for (title, manifest) in [
        (
            "formatting of the bare-metal guest",
            "tests/guest/Cargo.toml",
        ),
        (
            "formatting of the drivers guest",
            "tests/guest/drivers/Cargo.toml",
        ),
        ("formatting of the fuzz targets", "fuzz/Cargo.toml"),
    ] {
        step(title, "", &["fmt", "--manifest-path", manifest, "--check"])?;
    }
    // Built again by the tests that run it; here its warnings are seen.
    let folder = crate::places::target()?.join("poll");
    step(
        "the polling guest",
        "tests/guest/poll/build.sh",
        &[&folder.to_string_lossy()],
    )?;
    let nextest = has_nextest();
    let runner: &[&str] = match nextest {
        true => &["nextest", "run", "--workspace"],
        false => &["test", "--workspace", "--all-targets"],
    };
    // With the command, which the tests run.
    step("building the tests", "", &[runner, &["--no-run"]].concat())?;
    step(
        "documentation tests",
        "",
        &["test", "--quiet", "--workspace", "--doc"],
    )?;
    step("packages", "", &["xtask", "package", "--no-verify"])?;
    crate::semver::short()?;
    step("models", "", &["xtask", "loom"])?;
    if crate::fuzz::has_compiler() {
        step("fuzz targets", "", &["xtask", "fuzz"])?;
    } else {
        println!("SKIPPED fuzz targets: libFuzzer needs a C++ compiler (apt-get install g++)");
    }
    with_processor(runner, "interpreter")?;
    with_processor(runner, "both")?;
    // The runner comes last: its summary is what a reader looks for.
    let missing = missing()?;
    for (module, reason) in &missing {
        println!("SKIPPED, and counted so below: tests in modules {module}: {reason}");
    }
    if nextest {
        let modules: Vec<&str> = missing.iter().map(|(module, _)| *module).collect();
        let filter = format!("not test(/(^|::)({})::/)", modules.join("|"));
        // A filter of the user's own says what runs: two would be one or the other.
        let ours = ["-E", &filter];
        let ours = if modules.is_empty() || !rest.is_empty() {
            &[]
        } else {
            &ours[..]
        };
        step(
            "tests",
            "",
            &[runner, &["--no-fail-fast"], ours, rest].concat(),
        )
    } else {
        println!("(cargo-nextest is not installed: using the slower built-in runner)");
        let skips: Vec<String> = missing.iter().map(|(m, _)| format!("::{m}::")).collect();
        let skips = skips.iter().flat_map(|module| ["--skip", module]);
        let tail: Vec<&str> = ["--"].into_iter().chain(skips).collect();
        step(
            "tests",
            "",
            &[runner, &["--no-fail-fast"], rest, &tail].concat(),
        )
    }
}
