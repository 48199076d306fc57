//! What the command prints about itself: failures, crashes, counters, the log.

use std::io::Write;

use anyhow::{Error, Result};
use signal_hook::consts::SIGPIPE;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use umbra_vmm::{ApartError, BuildError, Crash, Ended, Outcome, PlanError};

use crate::client::ClientError;
use crate::out::Closed;
use crate::status::Status;
use crate::trace;

/// Lets `UMBRA_LOG` (for example `umbra_vmm=debug,umbra_mmu=trace`; warnings and errors of
/// Umbra without it) choose
/// what is logged, and `request` what is traced, until the result is dropped.
///
/// # Errors
/// If the variable says nothing that can be, or the file for the trace cannot be created.
pub fn observe(request: Option<&trace::Request>) -> Result<Option<trace::Ending>> {
    let filter = match std::env::var("UMBRA_LOG") {
        Ok(text) => text.parse::<Targets>().map_err(|error| {
            BadInput(format!(
                "UMBRA_LOG={text:?} says not what to log ({error}); write targets and levels like \
                 warn,umbra_devices=debug"
            ))
        })?,
        // What imago says is of a disk without a name, and once a request; who uses it says what failed.
        Err(_) => Targets::new()
            .with_default(LevelFilter::WARN)
            .with_target("imago", LevelFilter::OFF),
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let (trace, ending) = request.map(trace::Request::begin).transpose()?.unzip();
    tracing_subscriber::registry()
        .with(trace.map(|trace| trace.with_filter(filter_fn(trace::is_traced))))
        .with(log.with_filter(filter))
        .init();
    Ok(ending)
}

/// Prints a failure as one line; returns the status that it means.
pub fn failure(error: &Error) -> Status {
    if error.is::<Closed>() {
        // Whoever read has seen enough, as the signal would have said that the process ignores.
        return Status::Signal(SIGPIPE);
    }
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        // A cause that its parent has quoted already is not said twice.
        if !line.contains(&cause) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&cause);
        }
    }
    eprintln!("umbra: {}", line.replace(['\n', '\r'], " "));
    match error.downcast_ref::<ClientError>() {
        Some(error) => error.status(),
        None if is_bad_input(error) => Status::BadInput,
        None => Status::Failed,
    }
}

/// Prints one line that is worth knowing and no failure.
pub fn note(text: &str) {
    // A standard error that is closed leaves nobody to tell.
    let _ = writeln!(std::io::stderr(), "umbra: note: {text}");
}

/// Marks a failure as the user's: a wrong file, number or argument.
#[derive(Debug)]
pub struct BadInput(pub String);

impl std::fmt::Display for BadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

fn is_bad_input(error: &Error) -> bool {
    error.is::<PlanError>()
        || error.is::<BadInput>()
        || matches!(error.downcast_ref(), Some(ApartError::Plan(_)))
        || match error.downcast_ref() {
            Some(BuildError::Boot(boot)) => !is_host_failure(boot),
            Some(
                BuildError::DebugExit { .. }
                | BuildError::Frequency { .. }
                | BuildError::Template(_)
                | BuildError::Kvm(umbra_vmm::KvmError::Template(_))
                | BuildError::ConfigFile { .. }
                | BuildError::ConfigItem(_),
            ) => true,
            _ => false,
        }
}

/// Memory that could not be written is not the user's fault.
fn is_host_failure(error: &umbra_vmm::BootError) -> bool {
    matches!(error, umbra_vmm::BootError::Memory { .. })
}

/// Prints how a guest came to its end, if it crashed.
pub fn crash_of(outcome: &Outcome) {
    match outcome {
        Outcome::Crash(how) => crash("the guest crashed", how),
        Outcome::Stuck(how) => crash("the guest cannot go on", how),
        _ => {}
    }
}

/// Prints how a guest came to its end: why, the registers, the instruction, the last page walk.
fn crash(what: &str, crash: &Crash) {
    let mut text = format!("umbra: {what}: {}\n", crash.reason);
    text.push_str(&registers(crash));
    if !crash.code.is_empty() {
        let bytes: Vec<String> = crash.code.iter().map(|b| format!("{b:02x}")).collect();
        text.push_str(&format!("  code {}\n", bytes.join(" ")));
    }
    if !crash.walk.is_empty() {
        text.push_str("last page walk:\n");
        crash
            .walk
            .iter()
            .for_each(|line| text.push_str(&format!("  {line}\n")));
    }
    // A standard error that is closed leaves nobody to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn registers(crash: &Crash) -> String {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
    let state = &crash.state;
    let mut text = format!("  rip {:016x}  rflags {:08x}\n", state.rip, state.rflags);
    for row in NAMES.iter().zip(state.gpr).collect::<Vec<_>>().chunks(4) {
        let fields: Vec<String> = row
            .iter()
            .map(|(name, value)| format!("{name:>3} {value:016x}"))
            .collect();
        text.push_str(&format!("  {}\n", fields.join("  ")));
    }
    for row in SEGMENTS.iter().zip(state.seg).collect::<Vec<_>>().chunks(2) {
        let fields: Vec<String> = row
            .iter()
            .map(|(name, s)| {
                format!(
                    "{name} {:04x} base {:016x} limit {:08x} attr {:04x}",
                    s.selector, s.base, s.limit, s.attr
                )
            })
            .collect();
        text.push_str(&format!("  {}\n", fields.join("  ")));
    }
    text.push_str(&format!(
        "  gdt {:016x} limit {:04x}  idt {:016x} limit {:04x}\n",
        state.gdtr.base, state.gdtr.limit, state.idtr.base, state.idtr.limit
    ));
    text.push_str(&format!(
        "  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}\n",
        state.cr0, state.cr2, state.cr3, state.cr4, state.efer
    ));
    text
}

/// Prints the counters.
pub fn statistics(ended: &Ended) {
    let mut text = String::new();
    for (who, name, value) in &ended.statistics {
        text.push_str(&format!("{who:<10} {name:<36} {value:>14}\n"));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}
