//! `umbra demo` and `umbra fetch`: a Debian kernel and a busybox shell, without any preparation.
//!
//! Packages come by the distribution's own client and are unpacked, not installed: no root is
//! needed, and nothing outside the cache directory is touched. What was fetched is kept there.

pub mod apt;
pub mod cache;
pub mod cpio;
pub mod initramfs;
pub mod modules;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::args;
use crate::run;
use crate::status::Status;
use cache::Cache;
use modules::Modules;

const BUSYBOX: &str = "busybox-static";

impl args::Arch {
    /// Kernels to look for, in this order, where none was named: Debian's, Ubuntu's.
    fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &["linux-image-cloud-amd64", "linux-image-virtual"],
            Self::I386 => &["linux-image-686-pae", "linux-image-686"],
        }
    }

    /// What tells names in the cache apart.
    fn suffix(self) -> &'static str {
        match self {
            Self::Amd64 => "",
            Self::I386 => "-i386",
        }
    }

    /// The client for its packages; the host is an amd64 machine.
    fn client(self, cache: &Cache) -> Result<apt::Client> {
        match self {
            Self::Amd64 => apt::Client::find(cache.lists()),
            Self::I386 => apt::Client::find_foreign(cache.other("apt-i386"), "i386"),
        }
    }
}

/// What a machine can be booted with.
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Boots into a shell.
pub(crate) fn demo(arguments: &args::Demo) -> Result<Status> {
    let guest = prepare(&arguments.fetch)?;
    let watch = &arguments.watch;
    if !watch.print_config {
        eprintln!("Ctrl-A x ends the machine, Ctrl-A h explains, `poweroff -f` switches it off.");
    }
    let spec = arguments.machine.spec(guest.kernel, Some(guest.initrd));
    run::run(spec, watch)
}

/// Prints the paths as shell assignments.
pub(crate) fn fetch(arguments: &args::Fetch) -> Result<Status> {
    let guest = prepare(arguments)?;
    for (name, path) in [("kernel", &guest.kernel), ("initrd", &guest.initrd)] {
        println!("{name}={}", quoted(&path.to_string_lossy()));
    }
    Ok(Status::Success)
}

/// Quotes a word for a shell, where it needs that.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-~".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Finds kernel and initramfs in the cache; fetches and builds what is not there.
fn prepare(arguments: &args::Fetch) -> Result<Guest> {
    let cache = Cache::open()?;
    let wanted: Vec<&str> = match &arguments.kernel_package {
        Some(name) => vec![name],
        None => arguments.arch.kernels().to_vec(),
    };
    let guest = |name: &str| Guest {
        kernel: cache.kernel(name),
        initrd: cache.initrd(name),
    };
    let mut found = wanted.iter().map(|name| guest(name));
    let complete = |guest: &Guest| guest.kernel.exists() && guest.initrd.exists();
    match found.find(complete) {
        Some(guest) if !arguments.refresh => Ok(guest),
        _ => fetch_guest(&cache, arguments, &wanted).map(guest),
    }
}

/// Fetches a kernel with its modules, and builds its initramfs; returns the package's name.
fn fetch_guest<'a>(cache: &Cache, arguments: &args::Fetch, wanted: &[&'a str]) -> Result<&'a str> {
    let arch = arguments.arch;
    let busybox = cache.other(&format!("busybox{}", arch.suffix()));
    if arguments.refresh || !busybox.exists() {
        fetch_busybox(cache, arch, &busybox)?;
    }
    let work = cache.work_directory()?;
    let apt = arch.client(cache)?;
    let (name, package) = apt.resolve(wanted)?;
    let files = apt.unpack(std::slice::from_ref(&package), work.path())?;
    let image = cache::first_file(&files.join("boot"), "vmlinuz-")
        .with_context(|| format!("the package {package} holds no boot/vmlinuz-*"))?;
    // The guest's busybox runs here, too.
    let xz = [busybox.as_path(), Path::new("xzcat")];
    let modules = Modules::collect(&files, &xz, &modules::WANTED)?;
    cache.store(&cache.kernel(name), &read(&image)?)?;
    let archive = initramfs::archive(&read(&busybox)?, &modules);
    cache.store(&cache.initrd(name), &archive)?;
    Ok(name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn fetch_busybox(cache: &Cache, arch: args::Arch, to: &Path) -> Result<()> {
    let work = cache.work_directory()?;
    let apt = arch.client(cache)?;
    let (_, package) = apt.resolve(&[BUSYBOX])?;
    let files = apt.unpack(std::slice::from_ref(&package), work.path())?;
    let places = ["bin/busybox", "usr/bin/busybox"];
    let binary = places
        .iter()
        .map(|place| files.join(place))
        .find(|path| path.is_file());
    let binary = binary.with_context(|| format!("the package {package} holds no busybox"))?;
    cache.store_program(to, &read(&binary)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(
            quoted("/home/a/.cache/umbra/vmlinuz-6.1"),
            "/home/a/.cache/umbra/vmlinuz-6.1"
        );
        assert_eq!(quoted("/home/a b/it's"), "'/home/a b/it'\\''s'");
    }
}
