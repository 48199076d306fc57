//! Standard output of commands that print and go on.

use std::io::{ErrorKind, Write, stdout};

use anyhow::{Context, Result};

/// Nobody reads standard output any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub struct Closed;

/// Prints, at once.
///
/// # Errors
/// [`Closed`], or what the host says.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    match printed.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        printed => printed.context("cannot write to standard output"),
    }
}

/// Prints a line.
///
/// # Errors
/// As [`print`].
pub fn line(text: &str) -> Result<()> {
    print(&format!("{text}\n"))
}
