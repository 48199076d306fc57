//! Answers for people. What these do not know of an answer is left out; `--json` has all of it.

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;
use umbra_vmm::Spec;

use super::operation::Operation;
use crate::client::ClientError;
use crate::counters::{Counters, exits, mmio, sum};
use crate::events::{Page, line};
use crate::table::{Table, plain};

/// Shows the answer to an operation that was asked for at `path`.
///
/// # Errors
/// If it is not what it should be.
pub fn answer(operation: Operation, path: &str, body: &str) -> Result<String> {
    let name = plain(name(path));
    let lines = match operation {
        Operation::Spec => return Ok(spec(body)),
        Operation::Openapi => return Ok(anything(body)),
        Operation::Metrics => return Ok(body.to_owned()),
        Operation::Info | Operation::Start | Operation::Pause | Operation::Resume => {
            info(&json(body)?)
        }
        Operation::Stop => vec!["it was told to end".into()],
        Operation::Reset => vec!["it was told to begin anew".into()],
        Operation::PutSpec => vec!["it is noted".into()],
        Operation::PowerButton => vec!["it was pressed".into()],
        Operation::CtrlAltDel => vec!["they were pressed".into()],
        Operation::Nmi => vec!["it was sent".into()],
        Operation::CpuResume => vec![format!("processor {name} was told to go on")],
        Operation::Add => vec![format!("{name} is there")],
        Operation::Change => vec![format!("{name} is changed")],
        Operation::Remove => vec![removal(&name, &json(body)?)],
        Operation::Cpus => cpus(&read::<Vec<Cpu>>(body)?),
        Operation::CpuPause => registers(&json(body)?),
        Operation::Devices => devices(&read::<Vec<Value>>(body)?),
        Operation::Device | Operation::Mmu | Operation::Server => flat(&json(body)?),
        Operation::Map => map(&json(body)?),
        Operation::Generation => generation(&json(body)?),
        Operation::Inspect => inside(body)?,
        Operation::PageTables => strings(&json(body)?["lines"]),
        Operation::Events => events(&Page::parse(body)?),
    };
    Ok(lines.into_iter().map(|line| line + "\n").collect())
}

/// Shows whatever it is: JSON with line breaks, other text as it is.
pub fn anything(body: &str) -> String {
    let pretty = serde_json::from_str::<Value>(body)
        .ok()
        .map(|value| format!("{value:#}"));
    match pretty.unwrap_or_else(|| body.to_owned()) {
        text if text.is_empty() || text.ends_with('\n') => text,
        text => text + "\n",
    }
}

/// Shows a machine in the order of its fields, if it is one as this version knows them.
fn spec(body: &str) -> String {
    let spec = serde_json::from_str::<Spec>(body);
    let text = spec.and_then(|spec| serde_json::to_string_pretty(&spec));
    text.map_or_else(|_| anything(body), |text| text + "\n")
}

/// The name in a path: behind `devices` or `cpus`.
fn name(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or_default();
    let mut parts = path.split('/');
    parts.find(|part| matches!(*part, "devices" | "cpus"));
    parts.next().unwrap_or_default()
}

fn read<T: for<'a> Deserialize<'a>>(body: &str) -> Result<T, ClientError> {
    serde_json::from_str(body).map_err(|error| ClientError::Odd(error.to_string()))
}

fn json(body: &str) -> Result<Value, ClientError> {
    read(body)
}

/// A value as a cell; nothing for what is not there.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn hex(value: &Value) -> String {
    format!("{:#x}", value.as_u64().unwrap_or_default())
}

fn strings(value: &Value) -> Vec<String> {
    let lines = value.as_array().into_iter().flatten();
    lines.map(|line| plain(&cell(line))).collect()
}

/// `ID: STATE, boot N, on BACKEND`.
fn info(info: &Value) -> Vec<String> {
    let state = cell(&info["state"]).replace('_', " ");
    let mut text = format!("{}: {state}", cell(&info["id"]));
    if let Some(boots) = info["boots"].as_u64().filter(|boots| *boots > 0) {
        text.push_str(&format!(", boot {boots}"));
    }
    if let Some(backend) = info["backend"].as_str() {
        text.push_str(&format!(", on {backend}"));
    }
    if let Some(reason) = info["fallback"].as_str() {
        text.push_str(&format!(" ({reason})"));
    }
    vec![plain(&text)]
}

fn removal(name: &str, removal: &Value) -> String {
    let waited = removal["waited_ms"].as_u64().unwrap_or_default();
    match removal["state"].as_str() {
        Some("let_go") => format!("{name} has gone, after {waited} ms"),
        Some("taken_away") => {
            format!("{name} was taken away: the guest has not let it go in {waited} ms")
        }
        _ => format!("the guest has not let {name} go in {waited} ms; it still may"),
    }
}

#[derive(Deserialize)]
struct Cpu {
    cpu: usize,
    /// An inspection tells this of the whole machine.
    #[serde(default)]
    paused: bool,
    held: bool,
    counters: Counters,
}

