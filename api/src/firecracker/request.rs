//! From a request on the wire to an [`Action`]. Pure: nothing is looked at but the request.
//!
//! What is possible is a table, [`OPERATIONS`]: a verb and a path, where `{id}` is a name. Whoever looks for an
//! operation finds it there, and nowhere else.

use serde::de::DeserializeOwned;
use serde_json::Value;
use umbra_vmm::CpuTemplate;

use super::fault::Fault;
use super::resources::balloon::{Balloon, BalloonStartCmd, BalloonStatsUpdate, BalloonUpdate};
use super::resources::boot_source::BootSource;
use super::resources::cpu_config;
use super::resources::drive::{Drive, PartialDrive};
use super::resources::entropy::Entropy;
use super::resources::logger::LoggerConfig;
use super::resources::machine_config::{PatchMachineConfiguration, PutMachineConfiguration};
use super::resources::memory_hotplug::{MemoryHotplugConfig, MemoryHotplugSizeUpdate};
use super::resources::metrics::MetricsConfig;
use super::resources::mmds::{MmdsConfig, MmdsVersion};
use super::resources::net::{NetworkInterface, PartialNetworkInterface};
use super::resources::pmem::{PartialPmem, Pmem};
use super::resources::serial::SerialDevice;
use super::resources::snapshot::{SnapshotCreateParams, SnapshotLoadParams};
use super::resources::vm::{ActionType, InstanceActionInfo, Vm, WantedState};
use super::resources::vsock::Vsock;
use crate::strict;

/// What somebody wants of a machine.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Action {
    GetInstanceInfo,
    GetVersion,
    GetFullConfig,
    GetMachineConfig,
    GetMmds,
    GetBalloon,
    GetBalloonStats,
    GetHintingStatus,
    GetMemoryHotplug,
    PutBootSource(BootSource),
    ChangeMachineConfig(PatchMachineConfiguration),
    PutCpuConfig(CpuTemplate),
    PutDrive(Drive),
    PatchDrive(PartialDrive),
    DeleteDrive(String),
    PutPmem(Pmem),
    PatchPmem(PartialPmem),
    DeletePmem(String),
    PutNet(NetworkInterface),
    PatchNet(PartialNetworkInterface),
    DeleteNet(String),
    PutVsock(Vsock),
    PutEntropy(Entropy),
    PutSerial(SerialDevice),
    PutBalloon(Balloon),
    PatchBalloon(BalloonUpdate),
    PatchBalloonStats(BalloonStatsUpdate),
    StartHinting(BalloonStartCmd),
    StopHinting,
    PutMemoryHotplug(MemoryHotplugConfig),
    PatchMemoryHotplug(MemoryHotplugSizeUpdate),
    PutLogger(LoggerConfig),
    PutMetrics(MetricsConfig),
    PutMmds(Value),
    PatchMmds(Value),
    PutMmdsConfig(MmdsConfig),
    Pause,
    Resume,
    FlushMetrics,
    Start,
    SendCtrlAltDel,
    CreateSnapshot(SnapshotCreateParams),
    LoadSnapshot(SnapshotLoadParams),
}

/// A request that makes sense, so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// What is wanted.
    pub action: Result<Action, Fault>,
    /// A field was used that will go: the answer says so, whichever it is.
    pub deprecated: bool,
}

/// The verbs that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// Reads a verb; `None` if no operation has it.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "GET" => Self::Get,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            _ => return None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// The request's parts: the name in the path, and the body.
struct Parts<'a> {
    id: &'a str,
    body: &'a str,
}

type Parser = fn(&Parts<'_>) -> Result<(Action, bool), Fault>;

/// An operation: verb, path, whether it has a body, and how that is read.
pub struct Operation {
    /// The verb.
    pub method: Method,
    /// The path; `{id}` in it is a name.
    pub path: &'static str,
    /// Whether there is a body.
    pub body: Body,
    parse: Parser,
}

/// Whether an operation has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// It has none.
    None,
    /// It may have one.
    Optional,
    /// It has one.
    Required,
}

const fn get(path: &'static str, parse: Parser) -> Operation {
    operation(Method::Get, path, Body::None, parse)
}

const fn put(path: &'static str, parse: Parser) -> Operation {
    operation(Method::Put, path, Body::Required, parse)
}

const fn patch(path: &'static str, parse: Parser) -> Operation {
    operation(Method::Patch, path, Body::Required, parse)
}

