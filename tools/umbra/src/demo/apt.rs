//! Debian packages by `apt-get download`: resolved, downloaded and unpacked without root.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::report::BadInput;

/// How many times a package may only depend on the next one.
const DEPTH: usize = 4;

/// apt with the system's package lists, or with lists of its own.
pub struct Client {
    private: PathBuf,
    /// The private lists are fresh.
    updated: Cell<bool>,
}

/// Which lists to look into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    System,
    Private,
}

/// A package as the lists have it.
struct Package {
    name: String,
    size: u64,
    kernel: Option<String>,
    /// What it needs; the first of alternatives.
    depends: Vec<String>,
}

impl Client {
    /// Makes a client that may keep lists of its own in `private`.
    pub fn find(private: PathBuf) -> Result<Self> {
        for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
            let found = Command::new(tool)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if found.is_err() {
                bail!(BadInput(format!(
                    "{tool} was not found; the demonstration needs Debian or Ubuntu: \
                     elsewhere give 'umbra run' a kernel and an initrd"
                )));
            }
        }
        Ok(Self {
            private,
            updated: Cell::new(false),
        })
    }

    /// Finds the first of the packages `wanted` that exists, and what it really is: a package that
    /// only depends on a kernel of some version stands for that kernel.
    pub fn resolve<'a>(&self, wanted: &[&'a str]) -> Result<(&'a str, String)> {
        for name in wanted {
            check_name(name)?;
        }
        for lists in [Lists::System, Lists::Private] {
            if lists == Lists::Private {
                self.update()?;
            }
            for name in wanted {
                if let Some(package) = self.follow(lists, name) {
                    return Ok((name, package));
                }
            }
        }
        bail!(BadInput(format!(
            "no package {} in the package lists; name another with --kernel-package, or add its \
             archive to apt's sources",
            wanted.join(" or ")
        )))
    }

    /// Returns `wanted` and what they need, directly or not, as far as `follow` agrees to a name.
    /// Names that no package has, because others provide them, are left out.
    ///
    /// # Errors
    ///
    /// If a wanted package is in no list.
    pub fn closure(&self, wanted: &[&str], follow: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut found = BTreeSet::new();
        let mut open: Vec<String> = Vec::new();
        for name in wanted {
            open.push(self.resolve(&[name])?.1);
        }
        let lists = if self.updated.get() {
            Lists::Private
        } else {
            Lists::System
        };
        while let Some(name) = open.pop() {
            if found.contains(&name) {
                continue;
            }
            if let Some(package) = self.show(lists, &name) {
                let needed = package.depends.into_iter();
                open.extend(needed.filter(|next| follow(next)));
                found.insert(name);
            }
        }
        Ok(found.into_iter().collect())
    }

    fn follow(&self, lists: Lists, name: &str) -> Option<String> {
        let mut package = self.show(lists, name)?;
        for _ in 0..DEPTH {
            match package.kernel {
                Some(next) => package = self.show(lists, &next)?,
                None => return Some(package.name),
            }
        }
        None
    }

    /// Looks a package up.
    fn show(&self, lists: Lists, name: &str) -> Option<Package> {
        let output = self
            .command("apt-cache", lists)
            .args(["show", "--no-all-versions", name])
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            parse(name, &text)
        } else {
            None
        }
    }

    /// Downloads packages into `directory` and unpacks them there, into one place; returns where.
    pub fn unpack(&self, packages: &[String], directory: &Path) -> Result<PathBuf> {
        let mut result = self.download(Lists::System, packages, directory);
        if result.is_err() {
            // The system's lists are missing or older than the archive.
            self.update()?;
            result = self.download(Lists::Private, packages, directory);
        }
        result?;
        let files = directory.join("files");
        for package in packages {
            let archive = super::cache::first_file(directory, &format!("{package}_"))
                .with_context(|| format!("apt-get did not download {package}"))?;
            let unpacked = Command::new("dpkg-deb")
                .arg("-x")
                .arg(&archive)
                .arg(&files)
                .output()?;
            if !unpacked.status.success() {
                bail!(
                    "dpkg-deb cannot unpack {package}: {}",
                    last_line(&unpacked.stderr)
                );
            }
        }
        Ok(files)
    }

    fn download(&self, lists: Lists, packages: &[String], directory: &Path) -> Result<()> {
        let (name, size) = match packages {
            [one] => (one.clone(), self.show(lists, one).map_or(0, |p| p.size)),
            // Looking up the sizes of many would take longer than the download.
            many => (format!("{} packages", many.len()), 0),
        };
        let bar = progress(&name, size);
        let mut child = self
            .command("apt-get", lists)
            .args(["-q", "download"])
            .args(packages)
            .current_dir(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start apt-get")?;
        while child.try_wait()?.is_none() {
            bar.set_position(bytes_in(directory));
            std::thread::sleep(Duration::from_millis(100));
        }
        bar.finish_and_clear();
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "apt-get cannot download {name}: {}",
                last_line(&output.stderr)
            );
        }
        Ok(())
    }

    /// Fetches package lists into a private directory, as any user can.
    fn update(&self) -> Result<()> {
        if self.updated.get() {
            return Ok(());
        }
        for directory in ["lists/partial", "cache/archives/partial"] {
            let path = self.private.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let bar = ProgressBar::new_spinner().with_message("fetching package lists");
        bar.enable_steady_tick(Duration::from_millis(100));
        let output = self
            .command("apt-get", Lists::Private)
            .args(["-q", "update"])
            .output();
        bar.finish_and_clear();
        let output = output.context("cannot start apt-get")?;
        if !output.status.success() {
            bail!(
                "package lists cannot be fetched: {}; check the network, or run 'apt-get update' as root",
                last_line(&output.stderr)
            );
        }
        self.updated.set(true);
        Ok(())
    }

    fn command(&self, program: &str, lists: Lists) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        // As root apt would drop its rights and then not reach the private directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if lists == Lists::Private {
            for (key, directory) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
                command
                    .arg("-o")
                    .arg(format!("{key}={}", self.private.join(directory).display()));
            }
        }
        command
    }
}

