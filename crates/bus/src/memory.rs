//! Devices behind windows of the guest-physical map.

use std::sync::Arc;

use umbra_slots::{
    AddressSpace, Backing, Gpa, GpaRange, IoId, SlotError, SlotId, Snapshot, Target,
};
use umbra_sync::atomic::{AtomicU64, Ordering};
use vm_device::bus::MmioAddress;

use crate::split::next_transfer;
use crate::table::{Entry, Table};
use crate::{BusError, MmioDevice, Removed};

/// Devices by id, and the map that says where they are.
pub struct Bus {
    space: Arc<AddressSpace>,
    table: Table,
    misses: AtomicU64,
}

impl Bus {
    /// Makes a bus without devices over a map.
    pub fn new(space: Arc<AddressSpace>) -> Self {
        Self {
            space,
            table: Table::default(),
            misses: AtomicU64::new(0),
        }
    }

    /// Returns the map that says where devices are.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Puts a device at a range of addresses.
    ///
    /// # Errors
    ///
    /// If the range is taken or the map is full; nothing has changed then.
    pub fn insert(&self, range: GpaRange, device: MmioDevice) -> Result<IoId, BusError> {
        // The device is known before its window can be seen.
        let id = self.table.add(device);
        let added = self
            .space
            .update("a device appears", |editor| editor.add_io(range, id));
        match added {
            // No RAM went away: there is nothing to wait for.
            Ok(updated) => drop(updated.stale),
            Err(error) => {
                drop(self.table.take(id)); // nobody has seen it
                return Err(error.into());
            }
        }
        Ok(id)
    }

    /// Makes a device known that has no window yet; [`show`](Self::show) opens it.
    ///
    /// For a device whose window the guest opens and closes: it keeps its id meanwhile, with whatever
    /// belongs to the id, and nothing grows however often the guest does so.
    pub fn register(&self, device: MmioDevice) -> IoId {
        self.table.add(device)
    }

    /// Opens the window of a device that has none. Of one device, one thread at a time shows, hides
    /// and moves it.
    ///
    /// # Errors
    ///
    /// If there is no such device, the range is taken, or the map is full; nothing has changed then.
    pub fn show(&self, id: IoId, range: GpaRange) -> Result<(), BusError> {
        if self.table.get(id).is_none() {
            return Err(BusError::NoSuchDevice { id });
        }
        let shown = self
            .space
            .update("a device is shown", |editor| editor.add_io(range, id));
        shown.map(|updated| drop(updated.stale)).map_err(Into::into)
    }

    /// Closes the window of a device, which stays known. Waits for nobody: a call that began before may
    /// still be inside.
    ///
    /// # Errors
    ///
    /// If the device is not there, or has no window.
    pub fn hide(&self, id: IoId) -> Result<(), BusError> {
        self.change("a device is hidden", id, |editor, slot| editor.remove(slot))
    }

    /// Takes a device out; its addresses hit nothing from now on. `None` if it is not there.
    ///
    /// No call that begins after this returned reaches the device; one that began before may still
    /// be inside until [`Removed::wait`] returns.
    pub fn remove(&self, id: IoId) -> Option<Removed<MmioDevice>> {
        // One that is hidden has no window to close, and one that somebody else removes is not in the
        // table any more.
        let _ = self.change("a device goes", id, |editor, slot| editor.remove(slot));
        self.table.take(id)
    }

    /// Moves a device to other addresses.
    ///
    /// # Errors
    ///
    /// If the device is not there, or its new range is taken; nothing has changed then.
    pub fn move_to(&self, id: IoId, start: Gpa) -> Result<(), BusError> {
        self.change("a device moves", id, |editor, slot| {
            editor.move_to(slot, start)
        })
    }

    /// Returns a device and its gate.
    pub(crate) fn entry(&self, id: IoId) -> Option<Entry> {
        self.table.get(id)
    }

    fn change(
        &self,
        cause: &'static str,
        id: IoId,
        edit: impl FnOnce(&mut umbra_slots::Editor, SlotId) -> Result<(), SlotError>,
    ) -> Result<(), BusError> {
        let behind = |backing: &Backing| matches!(backing, Backing::Io(other) if *other == id);
        let slot = self
            .space
            .load()
            .slots()
            .iter()
            .find(|s| behind(s.backing()))
            .map(|s| s.id());
        // A device without a window was removed by somebody else meanwhile.
        let slot = slot.ok_or(BusError::NoSuchDevice { id })?;
        let updated = self.space.update(cause, |editor| edit(editor, slot))?;
        drop(updated.stale);
        Ok(())
    }

