//! A small Debian with the programs: a folder to run them in natively, and the same as a disk for guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Changes when the tree is made otherwise, so that an old one is not taken.
const NAME: &str = "programs-1";
/// What is run, and what the tree needs to be a root; apt adds what these need.
const PACKAGES: [&str; 12] = [
    "bash",
    "base-files",
    "coreutils",
    "dash",
    "gcc",
    "gzip",
    "libc6-dev",
    "libpython3.11-testsuite",
    "python3",
    "sed",
    "sqlite3",
    "xz-utils",
];
/// What no program reads.
const UNUSED: [&str; 4] = [
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
];
/// Bytes of the disk.
const DISK: &str = "768M";

/// The tree, in both forms. Neither must be changed.
pub struct Tree {
    /// The folder.
    pub root: PathBuf,
    /// The same as an ext4 file system.
    pub disk: PathBuf,
}

impl Tree {
    /// Finds the tree in the cache; makes it if it is not there.
    pub fn fetch(cache: &Path) -> Result<Self> {
        let place = cache.join(NAME);
        if !place.exists() {
            println!("fetching programs; the next run will find them");
            let work = tempfile::Builder::new()
                .prefix("fetch-")
                .tempdir_in(cache)?;
            make(work.path())?;
            fs::rename(work.path(), &place).context("cannot keep the tree")?;
        }
        Ok(Self {
            root: place.join("root"),
            disk: place.join("disk"),
        })
    }
}

fn make(place: &Path) -> Result<()> {
    let (archives, root) = (place.join("apt/archives"), place.join("root"));
    fs::create_dir_all(archives.join("partial"))?;
    download(&place.join("apt"))?;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "deb") {
            done(Command::new("dpkg-deb").arg("-x").arg(path).arg(&root))?;
        }
    }
    fs::remove_dir_all(place.join("apt"))?;
    for folder in UNUSED {
        fs::remove_dir_all(root.join(folder))?;
    }
    compile(&root)?;
    let disk = place.join("disk");
    let mut command = Command::new("/usr/sbin/mke2fs");
    command.args(["-q", "-t", "ext4", "-d"]).arg(root);
    done(command.arg(disk).arg(DISK))
}

/// Has apt download all that a system without any package would need.
fn download(place: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["install", "-qq", "--download-only", "--yes"]);
    command.args([
        "--no-install-recommends",
        "-o",
        "Dir::State::status=/dev/null",
    ]);
    command
        .arg("-o")
        .arg(format!("Dir::Cache={}", place.display()));
    // The place is ours alone, and not to be read by others.
    command.args([
        "-o",
        "Debug::NoLocking=true",
        "-o",
        "APT::Sandbox::User=root",
    ]);
    done(command.args(PACKAGES)).context("are apt's lists there (apt-get update)?")
}

/// Compiles Python's library, as installing its packages would. Programs cannot write to the tree, and would do it
/// at each start; times of files are not kept, so what was compiled is not judged by them.
fn compile(root: &Path) -> Result<()> {
    let mut python = inside(root);
    python.args(["/usr/bin/python3", "-m", "compileall", "-q"]);
    python.args(["--invalidation-mode", "unchecked-hash"]);
    // Tests have files that are no Python, or are that of other versions.
    python.args(["-x", "bad|lib2to3", "/usr/lib/python3.11"]);
    done(&mut python)
}

/// Begins a command that runs with the tree as its root, as root of a user namespace of its own.
fn inside(root: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "/usr/sbin/chroot"]);
    command.arg(root);
    command
}

/// Runs a command to its end.
pub fn done(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {message}", output.status);
    }
    Ok(())
}
