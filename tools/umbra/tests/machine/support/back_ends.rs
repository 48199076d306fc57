//! Back ends: our own, QEMU's storage daemon from Debian's packages, and virtiofsd and vhost-device-vsock from the
//! Rust registry. Those of others are kept in the cache; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use umbra::demo::apt::Client;
use umbra::demo::cache::Cache;

use super::guest::{lock, lock_for};

/// Where libraries are in a tree.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// What the packages of the storage daemon need for something else, and the C library, which is the host's.
const OTHERS: [&str; 16] = [
    "libc6", "asound", "brlapi", "cacard", "drm", "gbm", "gst", "jpeg", "nss3", "nspr", "sasl",
    "spice", "usb", "unwind", "wayland", "perl",
];

/// A program that is not of this host's system.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    libraries: PathBuf,
}

impl Program {
    /// One that is linked with this host's libraries.
    pub fn of_this_system(path: PathBuf) -> Self {
        Self {
            path,
            libraries: PathBuf::new(),
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lists the libraries that it is linked with, and its loader.
    pub fn linked(&self) -> Result<Vec<PathBuf>> {
        let output = Command::new("ldd")
            .env("LD_LIBRARY_PATH", &self.libraries)
            .arg(&self.path)
            .output()
            .context("cannot start ldd (package libc-bin)")?;
        let text = String::from_utf8(output.stdout)?;
        // NAME => PATH (ADDRESS), or PATH (ADDRESS).
        let path = |line: &str| {
            let found = line.split_whitespace().find(|word| word.starts_with('/'));
            found.map(PathBuf::from)
        };
        Ok(text.lines().filter_map(path).collect())
    }

    /// Starts it, with its messages in a file.
    pub fn start(&self, arguments: &[&str], messages: &Path) -> Server {
        let messages = fs::File::create(messages).unwrap();
        let child = Command::new(&self.path)
            .env("LD_LIBRARY_PATH", &self.libraries)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(messages.try_clone().unwrap())
            .stderr(messages)
            .spawn();
        Server(child.unwrap_or_else(|error| panic!("{}: {error}", self.path.display())))
    }
}

/// One that runs; killed when dropped.
pub struct Server(pub Child);

impl Server {
    /// Kills it, without a chance to do anything more.
    pub fn kill(&mut self) {
        // One that has ended by itself is as dead.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command of this project.
pub fn ours() -> Program {
    Program {
        path: env!("CARGO_BIN_EXE_umbra").into(),
        libraries: PathBuf::new(),
    }
}

/// Waits until a server has made its socket.
pub fn wait_for_socket(path: &Path) {
    wait_for(|| path.exists());
}

/// Waits until something is so.
pub fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "it does not happen"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// QEMU's storage daemon.
pub fn storage_daemon() -> Result<Program> {
    let cache = Cache::open()?;
    let _lock = lock(&cache)?;
    let tree = cache.other("storage-daemon-3");
    if !tree.exists() {
        let apt = Client::find(cache.lists())?;
        let work = cache.work_directory()?;
        let needed = |name: &str| {
            let library = name.starts_with("lib") || name.starts_with("zlib");
            library && !OTHERS.iter().any(|other| name.contains(other))
        };
        let packages = apt.closure(&["qemu-system-common"], needed)?;
        let files = apt.unpack(&packages, work.path())?;
        for directory in ["usr/share", "var"] {
            let _ = fs::remove_dir_all(files.join(directory));
        }
        gather(&files)?;
        fs::rename(&files, &tree).context("cannot keep the storage daemon")?;
    }
    Ok(Program {
        path: tree.join("usr/bin/qemu-storage-daemon"),
        libraries: tree.join("libraries"),
    })
}

/// Puts the libraries of a tree into one place.
fn gather(tree: &Path) -> Result<()> {
    let to = tree.join("libraries");
    fs::create_dir(&to)?;
    for folder in [LIBRARIES, "lib/x86_64-linux-gnu"] {
        let entries = fs::read_dir(tree.join(folder)).into_iter().flatten();
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().contains(".so") {
                // A link leads to a file beside it.
                fs::rename(entry.path(), to.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

/// The file system daemon.
pub fn virtiofsd() -> Result<Program> {
    registry("virtiofsd", "1.14.0", &["libseccomp-dev", "libcap-ng-dev"])
}

/// The socket device of rust-vmm.
pub fn vhost_device_vsock() -> Result<Program> {
    registry("vhost-device-vsock", "0.3.0", &[])
}

/// A program of the Rust registry, built with libraries of Debian's.
fn registry(name: &str, version: &str, packages: &[&str]) -> Result<Program> {
    let cache = Cache::open()?;
    // It takes minutes, which others need not wait for.
    let _lock = lock_for(&cache, name)?;
    let tree = cache.other(&format!("{name}-{version}"));
    if !tree.exists() {
        let work = cache.work_directory()?;
        let files = match packages {
            [] => work.path().join("files"),
            _ => {
                let _lock = lock(&cache)?;
                let apt = Client::find(cache.lists())?;
                let packages = apt.closure(packages, |name| {
                    packages.iter().any(|package| {
                        let library = package.trim_end_matches("-dev");
                        name.starts_with(library)
                    })
                })?;
                apt.unpack(&packages, work.path())?
            }
        };
        fs::create_dir_all(files.join(LIBRARIES))?;
        install(name, version, &files, work.path())?;
        gather(&files)?;
        fs::rename(&files, &tree).with_context(|| format!("cannot keep {name}"))?;
    }
    Ok(Program {
        path: tree.join("bin").join(name),
        libraries: tree.join("libraries"),
    })
}

fn install(name: &str, version: &str, to: &Path, work: &Path) -> Result<()> {
    let libraries = to.join(LIBRARIES);
    let output = Command::new("cargo")
        .args([
            "install",
            "--quiet",
            "--locked",
            "--debug",
            name,
            "--version",
            version,
            "--root",
        ])
        .arg(to)
        .env("CARGO_TARGET_DIR", work.join("target"))
        .env("RUSTFLAGS", format!("-L native={}", libraries.display()))
        .env("LIBSECCOMP_LIB_PATH", &libraries)
        .env("LIBSECCOMP_LINK_TYPE", "dylib")
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!(
            "cargo install {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
