//! `--trace mmu=FILE`.

use std::time::Duration;

use crate::support::{Input, Umbra, image};

/// Reads where no device is, three times: a walk, a mark, a hit; then crashes.
const MMIO: [u8; 16] = [
    0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
    0x8b, 0x03, 0x8b, 0x03, 0x8b, 0x03, // mov eax, [ebx], three times
    0x90, 0x90, 0x90, 0x0f, 0x0b, // ud2
];

#[test]
fn a_trace_opens_as_json_and_shows_the_walk_the_mark_and_the_cause_of_each_map() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &MMIO);
    let file = directory.path().join("trace.json");
    let trace = format!("mmu={}", file.display());
    let arguments = [
        "--backend",
        "soft",
        "--kernel",
        kernel.to_str().unwrap(),
        "--trace",
        &trace,
    ];

    let ended = Umbra::run(&arguments, Input::Empty, Duration::from_secs(60));

    assert_eq!(ended.status, Some(4), "{ended}");
    let bytes = std::fs::read(&file).unwrap();
    let events: Vec<serde_json::Value> = serde_json::from_slice(&bytes).unwrap();
    let find = |name: &str, phase: &str| {
        let found = events
            .iter()
            .find(|e| e["name"] == name && e["ph"] == phase);
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(find("RAM appears", "i")["args"]["generation"], 1);
    assert_eq!(find("mark", "i")["args"]["gfn"], "0xd0000");
    assert_eq!(find("check", "i")["args"]["valid"], true);
    let walk = find("slow fault", "B");
    let track = events
        .iter()
        .find(|e| e["ph"] == "M" && e["args"]["name"] == "vcpu0")
        .expect("the processor has a track");
    assert_eq!(walk["tid"], track["tid"]);
}

#[test]
fn a_trace_that_cannot_be_written_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &MMIO);
    let trace = format!("mmu={}/no/such/folder", directory.path().display());
    let arguments = [
        "--backend",
        "soft",
        "--kernel",
        kernel.to_str().unwrap(),
        "--trace",
        &trace,
    ];

    let ended = Umbra::run(&arguments, Input::Empty, Duration::from_secs(60));

    assert!(
        ended.status != Some(0) && ended.stderr.lines().count() == 1,
        "{ended}"
    );
    assert!(ended.stderr.contains("cannot create the trace"), "{ended}");
}
