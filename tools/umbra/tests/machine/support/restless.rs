//! Devices that appear, move and go while a guest runs: each time another map, another generation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use umbra_slots::{Gpa, GpaRange};
use umbra_vmm::{Ended, Machine};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// Where a device comes and goes: in the hole below 4 GiB, where nothing else is.
const WINDOW: Gpa = Gpa(0xd000_0000);
/// Two places between which another one moves.
const ELSEWHERE: [Gpa; 2] = [Gpa(0xd100_0000), Gpa(0xd200_0000)];
/// What the device answers.
const PATTERN: u8 = 0x5a;

/// A device that always answers the same.
pub struct Pattern {
    reads: AtomicU64,
    read_time: Duration,
}

impl Pattern {
    /// Makes a device that takes its time, so that the map changes while it is read.
    pub fn answering_after(read_time: Duration) -> Arc<Self> {
        Arc::new(Self {
            reads: AtomicU64::new(0),
            read_time,
        })
    }

    /// How often it was read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl DeviceMmio for Pattern {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if !self.read_time.is_zero() {
            std::thread::sleep(self.read_time);
        }
        data.fill(PATTERN);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// Runs `machine` to its end; every `step` a device appears, moves or goes.
pub fn run(machine: Machine, device: &Arc<Pattern>, step: Duration) -> Ended {
    let bus = Arc::clone(machine.bus());
    let page = |start| GpaRange::new(start, 0x1000).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mover = bus.insert(page(ELSEWHERE[0]), device.clone()).unwrap();
            while !ended.load(Ordering::Relaxed) {
                let id = bus.insert(page(WINDOW), device.clone()).unwrap();
                for place in ELSEWHERE.into_iter().rev().cycle().take(4) {
                    std::thread::sleep(step);
                    bus.move_to(mover, place).unwrap();
                }
                let removed = bus.remove(id).expect("inserted above");
                drop(removed.wait());
                std::thread::sleep(step);
            }
        });
        let result = machine.run();
        ended.store(true, Ordering::Relaxed);
        result.unwrap()
    })
}

/// What somebody in the machine counted under a name.
pub fn counter(ended: &Ended, wanted: &str) -> u64 {
    let found = ended.statistics.iter().find(|(_, name, _)| *name == wanted);
    found.unwrap_or_else(|| panic!("nobody counts {wanted}")).2
}
