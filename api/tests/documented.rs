//! The examples in `docs/api.md` do what they say, in the order in which they are there, on one machine; and there is
//! one for every operation.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use umbra_api::firecracker::request::OPERATIONS;
use umbra_api::server::Limits;

use support::Rig;

const TEXT: &str = include_str!("../../docs/api.md");
/// Where the examples have their files.
const PLACE: &str = "/srv/vm";

/// What an example says.
struct Example<'a> {
    needs_driver: bool,
    method: &'a str,
    path: &'a str,
    body: String,
    status: u16,
    answer: Option<Value>,
}

fn examples() -> Vec<Example<'static>> {
    let blocks = TEXT.split("```http").skip(1);
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
                needs_driver: kind.trim() == "needs-driver",
                method,
                path,
                body: body.to_owned(),
                status: status.parse().unwrap(),
                answer: (!answer.is_empty()).then(|| serde_json::from_str(answer).unwrap()),
            }
        })
        .collect()
}

/// Compares what came with what is documented, where `…` is any text.
fn agrees(documented: &Value, came: &Value) -> bool {
    match (documented, came) {
        (Value::String(any), Value::String(_)) if any == "…" => true,
        (Value::Object(documented), Value::Object(came)) => {
            documented.len() == came.len()
                && documented
                    .iter()
                    .all(|(name, value)| came.get(name).is_some_and(|came| agrees(value, came)))
        }
        (documented, came) => documented == came,
    }
}

#[test]
fn every_example_does_what_it_says() {
    let rig = Rig::with(true, Limits::default());
    let place = rig.place.path().to_str().unwrap();
    let tap = umbra_vmm::check_tap("umbra-doc").is_ok();
    if !tap {
        eprintln!("SKIPPED: no TAP interface can be made here: examples with one are left out");
    }
    for example in examples() {
        let Example { method, path, .. } = example;
        let of_tap = path.starts_with("/network") || path == "/mmds/config";
        if of_tap && !tap {
            continue;
        }
        let body = example.body.replace(PLACE, place);
        let answer = rig.ask(method, path, &body);
        if example.needs_driver {
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
    assert!(rig.checked() > 40, "compared with the document");
}

#[test]
fn every_operation_has_an_example() {
    let names: Vec<_> = examples()
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
