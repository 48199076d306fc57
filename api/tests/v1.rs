//! `/v1` over a real socket: every operation, its success and its refusals, before the start, after it and after the end.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Answer, Rig, request, write_kernel};

/// A machine of `/v1`, with a bus for what comes and goes.
fn spec(rig: &Rig) -> Value {
    json!({ "kernel": rig.text("kernel"), "memory": 16 << 20, "backend": "soft", "pci": true, "keyboard": true })
}

fn ok(answer: &Answer) -> Value {
    assert!(answer.status < 300, "{answer:?}");
    match answer.body.as_str() {
        "" => Value::Null,
        _ => answer.json(),
    }
}

/// Checks a refusal; returns what it says.
fn refused(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], code, "{answer:?}");
    for said in ["message", "remedy"] {
        assert!(!error[said].as_str().unwrap().is_empty(), "{answer:?}");
    }
    error
}

fn started() -> Rig {
    let rig = Rig::new();
    ok(&rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
    rig
}

/// All events until now, by name.
fn events(rig: &Rig) -> Vec<String> {
    let page = ok(&rig.ask("GET", "/v1/events/log?since=0", ""));
    let events = page["events"].as_array().unwrap().iter();
    events
        .map(|e| e["event"].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until an event of this name has come, after the number.
fn wait_for(rig: &Rig, name: &str, mut since: u64) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        let path = format!("/v1/events/log?since={since}&wait_ms=5000");
        let page = ok(&rig.ask("GET", &path, ""));
        since = page["next_since"].as_u64().unwrap();
        let events = page["events"].as_array().unwrap();
        if let Some(found) = events.iter().find(|event| event["event"] == name) {
            return found.clone();
        }
    }
    panic!("no {name}");
}

#[test]
fn a_machine_is_described_started_held_reset_and_stopped() {
    let rig = Rig::new();
    let server = ok(&rig.ask("GET", "/v1", ""));
    assert_eq!(server["name"], "Umbra");
    let vm = ok(&rig.ask("GET", "/v1/vm", ""));
    assert_eq!(vm["state"], "not_started");
    refused(&rig.ask("GET", "/v1/vm/spec", ""), 409, "no_kernel");
    refused(&rig.ask("POST", "/v1/vm/start", ""), 409, "no_kernel");
    for verb in [
        "pause",
        "resume",
        "stop",
        "reset",
        "power-button",
        "ctrl-alt-del",
        "nmi",
    ] {
        refused(
            &rig.ask("POST", &format!("/v1/vm/{verb}"), ""),
            409,
            "not_started",
        );
    }
    for path in [
        "/v1/vm/cpus",
        "/v1/inspect",
        "/v1/inspect/map",
        "/v1/inspect/page-tables",
    ] {
        refused(&rig.ask("GET", path, ""), 409, "not_started");
    }
    ok(&rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()));
    let said = ok(&rig.ask("GET", "/v1/vm/spec", ""));
    assert_eq!(said["kernel"], rig.text("kernel"));
    assert_eq!(said["cpus"], 1);

    let vm = ok(&rig.ask("POST", "/v1/vm/start", ""));
    assert_eq!(
        (&vm["state"], &vm["boots"], &vm["backend"]),
        (&json!("running"), &json!(1), &json!("soft"))
    );
    refused(&rig.ask("POST", "/v1/vm/start", ""), 409, "started");
    refused(
        &rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()),
        409,
        "started",
    );
    assert_eq!(ok(&rig.ask("POST", "/v1/vm/pause", ""))["state"], "paused");
    assert_eq!(rig.ask("GET", "/", "").json()["state"], "Paused");
    assert_eq!(ok(&rig.ask("GET", "/v1/vm/cpus", ""))[0]["paused"], true);
    assert_eq!(
        ok(&rig.ask("POST", "/v1/vm/resume", ""))["state"],
        "running"
    );
    ok(&rig.ask("POST", "/v1/vm/power-button", ""));
    ok(&rig.ask("POST", "/v1/vm/pause", ""));
    assert_eq!(ok(&rig.ask("POST", "/v1/vm/reset", ""))["state"], "running");
    let reset = wait_for(&rig, "reset", 0);
    assert_eq!(reset["by_guest"], false);
    wait_for(&rig, "started", reset["number"].as_u64().unwrap());
    assert_eq!(ok(&rig.ask("GET", "/v1/vm", ""))["boots"], 2);
    assert_eq!(
        events(&rig),
        ["started", "paused", "resumed", "paused", "reset", "started"]
    );
    assert_eq!(ok(&rig.ask("POST", "/v1/vm/stop", ""))["state"], "running");
    let ended = rig.join().unwrap();
    assert_eq!(ended.outcome, umbra_vmm::Outcome::Stopped);
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    let rig = Rig::new();
    let put = |change: &dyn Fn(&mut Value)| {
        let mut spec = spec(&rig);
        change(&mut spec);
        rig.ask("PUT", "/v1/vm/spec", &spec.to_string())
    };
    let error = refused(&put(&|spec| spec["cpus"] = json!(0)), 422, "invalid");
    assert_eq!(error["field"], "cpus");
    let error = refused(&put(&|spec| spec["memory"] = json!(1)), 422, "invalid");
    assert_eq!(error["field"], "memory");
    let error = refused(&put(&|spec| spec["cpu"] = json!(1)), 400, "bad_body");
    assert_eq!(error["field"], "cpu");
    refused(&put(&|spec| spec["cpus"] = json!("1")), 400, "bad_body");
    let twice =
        json!([{"id": "a", "device": {"kind": "rng"}}, {"id": "a", "device": {"kind": "rng"}}]);
    refused(
        &put(&|spec| spec["virtio"] = twice.clone()),
        409,
        "device_exists",
    );
    refused(&rig.ask("PUT", "/v1/vm/spec", "{"), 400, "bad_body");
    refused(&rig.ask("GET", "/v1/nothing", ""), 404, "no_such_path");
    let answer = rig.ask("DELETE", "/v1/vm", "");
    refused(&answer, 405, "no_such_method");
    assert_eq!(answer.header("allow"), Some("GET"));
    let long = format!("{{\"kernel\": \"{}\"}}", "k".repeat(60_000));
    refused(&rig.ask("PUT", "/v1/vm/spec", &long), 413, "too_large");
    // What the host has not is found when the machine is built, and can be mended.
    ok(&put(&|spec| spec["kernel"] = json!("/no/such/kernel")));
    let error = refused(&rig.ask("POST", "/v1/vm/start", ""), 422, "host_refused");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("/no/such/kernel")
    );
    ok(&put(&|_| {}));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
}