    /// Reads `data.len()` bytes at `gpa`, as the map says who answers.
    ///
    /// An access that crosses the end of a device, or of RAM, is split there: each piece goes to
    /// whoever is behind it. What hits nothing reads as all ones. RAM is read, too: for whoever
    /// decided by an older map that there was none, and for accesses half in RAM.
    pub fn read(&self, map: &Snapshot, gpa: Gpa, data: &mut [u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = Gpa(gpa.0.wrapping_add(done as u64));
            let target = map.resolve(at);
            let len = next_transfer(at.0, data.len() - done, room(map, at, &target), done == 0);
            self.read_piece(map, at, target, &mut data[done..done + len]);
            done += len;
        }
    }

    /// Writes `data` at `gpa`, split as [`Bus::read`] is. Writes to read-only RAM are dropped.
    pub fn write(&self, map: &Snapshot, gpa: Gpa, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = Gpa(gpa.0.wrapping_add(done as u64));
            let target = map.resolve(at);
            let len = next_transfer(at.0, data.len() - done, room(map, at, &target), done == 0);
            self.write_piece(map, at, target, &data[done..done + len]);
            done += len;
        }
    }

    /// Returns how many accesses hit nothing.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    fn read_piece(&self, map: &Snapshot, at: Gpa, target: Target<'_>, data: &mut [u8]) {
        let answered = match target {
            Target::Io { id, offset, .. } => {
                let base = MmioAddress(at.0 - offset);
                self.table
                    .with(id, |device| device.mmio_read(base, offset, data))
                    .is_some()
            }
            Target::Ram(_) => map.read(at, data).is_ok(),
            Target::Nothing => false,
        };
        if !answered {
            data.fill(0xff);
            self.miss(at, data.len());
        }
    }

    fn write_piece(&self, map: &Snapshot, at: Gpa, target: Target<'_>, data: &[u8]) {
        let answered = match target {
            Target::Io { id, offset, .. } => {
                let base = MmioAddress(at.0 - offset);
                self.table
                    .with(id, |device| device.mmio_write(base, offset, data))
                    .is_some()
            }
            Target::Ram(ram) => ram.read_only || map.write(at, data).is_ok(),
            Target::Nothing => false,
        };
        if !answered {
            self.miss(at, data.len());
        }
    }

    fn miss(&self, at: Gpa, len: usize) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(%at, len, "no device here");
    }
}

