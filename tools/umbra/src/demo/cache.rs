//! The user's cache directory: what was fetched, and where that is done.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::{NamedTempFile, TempDir};

use crate::report::BadInput;

/// Changes when the initramfs is built otherwise, so that an old one is not taken.
const INITRAMFS_VERSION: u32 = 7;

/// `$XDG_CACHE_HOME/umbra`, or `~/.cache/umbra`.
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache; makes the directory if it is not there.
    ///
    /// # Errors
    ///
    /// If the environment names no place for it, or it cannot be made.
    pub fn open() -> Result<Self> {
        let root = root(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")).ok_or_else(
            || BadInput("neither XDG_CACHE_HOME nor HOME is set; set one, for the cache".into()),
        )?;
        fs::create_dir_all(&root).with_context(|| {
            format!(
                "cannot make {}; set XDG_CACHE_HOME to a place that can be written",
                root.display()
            )
        })?;
        Ok(Self { root })
    }

    /// Returns where the kernel of a package is, or goes. Names are checked before they come here.
    pub fn kernel(&self, package: &str) -> PathBuf {
        self.root.join(format!("vmlinuz-{}", safe(package)))
    }

    /// Returns where the initramfs for a kernel is, or goes.
    pub fn initrd(&self, package: &str) -> PathBuf {
        let package = safe(package);
        self.root
            .join(format!("initramfs-{INITRAMFS_VERSION}-{package}.cpio"))
    }

    /// Returns where something else is, or goes: a plain name of one's own.
    pub fn other(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Returns where private package lists are, or go.
    pub fn lists(&self) -> PathBuf {
        self.root.join("apt")
    }

    /// Makes a directory for one download; it is removed when the result is dropped.
    pub fn work_directory(&self) -> Result<TempDir> {
        let made = tempfile::Builder::new()
            .prefix("fetch-")
            .tempdir_in(&self.root);
        made.with_context(|| format!("cannot write into {}", self.root.display()))
    }

    /// Stores a file: whole or not at all, whoever else does the same.
    pub fn store(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.store_as(path, bytes, 0o600)
    }

    /// Stores a program that can be started.
    pub fn store_program(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.store_as(path, bytes, 0o700)
    }

    fn store_as(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
        let store = || -> std::io::Result<()> {
            let mut file = NamedTempFile::new_in(&self.root)?;
            file.write_all(bytes)?;
            file.as_file()
                .set_permissions(fs::Permissions::from_mode(mode))?;
            file.persist(path)?;
            Ok(())
        };
        store().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn safe(package: &str) -> String {
    let good = |c: &char| c.is_ascii_alphanumeric() || "+-.".contains(*c);
    package.chars().filter(good).collect()
}

fn root(cache_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    // The XDG base directory specification wants relative paths ignored.
    let absolute = |value: OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    let base = cache_home
        .and_then(absolute)
        .or_else(|| Some(home.and_then(absolute)?.join(".cache")))?;
    Some(base.join("umbra"))
}

/// Returns the first file of a directory whose name begins so.
pub fn first_file(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    found.sort();
    found.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_user_wants_it() {
        let path = |cache: &str, home: &str| {
            let set = |value: &str| (!value.is_empty()).then(|| OsString::from(value));
            root(set(cache), set(home))
        };
        assert_eq!(path("/c", "/home/u"), Some("/c/umbra".into()));
        assert_eq!(path("", "/home/u"), Some("/home/u/.cache/umbra".into()));
        assert_eq!(
            path("relative", "/home/u"),
            Some("/home/u/.cache/umbra".into())
        );
        assert_eq!(path("", ""), None);
    }

    #[test]
    fn storing_replaces_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache {
            root: directory.path().to_owned(),
        };
        let path = cache.kernel("linux-image-x");
        cache.store(&path, b"one").unwrap();
        cache.store(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(first_file(directory.path(), "vmlinuz-"), Some(path));
    }
}
