//! The window that one processor hit last, so that the next access to it needs no lookup (rules R9,
//! R10).
//!
//! ```text
//!   access ── record: same generation as now? inside its range? gate open? ──> device
//!      └───── no ──> resolve in a map, find the device ──> fill: only if that map is still current
//! ```
//!
//! A record holds the whole generation of the map that decided it, never a part, so it cannot come
//! round. The check comes before the device in every case: a change of slots or of the bus makes the
//! record stale at once, and a device that was removed turns callers away besides. A processor that
//! checks just before a change and calls just after it acts on the map of the moment when its access
//! began; whoever removes the device waits for it ([`Removed::wait`](crate::Removed::wait)).

use std::sync::{Arc, Weak};

use umbra_slots::{AddressSpace, Generation, Gpa, Snapshot, Target};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::Bus;
use crate::gate::Gate;

/// What one processor remembers. It belongs to that processor's thread.
#[derive(Default)]
pub struct LastHit {
    record: Option<Record>,
    hits: u64,
    stale: u64,
}

struct Record {
    generation: Generation,
    /// First address of the window.
    first: u64,
    /// Its number of bytes.
    len: u64,
    /// Weak: a processor that makes no more accesses must not keep a removed device alive.
    device: Weak<dyn DeviceMmio + Send + Sync>,
    gate: Arc<Gate>,
}

impl LastHit {
    /// Reads from the device of the record; `false` if it says nothing about this access.
    pub fn read(&mut self, space: &AddressSpace, gpa: Gpa, data: &mut [u8]) -> bool {
        self.with(space, gpa, data.len(), |device, base, offset| {
            device.mmio_read(base, offset, data);
        })
    }

    /// Writes to the device of the record; `false` if it says nothing about this access.
    pub fn write(&mut self, space: &AddressSpace, gpa: Gpa, data: &[u8]) -> bool {
        self.with(space, gpa, data.len(), |device, base, offset| {
            device.mmio_write(base, offset, data);
        })
    }

    /// Remembers who answers at `gpa` by `map`, unless the map has changed since: such an answer is
    /// right for the access that asked, and for no other.
    pub fn fill(&mut self, space: &AddressSpace, bus: &Bus, map: &Snapshot, gpa: Gpa) {
        let Target::Io {
            id,
            offset,
            remaining,
        } = map.resolve(gpa)
        else {
            return;
        };
        let Some(entry) = bus.entry(id) else {
            return;
        };
        if space.generation() != map.generation() {
            return;
        }
        self.record = Some(Record {
            generation: map.generation(),
            first: gpa.0 - offset,
            len: offset.saturating_add(remaining),
            device: entry.device,
            gate: entry.gate,
        });
    }

