//! Prints the page tables of a machine that runs with `umbra run --inspect SOCKET`: the guest's
//! entries, and beside each what the shadow says. MMIO entries of an older generation are marked STALE.
//! The machine stands still while it is looked at.
//!
//! ```text
//! table 0x1401, Protected
//! [  8] 0000000040008000: WUXAD- 0xfee00000 | MMIO WU- tag 1 STALE
//!   |    linear address   |      |            what the shadow entry says
//!   index of the entry    |      where the guest's entry leads
//!                         write, user, execute, accessed, dirty, global
//! ```
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

/// Prints the page tables of a running machine, guest and shadow side by side
#[derive(Parser)]
#[command(name = "ptdump", version)]
struct Arguments {
    /// The socket that `umbra run --inspect SOCKET` made
    socket: PathBuf,
    /// Of which processor
    #[arg(long, value_name = "N", default_value_t = 0)]
    cpu: u32,
    /// Only what translates this linear address, like 0xfee00000
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let answer = match ask(&arguments) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("ptdump: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(refusal) = answer.strip_prefix("error: ") {
        eprintln!("ptdump: {}", refusal.trim_end());
        return ExitCode::from(2);
    }
    // A reader that has seen enough closes the pipe.
    let _ = std::io::stdout().write_all(answer.as_bytes());
    ExitCode::SUCCESS
}

fn ask(arguments: &Arguments) -> Result<String> {
    let path = arguments.socket.display();
    let mut stream = UnixStream::connect(&arguments.socket).with_context(|| {
        format!("cannot reach a machine at {path}; start it with --inspect {path}")
    })?;
    let address = arguments.address.as_deref().unwrap_or_default();
    writeln!(stream, "page-tables {} {address}", arguments.cpu)?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("the machine went away")?;
    Ok(answer)
}
