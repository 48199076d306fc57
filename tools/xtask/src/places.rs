//! Where things are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the whole project.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("two folders below the root")
        .to_owned()
}

/// The target folder that this program was built in. What a task builds with flags of its own goes
/// into a folder below, or everything would be built anew at each turn.
pub fn target() -> Result<PathBuf> {
    let ours = std::env::current_exe().context("where is this program?")?;
    let target = ours.ancestors().nth(2).context("not in a target folder")?;
    Ok(target.to_owned())
}

/// A program of the workspace that was built as this one was.
pub fn neighbour(name: &str) -> Result<PathBuf> {
    let ours = std::env::current_exe().context("where is this program?")?;
    Ok(ours.with_file_name(name))
}
