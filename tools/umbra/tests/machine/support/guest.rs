//! Debian guests: kernels and programs, by the means of `umbra fetch`.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use umbra::demo::cache::Cache;
use umbra::demo::cpio::Archive;

use super::{Input, Umbra};

/// Debian 12's stable kernel, and the newer one of its backports.
pub const LINUX_6_1: &str = "linux-image-cloud-amd64";
pub const LINUX_6_12: &str = "linux-image-6.12-cloud-amd64";
/// Debian 12's 32-bit kernels: with two-level page tables, and with PAE.
pub const LINUX_686: &str = "linux-image-686";
pub const LINUX_686_PAE: &str = "linux-image-686-pae";

/// The command line for a kernel. Half of the time that the 32-bit kernels take is for self-tests of
/// their cryptography, which say nothing about the machine that the others do not say.
pub fn command_line(package: &str) -> &'static str {
    match package {
        LINUX_686 | LINUX_686_PAE => "console=ttyS0 panic=-1 cryptomgr.notests",
        _ => "console=ttyS0 panic=-1",
    }
}

/// A kernel and an initramfs with busybox.
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Guest {
    /// Fetches a kernel; `None` is a skip that was allowed.
    pub fn fetch(package: &str) -> Option<Self> {
        or_skip(fetch(package))
    }

    /// The kernel's path as an argument.
    pub fn kernel(&self) -> &str {
        self.kernel.to_str().unwrap()
    }

    /// The initrd's path as an argument.
    pub fn initrd(&self) -> &str {
        self.initrd.to_str().unwrap()
    }

    /// Writes an initramfs like the guest's, with another first program, into `directory`.
    pub fn with_init(self, directory: &Path, init: &str) -> Self {
        self.with_program(directory, "init", init.as_bytes())
    }

    /// Writes an initramfs like the guest's, with one more program, into `directory`.
    pub fn with_program(self, directory: &Path, name: &str, program: &[u8]) -> Self {
        // The kernel unpacks archives one after the other; the last one wins.
        let mut bytes = std::fs::read(&self.initrd).unwrap();
        let mut archive = Archive::default();
        archive.executable(name, program);
        bytes.extend(archive.finish());
        let initrd = directory.join("initrd");
        std::fs::write(&initrd, bytes).unwrap();
        Self { initrd, ..self }
    }
}

/// Returns what was fetched; what could not be fetched skips the test, which is a failure unless
/// the environment allows it.
pub fn or_skip<T>(fetched: Result<T>) -> Option<T> {
    let error = match fetched {
        Ok(fetched) => return Some(fetched),
        Err(error) => error,
    };
    eprintln!("SKIPPED: {error:#}");
    assert!(
        std::env::var_os("UMBRA_ALLOW_SKIP").is_some(),
        "skipped, for {error:#}; set UMBRA_ALLOW_SKIP=1 where no packages can be had"
    );
    None
}

/// Holds the cache for one process: package clients do not share their lists.
pub fn lock(cache: &Cache) -> Result<File> {
    lock_for(cache, "tests")
}

/// Holds one thing of the cache for one process.
pub fn lock_for(cache: &Cache, what: &str) -> Result<File> {
    let path = cache.other(&format!("{what}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().context("cannot lock the cache")?;
    Ok(file)
}

fn fetch(package: &str) -> Result<Guest> {
    let _lock = lock(&Cache::open()?)?;
    let arch = if package.starts_with(LINUX_686) {
        "i386"
    } else {
        "amd64"
    };
    let arguments = ["fetch", "--arch", arch, "--kernel-package", package];
    let limit = std::time::Duration::from_secs(300);
    let ended = Umbra::new(&arguments, &Input::Empty).start().finish(limit);
    if ended.status != Some(0) {
        bail!("umbra fetch: {}", ended.stderr.trim());
    }
    let path = |name: &str| {
        let line = ended
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix(name));
        line.map(|path| PathBuf::from(path.trim_matches('\'')))
            .with_context(|| format!("umbra fetch printed no {name}"))
    };
    Ok(Guest {
        kernel: path("kernel=")?,
        initrd: path("initrd=")?,
    })
}
