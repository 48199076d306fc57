//! `umbra run`: one machine, its console on this terminal.

use anyhow::Result;
use umbra_vmm::{Console, Machine, Outcome, Plan, Spec};

use crate::args::MachineArgs;
use crate::console::Session;
use crate::inspect::Inspector;
use crate::limits;
use crate::report;
use crate::status::Status;

/// Runs a machine, watched as `arguments` say. Returns how it ended.
pub fn run(spec: Spec, arguments: &MachineArgs) -> Result<Status> {
    limits::survive();
    limits::raise(&spec.virtio);
    let machine = Machine::build(Plan::new(spec)?, Console::to(std::io::stdout()))?;
    if let Some(reason) = machine.fallback() {
        report::note(&format!("{reason}; the software processor is used"));
    }
    let socket = arguments.inspect.as_deref();
    let _inspector = socket
        .map(|path| Inspector::start(path, machine.handle()))
        .transpose()?;
    let session = Session::start(machine.handle())?;
    let result = machine.run();
    // The terminal is the user's again before anything is printed.
    let signal = session.end();
    let ended = result?;
    if arguments.stats {
        report::statistics(&ended);
    }
    report::crash_of(&ended.outcome);
    Ok(match signal {
        Some(number) if ended.outcome == Outcome::Stopped => Status::Signal(number),
        _ => Status::from(&ended.outcome),
    })
}