/// Package names as Debian's policy has them (5.6.7); nothing else reaches a command.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if name.len() < 2 || !begins || !name.chars().all(good) {
        bail!(BadInput(format!(
            "{name:?} is no name of a package; names are like linux-image-cloud-amd64"
        )));
    }
    Ok(())
}

/// Reads the record of `apt-cache show`. A kernel among the dependencies is what a package without
/// content of its own stands for.
fn parse(name: &str, record: &str) -> Option<Package> {
    let field = |key: &str| {
        let line = record.lines().find(|line| {
            line.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(':'))
        })?;
        Some(line[key.len() + 1..].trim())
    };
    field("Package")?;
    let depends: Vec<String> = ["Pre-Depends", "Depends"]
        .into_iter()
        .flat_map(|key| field(key).unwrap_or("").split(','))
        .filter_map(|dependency| {
            let first = dependency.split_whitespace().next()?;
            let name = first.split(':').next()?;
            check_name(name).is_ok().then(|| name.to_owned())
        })
        .collect();
    let kernel = depends
        .iter()
        .find(|needed| needed.starts_with("linux-image-") && *needed != name)
        .cloned();
    let size = field("Size")
        .and_then(|size| size.parse().ok())
        .unwrap_or(0);
    Some(Package {
        name: name.to_owned(),
        size,
        kernel,
        depends,
    })
}

fn progress(name: &str, size: u64) -> ProgressBar {
    if size == 0 {
        return ProgressBar::new_spinner().with_message(name.to_owned());
    }
    let bar = ProgressBar::new(size).with_message(name.to_owned());
    let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// How much of a download has arrived, wherever apt puts it.
fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_package_stands_for_the_kernel_it_depends_on() {
        let record = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nSize: 1480\n\
                      Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        let package = parse("linux-image-cloud-amd64", record).unwrap();
        assert_eq!(
            package.kernel.as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(package.size, 1480);
    }

    #[test]
    fn a_kernel_stands_for_itself() {
        let record = "Package: linux-image-6.1.0-56-cloud-amd64\n\
                      Depends: kmod, linux-base (>= 4.3~), initramfs-tools | linux-initramfs-tool\n";
        let package = parse("linux-image-6.1.0-56-cloud-amd64", record).unwrap();
        assert_eq!(package.kernel, None);
        assert!(parse("x", "").is_none());
    }

    #[test]
    fn needed_packages_are_names_without_versions_and_alternatives() {
        let record = "Package: a\nPre-Depends: libc6 (>= 2.34), python3:any\n\
                      Depends: libx | liby, libz (= 1)\n";
        let package = parse("a", record).unwrap();
        assert_eq!(package.depends, ["libc6", "python3", "libx", "libz"]);
    }

    #[test]
    fn only_names_of_packages_reach_a_command() {
        assert!(check_name("linux-image-6.12.117+deb12-cloud-amd64").is_ok());
        for name in ["", "-o", "a", "A-b", "a b", "../x", "a;b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
