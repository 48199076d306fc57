//! Kernels boot while a device appears, moves or goes every millisecond, so that every MMIO entry
//! is stale a moment later; with the generation started shortly before its tag wraps, and with a
//! tag so narrow that it wraps all the time.
//!
//! `UMBRA_STORM_BOOTS` says how often each kernel boots each way; 1 where it says nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use umbra_vmm::{Backend, Console, Ended, Machine, Outcome, Plan, Spec};

use crate::support::guest::{Guest, LINUX_6_1, LINUX_6_12, LINUX_686, LINUX_686_PAE, command_line};
use crate::support::restless::{self, Pattern, counter};
use crate::support::screen::Screen;

/// Time between two changes of the map.
const STEP: Duration = Duration::from_millis(1);
/// The local APIC is in memory, so that every timer interrupt is several accesses.
const IN_MEMORY: &str = "nox2apic";
const INIT: &str = "#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox echo \"init: $(/bin/busybox uname -sr) with $(/bin/busybox nproc) processor(s).\"
/bin/busybox poweroff -f
";

/// A way to bring the tag round.
#[derive(Clone, Copy, Debug)]
struct Wrap {
    tag_bits: u32,
    first_generation: u64,
}

/// The full width, begun a hundred changes before it wraps.
const ONCE: Wrap = Wrap {
    tag_bits: 19,
    first_generation: (1 << 19) - 100,
};
/// Four bits: sixteen changes bring it round.
const ALWAYS: Wrap = Wrap {
    tag_bits: 4,
    first_generation: 0,
};

fn boots() -> u32 {
    let text = std::env::var("UMBRA_STORM_BOOTS").unwrap_or_else(|_| "1".into());
    text.parse().expect("UMBRA_STORM_BOOTS is a number")
}

fn boot(guest: &Guest, command_line: &str, cpus: u32, wrap: Wrap) -> Ended {
    let spec = Spec {
        tag_bits: wrap.tag_bits,
        first_generation: wrap.first_generation,
        backend: Backend::Soft,
        ..Spec::new(&guest.kernel)
            .initrd(&guest.initrd)
            .command_line(command_line)
            .cpus(cpus)
    };
    let screen = Screen::default();
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone())).unwrap();

    let ended = restless::run(machine, &Pattern::answering_after(Duration::ZERO), STEP);

    let text = screen.text();
    assert_eq!(ended.outcome, Outcome::PowerOff, "{text}");
    let line = text.lines().find(|line| line.starts_with("init: "));
    let line = line.unwrap_or_else(|| panic!("init was silent:\n{text}"));
    assert!(
        line.contains(&format!(" with {cpus} processor(s).")),
        "{line}"
    );
    ended
}

/// Boots as often as told, and asserts that the mechanism was really at work each time.
fn boots_in_a_storm(package: &str, cpus: u32, wrap: Wrap) {
    let Some(guest) = Guest::fetch(package) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let guest = guest.with_init(directory.path(), INIT);
    let command_line = format!("{} {IN_MEMORY}", command_line(package));
    let start = Instant::now();
    let mut sums = BTreeMap::new();
    for _ in 0..boots() {
        let ended = boot(&guest, &command_line, cpus, wrap);
        let changes = counter(&ended, "map generation") - wrap.first_generation;
        let due = (wrap.first_generation % (1 << wrap.tag_bits) + changes) >> wrap.tag_bits;
        let mut count = |name| {
            let value = counter(&ended, name);
            *sums.entry(name).or_insert(0) += value;
            value
        };
        assert!(changes > 500, "the map changed {changes} times");
        // The counters are read one after the other, and the map goes on changing.
        let (wraps, hits, stale) = (count("wraps"), count("mmio_hits"), count("mmio_stale"));
        let (marks, records) = (count("mmio_marks"), count("mmio_record_hits"));
        assert!(
            wraps.abs_diff(due) <= 1 && wraps > 0,
            "{wraps} wraps of {due}"
        );
        assert!(stale > 20, "{stale} entries outlived their generation");
        assert!(hits + records > 100, "{hits} + {records} accesses used one");
        assert!(marks > stale, "{marks} made of {stale}: none was refreshed");
    }
    let (boots, each) = (boots(), start.elapsed().as_secs_f64() / f64::from(boots()));
    println!("{package} x{cpus} {wrap:?}: {boots} boots, {each:.1} s each; {sums:?}");
}

#[test]
fn linux_6_1_boots_in_a_storm_that_wraps_the_tag_once() {
    boots_in_a_storm(LINUX_6_1, 1, ONCE);
}

#[test]
fn linux_6_1_boots_in_a_storm_that_wraps_the_tag_always() {
    boots_in_a_storm(LINUX_6_1, 1, ALWAYS);
}

#[test]
fn linux_6_1_with_four_processors_boots_in_a_storm_that_wraps_the_tag_once() {
    boots_in_a_storm(LINUX_6_1, 4, ONCE);
}

#[test]
fn linux_6_1_with_four_processors_boots_in_a_storm_that_wraps_the_tag_always() {
    boots_in_a_storm(LINUX_6_1, 4, ALWAYS);
}

#[test]
fn linux_686_boots_in_a_storm_that_wraps_the_tag_once() {
    boots_in_a_storm(LINUX_686, 1, ONCE);
}

#[test]
fn linux_686_boots_in_a_storm_that_wraps_the_tag_always() {
    boots_in_a_storm(LINUX_686, 1, ALWAYS);
}

#[test]
fn linux_686_pae_boots_in_a_storm_that_wraps_the_tag_once() {
    boots_in_a_storm(LINUX_686_PAE, 1, ONCE);
}

#[test]
fn linux_686_pae_boots_in_a_storm_that_wraps_the_tag_always() {
    boots_in_a_storm(LINUX_686_PAE, 1, ALWAYS);
}

#[test]
fn linux_6_12_boots_in_a_storm_that_wraps_the_tag_once() {
    boots_in_a_storm(LINUX_6_12, 1, ONCE);
}

#[test]
fn linux_6_12_boots_in_a_storm_that_wraps_the_tag_always() {
    boots_in_a_storm(LINUX_6_12, 1, ALWAYS);
}

#[test]
fn linux_6_12_with_four_processors_boots_in_a_storm_that_wraps_the_tag_once() {
    boots_in_a_storm(LINUX_6_12, 4, ONCE);
}

#[test]
fn linux_6_12_with_four_processors_boots_in_a_storm_that_wraps_the_tag_always() {
    boots_in_a_storm(LINUX_6_12, 4, ALWAYS);
}
