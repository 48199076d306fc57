//! A small Debian system: bash, coreutils and Python with the libraries that they load.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use umbra::demo::apt::Client;
use umbra::demo::cache::Cache;
use umbra::demo::cpio::Archive;

use super::guest::lock;

/// Changes when the tree is made otherwise.
const NAME: &str = "userland-1";
const PACKAGES: [&str; 5] = [
    "bash",
    "coreutils",
    "python3-minimal",
    "libpython3-stdlib",
    "busybox-static",
];
/// By its path: the search path is the tree's.
const CHROOT: &str = "/usr/sbin/chroot";
/// What nobody here reads, or is large and of no use.
const UNUSED: [&str; 4] = [
    "usr/share",
    "usr/include",
    "var",
    "usr/lib/x86_64-linux-gnu/gconv",
];

/// Returns the unpacked tree in the cache; makes it if it is not there. It must not be changed.
pub fn fetch() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let _lock = lock(&cache)?;
    let root = cache.other(NAME);
    if root.exists() {
        return Ok(root);
    }
    let apt = Client::find(cache.lists())?;
    let work = cache.work_directory()?;
    // Libraries and Python's parts; not what only maintainer scripts need.
    let needed = |name: &str| {
        ["lib", "zlib", "python3"]
            .iter()
            .any(|part| name.starts_with(part))
    };
    let packages = apt.closure(&PACKAGES, needed)?;
    let files = apt.unpack(&packages, work.path())?;
    for directory in UNUSED {
        let _ = fs::remove_dir_all(files.join(directory));
    }
    // Where a distribution has merged /bin into /usr/bin another package makes these links.
    for name in ["bin", "lib", "lib64"] {
        let link = files.join(name);
        if !link.exists() {
            symlink(Path::new("usr").join(name), link)?;
        }
    }
    for name in ["tmp", "dev", "proc", "sys"] {
        fs::create_dir_all(files.join(name))?;
    }
    compile(&files)?;
    fs::rename(&files, &root).context("cannot keep the tree")?;
    Ok(root)
}

/// Compiles Python's library, or each import would do so in the guest. The archive has no times,
/// so what was compiled must not be judged by them.
fn compile(root: &Path) -> Result<()> {
    let arguments = [
        "python3",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
    ];
    let library = fs::read_dir(root.join("usr/lib"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("python3."))
        .context("no Python library was unpacked")?;
    let library = format!("/usr/lib/{library}");
    native(root, &[&arguments[..], &[&library]].concat())?;
    Ok(())
}

/// Runs a program of the tree natively, with the tree as its root; returns what it prints.
pub fn native(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(CHROOT)
    } else {
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--map-root-user", CHROOT]);
        command
    };
    let output = command
        .arg(root)
        .args(arguments)
        .env_clear()
        .envs(environment())
        .stdin(Stdio::null())
        .output()
        .context("cannot start a program under another root")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!(
            "{} failed: {} {message}",
            arguments.join(" "),
            output.status
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What programs see. The C library chooses its routines by what the processor has; those that
/// fuse multiplication and addition round otherwise in the last place, so all take the plain ones.
pub fn environment() -> BTreeMap<&'static str, &'static str> {
    [
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/umbra"),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
        ("PYTHONUTF8", "1"),
        ("PYTHONHASHSEED", "0"),
        (
            "GLIBC_TUNABLES",
            "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX512F,-AVX512VL",
        ),
    ]
    .into()
}

/// Copies a tree, links and modes as they are.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg("--")
        .arg(from)
        .arg(to)
        .status();
    assert!(status.unwrap().success());
}

/// Makes an initramfs of a tree.
pub fn archive(root: &Path) -> Vec<u8> {
    let mut archive = Archive::default();
    add(&mut archive, root, root);
    archive
        .character_device("dev/console", 5, 1)
        .character_device("dev/null", 1, 3);
    archive.finish()
}

fn add(archive: &mut Archive, root: &Path, directory: &Path) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            archive.directory(name);
            add(archive, root, &path);
        } else if kind.is_symlink() {
            archive.symlink(name, fs::read_link(&path).unwrap().to_str().unwrap());
        } else if entry.metadata().unwrap().permissions().mode() & 0o111 != 0 {
            archive.executable(name, &fs::read(&path).unwrap());
        } else {
            archive.file(name, &fs::read(&path).unwrap());
        }
    }
}
