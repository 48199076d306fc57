//! From what was said to what is asked.

use std::fs::File;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};
use umbra_vmm::{Limits, LimitsForm, NetHost, PortEnd, VirtioKind};

use super::operation::Operation;
use crate::args::ctl::{Add, Cpu, Link, NewState, Part, Verb};
use crate::client::{PATIENCE, Request};
use crate::report::BadInput;

/// Bytes of a body. No server takes more.
const BODY_MAX: u64 = 64 << 20;

/// What a verb asks, and which operation that is, if it is one of `/v1`.
pub fn of(verb: &Verb) -> Result<(Option<Operation>, Request)> {
    let asked = |operation: Operation| (operation, operation.request("", &[]));
    let named = |operation: Operation, name: &str| (operation, operation.request(name, &[]));
    let (operation, request) = match verb {
        Verb::Info => asked(Operation::Info),
        Verb::Spec => asked(Operation::Spec),
        Verb::PutSpec { file } => body(asked(Operation::PutSpec), read_file(file)?),
        Verb::Start => asked(Operation::Start),
        Verb::Pause => asked(Operation::Pause),
        Verb::Resume => asked(Operation::Resume),
        Verb::Stop => asked(Operation::Stop),
        Verb::Reset => asked(Operation::Reset),
        Verb::PowerButton => asked(Operation::PowerButton),
        Verb::CtrlAltDel => asked(Operation::CtrlAltDel),
        Verb::Nmi { cpu: None } => asked(Operation::Nmi),
        Verb::Nmi { cpu } => body(asked(Operation::Nmi), json!({ "cpu": cpu }).to_string()),
        Verb::Cpus => asked(Operation::Cpus),
        Verb::Cpu(Cpu::Pause { cpu }) => named(Operation::CpuPause, &cpu.to_string()),
        Verb::Cpu(Cpu::Resume { cpu }) => named(Operation::CpuResume, &cpu.to_string()),
        Verb::Devices => asked(Operation::Devices),
        Verb::Device { id } => named(Operation::Device, id),
        Verb::Add(add) => device(add)?,
        Verb::Change(wanted) => body(named(Operation::Change, &wanted.id), change(&wanted.what)?),
        Verb::Remove { id, timeout, force } => {
            let query = [
                ("timeout_ms", Some(timeout.as_millis().to_string())),
                ("force", force.then(|| "true".to_owned())),
            ];
            let asked = (Operation::Remove, Operation::Remove.request(id, &query));
            patient(asked, *timeout)
        }
        Verb::Inspect { part: None } => asked(Operation::Inspect),
        Verb::Inspect { part: Some(part) } => inspect(part),
        Verb::Metrics => asked(Operation::Metrics),
        Verb::Events { since, limit, wait } => {
            let query = [
                ("since", Some(since.to_string())),
                ("limit", limit.map(|limit| limit.to_string())),
                ("wait_ms", wait.map(|wait| wait.as_millis().to_string())),
            ];
            let asked = (Operation::Events, Operation::Events.request("", &query));
            patient(asked, wait.unwrap_or_default())
        }
        Verb::Server => asked(Operation::Server),
        Verb::Openapi => asked(Operation::Openapi),
        Verb::Request { method, path, body } => {
            let request = Request {
                method: method.clone(),
                body: body.as_deref().map(read).transpose()?,
                patience: ANYTHING,
                ..Request::get(path)
            };
            return Ok((None, request));
        }
    };
    Ok((Some(operation), request))
}

type Asked = (Operation, Request);

/// How long the answer to a request of one's own may take: as long as anything may.
const ANYTHING: Duration = Duration::from_secs(660);

fn body((operation, request): Asked, body: String) -> Asked {
    let body = Some(body);
    (operation, Request { body, ..request })
}

/// The answer takes so much longer.
fn patient((operation, request): Asked, time: Duration) -> Asked {
    let patience = PATIENCE + time;
    (
        operation,
        Request {
            patience,
            ..request
        },
    )
}

