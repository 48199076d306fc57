//! Kernel modules: those of virtio devices, what they need, and the tables by which `modprobe` finds
//! them (what `depmod` makes when a package is installed).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// What a guest of ours can have a use for, where the kernel has it as a module.
pub const WANTED: [&str; 16] = [
    "button",
    "evdev",
    "ext4",
    "nd_pmem",
    "pvpanic_mmio",
    "virtio_balloon",
    "virtio_blk",
    "virtio_console",
    "virtio_mem",
    "virtio_mmio",
    "virtio_net",
    "virtio_pci",
    "virtio_pmem",
    "virtio_rng",
    "virtiofs",
    "vmw_vsock_virtio_transport",
];

/// A module.
pub struct Module {
    /// Where it is below the directory of its kernel, not compressed.
    pub path: String,
    /// What it is.
    pub content: Vec<u8>,
    needs: Vec<String>,
    aliases: Vec<String>,
}

/// The modules of one kernel that are taken along.
#[derive(Default)]
pub struct Modules {
    /// The kernel's release, as `uname -r` says.
    pub release: String,
    /// By name.
    pub modules: BTreeMap<String, Module>,
}

impl Modules {
    /// Collects some, by name, and what they need, from an unpacked package. `xz` is a command that decompresses its
    /// input, for modules that are compressed.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub fn collect(package: &Path, xz: &[&Path], wanted: &[&str]) -> Result<Self> {
        let all = package.join("lib/modules");
        // Where /lib is a link into /usr packages may say so.
        let all = if all.is_dir() {
            all
        } else {
            package.join("usr/lib/modules")
        };
        let Some(directory) = super::cache::first_file(&all, "") else {
            return Ok(Self::default());
        };
        let release = directory.file_name().unwrap_or_default().to_string_lossy();
        let mut files = BTreeMap::new();
        index(&directory, &mut files)?;
        let mut modules = BTreeMap::new();
        let mut open: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        while let Some(name) = open.pop() {
            // Without a file it is built in, or not made.
            let Some(file) = files.get(&name).filter(|_| !modules.contains_key(&name)) else {
                continue;
            };
            let module = Module::read(&directory, file, xz)
                .with_context(|| format!("cannot read the module {}", file.display()))?;
            open.extend(module.needs.iter().cloned());
            modules.insert(name, module);
        }
        Ok(Self {
            release: release.into_owned(),
            modules,
        })
    }

    /// The table of what each module needs, nearest first: it is loaded from the end.
    pub fn dependencies(&self) -> String {
        let line = |module: &Module| {
            let mut needed = Vec::new();
            self.follow(module, &mut BTreeSet::new(), &mut needed);
            needed.reverse();
            format!("{}: {}\n", module.path, needed.join(" "))
        };
        self.modules.values().map(line).collect()
    }

    /// Lists what a module needs, the deepest first.
    fn follow<'a>(
        &'a self,
        module: &'a Module,
        seen: &mut BTreeSet<&'a str>,
        needed: &mut Vec<&'a str>,
    ) {
        for name in &module.needs {
            if let Some(other) = self.modules.get(name)
                && seen.insert(name)
            {
                self.follow(other, seen, needed);
                needed.push(&other.path);
            }
        }
    }

    /// The table of the devices that each module drives.
    pub fn aliases(&self) -> String {
        let lines = self.modules.iter().flat_map(|(name, module)| {
            let aliases = module.aliases.iter();
            aliases.map(move |alias| format!("alias {alias} {name}\n"))
        });
        lines.collect()
    }
}

/// Finds all files of modules, by name.
fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let read = fs::read_dir(directory);
    for entry in read.with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some((name, "ko" | "ko.xz")) = file_name.split_once('.') {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

impl Module {
    fn read(directory: &Path, file: &Path, xz: &[&Path]) -> Result<Self> {
        let content = match file.extension().and_then(|e| e.to_str()) {
            Some("xz") => decompress(file, xz)?,
            _ => fs::read(file)?,
        };
        let information = information(&content)?;
        let field = |key: &str| {
            let key = format!("{key}=");
            let entries = information.split('\0');
            entries.filter_map(move |entry| Some(entry.strip_prefix(&*key)?.to_owned()))
        };
        let needs: Vec<String> = field("depends")
            .flat_map(|list| {
                let names = list.split(',').filter(|name| !name.is_empty());
                names.map(|name| name.replace('-', "_")).collect::<Vec<_>>()
            })
            .collect();
        let aliases = field("alias").collect();
        let path = file.strip_prefix(directory)?.to_string_lossy().into_owned();
        let end = path.find(".ko").map_or(path.len(), |at| at + 3);
        Ok(Self {
            path: path[..end].to_owned(),
            content,
            needs,
            aliases,
        })
    }
}

/// The section in which a module says what it is: strings that end with a zero.
fn information(content: &[u8]) -> Result<String> {
    let file = object::File::parse(content)?;
    let section = file.section_by_name(".modinfo");
    let data = section.context("it has no section .modinfo")?.data()?;
    Ok(String::from_utf8_lossy(data).into_owned())
}

fn decompress(file: &Path, xz: &[&Path]) -> Result<Vec<u8>> {
    let [program, arguments @ ..] = xz else {
        bail!("it is compressed, and nothing is there that decompresses it");
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(fs::File::open(file)?)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!("{} {}", program.display(), output.status);
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, needs: &[&str], aliases: &[&str]) -> Module {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Module {
            path: path.to_owned(),
            content: Vec::new(),
            needs: owned(needs),
            aliases: owned(aliases),
        }
    }

    #[test]
    fn the_tables_say_what_is_loaded_before_and_for_which_devices() {
        let modules = Modules {
            release: "6".into(),
            modules: [
                ("a", module("a.ko", &["b", "c", "built_in"], &["x:*", "y"])),
                ("b", module("d/b.ko", &["c"], &[])),
                ("c", module("d/c.ko", &[], &["z"])),
            ]
            .map(|(name, module)| (name.to_owned(), module))
            .into(),
        };
        assert_eq!(
            modules.dependencies(),
            "a.ko: d/b.ko d/c.ko\nd/b.ko: d/c.ko\nd/c.ko: \n"
        );
        assert_eq!(modules.aliases(), "alias x:* a\nalias y a\nalias z c\n");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        for content in [&b""[..], b"\x7fELF", b"text"] {
            assert!(information(content).is_err());
        }
    }
}
