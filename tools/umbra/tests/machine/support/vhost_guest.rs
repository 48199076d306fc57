//! A stock guest whose kernel has vhost, and this program of tests on a disk for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use umbra::demo::apt::Client;
use umbra::demo::cache::{Cache, first_file};
use umbra::demo::{initramfs, modules};

use super::guest::{Guest, LINUX_6_1, lock, or_skip};

/// Changes when the guest is made otherwise.
const NAME: &str = "vhost-guest-1";
/// The kernel's modules for it. Those of vDPA would be here, if Debian's kernels had any.
const MODULES: [&str; 3] = ["tun", "vhost_net", "vhost_vsock"];

/// Returns the kernel and its initramfs in the cache; makes them if they are not there. `None` is a skip that was
/// allowed.
pub fn fetch() -> Option<Guest> {
    // Busybox comes with it.
    Guest::fetch(LINUX_6_1)?;
    or_skip(make())
}

fn make() -> Result<Guest> {
    let cache = Cache::open()?;
    let _lock = lock(&cache)?;
    let tree = cache.other(NAME);
    if !tree.exists() {
        let apt = Client::find(cache.lists())?;
        let work = cache.work_directory()?;
        let (_, package) = apt.resolve(&[LINUX_6_1])?;
        let files = apt.unpack(&[package], work.path())?;
        let made = work.path().join("guest");
        fs::create_dir(&made)?;
        let kernel = first_file(&files.join("boot"), "vmlinuz-").context("there is no kernel")?;
        fs::copy(kernel, made.join("kernel"))?;
        let busybox = cache.other("busybox");
        let wanted = [&modules::WANTED[..], &MODULES].concat();
        let xz = [busybox.as_path(), Path::new("xzcat")];
        let collected = modules::Modules::collect(&files, &xz, &wanted)?;
        let archive = initramfs::archive(&fs::read(&busybox)?, &collected);
        fs::write(made.join("initrd"), archive)?;
        fs::rename(made, &tree).context("cannot keep the guest")?;
    }
    Ok(Guest {
        kernel: tree.join("kernel"),
        initrd: tree.join("initrd"),
    })
}

/// Shell commands that mount the disk, which is `/dev/vda`: `run_tests ARGUMENT ...` runs this program there.
pub const MOUNT: &str = r#"
mkdir -p /program && mount -o ro /dev/vda /program
run_tests() { /program/ld.so --library-path /program /program/tests "$@"; }
"#;

/// Makes a disk with this program, and the libraries that it is linked with here.
pub fn disk(directory: &Path) -> Result<PathBuf> {
    let files = directory.join("files");
    fs::create_dir(&files)?;
    let program = std::env::current_exe()?;
    fs::copy(&program, files.join("tests"))?;
    // Names and line numbers of functions are a large part of it.
    let _ = Command::new("strip").arg(files.join("tests")).output();
    let listed = Command::new("ldd").arg(&program).output();
    let listed = listed.context("cannot start ldd (package libc-bin)")?;
    for line in String::from_utf8(listed.stdout)?.lines() {
        let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else {
            continue;
        };
        let name = Path::new(path)
            .file_name()
            .context("a library has no name")?;
        let is_loader = name.to_string_lossy().starts_with("ld-linux");
        let name = if is_loader { "ld.so".as_ref() } else { name };
        fs::copy(path, files.join(name))?;
    }
    if !files.join("ld.so").exists() {
        bail!("this program has no loader among its libraries");
    }
    let image = directory.join("program.ext4");
    let output = Command::new("/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&files)
        .arg(&image)
        .arg("400M")
        .output()
        .context("cannot start mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(image)
}