const fn delete(path: &'static str, parse: Parser) -> Operation {
    operation(Method::Delete, path, Body::None, parse)
}

const fn operation(method: Method, path: &'static str, body: Body, parse: Parser) -> Operation {
    Operation {
        method,
        path,
        body,
        parse,
    }
}

/// All of them.
pub const OPERATIONS: &[Operation] = &[
    get("/", |_| plain(Action::GetInstanceInfo)),
    get("/version", |_| plain(Action::GetVersion)),
    get("/vm/config", |_| plain(Action::GetFullConfig)),
    patch("/vm", |parts| {
        let vm: Vm = json(parts.body)?;
        plain(match vm.state {
            WantedState::Paused => Action::Pause,
            WantedState::Resumed => Action::Resume,
        })
    }),
    put("/actions", |parts| {
        let info: InstanceActionInfo = json(parts.body)?;
        plain(match info.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::Start,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        })
    }),
    put("/boot-source", |parts| simple(parts, Action::PutBootSource)),
    get("/machine-config", |_| plain(Action::GetMachineConfig)),
    put("/machine-config", |parts| {
        let put: PutMachineConfiguration = json(parts.body)?;
        machine_config(put.into())
    }),
    patch("/machine-config", |parts| {
        let patch: PatchMachineConfiguration = json(parts.body)?;
        if patch.is_empty() {
            return Err(Fault::Body("Empty PATCH request."));
        }
        machine_config(patch)
    }),
    put("/cpu-config", |parts| {
        plain(Action::PutCpuConfig(cpu_config::parse(parts.body)?))
    }),
    put("/drives/{id}", |parts| {
        named(parts, |drive: &Drive| &drive.drive_id, Action::PutDrive)
    }),
    patch("/drives/{id}", |parts| {
        named(
            parts,
            |drive: &PartialDrive| &drive.drive_id,
            Action::PatchDrive,
        )
    }),
    delete("/drives/{id}", |parts| {
        plain(Action::DeleteDrive(parts.id.into()))
    }),
    put("/pmem/{id}", |parts| {
        named(parts, |pmem: &Pmem| &pmem.id, Action::PutPmem)
    }),
    patch("/pmem/{id}", |parts| {
        named(parts, |pmem: &PartialPmem| &pmem.id, Action::PatchPmem)
    }),
    delete("/pmem/{id}", |parts| {
        plain(Action::DeletePmem(parts.id.into()))
    }),
    put("/network-interfaces/{id}", |parts| {
        named(
            parts,
            |net: &NetworkInterface| &net.iface_id,
            Action::PutNet,
        )
    }),
    patch("/network-interfaces/{id}", |parts| {
        named(
            parts,
            |net: &PartialNetworkInterface| &net.iface_id,
            Action::PatchNet,
        )
    }),
    delete("/network-interfaces/{id}", |parts| {
        plain(Action::DeleteNet(parts.id.into()))
    }),
    put("/vsock", |parts| {
        let vsock: Vsock = json(parts.body)?;
        let deprecated = vsock.vsock_id.is_some();
        Ok((Action::PutVsock(vsock), deprecated))
    }),
    put("/entropy", |parts| simple(parts, Action::PutEntropy)),
    put("/serial", |parts| simple(parts, Action::PutSerial)),
    get("/balloon", |_| plain(Action::GetBalloon)),
    put("/balloon", |parts| simple(parts, Action::PutBalloon)),
    patch("/balloon", |parts| simple(parts, Action::PatchBalloon)),
    get("/balloon/statistics", |_| plain(Action::GetBalloonStats)),
    patch("/balloon/statistics", |parts| {
        simple(parts, Action::PatchBalloonStats)
    }),
    get("/balloon/hinting/status", |_| {
        plain(Action::GetHintingStatus)
    }),
    operation(
        Method::Patch,
        "/balloon/hinting/start",
        Body::Optional,
        |parts| {
            plain(Action::StartHinting(match parts.body {
                "" => BalloonStartCmd::default(),
                body => json(body)?,
            }))
        },
    ),
    operation(
        Method::Patch,
        "/balloon/hinting/stop",
        Body::Optional,
        |_| plain(Action::StopHinting),
    ),
    get("/hotplug/memory", |_| plain(Action::GetMemoryHotplug)),
    put("/hotplug/memory", |parts| {
        simple(parts, Action::PutMemoryHotplug)
    }),
    patch("/hotplug/memory", |parts| {
        simple(parts, Action::PatchMemoryHotplug)
    }),
    put("/logger", |parts| simple(parts, Action::PutLogger)),
    put("/metrics", |parts| simple(parts, Action::PutMetrics)),
    get("/mmds", |_| plain(Action::GetMmds)),
    put("/mmds", |parts| simple(parts, Action::PutMmds)),
    patch("/mmds", |parts| simple(parts, Action::PatchMmds)),
    put("/mmds/config", |parts| {
        let config: MmdsConfig = json(parts.body)?;
        let deprecated = config.version == MmdsVersion::V1;
        Ok((Action::PutMmdsConfig(config), deprecated))
    }),
    put("/snapshot/create", |parts| {
        simple(parts, Action::CreateSnapshot)
    }),
    put("/snapshot/load", |parts| {
        let params: SnapshotLoadParams = json(parts.body)?;
        if params.mem_backend.is_some() == params.mem_file_path.is_some() {
            return Err(Fault::Body(
                "Either `mem_backend` or `mem_file_path` has to be said, and not both.",
            ));
        }
        let deprecated = params.is_deprecated();
        Ok((Action::LoadSnapshot(params), deprecated))
    }),
];

