//! The rules of the house that a compiler does not know.
//!
//! - A crate depends only on crates of a lower level (`package.metadata.umbra.level`), none of its
//!   own; dev-dependencies too, so that tests cannot smuggle an edge in.
//! - Two edges are missing on purpose, whatever the levels say: `mmu`–`bus`, `cpu*`–`bus`.
//! - Every external crate comes from the workspace's table.
//! - Every mutation in `mutations.toml` still fits the tree.
//! - Every source file opens with `//!`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Edges that must not exist at any level.
const FORBIDDEN: &[(&str, &str)] = &[
    ("umbra-mmu", "umbra-bus"),
    ("umbra-cpu", "umbra-bus"),
    ("umbra-cpu-kvm", "umbra-bus"),
    ("umbra-cpu-soft", "umbra-bus"),
];

pub fn run() -> Result<()> {
    let metadata = metadata()?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut wrong = Vec::new();
    let levels = levels(packages, &mut wrong);
    for package in packages {
        check_edges(package, &levels, &mut wrong);
        check_files(package, &mut wrong)?;
    }
    check_table(packages, &mut wrong)?;
    crate::mutate::check(&mut wrong)?;
    if wrong.is_empty() {
        println!("lint: {} crates, all edges lead down", packages.len());
        return Ok(());
    }
    bail!("{} rules broken:\n  {}", wrong.len(), wrong.join("\n  "))
}

/// What cargo knows of the members.
pub fn metadata() -> Result<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}

fn levels<'a>(packages: &'a [Value], wrong: &mut Vec<String>) -> BTreeMap<&'a str, i64> {
    let mut levels = BTreeMap::new();
    for package in packages {
        match package["metadata"]["umbra"]["level"].as_i64() {
            Some(level) => {
                levels.insert(name(package), level);
            }
            None => wrong.push(format!(
                "{}: no level; add [package.metadata.umbra] level = N (crates/README.md)",
                name(package)
            )),
        }
    }
    levels
}

fn check_edges(package: &Value, levels: &BTreeMap<&str, i64>, wrong: &mut Vec<String>) {
    let from = name(package);
    let Some(level) = levels.get(from) else {
        return;
    };
    for dependency in package["dependencies"].as_array().into_iter().flatten() {
        let to = name(dependency);
        if let Some(other) = levels.get(to).filter(|other| *other >= level) {
            wrong.push(format!(
                "{from} (level {level}) depends on {to} (level {other})"
            ));
        }
        if FORBIDDEN.contains(&(from, to)) || FORBIDDEN.contains(&(to, from)) {
            wrong.push(format!("{from} must not know {to}"));
        }
    }
}

/// Versions stand in one table: a member says `workspace = true` for each dependency.
fn check_table(packages: &[Value], wrong: &mut Vec<String>) -> Result<()> {
    for package in packages {
        let path = package["manifest_path"]
            .as_str()
            .context("a package without a manifest")?;
        let text = std::fs::read_to_string(path)?;
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.ends_with("dependencies]");
            } else if inside && line.contains('=') && !line.contains("workspace = true") {
                wrong.push(format!(
                    "{}: `{line}` is not from the workspace's table",
                    name(package)
                ));
            }
        }
    }
    Ok(())
}

fn check_files(package: &Value, wrong: &mut Vec<String>) -> Result<()> {
    let manifest = package["manifest_path"]
        .as_str()
        .context("a package without a manifest")?;
    let folder = Path::new(manifest)
        .parent()
        .context("a manifest without a folder")?;
    for sub in ["src", "tests", "benches", "examples"] {
        let path = folder.join(sub);
        if path.is_dir() {
            visit(&path, wrong)?;
        }
    }
    Ok(())
}

fn visit(folder: &Path, wrong: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, wrong)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path)?;
            if !text.starts_with("//!") {
                wrong.push(format!("{} does not open with //!", path.display()));
            }
        }
    }
    Ok(())
}