#[test]
fn a_machine_is_described_one_way() {
    let rig = Rig::new();
    let source = json!({ "kernel_image_path": rig.text("kernel") }).to_string();
    assert_eq!(rig.ask("PUT", "/boot-source", &source).status, 204);
    refused(
        &rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()),
        409,
        "described_otherwise",
    );
    // Devices join what Firecracker's paths say.
    ok(&rig.ask("PUT", "/v1/devices/mine", r#"{"kind": "rng"}"#));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
    let devices = ok(&rig.ask("GET", "/v1/devices", ""));
    assert_eq!(devices[0]["id"], "mine");
    assert!(devices[0]["status"].is_object());
    drop(rig);

    let rig = Rig::new();
    let source = json!({ "kernel_image_path": rig.text("kernel") }).to_string();
    ok(&rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()));
    assert_eq!(rig.ask("PUT", "/boot-source", &source).status, 204);
    refused(&rig.ask("POST", "/v1/vm/start", ""), 422, "invalid");
    let start = rig.ask("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#);
    assert!(start.fault().contains("/v1/vm/spec"), "{start:?}");
}

#[test]
fn devices_are_described_and_come_and_go() {
    let rig = Rig::new();
    let disk = json!({ "kind": "blk", "path": rig.text("disk") }).to_string();
    refused(&rig.ask("GET", "/v1/devices/a", ""), 404, "no_such_device");
    ok(&rig.ask("PUT", "/v1/devices/early", &disk));
    refused(
        &rig.ask("PUT", "/v1/devices/early", &disk),
        409,
        "device_exists",
    );
    refused(
        &rig.ask("PATCH", "/v1/devices/early", r#"{"limits": {}}"#),
        409,
        "not_started",
    );
    assert_eq!(
        ok(&rig.ask("GET", "/v1/devices/early", ""))["status"],
        Value::Null
    );
    let gone = ok(&rig.ask("DELETE", "/v1/devices/early", ""));
    assert_eq!(gone["state"], "let_go");
    refused(
        &rig.ask("DELETE", "/v1/devices/early", ""),
        404,
        "no_such_device",
    );
    ok(&rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()));
    ok(&rig.ask("PUT", "/v1/devices/early", &disk));
    ok(&rig.ask("POST", "/v1/vm/start", ""));

    let second = json!({ "kind": "blk", "path": rig.text("disk2") }).to_string();
    ok(&rig.ask("PUT", "/v1/devices/late", &second));
    let error = refused(
        &rig.ask("PUT", "/v1/devices/late", &second),
        409,
        "device_exists",
    );
    assert_eq!(error["field"], "id");
    let missing = json!({ "kind": "blk", "path": "/no/such/disk" }).to_string();
    let error = refused(
        &rig.ask("PUT", "/v1/devices/none", &missing),
        422,
        "host_refused",
    );
    assert!(
        error["message"].as_str().unwrap().contains("/no/such/disk"),
        "{error}"
    );
    let odd = refused(
        &rig.ask("PUT", "/v1/devices/a%2Fb", &second),
        422,
        "invalid",
    );
    assert_eq!(odd["field"], "id");
    let listed = ok(&rig.ask("GET", "/v1/devices", ""));
    let ids: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|d| &d["id"])
        .collect();
    assert_eq!(ids, ["early", "late"]);
    let status = &listed[1]["status"];
    assert!(status["pci_device"].is_u64());
    assert_eq!(status["in_use"], false);

    // This guest only halts: it lets nothing go.
    let asked = rig.ask("DELETE", "/v1/devices/late?timeout_ms=50", "");
    assert_eq!(asked.status, 202, "{asked:?}");
    let asked = asked.json();
    assert_eq!(asked["state"], "asked");
    assert!(asked["waited_ms"].as_u64().unwrap() >= 50);
    let taken = ok(&rig.ask("DELETE", "/v1/devices/late?timeout_ms=50&force=true", ""));
    assert_eq!(taken["state"], "taken_away");
    refused(
        &rig.ask("GET", "/v1/devices/late", ""),
        404,
        "no_such_device",
    );
    // What it had of the host is free.
    ok(&rig.ask("PUT", "/v1/devices/again", &second));
    let news = events(&rig);
    let expected = [
        "started",
        "device_added",
        "device_removal_asked",
        "device_removal_asked",
        "device_removed",
        "device_added",
    ];
    assert_eq!(news, expected);
    let spec = ok(&rig.ask("GET", "/v1/vm/spec", ""));
    assert_eq!(spec["virtio"][1]["id"], "again");
}