    /// Returns how many accesses the record answered, and how often it had become stale.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits, self.stale)
    }

    fn with(
        &mut self,
        space: &AddressSpace,
        gpa: Gpa,
        len: usize,
        call: impl FnOnce(&dyn DeviceMmio, MmioAddress, u64),
    ) -> bool {
        let Some(record) = &self.record else {
            return false;
        };
        if space.generation() != record.generation {
            // Nobody will ask for this generation again.
            self.record = None;
            self.stale += 1;
            return false;
        }
        let offset = gpa.0.wrapping_sub(record.first);
        let inside = offset < record.len && len as u64 <= record.len - offset;
        if !inside {
            return false;
        }
        let Some(_inside) = record.gate.enter() else {
            return false;
        };
        // Dropped before the gate is left: whoever waits there gets the last reference.
        let Some(device) = record.device.upgrade() else {
            return false;
        };
        self.hits += 1;
        call(&*device, MmioAddress(record.first), offset);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Removed;
    use std::sync::atomic::{AtomicU64, Ordering};
    use umbra_slots::{Flags, GpaRange, HugePages, Options, RamOptions, RamRegion};
    use vm_device::bus::MmioAddressOffset;

    /// Answers its name and counts its calls.
    struct Named(u8, AtomicU64);

    impl Named {
        fn new(name: u8) -> Arc<Self> {
            Arc::new(Self(name, AtomicU64::new(0)))
        }

        fn calls(&self) -> u64 {
            self.1.load(Ordering::Relaxed)
        }
    }

    impl DeviceMmio for Named {
        fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            self.1.fetch_add(1, Ordering::Relaxed);
            data.fill(self.0 + offset as u8);
        }

        fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        space: Arc<AddressSpace>,
        bus: Bus,
        last: LastHit,
    }

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), len).unwrap()
    }

    fn bench() -> Bench {
        let space = AddressSpace::new(Options::default());
        Bench {
            bus: Bus::new(space.clone()),
            space,
            last: LastHit::default(),
        }
    }

    impl Bench {
        /// Puts a new device named 7 at `start`.
        fn insert(&self, start: u64, len: u64) -> (umbra_slots::IoId, Arc<Named>) {
            let device = Named::new(7);
            let id = self.bus.insert(range(start, len), device.clone()).unwrap();
            (id, device)
        }

        /// Reads as a processor does: the record first.
        fn read(&mut self, gpa: u64) -> u8 {
            let mut data = [0];
            if self.last.read(&self.space, Gpa(gpa), &mut data) {
                return data[0];
            }
            let map = self.space.load_full();
            self.last.fill(&self.space, &self.bus, &map, Gpa(gpa));
            self.bus.read(&map, Gpa(gpa), &mut data);
            data[0]
        }
    }

    #[test]
    fn r3_a_repeated_access_is_a_hit() {
        let mut bench = bench();
        bench.insert(0x1000, 0x10);
        let read: Vec<u8> = [0x1000, 0x1001, 0x100f, 0x1000]
            .map(|gpa| bench.read(gpa))
            .into();
        assert_eq!(read, [7, 8, 22, 7]);
        assert_eq!(bench.last.counts(), (3, 0));
    }

    #[test]
    fn r4_a_window_at_address_0_is_a_window_like_others() {
        let mut bench = bench();
        bench.insert(0, 0x10);
        assert_eq!((bench.read(0), bench.read(0)), (7, 7));
        assert_eq!(bench.last.counts(), (1, 0));
    }

    #[test]
    fn r10_any_change_of_the_map_makes_the_record_stale() {
        let mut bench = bench();
        let (id, device) = bench.insert(0x1000, 0x10);
        bench.read(0x1000);
        // Another device, far away.
        bench
            .bus
            .insert(range(0x8000, 0x10), Named::new(9))
            .unwrap();
        assert_eq!(bench.read(0x1000), 7);
        assert_eq!(bench.last.counts(), (0, 1));

        bench.bus.move_to(id, Gpa(0x2000)).unwrap();
        assert_eq!((bench.read(0x1000), bench.read(0x2000)), (0xff, 7));

        assert!(bench.bus.remove(id).map(Removed::wait).is_some());
        let calls = device.calls();
        assert_eq!(bench.read(0x2000), 0xff);
        assert_eq!(device.calls(), calls);
    }

    #[test]
    fn r10_ram_in_the_place_of_a_window_is_no_hit() {
        let mut bench = bench();
        let (_, device) = bench.insert(0x1000, 0x1000);
        bench.read(0x1000);
        let slot = bench.space.load().slot_at(Gpa(0x1000)).unwrap().id();
        let region = RamRegion::new(RamOptions {
            len: 0x1000,
            huge: HugePages::No,
            prefault: false,
        })
        .unwrap();
        let replaced = bench.space.update("a device becomes RAM", |e| {
            e.remove(slot)?;
            e.add_ram(Gpa(0x1000), region, 0, 0x1000, Flags::default())
        });
        replaced.unwrap().wait();
        assert!(!bench.last.write(&bench.space, Gpa(0x1000), &[1]));
        assert_eq!(device.calls(), 1);
    }

    #[test]
    fn a_lookup_that_raced_with_a_change_is_not_remembered() {
        let mut bench = bench();
        bench.insert(0x1000, 0x10);
        let old = bench.space.load_full();
        bench
            .bus
            .insert(range(0x8000, 0x10), Named::new(9))
            .unwrap();
        bench.last.fill(&bench.space, &bench.bus, &old, Gpa(0x1000));
        assert!(!bench.last.read(&bench.space, Gpa(0x1000), &mut [0]));
        assert_eq!(bench.last.counts(), (0, 0), "there was no record at all");
    }

    #[test]
    fn an_access_across_the_end_of_the_window_is_no_hit() {
        let mut bench = bench();
        bench.insert(0x1000, 0x10);
        bench.read(0x1000);
        assert!(!bench.last.read(&bench.space, Gpa(0x100c), &mut [0; 8]));
        assert!(bench.last.read(&bench.space, Gpa(0x1008), &mut [0; 8]));
        assert!(!bench.last.read(&bench.space, Gpa(0xfff), &mut [0; 8]));
    }

    #[test]
    fn a_device_that_is_being_removed_turns_the_record_away() {
        let mut bench = bench();
        let (id, device) = bench.insert(0x1000, 0x10);
        bench.read(0x1000);
        let entry = bench.bus.entry(id).unwrap();
        entry.gate.close();
        assert!(!bench.last.read(&bench.space, Gpa(0x1000), &mut [0]));
        assert_eq!(device.calls(), 1);
    }

    #[test]
    fn a_record_keeps_no_device_alive() {
        let mut bench = bench();
        let (id, device) = bench.insert(0x1000, 0x10);
        bench.read(0x1000);
        drop(bench.bus.remove(id).map(Removed::wait));
        assert_eq!(Arc::strong_count(&device), 1);
    }
}
