//! The MMU verifies itself through a whole boot, while the guest-physical map changes under it.

use std::time::Duration;

use umbra_vmm::{Backend, Console, Machine, Outcome, Plan, Spec, Verify};

use crate::support::guest::{Guest, LINUX_6_1};
use crate::support::restless::{self, Pattern, counter};
use crate::support::screen::Screen;

/// Time between two changes of the map; four of them wrap a tag of two bits.
const STEP: Duration = Duration::from_millis(20);
/// How long the device takes to answer, so that the map changes while it is read.
const READ_TIME: Duration = Duration::from_millis(1);
/// Linux lets nobody read /dev/mem beyond the end of memory, so that has to be behind the window.
const MEMORY: u64 = (3 << 30) + (64 << 20);
/// Slow faults between two audits of everything.
const AUDIT: u32 = 100;

/// Maps the window anew many times and reads a word; each must be of the device or of nothing. Then
/// reads a page of it through one mapping: there an entry gets old in its place.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox mount -t devtmpfs dev /dev
for i in $(/bin/busybox seq 1 40); do
  case $(/bin/busybox devmem 0xd0000000 32) in
    0x5A5A5A5A) device=$((device + 1)) ;;
    0xFFFFFFFF) nothing=$((nothing + 1)) ;;
    *) other=$((other + 1)) ;;
  esac
done
for i in $(/bin/busybox seq 1 12); do
  /bin/busybox dd if=/dev/mem bs=4096 skip=$((0xd0000)) count=1 2>/dev/null
done > /pages
bytes=$(/bin/busybox wc -c < /pages)
foreign=$(/bin/busybox tr -d '\132\377' < /pages | /bin/busybox wc -c)
echo "words: device=$((device)) nothing=$((nothing)) other=$((other))"
echo "pages: bytes=$bytes foreign=$foreign"
/bin/busybox poweroff -f
"#;

fn boots_under_audit(cpus: u32) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let guest = guest.with_init(directory.path(), INIT);
    let spec = Spec {
        tag_bits: 2,
        verify: Verify::EveryFault(AUDIT),
        backend: Backend::Soft,
        ..Spec::new(guest.kernel)
            .initrd(guest.initrd)
            .cpus(cpus)
            .memory(MEMORY)
    };
    let (screen, device) = (Screen::default(), Pattern::answering_after(READ_TIME));
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone())).unwrap();

    let ended = restless::run(machine, &device, STEP);

    let text = screen.text();
    assert_eq!(ended.outcome, Outcome::PowerOff, "{text}");
    let line = |name: &str| text.lines().find(|line| line.starts_with(name));
    let words = line("words: ").unwrap_or_else(|| panic!("init was silent:\n{text}"));
    assert!(words.ends_with(" other=0"), "{words}");
    assert_eq!(line("pages: "), Some("pages: bytes=49152 foreign=0"));
    assert!(device.reads() > 0, "{words}");

    let count = |name| counter(&ended, name);
    eprintln!("{words}; {:?}", ended.statistics);
    assert!(count("map generation") > 100, "the map changed");
    assert!(count("wraps") > 10, "the tag wrapped");
    let hits = count("mmio_hits") + count("mmio_record_hits");
    assert!(hits > 100, "MMIO entries were used");
    assert!(count("mmio_stale") > 3, "and outlived their generation");
    assert!(
        count("mmio_marks") > count("mmio_stale"),
        "and were made again"
    );
    assert!(
        count("slow_faults") > 100 * u64::from(AUDIT),
        "audits took place"
    );
}

#[test]
fn a_boot_with_one_processor_passes_audit_and_oracle() {
    boots_under_audit(1);
}

#[test]
fn a_boot_with_two_processors_passes_audit_and_oracle() {
    boots_under_audit(2);
}
