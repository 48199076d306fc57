//! A disk with programs of Debian's for a guest whose initramfs has only busybox: fio, curl and socat.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use umbra::demo::apt::Client;
use umbra::demo::cache::Cache;

use super::guest::lock;

/// Changes when the disk is made otherwise.
const NAME: &str = "tools-2.ext4";
const PACKAGES: [&str; 3] = ["fio", "curl", "socat"];
/// What the packages name that starts like a library and is none of theirs.
const OTHERS: [&str; 6] = ["perl", "python", "pam", "newt", "slang", "installer"];
const UNUSED: [&str; 2] = ["usr/share", "var"];

/// Shell commands that mount the disk, which is `/dev/$tools`: `in_tools PROGRAM …` runs there.
pub const MOUNT: &str = r#"
mkdir -p /tools && mount -o ro /dev/$tools /tools
for place in dev proc sys tmp; do mount --bind /$place /tools/$place; done
in_tools() { LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu chroot /tools "$@"; }
"#;

/// Returns the disk in the cache; makes it if it is not there. It must not be changed.
pub fn disk() -> Result<PathBuf> {
    let cache = Cache::open()?;
    let _lock = lock(&cache)?;
    let disk = cache.other(NAME);
    if disk.exists() {
        return Ok(disk);
    }
    let apt = Client::find(cache.lists())?;
    let work = cache.work_directory()?;
    let needed = |name: &str| {
        let library = name.starts_with("lib") || name.starts_with("zlib");
        library && !OTHERS.iter().any(|other| name.contains(other))
    };
    let packages = apt.closure(&PACKAGES, needed)?;
    let files = apt.unpack(&packages, work.path())?;
    for directory in UNUSED {
        let _ = fs::remove_dir_all(files.join(directory));
    }
    for name in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(files.join(name))?;
    }
    let image = work.path().join("image");
    ext4(&image, &files, "300M")?;
    fs::rename(&image, &disk).context("cannot keep the disk")?;
    Ok(disk)
}

/// Makes an ext4 file system of a size, like `16M`, with the files of a directory.
pub fn ext4(image: &Path, files: &Path, size: &str) -> Result<()> {
    let output = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([files, image])
        .arg(size)
        .output()
        .context("cannot start mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
