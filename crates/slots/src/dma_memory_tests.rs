//! Memory as devices see it: what is given to them, and what is heard of their stores.

use std::fs::File;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use vm_memory::Bytes;

use super::*;
use crate::{AccessError, Flags, HugePages, IoId, Options, RamOptions, RamRegion, SlotId};

/// Remembers what was reported.
#[derive(Default)]
struct Followers(Mutex<Vec<(u64, u64)>>);

impl Dma for Followers {
    fn read(&self, gpa: Gpa, _: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::NotRam(gpa))
    }

    fn write(&self, gpa: Gpa, _: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::NotRam(gpa))
    }

    fn written(&self, range: GpaRange) {
        self.0.lock().push((range.start().0, range.len()));
    }
}

struct Bench {
    space: Arc<AddressSpace>,
    followers: Arc<Followers>,
    dma: DmaSpace,
    /// Two slots without a gap: 0x1000 to 0x3000, and to 0x5000.
    low: SlotId,
    high: SlotId,
}

fn ram(len: u64) -> Arc<RamRegion> {
    let options = RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    };
    RamRegion::new(options).unwrap()
}

/// RAM from 0x1000 to 0x5000, read-only memory to 0x6000, a window to 0x7000.
fn bench() -> Bench {
    let space = AddressSpace::new(Options::default());
    let followers = Arc::new(Followers::default());
    let rom = Flags {
        read_only: true,
        dirty_log: false,
    };
    let slots = space.update("all", |e| {
        let low = e.add_ram(Gpa(0x1000), ram(0x2000), 0, 0x2000, Flags::default())?;
        // Not the whole region: the log's offset is not the slot's.
        let high = e.add_ram(Gpa(0x3000), ram(0x4000), 0x1000, 0x2000, Flags::default())?;
        e.add_ram(Gpa(0x5000), ram(0x1000), 0, 0x1000, rom)?;
        let window = GpaRange::new(Gpa(0x6000), 0x1000).unwrap();
        e.add_io(window, IoId(0))?;
        Ok((low, high))
    });
    let (low, high) = slots.unwrap().wait();
    Bench {
        dma: DmaSpace::new(space.clone(), followers.clone()),
        space,
        followers,
        low,
        high,
    }
}

impl Bench {
    fn heard(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.followers.0.lock())
    }

    fn dirty(&self, slot: SlotId) -> Vec<u64> {
        let pages = self.space.harvest(slot).unwrap();
        pages.iter().map(|gfn| gfn.0).collect()
    }
}

#[test]
fn every_kind_of_store_is_marked_and_reported() {
    let bench = bench();
    let memory = bench.dma.memory();
    let at = GuestAddress;
    memory.write_slice(&[1; 10], at(0x1ffa)).unwrap();
    memory.write_obj(7u32, at(0x2010)).unwrap();
    memory.store(9u16, at(0x2020), Ordering::Release).unwrap();
    let mut zeros = File::open("/dev/zero").unwrap();
    memory
        .read_exact_volatile_from(at(0x1ffc), &mut zeros, 2)
        .unwrap();
    let expected = [(0x1ffa, 10), (0x2010, 4), (0x2020, 2), (0x1ffc, 2)];
    assert_eq!(bench.heard(), expected);
    assert_eq!(bench.dirty(bench.low), [1, 2]);
    let mut bytes = [0; 4];
    memory.read_slice(&mut bytes, at(0x1ffa)).unwrap();
    assert_eq!(bytes, [1, 1, 0, 0]);
    assert_eq!(
        memory.load::<u16>(at(0x2020), Ordering::Acquire).unwrap(),
        9
    );
    assert_eq!(bench.heard(), [], "reading is no store");
}

#[test]
fn a_store_across_slots_is_reported_slot_by_slot() {
    let bench = bench();
    let memory = bench.dma.memory();
    memory
        .write_slice(&[5; 0x1004], GuestAddress(0x2ffe))
        .unwrap();
    assert_eq!(bench.heard(), [(0x2ffe, 2), (0x3000, 0x1002)]);
    assert_eq!(bench.dirty(bench.low), [2]);
    assert_eq!(bench.dirty(bench.high), [3, 4]);
}

