//! `umbra run`: one machine, its console on this terminal.

use std::path::PathBuf;

use anyhow::{Context, Error, Result};
use umbra_vmm::{Builder, Console, Outcome, Spec};

use crate::args::Watch;
use crate::console::Session;
use crate::inspect::Inspector;
use crate::limits;
use crate::out;
use crate::report::{self, BadInput};
use crate::status::Status;

/// Runs a machine, or prints what it would be, as `watch` says. Returns how it ended.
pub fn run(spec: Spec, watch: &Watch) -> Result<Status> {
    if watch.print_config {
        out::line(&config(&spec)?)?;
        return Ok(Status::Success);
    }
    if watch.perf_map {
        list_code()?;
    }
    limits::survive();
    limits::raise(&spec.virtio);
    let mut builder = Builder::new(spec).console(Console::to(std::io::stdout()));
    if watch.stats {
        builder = builder.measure();
    }
    let vm = builder.build().map_err(cause)?;
    let fallback = vm.machine().and_then(|machine| machine.fallback());
    if let Some(reason) = fallback {
        report::note(&format!("{reason}; the software processor is used"));
    }
    let socket = watch.inspect.as_deref();
    let _inspector = socket
        .map(|path| Inspector::start(path, vm.handle()))
        .transpose()?;
    let session = Session::start(vm.handle())?;
    let result = vm.run();
    // The terminal is the user's again before anything is printed.
    let signal = session.end();
    let ended = result?;
    if watch.stats {
        report::statistics(&ended);
    }
    report::crash_of(&ended.outcome);
    Ok(match signal {
        Some(number) if ended.outcome == Outcome::Stopped => Status::Signal(number),
        _ => Status::from(&ended.outcome),
    })
}

/// Has `perf` find what translated code stands for.
fn list_code() -> Result<()> {
    let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
    umbra_vmm::perf_map(&path).with_context(|| {
        let path = path.display();
        format!("cannot make {path} for --perf-map; remove it, if an earlier process left it there")
    })
}

/// Unwraps what tells whose mistake it is.
fn cause(error: umbra_vmm::Error) -> Error {
    match error {
        umbra_vmm::Error::Plan(plan) => plan.into(),
        umbra_vmm::Error::Build(build) => build.into(),
        other => other.into(),
    }
}

/// Writes a machine down as JSON.
///
/// # Errors
/// If a path in it is no text.
pub fn config(spec: &Spec) -> Result<String> {
    let text = serde_json::to_string_pretty(spec);
    text.map_err(|error| BadInput(format!("this machine cannot be said in JSON: {error}")).into())
}