fn inspect(part: &Part) -> Asked {
    let operation = match part {
        Part::Map => Operation::Map,
        Part::Generation => Operation::Generation,
        Part::Mmu => Operation::Mmu,
        Part::PageTables { cpu, address } => {
            let query = [("cpu", Some(cpu.to_string())), ("address", address.clone())];
            return (
                Operation::PageTables,
                Operation::PageTables.request("", &query),
            );
        }
    };
    (operation, operation.request("", &[]))
}

fn device(add: &Add) -> Result<Asked> {
    let named = |id: &str| (Operation::Add, Operation::Add.request(id, &[]));
    match (&add.device.body, add.device.spec()) {
        (None, Some(mut spec)) => {
            make_absolute(&mut spec.kind)?;
            let id = add.id.as_ref().unwrap_or(&spec.id);
            let text = serde_json::to_string(&spec.kind);
            let text =
                text.map_err(|error| BadInput(format!("it cannot be said in JSON: {error}")))?;
            Ok(body(named(id), text))
        }
        (text, _) => {
            let id = add.id.as_deref().unwrap_or_default();
            Ok(body(named(id), read(text.as_deref().unwrap_or_default())?))
        }
    }
}

/// What a relative path means here, it means to the server.
fn make_absolute(kind: &mut VirtioKind) -> Result<()> {
    let all: Vec<&mut PathBuf> = match kind {
        VirtioKind::Block(disk) => vec![&mut disk.path],
        VirtioKind::Pmem(pmem) => vec![&mut pmem.path],
        VirtioKind::Vsock(vsock) => vec![&mut vsock.path],
        VirtioKind::VhostUser(vhost) => vec![&mut vhost.socket],
        VirtioKind::Vdpa(vdpa) => vec![&mut vdpa.node],
        VirtioKind::Net(net) => match &mut net.host {
            NetHost::Stream { path } => vec![path],
            _ => vec![],
        },
        VirtioKind::Console(console) => {
            let ends = console.ports.iter_mut().map(|port| &mut port.end);
            let paths = ends.filter_map(|end| match end {
                PortEnd::Socket(path) | PortEnd::File(path) => Some(path),
                _ => None,
            });
            paths.collect()
        }
        _ => vec![],
    };
    for path in all {
        *path = here(path)?;
    }
    Ok(())
}

fn here(path: &Path) -> Result<PathBuf> {
    absolute(path).map_err(|error| BadInput(format!("{}: {error}", path.display())).into())
}

fn change(what: &NewState) -> Result<String> {
    if let Some(body) = &what.body {
        return read(body);
    }
    let limits = |limits: Option<Limits>| limits.map(|limits| json!(LimitsForm::from(limits)));
    let path = what.path.as_deref().map(here).transpose()?;
    let fields = [
        ("path", path.map(|path| json!(path))),
        ("limits", limits(what.limits)),
        ("receive", limits(what.receive)),
        ("transmit", limits(what.transmit)),
        ("link", what.link.map(|link| json!(link == Link::Up))),
        ("target", what.target.map(Value::from)),
        ("polling_ms", what.polling.map(Value::from)),
        ("requested", what.requested.map(Value::from)),
    ];
    let said = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Ok(Value::Object(said.collect::<Map<_, _>>()).to_string())
}

/// Reads `JSON`, `@FILE` or `-`.
fn read(text: &str) -> Result<String> {
    match text.strip_prefix('@') {
        Some(file) => read_file(Path::new(file)),
        None if text == "-" => read_file(Path::new("-")),
        None => Ok(text.to_owned()),
    }
}

/// Reads a file, or standard input where it is `-`.
fn read_file(path: &Path) -> Result<String> {
    let from: Result<Box<dyn Read>, _> = match path.to_str() {
        Some("-") => Ok(Box::new(stdin())),
        _ => File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
    };
    let mut text = String::new();
    let read = from.and_then(|from| from.take(BODY_MAX).read_to_string(&mut text));
    read.map_err(|error| BadInput(format!("cannot read {}: {error}", path.display())))?;
    Ok(text)
}

#[cfg(test)]
mod tests;
