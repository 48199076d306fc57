//! Every operation of [`OPERATIONS`](super::request::OPERATIONS) for the OpenAPI document: which type it is asked with
//! and which it answers. Names of operations are those of Firecracker's own document.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};

use super::fault::{FaultBody, Refusal};
use super::resources::ID_PATTERN;
use super::resources::balloon::{
    Balloon, BalloonHintingStatus, BalloonStartCmd, BalloonStats, BalloonStatsUpdate, BalloonUpdate,
};
use super::resources::boot_source::BootSource;
use super::resources::cpu_config::CpuConfig;
use super::resources::drive::{Drive, PartialDrive};
use super::resources::entropy::Entropy;
use super::resources::logger::LoggerConfig;
use super::resources::machine_config::{
    MachineConfiguration, PatchMachineConfiguration, PutMachineConfiguration,
};
use super::resources::memory_hotplug::{
    MemoryHotplugConfig, MemoryHotplugSizeUpdate, MemoryHotplugStatus,
};
use super::resources::metrics::MetricsConfig;
use super::resources::mmds::MmdsConfig;
use super::resources::net::{NetworkInterface, PartialNetworkInterface};
use super::resources::pmem::{PartialPmem, Pmem};
use super::resources::serial::SerialDevice;
use super::resources::snapshot::{SnapshotCreateParams, SnapshotLoadParams};
use super::resources::vm::{
    FirecrackerVersion, FullVmConfiguration, InstanceActionInfo, InstanceInfo, Vm,
};
use super::resources::vsock::Vsock;
use crate::openapi::{Described, Parameter, Place};

/// Data for the guest: any object.
type Metadata = Map<String, Value>;

const MACHINE: &str = "Machine";
const DISKS: &str = "Disks";
const NETWORK: &str = "Network";
const MEMORY: &str = "Memory";
const DEVICES: &str = "Other devices";
const METADATA: &str = "Metadata";
const OBSERVATION: &str = "Log and counters";
const SNAPSHOTS: &str = "Snapshots";

/// The name of a resource in a path.
const ID: Parameter = Parameter {
    place: Place::Path,
    name: "id",
    description: "The name of the resource; the body says the same one.",
    schema: id,
};

fn id(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": ID_PATTERN })
}

fn get(path: &'static str, id: &'static str) -> Described {
    refusing(Described::new("GET", path, id))
}

fn put(path: &'static str, id: &'static str) -> Described {
    changing("PUT", path, id)
}

fn patch(path: &'static str, id: &'static str) -> Described {
    changing("PATCH", path, id)
}

fn delete(path: &'static str, id: &'static str) -> Described {
    changing("DELETE", path, id)
}

/// What answers with nothing.
fn changing(method: &'static str, path: &'static str, id: &'static str) -> Described {
    refusing(Described::new(method, path, id).done(204, "It is done."))
}

/// Everything can be refused, and is so with this status, whatever the reason.
fn refusing(described: Described) -> Described {
    let described = described.gives::<Refusal>(400, "It is refused, and nothing has changed.");
    match described.path.ends_with("/{id}") {
        true => described.parameter(ID),
        false => described,
    }
}

/// Returns all of them.
pub fn operations() -> Vec<Described> {
    let groups = [
        machine(),
        disks(),
        network(),
        memory(),
        devices(),
        metadata(),
        rest(),
    ];
    groups.into_iter().flatten().collect()
}

