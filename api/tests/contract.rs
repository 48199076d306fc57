//! Every operation: what it does and what it refuses, before the machine starts and after, on a real socket. The guest
//! only halts: what needs a driver in the guest is refused for want of it here, and done in the tests with Linux.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use support::Rig;
use umbra_api::firecracker::request::OPERATIONS;
use umbra_api::server::Limits;

/// When something is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    After,
    /// After the start of a machine with PCI.
    Pci,
}
use Phase::*;

/// What comes back: 204; or 200 with this in it; or 400 with this in the fault's sentence, and this code.
enum Says {
    Done,
    Body(&'static str),
    No(&'static str, &'static str),
}
use Says::*;

struct Case(Phase, &'static str, &'static str, &'static str, Says);

const AFTER: Says = No("not supported after starting the microVM", "after_start");
const BEFORE: Says = No("not supported before starting the microVM", "before_start");
const NO_PCI: Says = No("PCI is not enabled", "no_pci");
const START: &str = r#"{"action_type": "InstanceStart"}"#;

/// `PLACE` is a folder with a kernel, two disks and an empty file. Within a phase a machine lives through the cases in
/// this order.
#[rustfmt::skip]
const CASES: &[Case] = &[
    // The machine as a whole.
    Case(Before, "GET", "/", "", Body(r#""state":"Not started""#)),
    Case(Before, "GET", "/version", "", Body(r#"{"firecracker_version":"1."#)),
    Case(Before, "GET", "/version", "{}", No("GET request cannot have a body", "invalid_body")),
    Case(Before, "GET", "/vm/config", "", Body(r#""machine-config":{"vcpu_count":1,"mem_size_mib":128"#)),
    Case(Before, "PATCH", "/vm", r#"{"state": "Paused"}"#, BEFORE),
    Case(Before, "PATCH", "/vm", r#"{"state": "Resumed"}"#, BEFORE),
    Case(Before, "PATCH", "/vm", r#"{"state": "Running"}"#, No("unknown variant `Running`", "invalid_body")),
    Case(Before, "PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#, BEFORE),
    Case(Before, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#, BEFORE),
    Case(Before, "PUT", "/actions", START, No("Cannot start microvm without kernel configuration", "start")),
    Case(Before, "PUT", "/actions", "{}", No("missing field `action_type`", "invalid_body")),
    Case(Before, "PUT", "/actions", r#"{"action_type": "Start", "more": 1}"#, No("unknown", "invalid_body")),
    // What is booted.
    Case(Before, "PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/none"}"#, No("The kernel file cannot be opened", "boot_source")),
    Case(Before, "PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel", "initrd_path": "PLACE/none"}"#, No("The initrd file cannot be opened", "boot_source")),
    Case(Before, "PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel", "boot_args": "a\u0000b"}"#, No("command line is invalid", "boot_source")),
    Case(Before, "PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel", "cmdline": ""}"#, No("unknown field `cmdline`", "invalid_body")),
    Case(Before, "PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel", "boot_args": "quiet"}"#, Done),
    Case(Before, "GET", "/vm/config", "", Body(r#""boot_args":"quiet""#)),
    // Processors and memory.
    Case(Before, "GET", "/machine-config", "", Body(r#""huge_pages":"None""#)),
    Case(Before, "PUT", "/machine-config", r#"{"vcpu_count": 2}"#, No("missing field `mem_size_mib`", "invalid_body")),
    Case(Before, "PUT", "/machine-config", r#"{"vcpu_count": 3, "mem_size_mib": 16, "smt": true}"#, No("The number of vCPUs", "machine_config")),
    Case(Before, "PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 17, "huge_pages": "2M"}"#, No("The memory size (MiB)", "machine_config")),
    Case(Before, "PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 32, "track_dirty_pages": true}"#, Done),
    Case(Before, "PATCH", "/machine-config", r#"{"vcpu_count": 33}"#, No("The number of vCPUs", "machine_config")),
    Case(Before, "PATCH", "/machine-config", "{}", No("Empty PATCH request", "invalid_body")),
    Case(Before, "PATCH", "/machine-config", r#"{"vcpu_count": 1}"#, Done),
    Case(Before, "GET", "/machine-config", "", Body(r#"{"vcpu_count":1,"mem_size_mib":32,"smt":false,"track_dirty_pages":true"#)),
    Case(Before, "PUT", "/cpu-config", r#"{"cpuid_modifiers": [{"leaf": "1"}]}"#, No("deserializing", "invalid_body")),
    Case(Before, "PUT", "/cpu-config", r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [{"register": "ecx", "bitmap": "0bx"}]}]}"#, Done),
    // Disks.
    Case(Before, "PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "PLACE/none"}"#, No("Error manipulating the backing file", "drive")),
    Case(Before, "PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true}"#, No("either path_on_host or socket", "drive")),
    Case(Before, "PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true, "socket": "PLACE/none"}"#, No("cannot connect", "drive")),
    Case(Before, "PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true, "socket": "PLACE/none", "is_read_only": true}"#, No("only with path_on_host", "drive")),
    Case(Before, "PUT", "/drives/a", r#"{"drive_id": "b", "is_root_device": true, "path_on_host": "PLACE/disk"}"#, No("does not match the id from the body", "id_mismatch")),
    Case(Before, "PUT", "/drives/a-b", r#"{"drive_id": "a-b", "is_root_device": true, "path_on_host": "PLACE/disk"}"#, No("alphanumeric characters", "invalid_id")),
    Case(Before, "PUT", "/drives/b", r#"{"drive_id": "b", "is_root_device": false, "path_on_host": "PLACE/disk2", "is_read_only": true, "io_engine": "Async", "cache_type": "Writeback"}"#, Done),
    Case(Before, "PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "PLACE/disk"}"#, Done),
    Case(Before, "PUT", "/drives/b", r#"{"drive_id": "b", "is_root_device": true, "path_on_host": "PLACE/disk2"}"#, No("A root block device already exists", "drive")),
    Case(Before, "GET", "/vm/config", "", Body(r#""drives":[{"drive_id":"a""#)),
    Case(Before, "PATCH", "/drives/a", r#"{"drive_id": "a", "path_on_host": "PLACE/disk"}"#, BEFORE),
    Case(Before, "DELETE", "/drives/a", "", BEFORE),
    // Files as memory.
    Case(Before, "PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/empty"}"#, No("Error backing file", "pmem")),
    Case(Before, "PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/pmem", "root_device": true}"#, No("as a root device", "pmem")),
    Case(Before, "PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/pmem"}"#, Done),
    Case(Before, "PATCH", "/pmem/p", r#"{"id": "p"}"#, BEFORE),
    Case(Before, "DELETE", "/pmem/p", "", BEFORE),
    // Interfaces.
    Case(Before, "PUT", "/network-interfaces/e", r#"{"iface_id": "e", "host_dev_name": "no/name"}"#, No("Cannot open/create the tap device", "network_interface")),
    Case(Before, "PUT", "/network-interfaces/e", r#"{"iface_id": "e", "host_dev_name": "t", "mtu": 67}"#, No("The MTU must be between 68 and 65535", "invalid_body")),
    Case(Before, "PUT", "/network-interfaces/e", r#"{"iface_id": "e", "host_dev_name": "t", "guest_mac": "01"}"#, No("The provided MAC address is invalid", "invalid_body")),
    Case(Before, "PATCH", "/network-interfaces/e", r#"{"iface_id": "e"}"#, BEFORE),
    Case(Before, "DELETE", "/network-interfaces/e", "", BEFORE),
    // Sockets, random bytes, the serial port.
    Case(Before, "PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "PLACE/disk"}"#, No("Address in use", "vsock")),
    Case(Before, "PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "PLACE/no/v.sock"}"#, No("No such file or directory", "vsock")),
    Case(Before, "PUT", "/vsock", r#"{"guest_cid": 4294967296, "uds_path": "PLACE/v.sock"}"#, No("invalid value", "invalid_body")),
    Case(Before, "PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "PLACE/v.sock"}"#, Done),
    Case(Before, "PUT", "/entropy", r#"{"rate_limiter": 5}"#, No("deserializing", "invalid_body")),
    Case(Before, "PUT", "/entropy", "{}", Done),
    Case(Before, "PUT", "/serial", r#"{"path": "PLACE/serial"}"#, No("unknown field `path`", "invalid_body")),
    Case(Before, "PUT", "/serial", r#"{"serial_out_path": "PLACE/serial"}"#, Done),
    // The balloon.
    Case(Before, "GET", "/balloon", "", No("No balloon device found", "balloon")),
    Case(Before, "PUT", "/balloon", r#"{"amount_mib": 33, "deflate_on_oom": true}"#, No("cannot be greater than the guest memory", "balloon")),
    Case(Before, "PUT", "/balloon", r#"{"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}"#, Done),
    Case(Before, "GET", "/balloon", "", Body(r#"{"amount_mib":1,"deflate_on_oom":true,"stats_polling_interval_s":1,"free_page_hinting":true,"free_page_reporting":false}"#)),
    Case(Before, "PATCH", "/balloon", r#"{"amount_mib": 2}"#, BEFORE),
    Case(Before, "GET", "/balloon/statistics", "", BEFORE),
    Case(Before, "PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#, BEFORE),
    Case(Before, "PATCH", "/balloon/hinting/start", "", BEFORE),
    Case(Before, "PATCH", "/balloon/hinting/stop", "", BEFORE),
    Case(Before, "GET", "/balloon/hinting/status", "", BEFORE),
    Case(Before, "PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 0}"#, No("The memory size (MiB)", "machine_config")),
    // Memory that comes and goes.
    Case(Before, "GET", "/hotplug/memory", "", BEFORE),
    Case(Before, "PUT", "/hotplug/memory", r#"{"total_size_mib": 129}"#, No("multiple of slot size", "memory_hotplug")),
    Case(Before, "PUT", "/hotplug/memory", r#"{"total_size_mib": 256}"#, Done),
    Case(Before, "PATCH", "/hotplug/memory", r#"{"requested_size_mib": 128}"#, BEFORE),
    // Log and counters.
    Case(Before, "PUT", "/logger", r#"{"log_path": "PLACE/no/log"}"#, No("Logger error", "logger")),
    Case(Before, "PUT", "/logger", r#"{"log_path": "PLACE/log", "level": "warn", "module": "m"}"#, Done),
    Case(Before, "PUT", "/metrics", r#"{"metrics_path": "PLACE/no/metrics"}"#, No("Metrics error", "metrics")),
    Case(Before, "PUT", "/metrics", r#"{"metrics_path": "PLACE/metrics", "emit_id": true}"#, Done),
    Case(Before, "PUT", "/metrics", r#"{"metrics_path": "PLACE/metrics"}"#, No("Reinitialization", "metrics")),
    // Metadata.
    Case(Before, "GET", "/mmds", "", Body("{}")),
    Case(Before, "PATCH", "/mmds", r#"{"a": 1}"#, No("not initialized", "mmds")),
    Case(Before, "PUT", "/mmds", "[1]", No("MMDS error", "mmds")),
    Case(Before, "PUT", "/mmds", r#"{"a": {"b": 1}}"#, Done),
    Case(Before, "PATCH", "/mmds", r#"{"a": {"c": 2}}"#, Done),
    Case(Before, "GET", "/mmds", "", Body(r#"{"a":{"b":1,"c":2}}"#)),
    Case(Before, "PUT", "/mmds/config", r#"{"network_interfaces": ["e9"], "version": "V2"}"#, No("does not correspond to any existing network interface", "mmds_config")),
    Case(Before, "PUT", "/mmds/config", r#"{"network_interfaces": [], "version": "V2"}"#, No("is empty", "mmds_config")),
    Case(Before, "PUT", "/mmds/config", r#"{"network_interfaces": ["e"], "version": "V2", "ipv4_address": "10.0.0.1"}"#, No("not link local", "mmds_config")),
    Case(Before, "PUT", "/mmds/config", r#"{"network_interfaces": ["e"], "version": "V3"}"#, No("unknown variant `V3`", "invalid_body")),
    // Snapshots.
    Case(Before, "PUT", "/snapshot/create", r#"{"snapshot_path": "s", "mem_file_path": "m"}"#, BEFORE),
    Case(Before, "PUT", "/snapshot/load", r#"{"snapshot_path": "s"}"#, No("`mem_backend` or `mem_file_path`", "invalid_body")),
    Case(Before, "PUT", "/snapshot/load", r#"{"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}}"#, No("not allowed after configuring boot-specific resources", "snapshot")),
    Case(Before, "PUT", "/actions", START, Done),
    Case(Before, "PUT", "/actions", START, AFTER),

    Case(After, "GET", "/", "", Body(r#""state":"Running""#)),
    Case(After, "GET", "/version", "", Body("firecracker_version")),
    Case(After, "GET", "/vm/config", "", Body(r#""kernel_image_path":"PLACE/kernel""#)),
    Case(After, "GET", "/machine-config", "", Body(r#""vcpu_count":1"#)),
    Case(After, "PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel"}"#, AFTER),
    Case(After, "PUT", "/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 128}"#, AFTER),
    Case(After, "PATCH", "/machine-config", r#"{"vcpu_count": 1}"#, AFTER),
    Case(After, "PUT", "/cpu-config", "{}", AFTER),
    Case(After, "PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "v"}"#, AFTER),
    Case(After, "PUT", "/entropy", "{}", AFTER),
    Case(After, "PUT", "/serial", "{}", AFTER),
    Case(After, "PUT", "/balloon", r#"{"amount_mib": 1, "deflate_on_oom": true}"#, AFTER),
    Case(After, "PUT", "/hotplug/memory", r#"{"total_size_mib": 256}"#, AFTER),
    Case(After, "PUT", "/logger", "{}", AFTER),
    Case(After, "PUT", "/metrics", r#"{"metrics_path": "m"}"#, AFTER),
    Case(After, "PUT", "/mmds/config", r#"{"network_interfaces": []}"#, AFTER),
    Case(After, "PUT", "/snapshot/load", r#"{"snapshot_path": "s", "mem_file_path": "m"}"#, AFTER),
    Case(After, "PUT", "/snapshot/create", r#"{"snapshot_path": "s", "mem_file_path": "m"}"#, No("unavailable while running", "snapshot")),
    Case(After, "PUT", "/drives/c", r#"{"drive_id": "c", "is_root_device": false, "path_on_host": "PLACE/disk"}"#, NO_PCI),
    Case(After, "PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/disk"}"#, NO_PCI),
    Case(After, "PUT", "/network-interfaces/e", r#"{"iface_id": "e", "host_dev_name": "t"}"#, NO_PCI),
    Case(After, "DELETE", "/drives/a", "", NO_PCI),
    Case(After, "DELETE", "/pmem/p", "", NO_PCI),
    Case(After, "DELETE", "/network-interfaces/e", "", NO_PCI),
    Case(After, "PATCH", "/drives/a", r#"{"drive_id": "a", "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}"#, Done),
    Case(After, "GET", "/vm/config", "", Body(r#""ops":{"size":1,"one_time_burst":null,"refill_time":1}"#)),
    Case(After, "PATCH", "/drives/a", r#"{"drive_id": "a", "path_on_host": "PLACE/none"}"#, No("Error manipulating the backing file", "drive")),
    Case(After, "PATCH", "/drives/a", r#"{"drive_id": "a", "path_on_host": "PLACE/disk2"}"#, Done),
    Case(After, "GET", "/vm/config", "", Body(r#""path_on_host":"PLACE/disk2""#)),
    Case(After, "PATCH", "/drives/zz", r#"{"drive_id": "zz", "path_on_host": "PLACE/disk"}"#, No("there is no drive \"zz\"", "drive")),
    Case(After, "PATCH", "/pmem/p", r#"{"id": "p", "rate_limiter": {"bandwidth": {"size": 1, "refill_time": 1}}}"#, Done),
    Case(After, "PATCH", "/pmem/zz", r#"{"id": "zz"}"#, No("there is no pmem device \"zz\"", "pmem")),
    Case(After, "PATCH", "/network-interfaces/zz", r#"{"iface_id": "zz"}"#, No("there is no network interface \"zz\"", "network_interface")),
    Case(After, "GET", "/balloon", "", Body(r#""amount_mib":0"#)),
    Case(After, "PATCH", "/balloon", r#"{"amount_mib": 2}"#, No("Device not activated yet", "balloon")),
    Case(After, "GET", "/balloon/statistics", "", Body(r#""target_pages":0"#)),
    Case(After, "PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#, Done),
    Case(After, "PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 0}"#, No("cannot be enabled/disabled after activation", "balloon")),
    Case(After, "PATCH", "/balloon/hinting/start", r#"{"acknowledge_on_stop": false}"#, No("Device not activated yet", "balloon")),
    Case(After, "PATCH", "/balloon/hinting/stop", "", No("Device not activated yet", "balloon")),
    Case(After, "GET", "/balloon/hinting/status", "", Body(r#""host_cmd":0"#)),
    Case(After, "GET", "/hotplug/memory", "", Body(r#"{"total_size_mib":256,"slot_size_mib":128,"block_size_mib":2,"plugged_size_mib":0,"requested_size_mib":0}"#)),
    Case(After, "PATCH", "/hotplug/memory", r#"{"requested_size_mib": 128}"#, No("Device is not active", "memory_hotplug")),
    Case(After, "PUT", "/mmds", r#"{"x": 1}"#, Done),
    Case(After, "PATCH", "/mmds", r#"{"y": 2}"#, Done),
    Case(After, "GET", "/mmds", "", Body(r#"{"x":1,"y":2}"#)),
    Case(After, "PUT", "/actions", START, AFTER),
    Case(After, "PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#, Done),
    Case(After, "PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#, Done),
    Case(After, "PATCH", "/vm", r#"{"state": "Paused"}"#, Done),
    Case(After, "PATCH", "/vm", r#"{"state": "Paused"}"#, Done),
    Case(After, "GET", "/", "", Body(r#""state":"Paused""#)),
    Case(After, "PUT", "/snapshot/create", r#"{"snapshot_path": "s", "mem_file_path": "m"}"#, No("does not save machines yet", "snapshot")),
    Case(After, "PATCH", "/vm", r#"{"state": "Resumed"}"#, Done),
    Case(After, "GET", "/", "", Body(r#""state":"Running""#)),

    Case(Pci, "PUT", "/drives/c", r#"{"drive_id": "c", "is_root_device": true, "path_on_host": "PLACE/disk2"}"#, No("root block device cannot come later", "drive")),
    Case(Pci, "PUT", "/drives/c", r#"{"drive_id": "c", "is_root_device": false, "path_on_host": "PLACE/disk2"}"#, Done),
    Case(Pci, "PUT", "/drives/c", r#"{"drive_id": "c", "is_root_device": false, "path_on_host": "PLACE/pmem"}"#, No("rename one", "drive")),
    Case(Pci, "GET", "/vm/config", "", Body(r#""drive_id":"c""#)),
    Case(Pci, "PATCH", "/drives/c", r#"{"drive_id": "c", "path_on_host": "PLACE/disk2"}"#, Done),
    Case(Pci, "DELETE", "/drives/c", "", Done),
    Case(Pci, "DELETE", "/drives/c", "", No("no device named", "device")),
    Case(Pci, "PUT", "/drives/c", r#"{"drive_id": "c", "is_root_device": false, "path_on_host": "PLACE/disk2"}"#, Done),
    Case(Pci, "PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/pmem", "root_device": true}"#, No("root pmem device cannot come later", "pmem")),
    Case(Pci, "PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/pmem"}"#, Done),
    Case(Pci, "DELETE", "/pmem/p", "", Done),
    Case(Pci, "DELETE", "/network-interfaces/zz", "", No("no device named", "device")),
    Case(Pci, "PUT", "/network-interfaces/e", r#"{"iface_id": "e", "host_dev_name": "no/name"}"#, No("is no name of an interface", "network_interface")),
];

/// Lives through the cases of a phase; returns what went otherwise.
fn live(phase: Phase, rig: &Rig) -> Vec<String> {
    let place = rig.place.path().to_str().unwrap();
    let mut client = rig.client();
    let mut wrong = Vec::new();
    for Case(when, method, path, body, says) in CASES {
        if *when != phase {
            continue;
        }
        let answer = client.ask(method, path, &body.replace("PLACE", place));
        let good = match says {
            Done => answer.status == 204 && answer.body.is_empty(),
            Body(text) => {
                answer.status == 200 && answer.body.contains(&text.replace("PLACE", place))
            }
            No(text, code) => {
                answer.status == 400
                    && answer.fault().contains(text)
                    && answer.json()["code"] == *code
            }
        };
        if !good {
            wrong.push(format!("{method} {path} {body}: {answer:?}"));
        }
    }
    let count = CASES.iter().filter(|case| case.0 == phase).count();
    assert_eq!(client.checked, count, "compared with the document");
    wrong
}

fn say(rig: &Rig, path: &str, body: &str) {
    let place = rig.place.path().to_str().unwrap();
    let answer = rig.ask("PUT", path, &body.replace("PLACE", place));
    assert_eq!(answer.status, 204, "{path}: {answer:?}");
}

#[test]
fn before_the_start() {
    let rig = Rig::new();
    let wrong = live(Before, &rig);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn after_the_start() {
    let rig = Rig::new();
    say(
        &rig,
        "/drives/a",
        r#"{"drive_id": "a", "is_root_device": true, "path_on_host": "PLACE/disk"}"#,
    );
    say(
        &rig,
        "/pmem/p",
        r#"{"id": "p", "path_on_host": "PLACE/pmem"}"#,
    );
    say(
        &rig,
        "/balloon",
        r#"{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}"#,
    );
    say(&rig, "/hotplug/memory", r#"{"total_size_mib": 256}"#);
    say(&rig, "/mmds", "{}");
    say(
        &rig,
        "/metrics",
        r#"{"metrics_path": "PLACE/metrics", "emit_id": true, "properties": {"zone": "a"}}"#,
    );
    rig.start();
    let wrong = live(After, &rig);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let metrics = std::fs::read_to_string(rig.path("metrics")).unwrap();
    let line: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(line["block_a"]["read_count"], 0, "{line}");
    assert_eq!(
        (line["id"].as_str(), line["properties"]["zone"].as_str()),
        (Some("golden"), Some("a"))
    );
}

#[test]
fn after_the_start_with_pci() {
    let rig = Rig::with(true, Limits::default());
    rig.start();
    let wrong = live(Pci, &rig);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_operation_is_shown_and_refused_in_every_phase() {
    let shown: BTreeSet<_> = CASES
        .iter()
        .filter(|case| case.0 != Pci)
        .map(|Case(phase, method, path, ..)| (*phase == Before, *method, pattern(path)))
        .collect();
    for operation in OPERATIONS {
        for before in [true, false] {
            let key = (before, operation.method.name(), operation.path.to_owned());
            assert!(shown.contains(&key), "{key:?} is missing");
        }
    }
}

/// The path of the operation that a path is of.
fn pattern(path: &str) -> String {
    for kind in ["/drives/", "/pmem/", "/network-interfaces/"] {
        if path.starts_with(kind) {
            return format!("{kind}{{id}}");
        }
    }
    path.to_owned()
}

#[test]
fn metadata_beyond_its_limit_is_413() {
    let limits = Limits {
        body: 100,
        ..Limits::default()
    };
    let rig = Rig::with(false, limits);
    let long = |len| format!(r#"{{"a": "{}"}}"#, "x".repeat(len));
    assert_eq!(rig.ask("PUT", "/mmds", &long(60)).status, 204);
    let over = rig.ask("PATCH", "/mmds", &long(60).replace('a', "b"));
    assert_eq!(over.status, 413, "{over:?}");
    assert_eq!(over.json()["code"], "mmds_limit");
    assert_eq!(
        rig.ask("GET", "/mmds", "").json()["b"],
        serde_json::Value::Null
    );
}

#[test]
fn a_start_that_failed_leaves_nothing_in_the_way_of_the_next_one() {
    let rig = Rig::new();
    say(
        &rig,
        "/boot-source",
        r#"{"kernel_image_path": "PLACE/kernel"}"#,
    );
    say(
        &rig,
        "/vsock",
        r#"{"guest_cid": 3, "uds_path": "PLACE/v.sock"}"#,
    );
    // More than the processor has addresses for.
    say(&rig, "/hotplug/memory", r#"{"total_size_mib": 4294967296}"#);
    let failed = rig.ask("PUT", "/actions", START);
    assert_eq!(
        (failed.status, failed.json()["code"].as_str()),
        (400, Some("start")),
        "{failed:?}"
    );
    say(&rig, "/hotplug/memory", r#"{"total_size_mib": 256}"#);
    let started = rig.ask("PUT", "/actions", START);
    assert_eq!(started.status, 204, "{started:?}");
    assert!(rig.path("v.sock").exists());
}
