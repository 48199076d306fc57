//! The `umbra` command: runs a microVM with its console on the user's terminal.
//!
//! `umbra-vmm` does the work; here are the command line (`args`), the terminal and its signals (`console`), the exit
//! status (`status`), a machine behind the API (`serve`), those who ask one (`client`, and on it `ctl`, `events`, `top`), a
//! device by itself (`backend`), and the demonstration guest ([`demo`]). This is a library only so that the command's
//! tests make their guests as `umbra demo` does.
#![forbid(unsafe_code)]

mod args;
mod backend;
mod client;
mod console;
mod counters;
mod ctl;
pub mod demo;
mod events;
mod generate;
mod inspect;
mod limits;
mod out;
mod probe;
mod report;
mod run;
mod serve;
mod size;
mod status;
mod table;
mod top;
mod trace;

use std::process::ExitCode;

use args::Command;
use status::Status;

/// Does what the process's arguments say; returns the exit status.
pub fn main() -> ExitCode {
    if let Some(arguments) = serve::firecracker::meant(std::env::args_os()) {
        return serve::firecracker::main(arguments);
    }
    let command = match args::parse() {
        Ok(command) => command,
        Err(status) => return status.into(),
    };
    let trace = command.watch().and_then(|watch| watch.trace.as_ref());
    if let Command::Serve(arguments) = &command {
        let served = serve::run(arguments);
        return served
            .unwrap_or_else(|error| report::failure(&error))
            .into();
    }
    let _trace = match report::observe(trace) {
        Ok(ending) => ending,
        Err(error) => return report::failure(&error).into(),
    };
    let exit_port = command.has_exit_port();
    let result = match command {
        Command::Run(arguments) => run::run(arguments.spec(), &arguments.watch),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Fetch(arguments) => demo::fetch(&arguments),
        Command::Probe(arguments) => Ok(probe::run(&arguments.kvm_device)),
        Command::Backend(arguments) => backend::run(&arguments),
        Command::Ctl(arguments) => ctl::run(&arguments),
        Command::Events(arguments) => events::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Completions(arguments) => generate::completions(&arguments),
        Command::Man(arguments) => generate::man(&arguments),
        Command::Serve(_) | Command::Firecracker(_) => unreachable!("served above"),
    };
    let status = result.unwrap_or_else(|error| report::failure(&error));
    if exit_port {
        return ExitCode::from(status.code_beside_exit_port());
    }
    status.into()
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status.code())
    }
}