fn machine() -> Vec<Described> {
    vec![
        get("/", "describeInstance")
            .about(
                MACHINE,
                "Tells what the machine is called, and where it is in its life.",
            )
            .gives::<InstanceInfo>(200, "It is this machine."),
        get("/version", "getFirecrackerVersion")
            .about(MACHINE, "Tells which version of the interface this is.")
            .gives::<FirecrackerVersion>(200, "It is this one."),
        get("/vm/config", "getExportVmConfig")
            .about(MACHINE, "Tells everything that was said of the machine.")
            .gives::<FullVmConfiguration>(200, "This was said."),
        patch("/vm", "patchVm")
            .about(
                MACHINE,
                "Pauses the machine, or lets it go on. After the start.",
            )
            .takes::<Vm>(),
        put("/actions", "createSyncAction")
            .about(
                MACHINE,
                "Starts the machine, presses keys, or writes counters.",
            )
            .takes::<InstanceActionInfo>(),
        put("/boot-source", "putGuestBootSource")
            .about(MACHINE, "Says what is booted. Before the start.")
            .takes::<BootSource>(),
        get("/machine-config", "getMachineConfiguration")
            .about(
                MACHINE,
                "Tells which processors and how much memory the machine has.",
            )
            .gives::<MachineConfiguration>(200, "It has these."),
        put("/machine-config", "putMachineConfiguration")
            .about(
                MACHINE,
                "Says which processors and how much memory it has. Before the start.",
            )
            .takes::<PutMachineConfiguration>(),
        patch("/machine-config", "patchMachineConfiguration")
            .about(
                MACHINE,
                "Changes what is mentioned of it. Before the start.",
            )
            .takes::<PatchMachineConfiguration>(),
        put("/cpu-config", "putCpuConfiguration")
            .about(
                MACHINE,
                "Says what processors show of themselves. Before the start.",
            )
            .takes::<CpuConfig>(),
    ]
}

fn disks() -> Vec<Described> {
    vec![
        put("/drives/{id}", "putGuestDriveByID")
            .about(DISKS, "Adds a disk. After the start with PCI only.")
            .takes::<Drive>(),
        patch("/drives/{id}", "patchGuestDriveByID")
            .about(
                DISKS,
                "Gives a disk another file, or other limits. After the start.",
            )
            .takes::<PartialDrive>(),
        delete("/drives/{id}", "deleteGuestDriveByID")
            .about(DISKS, "Takes a disk away. After the start, with PCI."),
        put("/pmem/{id}", "putGuestPmemByID")
            .about(
                DISKS,
                "Adds a file as memory. After the start with PCI only.",
            )
            .takes::<Pmem>(),
        patch("/pmem/{id}", "patchGuestPmemByID")
            .about(
                DISKS,
                "Gives a file that is memory other limits. After the start.",
            )
            .takes::<PartialPmem>(),
        delete("/pmem/{id}", "deleteGuestPmemByID").about(
            DISKS,
            "Takes a file that is memory away. After the start, with PCI.",
        ),
    ]
}

fn network() -> Vec<Described> {
    vec![
        put("/network-interfaces/{id}", "putGuestNetworkInterfaceByID")
            .about(NETWORK, "Adds an interface. After the start with PCI only.")
            .takes::<NetworkInterface>(),
        patch("/network-interfaces/{id}", "patchGuestNetworkInterfaceByID")
            .about(NETWORK, "Gives an interface other limits. After the start.")
            .takes::<PartialNetworkInterface>(),
        delete(
            "/network-interfaces/{id}",
            "deleteGuestNetworkInterfaceByID",
        )
        .about(
            NETWORK,
            "Takes an interface away. After the start, with PCI.",
        ),
        put("/vsock", "putGuestVsock")
            .about(
                NETWORK,
                "Adds sockets between guest and host. Before the start.",
            )
            .takes::<Vsock>(),
    ]
}

