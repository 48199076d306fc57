//! A stock guest whose kernel has vhost, and programs of the host on a disk for it, with this one of tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use umbra::demo::apt::Client;
use umbra::demo::cache::{Cache, first_file};
use umbra::demo::{initramfs, modules};

use super::back_ends::{self, Program};
use super::guest::{Guest, lock, or_skip};
use super::poll::drivers_guest;
use super::tools::ext4;

/// Changes when the guest is made otherwise.
const NAME: &str = "vhost-guest-2";
/// The kernel's modules for it, where it has them: 6.1 has none of vDPA.
const MODULES: [&str; 5] = ["tun", "vduse", "vhost_net", "vhost_vdpa", "vhost_vsock"];

/// Returns a kernel and its initramfs in the cache; makes them if they are not there. `None` is a skip that was
/// allowed.
pub fn fetch(package: &str) -> Option<Guest> {
    // Busybox comes with it, and package lists.
    Guest::fetch(package)?;
    or_skip(make(package))
}

fn make(package: &str) -> Result<Guest> {
    let cache = Cache::open()?;
    let _lock = lock(&cache)?;
    let tree = cache.other(&format!("{NAME}-{package}"));
    if !tree.exists() {
        let apt = Client::find(cache.lists())?;
        let work = cache.work_directory()?;
        let (_, package) = apt.resolve(&[package])?;
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

/// Shell commands that mount the disk, which is `/dev/vda`: `run NAME ARGUMENT ...` runs a program of it.
pub const MOUNT: &str = r#"
mkdir -p /program && mount -o ro /dev/vda /program
run() { program=$1; shift; /program/ld.so --library-path /program /program/$program "$@"; }
"#;

/// Makes a disk with this program as `tests`, the command as `umbra`, its bare-metal guest as `drivers`, others by their
/// names, and the libraries that they are linked with here.
pub fn disk(directory: &Path, others: &[(&str, Program)]) -> Result<PathBuf> {
    let files = directory.join("files");
    fs::create_dir(&files)?;
    fs::copy(drivers_guest(), files.join("drivers"))?;
    let mut programs = vec![
        ("tests", Program::of_this_system(std::env::current_exe()?)),
        ("umbra", back_ends::ours()),
    ];
    programs.extend_from_slice(others);
    for (name, program) in programs {
        fs::copy(program.path(), files.join(name))?;
        for library in program.linked()? {
            let file = library.file_name().context("a library has no name")?;
            let is_loader = file.to_string_lossy().starts_with("ld-linux");
            let file = if is_loader { "ld.so".as_ref() } else { file };
            fs::copy(&library, files.join(file))?;
        }
    }
    // Names and line numbers of functions are a large part of these. They work as they are, too.
    let ours = ["tests", "umbra"].map(|name| files.join(name));
    let _ = Command::new("strip").args(ours).output();
    if !files.join("ld.so").exists() {
        bail!("this program has no loader among its libraries");
    }
    let image = directory.join("program.ext4");
    ext4(&image, &files, "400M")?;
    Ok(image)
}
