//! The MMU verifies itself through a whole boot, while the guest-physical map changes under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use umbra_slots::{Gpa, GpaRange};
use umbra_vmm::{Console, Ended, Machine, Outcome, Plan, Spec, Verify};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::support::guest::{Guest, LINUX_6_1};
use crate::support::screen::Screen;

/// Where a device comes and goes: in the hole below 4 GiB, where nothing else is.
const WINDOW: u64 = 0xd000_0000;
/// How long it stays, and stays away. Two publications of the map each turn: a tag of two bits
/// wraps every other turn.
const TURN: Duration = Duration::from_millis(20);
/// Slow faults between two audits of everything.
const AUDIT: u32 = 100;

/// What the device answers.
const PATTERN: u8 = 0x5a;

/// Reads the window many times; each reading must be of the device or of nothing.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox dmesg -n 1
/bin/busybox mount -t devtmpfs dev /dev
for i in $(/bin/busybox seq 1 60); do
  case $(/bin/busybox devmem 0xd0000000 32) in
    0x5A5A5A5A) device=$((device + 1)) ;;
    0xFFFFFFFF) nothing=$((nothing + 1)) ;;
    *) other=$((other + 1)) ;;
  esac
done
echo \"read: device=$((device)) nothing=$((nothing)) other=$((other))\"
/bin/busybox poweroff -f
";

#[derive(Default)]
struct Pattern {
    reads: AtomicU64,
}

impl DeviceMmio for Pattern {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        data.fill(PATTERN);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// Runs `machine` while its device comes and goes.
fn run_with_a_restless_device(machine: Machine, device: &Arc<Pattern>) -> Ended {
    let bus = Arc::clone(machine.bus());
    let window = GpaRange::new(Gpa(WINDOW), 0x1000).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let id = bus.insert(window, device.clone()).unwrap();
                std::thread::sleep(TURN);
                assert!(bus.remove(id).is_some());
                std::thread::sleep(TURN);
            }
        });
        let result = machine.run();
        ended.store(true, Ordering::Relaxed);
        result.unwrap()
    })
}

fn counter(ended: &Ended, wanted: &str) -> u64 {
    let found = ended.statistics.iter().find(|(_, name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("nobody counts {wanted}")).2
}

fn boots_under_audit(cpus: u32) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let guest = guest.with_init(directory.path(), INIT);
    let spec = Spec {
        tag_bits: 2,
        verify: Verify::EveryFault(AUDIT),
        ..Spec::new(guest.kernel).initrd(guest.initrd).cpus(cpus)
    };
    let (screen, device) = (Screen::default(), Arc::new(Pattern::default()));
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone())).unwrap();

    let ended = run_with_a_restless_device(machine, &device);

    let text = screen.text();
    assert_eq!(ended.outcome, Outcome::PowerOff, "{text}");
    let read = text.lines().find(|line| line.starts_with("read: "));
    let read = read.unwrap_or_else(|| panic!("init was silent:\n{text}"));
    assert!(read.contains(" other=0"), "{read}");
    assert!(device.reads.load(Ordering::Relaxed) > 0, "{read}");

    let count = |name| counter(&ended, name);
    eprintln!("{read}; {:?}", ended.statistics);
    assert!(count("map generation") > 100, "the map changed");
    assert!(count("wraps") > 10, "the tag wrapped");
    assert!(
        count("mmio_stale") > 0,
        "MMIO entries outlived their generation"
    );
    assert!(count("mmio_hits") > 0, "MMIO entries were used");
    // Each page of devices was marked once, and again after it had become stale or had gone.
    assert!(
        count("mmio_marks") > count("mmio_stale"),
        "and were made again"
    );
    assert!(count("slow_faults") > u64::from(AUDIT), "audits took place");
}

#[test]
fn a_boot_with_one_processor_passes_audit_and_oracle() {
    boots_under_audit(1);
}

#[test]
fn a_boot_with_two_processors_passes_audit_and_oracle() {
    boots_under_audit(2);
}
