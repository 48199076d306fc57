//! What a registry would get: a package of every library crate, built from nothing but its own files.
//!
//! `cargo package` makes packages of members that depend on each other as if they were published in one go. It
//! then unpacks them and builds each from there, which compiles everything once more: more than five minutes on two
//! cores, less when the libraries of others are built already. `--no-verify`, which `cargo xtask test` uses, leaves that out: 15 seconds.
//!
//! Either way the list of each package's files is looked at first: a file that a source includes has to be
//! among them. The compiler would not find it missing in a test, because a verification builds no tests.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A crate that is for others to use.
pub struct Library {
    /// The package's name.
    pub name: String,
    /// Where it is.
    pub folder: PathBuf,
}

/// `[--no-verify]`.
pub fn run(arguments: &[&str]) -> Result<()> {
    let verify: &[&str] = match arguments {
        [] => &[],
        ["--no-verify"] => &["--no-verify"],
        _ => bail!("usage: cargo xtask package [--no-verify]"),
    };
    let libraries = libraries()?;
    let mut wrong = Vec::new();
    for library in &libraries {
        check_files(library, &mut wrong)?;
    }
    if !wrong.is_empty() {
        bail!("packages lack files:\n  {}", wrong.join("\n  "));
    }
    let target = crate::places::target()?.join("packages");
    forget(&target, &libraries)?;
    let names = libraries.iter().flat_map(|l| ["--package", &l.name]);
    let status = cargo()
        .args(["package", "--quiet", "--allow-dirty"])
        .args(verify)
        .args(names)
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .context("cannot run cargo package")?;
    if !status.success() {
        bail!("cargo package failed ({status})");
    }
    println!("package: {} crates", libraries.len());
    Ok(())
}

/// Throws away what cargo has unpacked and built of the packages before. It knows both by name and version, so it would
/// build a package on an older state of another one.
fn forget(target: &Path, libraries: &[Library]) -> Result<()> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    let mut folders = vec![target.join("debug/.fingerprint")];
    // A registry that is a folder, as the one of packages is, has no name before its number.
    let of_folder = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('-'))
    };
    folders.extend(entries(&home.join("registry/src")).filter(of_folder));
    for path in folders.iter().flat_map(|folder| entries(folder)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A version follows, or a number.
        let name = name.rsplit_once('-').map_or("", |(name, _)| name);
        if libraries.iter().any(|library| library.name == name) {
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// What is in a folder; nothing if there is none.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.path())
}

/// Members that may be published: all but those that say `publish = false`.
pub fn libraries() -> Result<Vec<Library>> {
    let metadata = crate::lint::metadata()?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    // `null` is "anywhere", `[]` is "nowhere".
    let published = packages.iter().filter(|p| p["publish"].is_null());
    published.map(library).collect()
}

fn library(package: &Value) -> Result<Library> {
    let text = |field: &str| package[field].as_str().with_context(|| field.to_owned());
    let manifest = Path::new(text("manifest_path")?);
    Ok(Library {
        name: text("name")?.to_owned(),
        folder: manifest
            .parent()
            .context("a manifest without a folder")?
            .to_owned(),
    })
}

/// Says which files a package's sources include and the package does not have.
fn check_files(library: &Library, wrong: &mut Vec<String>) -> Result<()> {
    let output = cargo()
        .args([
            "package",
            "--list",
            "--allow-dirty",
            "--package",
            &library.name,
        ])
        .output()
        .context("cannot run cargo package")?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}: cargo package --list: {}", library.name, error.trim());
    }
    let list = String::from_utf8(output.stdout)?;
    let files: BTreeSet<PathBuf> = list.lines().map(PathBuf::from).collect();
    for file in files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "rs"))
    {
        let text = std::fs::read_to_string(library.folder.join(file))
            .with_context(|| format!("{}: {}", library.name, file.display()))?;
        for included in included(&text) {
            let path = joined(file, included);
            if path.is_none_or(|path| !files.contains(&path)) {
                wrong.push(format!(
                    "{}: {} takes {included}",
                    library.name,
                    file.display()
                ));
            }
        }
    }
    Ok(())
}

/// The files that a source takes by `include_str!`, `include_bytes!`, `include!` and `#[path]`.
fn included(text: &str) -> impl Iterator<Item = &str> {
    const OPENINGS: [&str; 4] = [
        "include_str!(\"",
        "include_bytes!(\"",
        "include!(\"",
        "#[path = \"",
    ];
    OPENINGS.into_iter().flat_map(move |opening| {
        let after = text.split(opening).skip(1);
        after.filter_map(|rest| Some(rest.split_once('"')?.0))
    })
}

/// The place of what `file` names, in the package; none if it is outside.
fn joined(file: &Path, named: &str) -> Option<PathBuf> {
    let mut path = file.parent()?.to_owned();
    for part in Path::new(named).components() {
        match part {
            Component::ParentDir => path.pop().then_some(())?,
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn cargo() -> Command {
    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_includes_is_found() {
        let text = "#[path = \"a/b.rs\"] mod b; const T: &str = include_str!(\"../c.txt\");";
        let found: Vec<_> = included(text).collect();
        assert_eq!(found, ["../c.txt", "a/b.rs"]);
    }

    #[test]
    fn a_file_outside_of_the_package_has_no_place_in_it() {
        let table = [
            ("src/lib.rs", "../data/a.bin", Some("data/a.bin")),
            ("src/a/b.rs", "./c.rs", Some("src/a/c.rs")),
            ("src/lib.rs", "../../docs/api.md", None),
            ("src/lib.rs", "/etc/passwd", None),
        ];
        for (file, named, place) in table {
            assert_eq!(
                joined(Path::new(file), named),
                place.map(PathBuf::from),
                "{named}"
            );
        }
    }
}