/// Reads a request: a verb, the path without its query, and the body.
pub fn parse(method: Method, path: &str, body: &[u8]) -> Parsed {
    match find(method, path, body) {
        Ok((action, deprecated)) => Parsed {
            action: Ok(action),
            deprecated,
        },
        Err(fault) => Parsed {
            action: Err(fault),
            deprecated: false,
        },
    }
}

fn find(method: Method, path: &str, body: &[u8]) -> Result<(Action, bool), Fault> {
    let found = OPERATIONS
        .iter()
        .filter(|operation| operation.method == method)
        .find_map(|operation| Some((operation, matches(operation.path, path)?)));
    let Some((operation, id)) = found else {
        let first = path.trim_start_matches('/').split('/').next();
        return Err(Fault::NoSuchOperation {
            method: method.name().into(),
            path: first.unwrap_or_default().into(),
        });
    };
    match (operation.body, body.is_empty()) {
        (Body::None, false) if method == Method::Get => {
            return Err(Fault::Body("GET request cannot have a body."));
        }
        (Body::None, false) => return Err(Fault::Body("DELETE request cannot have a body.")),
        (Body::Required, true) if method == Method::Put => {
            return Err(Fault::Body("Empty PUT request."));
        }
        (Body::Required, true) => return Err(Fault::Body("Empty PATCH request.")),
        _ => {}
    }
    if let Some(id) = id {
        check_id(id)?;
    }
    let body = std::str::from_utf8(body).map_err(|error| Fault::Json(error.to_string()))?;
    let id = id.unwrap_or_default();
    (operation.parse)(&Parts { id, body })
}

/// Compares a path with that of an operation; `Some` with the name in it if there is one. A slash more at the end makes
/// no difference.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let mut parts = path.strip_prefix('/')?.split_terminator('/');
    let mut id = None;
    for wanted in pattern.trim_start_matches('/').split_terminator('/') {
        match (wanted, parts.next()) {
            // A path that ends here has a name without characters.
            ("{id}", part) => id = Some(part.unwrap_or_default()),
            (wanted, part) if part == Some(wanted) => {}
            _ => return None,
        }
    }
    parts.next().is_none().then_some(id)
}

/// Names go into paths, logs and the guest.
fn check_id(id: &str) -> Result<(), Fault> {
    if id.is_empty() {
        return Err(Fault::EmptyId);
    }
    match id.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
        true => Ok(()),
        false => Err(Fault::InvalidId),
    }
}

fn plain(action: Action) -> Result<(Action, bool), Fault> {
    Ok((action, false))
}

fn simple<T: DeserializeOwned>(
    parts: &Parts<'_>,
    action: fn(T) -> Action,
) -> Result<(Action, bool), Fault> {
    plain(action(json(parts.body)?))
}

fn named<T: DeserializeOwned>(
    parts: &Parts<'_>,
    id: fn(&T) -> &String,
    action: fn(T) -> Action,
) -> Result<(Action, bool), Fault> {
    let resource: T = json(parts.body)?;
    match id(&resource) == parts.id {
        true => plain(action(resource)),
        false => Err(Fault::TwoIds),
    }
}

