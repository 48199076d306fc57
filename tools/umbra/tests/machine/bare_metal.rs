//! The project's own bare-metal guest (`tests/guest`): what the manual promises, claim by claim.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::backend::on_each_stock_backend;
use crate::support::{Ended, Input, Umbra, bare_metal};

/// Builds the guest; returns its image. Nothing is fetched: it depends on nothing.
fn guest() -> PathBuf {
    bare_metal::build("tests/guest", "guest", &["--offline"]).join("umbra-guest")
}

fn run(backend: &str, cpus: &str, more: &[&str]) -> Ended {
    let image = guest();
    let image = image.to_str().unwrap();
    let base = [
        "--kernel",
        image,
        "--memory",
        "256M",
        "--test-device",
        "--fw-cfg",
        "--cpus",
        cpus,
        "--backend",
        backend,
    ];
    let arguments = [&base, more].concat();
    Umbra::run(&arguments, Input::Empty, Duration::from_secs(300))
}

/// The claims of one kind: "ok", "skip", "FAIL".
fn claims<'a>(ended: &'a Ended, kind: &str) -> Vec<&'a str> {
    let lines = ended.stdout.lines();
    lines
        .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))
        .map(|rest| rest.split([':', ' ']).next().unwrap())
        .collect()
}

/// Checks that everything was checked, and that it holds.
fn assert_claims_hold(ended: &Ended) {
    let failed = claims(ended, "FAIL");
    assert!(failed.is_empty(), "{failed:?} do not hold: {ended}");
    assert!(
        ended.stdout.contains("\nsummary: "),
        "it did not end: {ended}"
    );
    assert_eq!(ended.status, Some(1), "{ended}");
}

fn the_manuals_claims_hold_with_four_processors(backend: &str) {
    let ended = run(backend, "4", &[]);
    assert_claims_hold(&ended);
    let skipped = claims(&ended, "skip");
    assert!(skipped.is_empty(), "{skipped:?} were not checked: {ended}");
    assert!(claims(&ended, "ok").len() >= 80, "{ended}");
}

#[test]
fn the_manuals_claims_hold_with_narrow_tags_under_audit() {
    let ended = run("soft", "1", &["--tag-bits", "2", "--audit=5000"]);
    assert_claims_hold(&ended);
}

on_each_stock_backend! {
    the_manuals_claims_hold_with_four_processors,
}
