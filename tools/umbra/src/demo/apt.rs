//! Debian packages by `apt-get download`: resolved, downloaded and unpacked without root.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::demo::progress::Progress;
use crate::report::BadInput;

/// How many times a package may only depend on the next one.
const DEPTH: usize = 4;

/// apt with the system's package lists, or with lists of its own.
pub struct Client {
    private: PathBuf,
    /// Packages of another architecture than the system's.
    foreign: Option<String>,
    /// The private lists are fresh.
    updated: Cell<bool>,
    /// Why not all private lists could be fetched.
    incomplete: RefCell<Option<String>>,
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
            foreign: None,
            updated: Cell::new(false),
            incomplete: RefCell::new(None),
        })
    }

    /// Makes a client for packages of another architecture, which the system need not know: all
    /// lists are its own, in `private`.
    pub fn find_foreign(private: PathBuf, architecture: &str) -> Result<Self> {
        check_name(architecture)?;
        Ok(Self {
            foreign: Some(architecture.to_owned()),
            ..Self::find(private)?
        })
    }

    /// Where to look, in this order.
    fn lists(&self) -> &'static [Lists] {
        match self.foreign {
            None => &[Lists::System, Lists::Private],
            Some(_) => &[Lists::Private],
        }
    }

    /// What to add to the complaint that something is in no list.
    fn why_missing(&self) -> String {
        match &*self.incomplete.borrow() {
            Some(reason) => format!(" (not all lists could be fetched: {reason})"),
            None => String::new(),
        }
    }

    /// Finds the first of the packages `wanted` that exists, and what it really is: a package that
    /// only depends on a kernel of some version stands for that kernel.
    pub fn resolve<'a>(&self, wanted: &[&'a str]) -> Result<(&'a str, String)> {
        for name in wanted {
            check_name(name)?;
        }
        for &lists in self.lists() {
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
            "no package {} in the package lists{}; name another with --kernel-package, or add \
             its archive to apt's sources",
            wanted.join(" or "),
            self.why_missing()
        )))
    }

    /// Returns `wanted` and what they need, directly or not, as far as `follow` agrees to a name.
    /// Names that no package has, because others provide them, are left out.
    ///
    /// # Errors
    ///
    /// If a wanted package is in no list.
    pub fn closure(&self, wanted: &[&str], follow: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        for name in wanted {
            check_name(name)?;
        }
        for &lists in self.lists() {
            if lists == Lists::Private {
                self.update()?;
            }
            let found = self.closure_in(lists, wanted, &follow)?;
            if wanted.iter().all(|name| found.contains(*name)) {
                return Ok(found.into_iter().collect());
            }
        }
        bail!(BadInput(format!(
            "not all of {} are in the package lists{}; add their archive to apt's sources",
            wanted.join(", "),
            self.why_missing()
        )))
    }

    /// Looks up one level of needs after the other: a call takes a second, whatever it asks for.
    fn closure_in(
        &self,
        lists: Lists,
        wanted: &[&str],
        follow: impl Fn(&str) -> bool,
    ) -> Result<BTreeSet<String>> {
        let (mut found, mut asked) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        while !open.is_empty() {
            let output = self
                .command("apt-cache", lists)
                .args(["show", "--no-all-versions"])
                .args(&open)
                .output()
                .context("cannot start apt-cache")?;
            asked.extend(open);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let packages = text.split("\n\n").filter_map(parse);
            let mut needed = BTreeSet::new();
            for package in packages {
                needed.extend(package.depends.into_iter().filter(|name| follow(name)));
                found.insert(package.name);
            }
            open = needed.difference(&asked).cloned().collect();
        }
        Ok(found)
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
            parse(&text)
        } else {
            None
        }
    }

    /// Downloads packages into `directory` and unpacks them there, into one place; returns where.
    pub fn unpack(&self, packages: &[String], directory: &Path) -> Result<PathBuf> {
        let mut result = Ok(());
        for &lists in self.lists() {
            if lists == Lists::Private {
                // The system's lists are missing or older than the archive.
                self.update()?;
            }
            result = self.download(lists, packages, directory);
            if result.is_ok() {
                break;
            }
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
        let bar = Progress::new(&name, size);
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
            bar.update(bytes_in(directory));
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(bar);
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
        let bar = Progress::new("fetching package lists", 0);
        let output = self
            .command("apt-get", Lists::Private)
            .args(["-q", "update"])
            .output();
        drop(bar);
        let output = output.context("cannot start apt-get")?;
        self.updated.set(true);
        if !output.status.success() {
            let reason = last_line(&output.stderr);
            if !self.has_lists() {
                bail!(
                    "package lists cannot be fetched: {reason}; check the network, or run \
                     'apt-get update' as root"
                );
            }
            // One archive of several failed: what is wanted may be in the others.
            self.incomplete.replace(Some(reason));
        }
        Ok(())
    }

    /// Some package list is there.
    fn has_lists(&self) -> bool {
        let lists = fs::read_dir(self.private.join("lists"));
        lists.is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        })
    }

    fn command(&self, program: &str, lists: Lists) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        // As root apt would drop its rights and then not reach the private directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if let Some(architecture) = &self.foreign {
            for (key, value) in [
                ("APT::Architecture", architecture.as_str()),
                ("APT::Architectures::", architecture),
                // What the system has installed is of another architecture.
                ("Dir::State::status", "/dev/null"),
            ] {
                command.arg("-o").arg(format!("{key}={value}"));
            }
        }
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
fn parse(record: &str) -> Option<Package> {
    let field = |key: &str| {
        let line = record.lines().find(|line| {
            line.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(':'))
        })?;
        Some(line[key.len() + 1..].trim())
    };
    let name = field("Package")?;
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
        let package = parse(record).unwrap();
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
        let package = parse(record).unwrap();
        assert_eq!(package.kernel, None);
        assert!(parse("").is_none());
    }

    #[test]
    fn needed_packages_are_names_without_versions_and_alternatives() {
        let record = "Package: a\nPre-Depends: libc6 (>= 2.34), python3:any\n\
                      Depends: libx | liby, libz (= 1)\n";
        let package = parse(record).unwrap();
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