fn machine_config(patch: PatchMachineConfiguration) -> Result<(Action, bool), Fault> {
    Ok((Action::ChangeMachineConfig(patch), patch.is_deprecated()))
}

fn json<T: DeserializeOwned>(body: &str) -> Result<T, Fault> {
    strict::from_str(body).map_err(|error| Fault::Json(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(method: Method, path: &str, body: &str) -> String {
        let parsed = parse(method, path, body.as_bytes());
        parsed.action.unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_operation_is_named() {
        for (method, path, first) in [
            (Method::Get, "/nope", "GET nope"),
            (Method::Get, "/vm", "GET vm"),
            (Method::Get, "/drives/a", "GET drives"),
            (Method::Put, "/vm/config", "PUT vm"),
            (Method::Delete, "/vsock", "DELETE vsock"),
            (Method::Get, "/machine-config/more", "GET machine-config"),
            (Method::Get, "", "GET "),
        ] {
            let said = fault(method, path, "");
            assert_eq!(
                said,
                format!("Invalid request method and/or path: {first}.")
            );
        }
    }

    #[test]
    fn bodies_are_where_they_have_to_be() {
        assert_eq!(
            fault(Method::Get, "/version", "{}"),
            "GET request cannot have a body."
        );
        assert_eq!(fault(Method::Put, "/vsock", ""), "Empty PUT request.");
        assert_eq!(fault(Method::Patch, "/vm", ""), "Empty PATCH request.");
        assert_eq!(
            fault(Method::Patch, "/machine-config", "{}"),
            "Empty PATCH request."
        );
        let start = parse(Method::Patch, "/balloon/hinting/start", b"").action;
        assert_eq!(start, Ok(Action::StartHinting(BalloonStartCmd::default())));
    }

    #[test]
    fn names_are_checked() {
        let body = r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "x"}"#;
        for (path, said) in [
            ("/drives", "The ID cannot be empty."),
            ("/drives/", "The ID cannot be empty."),
            (
                "/drives//a",
                "Invalid request method and/or path: PUT drives.",
            ),
            (
                "/drives/root-1",
                "API Resource IDs can only contain alphanumeric characters and underscores.",
            ),
            (
                "/drives/b",
                "The id from the path does not match the id from the body!",
            ),
        ] {
            assert_eq!(fault(Method::Put, path, body), said, "{path}");
        }
        assert!(
            parse(Method::Put, "/drives/a/", body.as_bytes())
                .action
                .is_ok()
        );
    }

    #[test]
    fn unknown_fields_and_values_are_refused_and_the_known_ones_named() {
        let said = fault(Method::Put, "/entropy", r#"{"speed": 1}"#);
        assert!(
            said.contains("unknown field `speed`, expected `rate_limiter`"),
            "{said}"
        );
        let said = fault(Method::Put, "/actions", r#"{"action_type": "Nope"}"#);
        assert!(
            said.contains("unknown variant `Nope`, expected one of `FlushMetrics`"),
            "{said}"
        );
    }

    #[test]
    fn deprecated_fields_are_told() {
        for (path, body, deprecated) in [
            ("/vsock", r#"{"guest_cid": 3, "uds_path": "v"}"#, false),
            (
                "/vsock",
                r#"{"guest_cid": 3, "uds_path": "v", "vsock_id": "v"}"#,
                true,
            ),
            ("/mmds/config", r#"{"network_interfaces": []}"#, true),
            (
                "/mmds/config",
                r#"{"network_interfaces": [], "version": "V2"}"#,
                false,
            ),
            (
                "/machine-config",
                r#"{"vcpu_count": 1, "mem_size_mib": 1, "cpu_template": "None"}"#,
                true,
            ),
            (
                "/snapshot/load",
                r#"{"snapshot_path": "s", "mem_file_path": "m"}"#,
                true,
            ),
        ] {
            let parsed = parse(Method::Put, path, body.as_bytes());
            assert!(parsed.action.is_ok(), "{body}: {:?}", parsed.action);
            assert_eq!(parsed.deprecated, deprecated, "{body}");
        }
    }

    #[test]
    fn no_path_is_there_twice() {
        let mut all: Vec<_> = OPERATIONS
            .iter()
            .map(|o| (o.method.name(), o.path))
            .collect();
        all.sort_unstable();
        let len = all.len();
        all.dedup();
        assert_eq!(all.len(), len);
    }
}
