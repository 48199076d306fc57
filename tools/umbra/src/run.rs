//! `umbra run`: one machine, its console on this terminal.

use std::path::Path;

use anyhow::Result;
use umbra_vmm::{Console, Machine, Outcome, Plan};

use crate::args::MachineArgs;
use crate::console::Session;
use crate::report;
use crate::status::Status;

/// Runs a machine that boots `kernel`; returns how it ended.
pub fn run(kernel: &Path, initrd: Option<&Path>, arguments: &MachineArgs) -> Result<Status> {
    let spec = arguments.spec(kernel.to_owned(), initrd.map(Path::to_owned));
    let machine = Machine::build(Plan::new(spec)?, Console::to(std::io::stdout()))?;
    let session = Session::start(machine.handle())?;
    let result = machine.run();
    // The terminal is the user's again before anything is printed.
    let signal = session.end();
    let ended = result?;
    if arguments.stats {
        report::statistics(&ended);
    }
    if let Outcome::Crash(crash) = &ended.outcome {
        report::crash(crash);
    }
    Ok(match signal {
        Some(number) if ended.outcome == Outcome::Stopped => Status::Signal(number),
        _ => Status::from(&ended.outcome),
    })
}