#[test]
fn parts_of_slices_know_their_addresses() {
    let bench = bench();
    let memory = bench.dma.memory();
    let slices = memory.get_slices(GuestAddress(0x3100), 0x100, Permissions::Write);
    let slice = slices.unwrap().next().unwrap().unwrap();
    slice.offset(0x10).unwrap().write_slice(&[1], 2).unwrap();
    slice
        .subslice(0x20, 8)
        .unwrap()
        .store(1u8, 1, Ordering::Relaxed)
        .unwrap();
    // As whoever used the raw pointer does.
    slice.bitmap().mark_dirty(0, 0x100);
    slice.bitmap().mark_dirty(0, 0);
    assert_eq!(bench.heard(), [(0x3112, 1), (0x3121, 1), (0x3100, 0x100)]);
    assert!(slice.bitmap().dirty_at(0) && !slice.bitmap().dirty_at(0x1000));
    assert_eq!(format!("{:?}", slice.bitmap()), "DmaMark(0x3100)");
}

#[test]
fn the_memory_is_a_bitmap_by_address() {
    let bench = bench();
    let memory = bench.dma.memory();
    memory.mark_dirty(0x2fff, 2);
    assert!(memory.dirty_at(0x2000) && memory.dirty_at(0x3000));
    // Nothing there, not there in part, no address at all.
    memory.mark_dirty(0x9000, 1);
    memory.mark_dirty(0x4fff, 0x2000);
    memory.mark_dirty(usize::MAX, 8);
    assert!(!memory.dirty_at(0x9000) && memory.dirty_at(0x4000));
    assert_eq!(bench.heard(), [(0x2fff, 2), (0x9000, 1), (0x4fff, 0x2000)]);
}

#[test]
fn nothing_is_given_but_ram_and_read_only_ram_only_for_reading() {
    use Permissions::{Read, ReadWrite, Write};
    let bench = bench();
    let memory = bench.dma.memory();
    let table = [
        (0x1000, 0x4000, Write, true),
        (0x1000, 0x5000, Read, true),
        (0x1000, 0x5000, Write, false),
        (0x5000, 1, Read, true),
        (0x5000, 1, Write, false),
        (0x5000, 1, ReadWrite, false),
        (0x5fff, 2, Read, false),
        (0x6000, 1, Read, false),
        (0xfff, 2, Read, false),
        (0x9000, 1, Read, false),
        (u64::MAX, 1, Read, false),
        (u64::MAX, usize::MAX, Write, false),
        (0x1000, usize::MAX, Read, false),
        // Of nothing there is nothing that could be forbidden.
        (0x9000, 0, Write, true),
    ];
    for (at, len, access, good) in table {
        let at = GuestAddress(at);
        assert_eq!(memory.check_range(at, len, access), good, "{at:?} {len:#x}");
        let slices = memory.get_slices(at, len, access).unwrap();
        let slices: Result<Vec<_>, _> = slices.collect();
        assert_eq!(slices.is_ok(), good, "{at:?} {len:#x} {access:?}");
    }
    assert!(
        memory
            .store(1u16, GuestAddress(0x5000), Ordering::Relaxed)
            .is_err()
    );
    let mut slices = memory
        .get_slices(GuestAddress(0x4000), 0x2000, Write)
        .unwrap();
    assert!(slices.next().unwrap().is_ok() && slices.next().unwrap().is_err());
    assert!(slices.next().is_none(), "nothing comes after an error");
}

#[test]
fn memory_that_left_stays_mapped_as_long_as_it_is_held() {
    let bench = bench();
    let old = bench.dma.memory();
    let update = bench.space.update("ram goes", |e| e.remove(bench.low));
    update.unwrap().wait();
    let at = GuestAddress(0x1000);
    old.write_obj(3u64, at).unwrap();
    assert_eq!(old.read_obj::<u64>(at).unwrap(), 3);
    let now = bench.dma.memory();
    assert!(now.write_obj(3u64, at).is_err());
    assert!(now.map().generation() > old.map().generation());
    assert_eq!(format!("{old:?}"), "DmaMemory(generation 1)");
    assert!(format!("{:?}", bench.dma).starts_with("DmaSpace("));
    assert!(bench.dma.dma().read(Gpa(0x3000), &mut []).is_err());
}
