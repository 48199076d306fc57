//! Every verb, and what it asks.

use clap::{CommandFactory, Parser};

use super::*;
use crate::args::{Cli, Command};

fn verb(line: &[&str]) -> Verb {
    let all = [&["umbra", "ctl", "--api-sock", "s"], line].concat();
    match Cli::try_parse_from(all).map(|cli| cli.command) {
        Ok(Command::Ctl(ctl)) => ctl.verb,
        other => panic!("{line:?}: {other:?}"),
    }
}

/// Command lines, the operation that each reaches, its path and its body.
const LINES: &[(&[&str], Operation, &str, &str)] = &[
    (&["server"], Operation::Server, "/v1", ""),
    (&["openapi"], Operation::Openapi, "/v1/openapi.json", ""),
    (&["info"], Operation::Info, "/v1/vm", ""),
    (&["spec"], Operation::Spec, "/v1/vm/spec", ""),
    (
        &["put-spec", "/dev/null"],
        Operation::PutSpec,
        "/v1/vm/spec",
        "",
    ),
    (&["start"], Operation::Start, "/v1/vm/start", ""),
    (&["pause"], Operation::Pause, "/v1/vm/pause", ""),
    (&["resume"], Operation::Resume, "/v1/vm/resume", ""),
    (&["stop"], Operation::Stop, "/v1/vm/stop", ""),
    (&["reset"], Operation::Reset, "/v1/vm/reset", ""),
    (
        &["power-button"],
        Operation::PowerButton,
        "/v1/vm/power-button",
        "",
    ),
    (
        &["ctrl-alt-del"],
        Operation::CtrlAltDel,
        "/v1/vm/ctrl-alt-del",
        "",
    ),
    (&["nmi"], Operation::Nmi, "/v1/vm/nmi", ""),
    (
        &["nmi", "--cpu", "1"],
        Operation::Nmi,
        "/v1/vm/nmi",
        r#"{"cpu":1}"#,
    ),
    (&["cpus"], Operation::Cpus, "/v1/vm/cpus", ""),
    (
        &["cpu", "pause", "2"],
        Operation::CpuPause,
        "/v1/vm/cpus/2/pause",
        "",
    ),
    (
        &["cpu", "resume", "2"],
        Operation::CpuResume,
        "/v1/vm/cpus/2/resume",
        "",
    ),
    (&["devices"], Operation::Devices, "/v1/devices", ""),
    (&["device", "a"], Operation::Device, "/v1/devices/a", ""),
    (
        &["add", "a", r#"{"kind": "rng"}"#],
        Operation::Add,
        "/v1/devices/a",
        r#"{"kind": "rng"}"#,
    ),
    (
        &["add", "a", "--rng"],
        Operation::Add,
        "/v1/devices/a",
        r#"{"kind":"rng","limits":{}}"#,
    ),
    (
        &["add", "--vdpa", "/dev/v"],
        Operation::Add,
        "/v1/devices/vdpa0",
        r#"{"kind":"vdpa","node":"/dev/v"}"#,
    ),
    (
        &["change", "a", r#"{"link": true}"#],
        Operation::Change,
        "/v1/devices/a",
        r#"{"link": true}"#,
    ),
    (
        &[
            "change",
            "a",
            "--link",
            "down",
            "--receive",
            "ops=5:10",
            "--transmit",
            "none",
        ],
        Operation::Change,
        "/v1/devices/a",
        r#"{"link":false,"receive":{"operations":{"one_time_burst":0,"refill_time_ms":10,"size":5}},"transmit":{}}"#,
    ),
    (
        &["change", "a", "--path", "/d"],
        Operation::Change,
        "/v1/devices/a",
        r#"{"path":"/d"}"#,
    ),
    (
        &["change", "a", "--limits", "none"],
        Operation::Change,
        "/v1/devices/a",
        r#"{"limits":{}}"#,
    ),
    (
        &["change", "a", "--target", "1M"],
        Operation::Change,
        "/v1/devices/a",
        r#"{"target":1048576}"#,
    ),
    (
        &["change", "a", "--polling", "500"],
        Operation::Change,
        "/v1/devices/a",
        r#"{"polling_ms":500}"#,
    ),
    (
        &["change", "a", "--requested", "2M"],
        Operation::Change,
        "/v1/devices/a",
        r#"{"requested":2097152}"#,
    ),
    (
        &["remove", "a"],
        Operation::Remove,
        "/v1/devices/a?timeout_ms=10000",
        "",
    ),
    (
        &["remove", "a", "--timeout", "0.5", "--force"],
        Operation::Remove,
        "/v1/devices/a?timeout_ms=500&force=true",
        "",
    ),
    (&["inspect"], Operation::Inspect, "/v1/inspect", ""),
    (&["inspect", "map"], Operation::Map, "/v1/inspect/map", ""),
    (
        &["inspect", "generation"],
        Operation::Generation,
        "/v1/inspect/generation",
        "",
    ),
    (&["inspect", "mmu"], Operation::Mmu, "/v1/inspect/mmu", ""),
    (
        &["inspect", "page-tables", "--cpu", "1", "--address", "4096"],
        Operation::PageTables,
        "/v1/inspect/page-tables?cpu=1&address=0x1000",
        "",
    ),
    (&["metrics"], Operation::Metrics, "/metrics/prometheus", ""),
    (&["events"], Operation::Events, "/v1/events/log?since=0", ""),
    (
        &["events", "--since", "5", "--limit", "2", "--wait", "1"],
        Operation::Events,
        "/v1/events/log?since=5&limit=2&wait_ms=1000",
        "",
    ),
];

#[test]
fn every_verb_asks_its_operation() {
    for (line, operation, path, body) in LINES {
        let (asked, request) = of(&verb(line)).unwrap();
        assert_eq!(
            (asked, &request.path[..]),
            (Some(*operation), *path),
            "{line:?}"
        );
        assert_eq!(request.method, operation.route().0, "{line:?}");
        let said = request.body.unwrap_or_default();
        let said = serde_json::from_str::<Value>(&said).ok();
        assert_eq!(said, serde_json::from_str(body).ok(), "{line:?}");
    }
}

#[test]
fn every_operation_of_the_api_has_a_verb() {
    let mut reached: Vec<_> = Operation::ALL.map(Operation::route).to_vec();
    // `umbra events` does.
    reached.push(("GET", "/v1/events"));
    for operation in umbra_api::v1::routes::operations() {
        let path = operation.path.replace("{id}", "{}").replace("{cpu}", "{}");
        let place = reached
            .iter()
            .position(|route| *route == (operation.method, &path));
        let place = place.unwrap_or_else(|| panic!("nothing asks {} {path}", operation.method));
        reached.swap_remove(place);
    }
    assert_eq!(reached, [], "the API has no such operations");
    for operation in Operation::ALL {
        assert!(
            LINES.iter().any(|(_, other, ..)| *other == operation),
            "{operation:?}"
        );
    }
    // No verb is forgotten above.
    let command = Cli::command();
    let ctl = command.find_subcommand("ctl").unwrap();
    for verb in ctl.get_subcommands().map(|verb| verb.get_name()) {
        let there = verb == "request" || LINES.iter().any(|(line, ..)| line[0] == verb);
        assert!(there, "{verb}");
    }
}

#[test]
fn anything_else_can_be_asked_too() {
    let (operation, request) = of(&verb(&["request", "put", "/boot-source", "{}"])).unwrap();
    assert_eq!(operation, None);
    assert_eq!(
        (&request.method[..], &request.path[..]),
        ("PUT", "/boot-source")
    );
    assert_eq!(request.body.as_deref(), Some("{}"));
}

#[test]
fn relative_paths_are_those_of_who_asks() {
    let here = std::env::current_dir().unwrap().join("d");
    let (_, request) = of(&verb(&["add", "--disk", "d,id=x,readonly"])).unwrap();
    assert_eq!(request.path, "/v1/devices/x");
    let body: Value = serde_json::from_str(&request.body.unwrap()).unwrap();
    assert_eq!(
        (&body["path"], &body["read_only"]),
        (&json!(here), &json!(true))
    );
    let (_, request) = of(&verb(&["change", "x", "--path", "d"])).unwrap();
    assert_eq!(request.body.unwrap(), json!({ "path": here }).to_string());
}

#[test]
fn bodies_come_from_files() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("body");
    std::fs::write(&file, "{\"a\": 1}\n").unwrap();
    let at = format!("@{}", file.display());
    for line in [
        &["add", "x", &at][..],
        &["change", "x", &at],
        &["put-spec", file.to_str().unwrap()],
    ] {
        let (_, request) = of(&verb(line)).unwrap();
        assert_eq!(request.body.as_deref(), Some("{\"a\": 1}\n"), "{line:?}");
    }
    let missing = of(&verb(&["add", "x", "@/no/such/file"])).unwrap_err();
    assert!(
        missing.is::<BadInput>() && missing.to_string().contains("/no/such/file"),
        "{missing}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        &["add", "x"][..],
        &["add"],
        &["add", "x", "{}", "--rng"],
        &["add", "--rng", "--disk", "d"],
        &["add", "a/b", "{}"],
        &["change", "x"],
        &["change", "x", "{}", "--target", "1M"],
        &["change", "x", "--link", "on"],
        &["remove", "x", "--timeout", "601"],
        &["remove", "x", "--timeout", "-1"],
        &["request", "HEAD", "/"],
        &["request", "GET", "v1"],
        &["inspect", "nothing"],
    ] {
        let all = [&["umbra", "ctl", "--api-sock", "s"], line].concat();
        assert!(Cli::try_parse_from(all).is_err(), "{line:?}");
    }
}
