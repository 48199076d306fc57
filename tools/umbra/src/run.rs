//! `umbra run`: one machine, its console on this terminal.

use anyhow::Result;
use umbra_vmm::{Console, Machine, Outcome, Plan, Spec};

use crate::console::Session;
use crate::report;
use crate::status::Status;

/// Runs a machine; prints its counters afterwards if `print_statistics`. Returns how it ended.
pub fn run(spec: Spec, print_statistics: bool) -> Result<Status> {
    let machine = Machine::build(Plan::new(spec)?, Console::to(std::io::stdout()))?;
    let session = Session::start(machine.handle())?;
    let result = machine.run();
    // The terminal is the user's again before anything is printed.
    let signal = session.end();
    let ended = result?;
    if print_statistics {
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
