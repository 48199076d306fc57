//! The examples in `docs/api.md` and `docs/api-v1.md` do what they say, in the order in which they are there, on one
//! machine each; and there is one for every operation.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use umbra_api::firecracker::request::OPERATIONS;
use umbra_api::server::Limits;
use umbra_api::v1::routes;

use support::Rig;

const FIRECRACKER: &str = include_str!("../../docs/api.md");
const V1: &str = include_str!("../../docs/api-v1.md");
/// Where the examples have their files.
const PLACES: [&str; 2] = ["/srv/vm", "PLACE"];

/// What becomes of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It is compared.
    Plain,
    /// The guest here has no driver, so it is refused for that.
    NeedsDriver,
    /// Its answer has no end.
    Stream,
}

/// What an example says.
struct Example<'a> {
    kind: Kind,
    method: &'a str,
    path: &'a str,
    body: String,
    status: u16,
    answer: Option<Value>,
}

fn examples(text: &'static str) -> Vec<Example<'static>> {
    let blocks = text.split("```http").skip(1);
    blocks
        .map(|block| {
            let (kind, rest) = block.split_once('\n').unwrap();
            let text = rest.split("```").next().unwrap();
            let (request, answer) = text.split_once("\n\n").unwrap();
            let (line, body) = request.split_once('\n').unwrap_or((request, ""));
            let (method, path) = line.split_once(' ').unwrap();
            let (status, answer) = answer
                .trim()
                .split_once('\n')
                .unwrap_or((answer.trim(), ""));
            Example {
                kind: match kind.trim() {
                    "" => Kind::Plain,
                    "needs-driver" => Kind::NeedsDriver,
                    "stream" => Kind::Stream,
                    other => panic!("{other:?} is no kind of example"),
                },
                method,
                path,
                body: body.to_owned(),
                status: status.parse().unwrap(),
                answer: (!answer.is_empty()).then(|| serde_json::from_str(answer).unwrap()),
            }
        })
        .collect()
}

/// Compares what came with what is documented, where `…` is any value, or more of the same.
fn agrees(documented: &Value, came: &Value) -> bool {
    match (documented, came) {
        (Value::String(any), _) if any == "…" => true,
        (Value::Object(documented), Value::Object(came)) => {
            let more = documented.contains_key("…");
            let named = || documented.iter().filter(|(name, _)| *name != "…");
            (more || documented.len() == came.len())
                && named()
                    .all(|(name, value)| came.get(name).is_some_and(|came| agrees(value, came)))
        }
        (Value::Array(documented), Value::Array(came)) => match &documented[..] {
            [Value::String(any)] if any == "…" => !came.is_empty(),
            _ => {
                documented.len() == came.len()
                    && documented
                        .iter()
                        .zip(came)
                        .all(|(documented, came)| agrees(documented, came))
            }
        },
        (documented, came) => documented == came,
    }
}

#[test]
fn every_example_does_what_it_says() {
    let rig = Rig::with(true, Limits::default());
    let tap = umbra_vmm::check_tap("umbra-doc").is_ok();
    if !tap {
        eprintln!("SKIPPED: no TAP interface can be made here: examples with one are left out");
    }
    let left_out = |path: &str| !tap && (path.starts_with("/network") || path == "/mmds/config");
    execute(&rig, FIRECRACKER, left_out);
    assert!(rig.checked() > 40, "compared with the document");
}

#[test]
fn every_example_of_v1_does_what_it_says() {
    let rig = Rig::new();
    execute(&rig, V1, |_| false);
    assert!(rig.checked() > 25, "compared with the document");
}

fn execute(rig: &Rig, text: &'static str, left_out: impl Fn(&str) -> bool) {
    let place = rig.place.path().to_str().unwrap();
    for example in examples(text) {
        let Example { method, path, .. } = example;
        if left_out(path) {
            continue;
        }
        let places = PLACES.iter();
        let body = places.fold(example.body, |body, name| body.replace(name, place));
        if example.kind == Kind::Stream {
            let status = rig.client().status(method, path);
            assert_eq!(status, example.status, "{method} {path}");
            continue;
        }
        let answer = rig.ask(method, path, &body);
        if example.kind == Kind::NeedsDriver {
            assert_eq!(answer.status, 400, "{method} {path}: {answer:?}");
            assert!(
                answer.fault().to_lowercase().contains("activ"),
                "{answer:?}"
            );
            continue;
        }
        assert_eq!(answer.status, example.status, "{method} {path}: {answer:?}");
        if let Some(documented) = &example.answer {
            let came = answer.json();
            assert!(agrees(documented, &came), "{method} {path}: {came}");
        }
    }
}

#[test]
fn every_operation_of_v1_has_an_example() {
    let there: BTreeSet<_> = examples(V1)
        .iter()
        .map(|example| {
            let path = example.path.split('?').next().unwrap();
            let path = path
                .replace("/cpus/0/", "/cpus/{cpu}/")
                .replace("/devices/data", "/devices/{id}");
            (example.method, path)
        })
        .collect();
    for operation in routes::operations() {
        let key = (operation.method, operation.path.to_owned());
        assert!(there.contains(&key), "{key:?} has no example");
    }
}

#[test]
fn every_operation_has_an_example() {
    let names: Vec<_> = examples(FIRECRACKER)
        .iter()
        .map(|e| (e.method, e.path.to_owned()))
        .collect();
    let pattern = |path: &str| {
        for kind in ["/drives/", "/pmem/", "/network-interfaces/"] {
            if path.starts_with(kind) {
                return format!("{kind}{{id}}");
            }
        }
        path.to_owned()
    };
    let there: BTreeSet<_> = names
        .iter()
        .map(|(method, path)| (*method, pattern(path)))
        .collect();
    for operation in OPERATIONS {
        let key = (operation.method.name(), operation.path.to_owned());
        assert!(there.contains(&key), "{key:?} has no example");
    }
}
