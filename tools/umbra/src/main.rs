//! `umbra`: runs a microVM with its console on the user's terminal.
//!
//! The library does the work; here are the command line ([`args`]), the terminal and its signals
//! ([`console`]), the exit status ([`status`]), and the demonstration guest ([`demo`]).
#![forbid(unsafe_code)]

mod args;
mod console;
mod demo;
mod report;
mod run;
mod size;
mod status;

use std::process::ExitCode;

use args::Command;
use status::Status;

fn main() -> ExitCode {
    let command = match args::parse() {
        Ok(command) => command,
        Err(status) => return status.into(),
    };
    report::log_to_stderr();
    let result = match command {
        Command::Run(arguments) => run::run(
            &arguments.kernel,
            arguments.initrd.as_deref(),
            &arguments.machine,
        ),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Fetch(arguments) => demo::fetch(&arguments),
    };
    result
        .unwrap_or_else(|error| report::failure(&error))
        .into()
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status.code())
    }
}