#[test]
fn a_machine_without_a_bus_or_a_keyboard_says_so() {
    let rig = Rig::new();
    let mut fixed = spec(&rig);
    fixed["pci"] = json!(false);
    fixed["keyboard"] = json!(false);
    fixed["virtio"] = json!([{"id": "a", "device": {"kind": "rng"}}]);
    ok(&rig.ask("PUT", "/v1/vm/spec", &fixed.to_string()));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
    refused(
        &rig.ask("PUT", "/v1/devices/b", r#"{"kind": "rng"}"#),
        409,
        "no_hotplug",
    );
    refused(&rig.ask("DELETE", "/v1/devices/a", ""), 409, "device_fixed");
    refused(
        &rig.ask("POST", "/v1/vm/ctrl-alt-del", ""),
        409,
        "no_keyboard",
    );
}

#[test]
fn devices_of_every_kind_come_to_a_machine_that_runs() {
    let rig = started();
    let log = rig.text("port.log");
    for (id, device) in [
        (
            "rng",
            json!({"kind": "rng", "limits": {"bandwidth": {"size": 100}}}),
        ),
        (
            "disk",
            json!({"kind": "blk", "path": rig.text("disk"), "format": "raw", "queues": 2}),
        ),
        (
            "vsock",
            json!({"kind": "vsock", "cid": 3, "path": rig.text("v.sock")}),
        ),
        (
            "balloon",
            json!({"kind": "balloon", "size": 1 << 20, "polling_ms": 1000}),
        ),
        (
            "console",
            json!({"kind": "console", "ports": [{"name": "log", "end": {"file": log}}]}),
        ),
        ("pmem", json!({"kind": "pmem", "path": rig.text("pmem")})),
        ("mem", json!({"kind": "mem", "max": 128 << 20})),
    ] {
        let answer = rig.ask("PUT", &format!("/v1/devices/{id}"), &device.to_string());
        assert_eq!(answer.status, 204, "{id}: {answer:?}");
        let found = ok(&rig.ask("GET", &format!("/v1/devices/{id}"), ""));
        assert_eq!(found["device"]["kind"], device["kind"]);
    }
    for (id, change, status, field) in [
        (
            "disk",
            json!({"limits": {"operations": {"size": 10, "refill_time_ms": 100}}}),
            204,
            "",
        ),
        ("disk", json!({"path": rig.text("disk2")}), 204, ""),
        ("disk", json!({"path": "/no/such"}), 422, "path"),
        ("disk", json!({"target": 1}), 422, "target"),
        ("disk", json!({}), 422, ""),
        ("balloon", json!({"target": 2 << 20}), 204, ""),
        ("balloon", json!({"target": 1u64 << 40}), 422, "target"),
        ("balloon", json!({"polling_ms": 0}), 204, ""),
        ("balloon", json!({"polling_ms": 5}), 422, "polling_ms"),
        ("mem", json!({"requested": 64 << 20}), 204, ""),
        ("mem", json!({"requested": 1}), 422, "requested"),
        ("pmem", json!({"limits": {}}), 204, ""),
        ("rng", json!({"limits": {}}), 422, "limits"),
        ("none", json!({"limits": {}}), 404, ""),
    ] {
        let answer = rig.ask("PATCH", &format!("/v1/devices/{id}"), &change.to_string());
        assert_eq!(answer.status, status, "{id} {change}: {answer:?}");
        if !field.is_empty() {
            assert_eq!(answer.json()["error"]["field"], field, "{answer:?}");
        }
    }
    let disk = ok(&rig.ask("GET", "/v1/devices/disk", ""));
    assert_eq!(disk["device"]["path"], rig.text("disk2"));
    assert_eq!(disk["device"]["limits"]["operations"]["size"], 10);
    refused(
        &rig.ask("DELETE", "/v1/devices/mem", ""),
        409,
        "memory_in_use",
    );
    let second = json!({"kind": "vsock", "cid": 4, "path": rig.text("w.sock")}).to_string();
    refused(
        &rig.ask("PUT", "/v1/devices/second", &second),
        422,
        "invalid",
    );
    let terminal = json!({"kind": "console", "ports": [{"end": "console"}]}).to_string();
    refused(
        &rig.ask("PUT", "/v1/devices/terminal", &terminal),
        422,
        "invalid",
    );

    // All of them are there after a reset, as they are now.
    let before = ok(&rig.ask("GET", "/v1/vm/spec", ""));
    ok(&rig.ask("POST", "/v1/vm/reset", ""));
    let reset = wait_for(&rig, "reset", 0);
    wait_for(&rig, "started", reset["number"].as_u64().unwrap());
    assert_eq!(ok(&rig.ask("GET", "/v1/vm/spec", "")), before);
    assert_eq!(before["virtio"].as_array().unwrap().len(), 7);
}

#[test]
fn processors_are_held_one_by_one() {
    let rig = Rig::new();
    let mut two = spec(&rig);
    two["cpus"] = json!(2);
    ok(&rig.ask("PUT", "/v1/vm/spec", &two.to_string()));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
    let held = ok(&rig.ask("POST", "/v1/vm/cpus/0/pause", ""));
    assert_eq!(held["already"], false);
    assert!(
        (0x10_0040..0x10_0044).contains(&held["rip"].as_u64().unwrap()),
        "{held}"
    );
    assert_eq!(
        ok(&rig.ask("POST", "/v1/vm/cpus/0/pause", ""))["already"],
        true
    );
    let cpus = ok(&rig.ask("GET", "/v1/vm/cpus", ""));
    assert_eq!(
        (&cpus[0]["held"], &cpus[1]["held"]),
        (&json!(true), &json!(false))
    );
    assert!(cpus[0]["counters"]["halts"].is_u64());
    ok(&rig.ask("POST", "/v1/vm/cpus/0/resume", ""));
    ok(&rig.ask("POST", "/v1/vm/nmi", r#"{"cpu": 1}"#));
    refused(
        &rig.ask("POST", "/v1/vm/nmi", r#"{"cpu": 2}"#),
        404,
        "no_such_cpu",
    );
    refused(
        &rig.ask("POST", "/v1/vm/cpus/2/pause", ""),
        404,
        "no_such_cpu",
    );
    refused(
        &rig.ask("POST", "/v1/vm/cpus/a/resume", ""),
        404,
        "no_such_cpu",
    );
    // This guest reads no keys.
    ok(&rig.ask("POST", "/v1/vm/ctrl-alt-del", ""));
    let full = (0..9).map(|_| rig.ask("POST", "/v1/vm/ctrl-alt-del", ""));
    refused(&full.last().unwrap(), 409, "keyboard_busy");
}

#[test]
fn the_inside_is_shown() {
    let rig = started();
    ok(&rig.ask("PUT", "/v1/devices/a", r#"{"kind": "rng"}"#));
    let map = ok(&rig.ask("GET", "/v1/inspect/map", ""));
    let slots = map["slots"].as_array().unwrap();
    assert!(
        slots
            .iter()
            .any(|slot| slot["kind"] == "ram" && slot["len"] == 16 << 20)
    );
    assert!(slots.iter().any(|slot| slot["owner"] == "IOAPIC"), "{map}");
    let generation = ok(&rig.ask("GET", "/v1/inspect/generation", ""));
    let bumps = generation["bumps"].as_array().unwrap();
    assert_eq!(
        bumps.last().unwrap()["generation"],
        generation["generation"]
    );
    assert!(
        bumps
            .iter()
            .all(|bump| !bump["cause"].as_str().unwrap().is_empty())
    );
    let mmu = ok(&rig.ask("GET", "/v1/inspect/mmu", ""));
    for counter in [
        "mmio_hits",
        "mmio_stale",
        "pages_zapped",
        "roots_made",
        "pages",
    ] {
        assert!(mmu["counters"][counter].is_u64(), "{counter}: {mmu}");
    }
    let all = ok(&rig.ask("GET", "/v1/inspect", ""));
    assert_eq!(all["devices"][0]["id"], "a");
    let tables = ok(&rig.ask("GET", "/v1/inspect/page-tables?address=0x100040", ""));
    assert!(tables["lines"].is_array());
    refused(
        &rig.ask("GET", "/v1/inspect/page-tables?cpu=7", ""),
        404,
        "no_such_cpu",
    );
    let metrics = rig.ask("GET", "/metrics/prometheus", "");
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    for line in [
        "umbra_vm_state{id=\"golden\",state=\"running\"} 1",
        "# TYPE umbra_map_generation counter",
        "umbra_device_in_use{id=\"a\",kind=\"rng\"} 0",
        "umbra_cpu_halts_total{cpu=\"0\"} ",
    ] {
        assert!(metrics.body.contains(line), "{line}: {}", metrics.body);
    }
    let document = ok(&rig.ask("GET", "/v1/openapi.json", ""));
    assert_eq!(document["openapi"], "3.1.0");
}

/// Follows events, line by line.
struct Follower(BufReader<UnixStream>);

impl Follower {
    fn new(rig: &Rig, path: &str, header: &str) -> Self {
        let mut stream = UnixStream::connect(rig.path("api.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let asked = request("GET", path, "").replace("\r\n\r\n", &format!("\r\n{header}\r\n"));
        stream.write_all(asked.as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    /// The next lines that begin so; `None` at the end.
    fn next(&mut self, prefix: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(rest) = line.trim_end().strip_prefix(prefix) {
                return Some(rest.to_owned());
            }
        }
    }
}

#[test]
fn events_are_followed_from_any_number_until_the_end() {
    let rig = Rig::new();
    let mut early = Follower::new(&rig, "/v1/events", "");
    // It follows now.
    assert_eq!(early.next(":").as_deref(), Some(" here"));
    ok(&rig.ask("PUT", "/v1/vm/spec", &spec(&rig).to_string()));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
    ok(&rig.ask("POST", "/v1/vm/pause", ""));
    ok(&rig.ask("POST", "/v1/vm/resume", ""));
    let mut all = Follower::new(&rig, "/v1/events?since=0", "");
    let mut late = Follower::new(&rig, "/v1/events", "Last-Event-ID: 2\r\n");
    for follower in [&mut early, &mut all] {
        for (id, name) in [("1", "started"), ("2", "paused"), ("3", "resumed")] {
            assert_eq!(follower.next("id: ").as_deref(), Some(id));
            assert_eq!(follower.next("event: ").as_deref(), Some(name));
            let data: Value = serde_json::from_str(&follower.next("data: ").unwrap()).unwrap();
            assert_eq!(
                (&data["number"].to_string()[..], &data["event"]),
                (id, &json!(name))
            );
        }
    }
    assert_eq!(late.next("id: ").as_deref(), Some("3"));
    assert_eq!(late.next("event: ").as_deref(), Some("resumed"));
    ok(&rig.ask("POST", "/v1/vm/stop", ""));
    for follower in [&mut early, &mut all, &mut late] {
        assert_eq!(follower.next("event: ").as_deref(), Some("ended"));
        // The last piece has no bytes.
        assert_eq!(follower.next("0").as_deref(), Some(""));
    }
}

#[test]
fn who_follows_keeps_nobody_else_out() {
    let rig = started();
    let mut followers: Vec<_> = (0..umbra_api::v1::STREAMS)
        .map(|_| Follower::new(&rig, "/v1/events", ""))
        .collect();
    for follower in &mut followers {
        follower.next(":").unwrap();
    }
    refused(&rig.ask("GET", "/v1/events", ""), 429, "too_many");
    ok(&rig.ask("GET", "/v1/vm", ""));
    drop(followers.pop());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut next = Follower::new(&rig, "/v1/events", "");
        // It is noticed that somebody has gone.
        if next.next("HTTP/1.1 ").unwrap().starts_with("200") {
            break;
        }
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn who_waits_for_the_guest_keeps_nobody_else_waiting() {
    let rig = started();
    ok(&rig.ask("PUT", "/v1/devices/a", r#"{"kind": "rng"}"#));
    let waiters: Vec<_> = (0..umbra_api::v1::TASKS)
        .map(|_| {
            let mut client = rig.client();
            client.send(request("DELETE", "/v1/devices/a?timeout_ms=20000", "").as_bytes());
            client
        })
        .collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.ask("GET", "/v1/inspect", "").status != 429 {
        assert!(Instant::now() < deadline);
    }
    let start = Instant::now();
    // What the owner does is done at once.
    ok(&rig.ask("POST", "/v1/vm/pause", ""));
    ok(&rig.ask("POST", "/v1/vm/resume", ""));
    assert_eq!(rig.ask("GET", "/", "").status, 200);
    assert!(start.elapsed() < Duration::from_secs(10));
    let error = refused(&rig.ask("DELETE", "/v1/devices/a", ""), 429, "too_many");
    assert!(error["remedy"].as_str().unwrap().contains("try again"));
    drop(waiters);
}

#[test]
fn a_guest_that_resets_begins_again_if_that_is_wanted() {
    // mov al, 0xfe; out 0x64, al
    let resets = [0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
    let rig = Rig::new();
    write_kernel(&rig.path("kernel"), &resets);
    let mut again = spec(&rig);
    again["on_reset"] = json!("restart");
    ok(&rig.ask("PUT", "/v1/vm/spec", &again.to_string()));
    ok(&rig.ask("POST", "/v1/vm/start", ""));
    let mut since = 0;
    for _ in 0..3 {
        let reset = wait_for(&rig, "reset", since);
        assert_eq!(reset["by_guest"], true);
        since = reset["number"].as_u64().unwrap();
    }
    assert!(ok(&rig.ask("GET", "/v1/vm", ""))["boots"].as_u64().unwrap() >= 3);
    ok(&rig.ask("POST", "/v1/vm/stop", ""));
    assert_eq!(rig.join().unwrap().outcome, umbra_vmm::Outcome::Stopped);
}