/// How many bytes there are to the end of what is at `at`.
fn room(map: &Snapshot, at: Gpa, target: &Target<'_>) -> u64 {
    match target {
        Target::Io { remaining, .. } => *remaining,
        Target::Ram(ram) => ram.remaining,
        Target::Nothing => map
            .next_slot(at)
            .map_or(u64::MAX, |slot| slot.range().start().0 - at.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use umbra_slots::{Flags, HugePages, Options, RamOptions, RamRegion};
    use vm_device::DeviceMmio;
    use vm_device::bus::MmioAddressOffset;

    /// Remembers its accesses; reads as the low byte of each offset.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, u64, usize)>>);

    impl DeviceMmio for Recorder {
        fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            self.0.lock().push((base.0, offset, data.len()));
            data.iter_mut()
                .zip(offset..)
                .for_each(|(byte, at)| *byte = at as u8);
        }

        fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
            self.0.lock().push((base.0, offset, data.len()));
        }
    }

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), len).unwrap()
    }

    fn bus() -> Bus {
        Bus::new(AddressSpace::new(Options::default()))
    }

    fn read(bus: &Bus, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        bus.read(&bus.space.load(), Gpa(gpa), &mut data);
        data
    }

    #[test]
    fn a_device_answers_with_its_base_and_offset() {
        let (bus, device) = (bus(), Arc::new(Recorder::default()));
        bus.insert(range(0x1000, 0x100), device.clone()).unwrap();
        assert_eq!(read(&bus, 0x1042, 4), [0x42, 0x43, 0x44, 0x45]);
        bus.write(&bus.space.load(), Gpa(0x10ff), &[1]);
        assert_eq!(*device.0.lock(), [(0x1000, 0x42, 4), (0x1000, 0xff, 1)]);
        assert_eq!(bus.misses(), 0);
    }

    #[test]
    fn what_hits_nothing_reads_as_ones_and_is_counted() {
        let bus = bus();
        assert_eq!(read(&bus, 0x1000, 8), [0xff; 8]);
        bus.write(&bus.space.load(), Gpa(0x1000), &[1, 2]);
        assert_eq!(bus.misses(), 2);
    }

    #[test]
    fn inserting_moving_and_removing_each_publish_one_map() {
        let (bus, device) = (bus(), Arc::new(Recorder::default()));
        let generation = || bus.space.generation().0;
        let first = generation();
        let id = bus.insert(range(0x1000, 0x10), device.clone()).unwrap();
        assert_eq!(generation(), first + 1);
        bus.move_to(id, Gpa(0x2000)).unwrap();
        assert_eq!(generation(), first + 2);
        assert_eq!(
            (read(&bus, 0x1004, 1), read(&bus, 0x2004, 1)),
            (vec![0xff], vec![4])
        );
        assert!(bus.remove(id).map(Removed::wait).is_some());
        assert_eq!(generation(), first + 3);
        assert_eq!(read(&bus, 0x2004, 1), [0xff]);
        assert!(bus.remove(id).is_none() && bus.move_to(id, Gpa(0)).is_err());
        assert_eq!(Arc::strong_count(&device), 1);
    }

    #[test]
    fn a_device_that_does_not_fit_leaves_no_trace() {
        let (bus, device) = (bus(), Arc::new(Recorder::default()));
        bus.insert(range(0x1000, 0x10), device.clone()).unwrap();
        let generation = bus.space.generation();
        assert!(bus.insert(range(0x1008, 0x10), device.clone()).is_err());
        assert_eq!(
            (bus.space.generation(), Arc::strong_count(&device)),
            (generation, 2)
        );
    }

    #[test]
    fn an_access_across_two_devices_reaches_both() {
        let bus = bus();
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        bus.insert(range(0x1000, 6), low.clone()).unwrap();
        bus.insert(range(0x1006, 0x10), high.clone()).unwrap();
        assert_eq!(read(&bus, 0x1004, 4), [4, 5, 0, 1]);
        assert_eq!(*low.0.lock(), [(0x1000, 4, 2)]);
        assert_eq!(*high.0.lock(), [(0x1006, 0, 2)]);
    }

    #[test]
    fn the_part_of_an_access_that_hits_nothing_reads_as_ones() {
        let bus = bus();
        bus.insert(range(0x1000, 6), Arc::new(Recorder::default()))
            .unwrap();
        assert_eq!(read(&bus, 0x1000, 8), [0, 1, 2, 3, 4, 5, 0xff, 0xff]);
        assert_eq!(read(&bus, 0xffc, 8), [0xff, 0xff, 0xff, 0xff, 0, 1, 2, 3]);
        assert_eq!(bus.misses(), 2);
    }

    #[test]
    fn an_access_half_in_ram_reaches_both_halves() {
        let bus = bus();
        let options = RamOptions {
            len: 0x1000,
            huge: HugePages::No,
            prefault: false,
        };
        let region = RamRegion::new(options).unwrap();
        bus.space
            .update("test", |e| {
                e.add_ram(Gpa(0), region, 0, 0x1000, Flags::default())
            })
            .unwrap()
            .wait();
        bus.insert(range(0x1000, 0x10), Arc::new(Recorder::default()))
            .unwrap();
        bus.write(&bus.space.load(), Gpa(0xffe), &[7, 8, 9, 10]);
        assert_eq!(read(&bus, 0xffe, 4), [7, 8, 0, 1]);
    }

    #[test]
    fn writes_to_read_only_ram_are_dropped_and_no_misses() {
        let bus = bus();
        let options = RamOptions {
            len: 0x1000,
            huge: HugePages::No,
            prefault: false,
        };
        let region = RamRegion::new(options).unwrap();
        let flags = Flags {
            read_only: true,
            ..Flags::default()
        };
        bus.space
            .update("test", |e| e.add_ram(Gpa(0), region, 0, 0x1000, flags))
            .unwrap()
            .wait();
        bus.write(&bus.space.load(), Gpa(0x10), &[1, 2]);
        assert_eq!((read(&bus, 0x10, 2), bus.misses()), (vec![0, 0], 0));
    }
}