fn memory() -> Vec<Described> {
    vec![
        get("/balloon", "describeBalloonConfig")
            .about(MEMORY, "Tells what was said of the balloon.")
            .gives::<Balloon>(200, "This was said."),
        put("/balloon", "putBalloon")
            .about(MEMORY, "Adds a balloon. Before the start.")
            .takes::<Balloon>(),
        patch("/balloon", "patchBalloon")
            .about(
                MEMORY,
                "Changes what the guest shall lend. After the start.",
            )
            .takes::<BalloonUpdate>(),
        get("/balloon/statistics", "describeBalloonStats")
            .about(
                MEMORY,
                "Tells what the guest says of its memory. After the start.",
            )
            .gives::<BalloonStats>(200, "It says this."),
        patch("/balloon/statistics", "patchBalloonStatsInterval")
            .about(
                MEMORY,
                "Changes how often the guest is asked. After the start.",
            )
            .takes::<BalloonStatsUpdate>(),
        get("/balloon/hinting/status", "describeBalloonHinting")
            .about(MEMORY, "Tells where a run of hints is. After the start.")
            .gives::<BalloonHintingStatus>(200, "It is here."),
        patch("/balloon/hinting/start", "startBalloonHinting")
            .about(
                MEMORY,
                "Has the guest say which pages are free. After the start.",
            )
            .may_take::<BalloonStartCmd>(),
        patch("/balloon/hinting/stop", "stopBalloonHinting")
            .about(MEMORY, "Ends a run of hints. After the start."),
        get("/hotplug/memory", "getMemoryHotplug")
            .about(MEMORY, "Tells how much memory has come. After the start.")
            .gives::<MemoryHotplugStatus>(200, "So much has."),
        put("/hotplug/memory", "putMemoryHotplug")
            .about(MEMORY, "Adds memory that comes and goes. Before the start.")
            .takes::<MemoryHotplugConfig>(),
        patch("/hotplug/memory", "patchMemoryHotplug")
            .about(
                MEMORY,
                "Changes how much the guest shall have. After the start.",
            )
            .takes::<MemoryHotplugSizeUpdate>(),
    ]
}

fn devices() -> Vec<Described> {
    vec![
        put("/entropy", "putEntropyDevice")
            .about(DEVICES, "Adds a source of random bytes. Before the start.")
            .takes::<Entropy>(),
        put("/serial", "putSerialDevice")
            .about(
                DEVICES,
                "Says where the console's output goes. Before the start.",
            )
            .takes::<SerialDevice>(),
    ]
}

fn metadata() -> Vec<Described> {
    const TOO_LARGE: &str = "There would be too much of it; nothing has changed.";
    vec![
        get("/mmds", "getMmds")
            .about(METADATA, "Tells what the guest can ask about itself.")
            .gives::<Metadata>(200, "It is this."),
        put("/mmds", "putMmds")
            .about(METADATA, "Replaces what the guest can ask about itself.")
            .takes::<Metadata>()
            .gives::<FaultBody>(413, TOO_LARGE),
        patch("/mmds", "patchMmds")
            .about(METADATA, "Changes it by a merge patch (RFC 7396).")
            .takes::<Metadata>()
            .gives::<FaultBody>(413, TOO_LARGE),
        put("/mmds/config", "putMmdsConfig")
            .about(METADATA, "Says how the guest reaches it. Before the start.")
            .takes::<MmdsConfig>(),
    ]
}

fn rest() -> Vec<Described> {
    vec![
        put("/logger", "putLogger")
            .about(
                OBSERVATION,
                "Says where messages go, and which. Before the start.",
            )
            .takes::<LoggerConfig>(),
        put("/metrics", "putMetrics")
            .about(
                OBSERVATION,
                "Says where counters go. Before the start, once.",
            )
            .takes::<MetricsConfig>(),
        put("/snapshot/create", "createSnapshot")
            .about(SNAPSHOTS, "Saves a machine that is paused. Refused so far.")
            .takes::<SnapshotCreateParams>(),
        put("/snapshot/load", "loadSnapshot")
            .about(
                SNAPSHOTS,
                "Goes on with a machine that was saved. Refused so far.",
            )
            .takes::<SnapshotLoadParams>(),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::firecracker::request::{Body, OPERATIONS};

    #[test]
    fn every_operation_is_described_and_nothing_else() {
        let described = operations();
        let described: BTreeMap<_, _> = described.iter().map(|d| ((d.method, d.path), d)).collect();
        let there: BTreeMap<_, _> = OPERATIONS
            .iter()
            .map(|o| ((o.method.name(), o.path), o.body))
            .collect();
        assert!(
            described.keys().eq(there.keys()),
            "{:?}\n{:?}",
            described.keys(),
            there.keys()
        );
        for (key, body) in there {
            let described = described[&key];
            let says = (described.request.is_some(), described.required);
            let good = match body {
                Body::None => says == (false, false),
                Body::Optional => !says.1,
                Body::Required => says == (true, true),
            };
            assert!(good, "{key:?}: {says:?} against {body:?}");
        }
    }
}
