//! The OpenAPI document: its copy for readers, and that it can be read as one.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::{Answer, document};
use umbra_api::openapi;

/// The copy.
const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

#[test]
fn the_copy_in_docs_is_what_the_types_say() {
    let text = openapi::text();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(COPY, text).unwrap();
    }
    let copy = std::fs::read_to_string(COPY).unwrap_or_default();
    let differs = copy.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(copy.lines().count().min(text.lines().count()));
    assert!(
        copy == text,
        "docs/openapi.json is not what the types say, from line {} on: it has {:?}, they say {:?}. Make it anew by\n\
         UPDATE=1 cargo nextest run -p umbra-api --test openapi",
        line + 1,
        copy.lines().nth(line).unwrap_or_default(),
        text.lines().nth(line).unwrap_or_default(),
    );
}

/// Hears of every reference.
fn references(value: &Value, hear: &mut impl FnMut(&str)) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                hear(reference);
            }
            map.values().for_each(|value| references(value, hear));
        }
        Value::Array(all) => all.iter().for_each(|value| references(value, hear)),
        _ => {}
    }
}

#[test]
fn every_schema_is_there_and_referred_to() {
    let document: Value = serde_json::from_str(openapi::text()).unwrap();
    let mut used = BTreeSet::new();
    references(&document, &mut |reference| {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
        used.insert(reference.rsplit('/').next().unwrap().to_owned());
    });
    let schemas = document["components"]["schemas"].as_object().unwrap();
    assert!(schemas.keys().eq(&used), "{:?}\n{used:?}", schemas.keys());
    assert!(schemas.len() > 40, "{}", schemas.len());
}

#[test]
fn what_the_server_demands_is_in_it() {
    let document: Value = serde_json::from_str(openapi::text()).unwrap();
    let schemas = &document["components"]["schemas"];
    for (pointer, says) in [
        (
            "/PutMachineConfiguration/properties/vcpu_count/minimum",
            "1",
        ),
        (
            "/PutMachineConfiguration/properties/vcpu_count/maximum",
            "32",
        ),
        (
            "/PutMachineConfiguration/required",
            r#"["vcpu_count","mem_size_mib"]"#,
        ),
        ("/PutMachineConfiguration/additionalProperties", "false"),
        (
            "/PutMachineConfiguration/properties/cpu_template/deprecated",
            "true",
        ),
        (
            "/PutMachineConfiguration/properties/huge_pages/default",
            r#""None""#,
        ),
        ("/HugePages/enum", r#"["None","Transparent","2M"]"#),
        ("/NetworkInterface/properties/mtu/minimum", "68"),
        ("/NetworkInterface/properties/mtu/maximum", "65535"),
        (
            "/NetworkInterface/properties/iface_id/pattern",
            r#""^[A-Za-z0-9_]+$""#,
        ),
        ("/Vsock/properties/guest_cid/maximum", "4294967295"),
        (
            "/MemoryHotplugConfig/properties/slot_size_mib/default",
            "128",
        ),
        // What is written has everything, and may have more one day.
        ("/BalloonAnswer/required/4", r#""free_page_reporting""#),
        (
            "/FullVmConfiguration/properties/balloon/anyOf/0/$ref",
            r##""#/components/schemas/BalloonAnswer""##,
        ),
    ] {
        let value = schemas.pointer(pointer).unwrap_or(&Value::Null);
        assert_eq!(value.to_string(), says, "{pointer}");
    }
    assert_eq!(schemas["BalloonAnswer"].get("additionalProperties"), None);
}

#[test]
fn what_is_not_as_it_says_is_found() {
    const VERSION: &str = r#"{"firecracker_version": "1"}"#;
    const NO: &str = r#"{"fault_message": "no", "code": "no"}"#;
    #[rustfmt::skip]
    let table = [
        ("GET", "/version", "", 200, VERSION, ""),
        ("GET", "/version", "{}", 200, VERSION, "there is no body"),
        ("GET", "/version", "", 200, r#"{"firecracker_version": 1}"#, "want string"),
        ("GET", "/version", "", 200, r#"{"firecracker_version": "1", "more": 1}"#, "'more' not allowed"),
        ("GET", "/version", "", 200, "", "it has a body of None"),
        ("GET", "/version", "", 500, "", "500 is not described"),
        ("GET", "/versions", "", 200, VERSION, "no operation"),
        ("GET", "/versions", "", 400, NO, ""),
        ("PUT", "/entropy", "{}", 204, "", ""),
        ("PUT", "/entropy", "{}", 204, NO, "it has a body of Some"),
        ("PUT", "/entropy", "{}", 400, NO, ""),
        ("PUT", "/entropy", "{}", 400, r#"{"fault_message": "no"}"#, "'code'"),
        ("PUT", "/entropy", "[]", 204, "", "want object"),
        ("PUT", "/entropy", "[]", 400, NO, ""),
        ("PUT", "/entropy", "", 204, "", "the body is missing"),
        ("PUT", "/entropy", "{", 204, "", "EOF"),
        ("PATCH", "/pmem/a", r#"{"id": "a"}"#, 204, "", ""),
        ("PATCH", "/pmem/a-b", r#"{"id": "a"}"#, 204, "", "pattern"),
        ("PATCH", "/pmem/", r#"{"id": "a"}"#, 204, "", "pattern"),
        ("PATCH", "/machine-config", r#"{"vcpu_count": 33}"#, 204, "", "must be <=32"),
        ("PATCH", "/machine-config", "{}", 204, "", "properties"),
    ];
    for (method, path, body, status, text, says) in table {
        let kind = ("content-type".to_owned(), "application/json".to_owned());
        let answer = Answer {
            status,
            headers: if text.is_empty() { vec![] } else { vec![kind] },
            body: text.to_owned(),
        };
        let found = document::compare(method, path, body, &answer);
        let good = match &found {
            Ok(()) => says.is_empty(),
            Err(why) => !says.is_empty() && why.contains(says),
        };
        assert!(good, "{method} {path} {body} {answer:?}: {found:?}");
    }
}