fn cpus(cpus: &[Cpu]) -> Vec<String> {
    let mut table = Table::new(&["CPU", "STATE", "EXITS", "MMIO", "PORTS", "INTERRUPTS"]);
    for cpu in cpus {
        let state = match (cpu.held, cpu.paused) {
            (true, _) => "held",
            (false, true) => "paused",
            (false, false) => "running",
        };
        let count = |name| {
            cpu.counters
                .get(name)
                .map(u64::to_string)
                .unwrap_or_default()
        };
        table.row([
            cpu.cpu.to_string(),
            state.into(),
            exits(&cpu.counters).to_string(),
            mmio(&cpu.counters).to_string(),
            count("port_accesses"),
            count("interrupts"),
        ]);
    }
    table.lines()
}

fn registers(state: &Value) -> Vec<String> {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let wide = |name: &str, value: &Value| {
        format!("{name:>6} {:016x}", value.as_u64().unwrap_or_default())
    };
    let already = match state["already"].as_bool() {
        Some(true) => " already",
        _ => "",
    };
    let mut lines = vec![
        format!("processor {} stands still{already}", cell(&state["cpu"])),
        ["rip", "rflags"]
            .map(|name| wide(name, &state[name]))
            .join(" "),
    ];
    let general: Vec<_> = (0..)
        .zip(NAMES)
        .map(|(n, name)| wide(name, &state["registers"][n]))
        .collect();
    lines.extend(general.chunks(4).map(|row| row.join(" ")));
    lines.push(
        ["cr0", "cr3", "cr4"]
            .map(|name| wide(name, &state[name]))
            .join(" "),
    );
    lines
}

/// Devices with what is said of them, or what is found inside.
fn devices(devices: &[Value]) -> Vec<String> {
    let mut table = Table::new(&["ID", "KIND", "STATE", "PCI", "BEHIND IT"]);
    for device in devices {
        let (what, status) = (&device["device"], &device["status"]);
        table.row([
            cell(&device["id"]),
            cell(&what["kind"]),
            device_state(status).into(),
            cell(&status["pci_device"]),
            behind(what),
        ]);
    }
    table.lines()
}

fn device_state(status: &Value) -> &'static str {
    match (status["needs_reset"].as_bool(), status["in_use"].as_bool()) {
        (Some(true), _) => "needs reset",
        (_, Some(true)) => "in use",
        (_, Some(false)) => "idle",
        (_, None) => "described",
    }
}

/// What a device has of the host, or how large it is.
fn behind(device: &Value) -> String {
    let host = &device["host"];
    let found = ["path", "socket", "node", "cid", "max"]
        .into_iter()
        .find_map(|name| match &device[name] {
            Value::Null => None,
            value => Some(cell(value)),
        });
    match host["type"].as_str() {
        Some(kind) => [
            kind,
            host["name"]
                .as_str()
                .or(host["path"].as_str())
                .unwrap_or_default(),
        ]
        .join(" "),
        None => found.unwrap_or_default(),
    }
}

/// A value as lines, `PATH VALUE`.
fn flat(value: &Value) -> Vec<String> {
    let mut all = Vec::new();
    flatten(value, "", &mut all);
    let width = all.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    let lines = all
        .iter()
        .map(|(path, value)| format!("{path:width$}  {value}"));
    lines.map(|line| plain(&line)).collect()
}

fn flatten(value: &Value, path: &str, all: &mut Vec<(String, String)>) {
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(name, value)| flatten(value, &below(name), all));
        }
        Value::Array(items) => {
            (0..)
                .zip(items)
                .for_each(|(n, value): (u64, _)| flatten(value, &below(&n.to_string()), all));
        }
        Value::Null => {}
        value => all.push((path.to_owned(), cell(value))),
    }
}

fn map(map: &Value) -> Vec<String> {
    let mut lines = vec![format!("generation {}", cell(&map["generation"]))];
    lines.extend(slots(&map["slots"]));
    lines
}

fn slots(slots: &Value) -> Vec<String> {
    let mut table = Table::new(&["START", "BYTES", "KIND", "OWNER"]);
    for slot in slots.as_array().into_iter().flatten() {
        let kind = match (slot["kind"].as_str(), slot["read_only"].as_bool()) {
            (Some("ram"), Some(true)) => "rom",
            (Some("ram"), _) => "ram",
            (_, _) => "window",
        };
        table.row([
            hex(&slot["start"]),
            hex(&slot["len"]),
            kind.into(),
            cell(&slot["owner"]),
        ]);
    }
    table.lines()
}

fn generation(generation: &Value) -> Vec<String> {
    let mut lines = vec![format!("generation {}", cell(&generation["generation"]))];
    lines.extend(bumps(&generation["bumps"], usize::MAX));
    lines
}

/// The last so many changes of the map.
fn bumps(bumps: &Value, most: usize) -> Vec<String> {
    let mut table = Table::new(&["GENERATION", "AT", "RAM", "WINDOWS", "CAUSE"]);
    let bumps: Vec<_> = bumps.as_array().into_iter().flatten().collect();
    for bump in &bumps[bumps.len().saturating_sub(most)..] {
        table.row([
            cell(&bump["generation"]),
            line::time(bump["at_ms"].as_u64().unwrap_or_default()),
            cell(&bump["ram_slots"]),
            cell(&bump["windows"]),
            cell(&bump["cause"]),
        ]);
    }
    table.lines()
}

