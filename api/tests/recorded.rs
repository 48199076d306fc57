//! A session that a Firecracker 1.17 had, with a guest that only halts, had again: status, headers and the shape of
//! every answer. `recorded.jsonl` has a request and its answer in each line; KERNEL, DISK and TMP stand for paths.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::Rig;

/// Two values have the same shape: the same kind, the same names, and so on within. `null` is what may be missing, so
/// it is compared as it is.
fn same_shape(theirs: &Value, ours: &Value) -> Result<(), String> {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let names = |map: &serde_json::Map<String, Value>| {
                let mut names: Vec<_> = map.keys().cloned().collect();
                names.sort();
                names
            };
            if names(theirs) != names(ours) {
                return Err(format!("{:?} against {:?}", names(theirs), names(ours)));
            }
            theirs.iter().try_for_each(|(name, value)| {
                same_shape(value, &ours[name]).map_err(|error| format!("{name}: {error}"))
            })
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => theirs
            .iter()
            .zip(ours)
            .try_for_each(|(a, b)| same_shape(a, b)),
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Null, Value::Null) => Ok(()),
        (theirs, ours) => Err(format!("{theirs} against {ours}")),
    }
}

/// A machine that is told something of what this monitor knows is still told everything.
fn without_code(mut answer: Value) -> Value {
    if let Some(map) = answer.as_object_mut()
        && map.contains_key("fault_message")
    {
        assert!(map.remove("code").is_some_and(|code| code.is_string()));
    }
    answer
}

#[test]
fn a_recorded_session_is_had_again() {
    let rig = Rig::new();
    let paths = [
        ("KERNEL", rig.text("kernel")),
        ("DISK", rig.text("disk")),
        ("TMP", rig.place.path().to_str().unwrap().to_owned()),
    ];
    let tap = umbra_vmm::check_tap("umbra-recorded").is_ok();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("recorded.jsonl").lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let (method, path) = (
            entry["method"].as_str().unwrap(),
            entry["path"].as_str().unwrap(),
        );
        let mut body = match &entry["body"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        // Firecracker lets a disk's file be memory at the same time; here a file that is written has one user.
        if path.starts_with("/pmem") {
            body = body.replace("DISK", &rig.text("pmem"));
        }
        for (name, path) in &paths {
            body = body.replace(name, path);
        }
        let answer = rig.ask(method, path, &body);
        count += 1;
        let mut complain = |what: String| {
            wrong.push(format!("{} {method} {path} {body}: {what}", entry["phase"]));
        };
        if answer.status != entry["status"] {
            complain(format!(
                "{} instead of {}: {}",
                answer.status, entry["status"], answer.body
            ));
            continue;
        }
        for name in ["content-type", "deprecation"] {
            let theirs = entry["headers"][name].as_str();
            if answer.header(name) != theirs {
                complain(format!(
                    "{name}: {:?} instead of {theirs:?}",
                    answer.header(name)
                ));
            }
        }
        match &entry["answer"] {
            Value::String(_) if answer.body.is_empty() => {}
            theirs => {
                if let Err(error) = same_shape(theirs, &without_code(answer.json())) {
                    complain(error);
                }
            }
        }
    }
    assert!(count > 70, "{count}");
    assert_eq!(rig.checked(), count, "compared with the document");
    if !tap {
        eprintln!(
            "SKIPPED: no TAP interface can be made here: what the session says of one is not compared"
        );
        wrong.retain(|line| {
            !["network-interfaces", "/mmds/config", "/vm/config"]
                .iter()
                .any(|resource| line.contains(resource))
        });
    }
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