/// How many changes of the map are shown beside everything else.
const FEW: usize = 8;

fn inside(body: &str) -> Result<Vec<String>, ClientError> {
    let all = json(body)?;
    let mut lines = vec![format!(
        "generation {}, on {}{}",
        cell(&all["generation"]),
        cell(&all["backend"]),
        if all["paused"] == true {
            ", paused"
        } else {
            ""
        }
    )];
    let mut found: Vec<Cpu> = read(&all["cpus"].to_string())?;
    found
        .iter_mut()
        .for_each(|cpu| cpu.paused = all["paused"] == true);
    let mut part = |title: &str, part: Vec<String>| {
        lines.extend([String::new(), title.to_owned()]);
        lines.extend(part);
    };
    part("processors", cpus(&found));
    part("map", slots(&all["map"]));
    part("last changes of the map", bumps(&all["bumps"], FEW));
    part("devices", reports(&all["devices"])?);
    part("counters of the MMU", flat(&all["mmu"]));
    part("counters of the machine", flat(&all["machine"]));
    Ok(lines)
}

fn reports(devices: &Value) -> Result<Vec<String>, ClientError> {
    let mut table = Table::new(&["ID", "KIND", "STATE", "PCI", "READ", "WRITTEN", "THROTTLED"]);
    for device in devices.as_array().into_iter().flatten() {
        let counters: Counters = read(&device["counters"].to_string())?;
        table.row([
            cell(&device["id"]),
            cell(&device["kind"]),
            device_state(device).into(),
            cell(&device["pci_device"]),
            sum(&counters, &["read_bytes", "received_bytes"]).to_string(),
            sum(&counters, &["written_bytes", "sent_bytes"]).to_string(),
            sum(&counters, &["throttled", "throttled_in", "throttled_out"]).to_string(),
        ]);
    }
    Ok(table.lines())
}

fn events(page: &Page) -> Vec<String> {
    let missed = (page.missed > 0).then(|| line::missed(page.missed));
    missed
        .into_iter()
        .chain(page.events.iter().map(line::event))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn show(operation: Operation, path: &str, body: &Value) -> Vec<String> {
        let text = answer(operation, path, &body.to_string()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_machine_is_a_sentence() {
        let body = json!({"id": "a", "state": "not_started", "boots": 0, "backend": null, "fallback": null});
        assert_eq!(show(Operation::Info, "/v1/vm", &body), ["a: not started"]);
        let body = json!({"id": "a", "state": "paused", "boots": 2, "backend": "soft", "fallback": "no /dev/kvm"});
        assert_eq!(
            show(Operation::Pause, "/v1/vm/pause", &body),
            ["a: paused, boot 2, on soft (no /dev/kvm)"]
        );
    }

    #[test]
    fn what_became_of_a_device_is_told_by_its_name() {
        let path = "/v1/devices/disk-1?timeout_ms=1";
        let of = |state: &str| {
            show(
                Operation::Remove,
                path,
                &json!({"state": state, "waited_ms": 50}),
            )
            .concat()
        };
        assert_eq!(of("let_go"), "disk-1 has gone, after 50 ms");
        assert!(of("taken_away").starts_with("disk-1 was taken away"));
        assert!(of("asked").starts_with("the guest has not let disk-1 go"));
        assert_eq!(
            answer(Operation::CpuResume, "/v1/vm/cpus/3/resume", "").unwrap(),
            "processor 3 was told to go on\n"
        );
    }

    #[test]
    fn devices_are_rows() {
        let body = json!([
            {"id": "d", "device": {"kind": "blk", "path": "/disk"}, "status": {"in_use": true, "needs_reset": false, "pci_device": 4}},
            {"id": "n", "device": {"kind": "net", "host": {"type": "tap", "name": "t0"}}, "status": null},
        ]);
        assert_eq!(
            show(Operation::Devices, "/v1/devices", &body),
            [
                "ID  KIND  STATE      PCI  BEHIND IT",
                "d   blk   in use       4  /disk",
                "n   net   described       tap t0"
            ]
        );
    }

    #[test]
    fn what_has_no_form_of_its_own_is_lines_of_paths_and_values() {
        let body =
            json!({"backend": "soft", "counters": {"mmio_hits": 3}, "list": ["a"], "none": null});
        assert_eq!(
            show(Operation::Mmu, "", &body),
            [
                "backend             soft",
                "counters.mmio_hits  3",
                "list.0              a"
            ]
        );
        assert_eq!(anything("{\"a\":1}"), "{\n  \"a\": 1\n}\n");
        assert_eq!(
            (anything(""), anything("text")),
            (String::new(), "text\n".into())
        );
    }

    #[test]
    fn an_answer_that_is_not_what_it_should_be_is_told() {
        for operation in [
            Operation::Cpus,
            Operation::Events,
            Operation::Inspect,
            Operation::Info,
        ] {
            assert!(answer(operation, "", "nonsense").is_err());
        }
        assert!(answer(Operation::Cpus, "", "{}").is_err());
    }
}
