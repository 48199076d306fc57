//! What is given back to the host, what is not, and who hears of it.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{
    AccessError, AddressSpace, Dma, DmaSpace, FileAccess, Flags, HugePages, IoId, Options,
    RamOptions, RamRegion, SlotId,
};

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
    memory: DmaMemory,
    low: Arc<RamRegion>,
    high: Arc<RamRegion>,
    logged: SlotId,
}

fn ram(len: u64) -> Arc<RamRegion> {
    let options = RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    };
    RamRegion::new(options).unwrap()
}

/// Bytes that the host has given for a region.
fn held(region: &RamRegion) -> u64 {
    region.file().metadata().unwrap().blocks() * 512
}

/// RAM from 0x1000 to 0x5000, the second half from the middle of another region; read-only memory to
/// 0x6000, a window of some bytes, a hole, and RAM from 0x8000 to 0x9000. All of it is full of ones.
fn bench() -> Bench {
    let space = AddressSpace::new(Options::default());
    let followers = Arc::new(Followers::default());
    let (low, high) = (ram(0x2000), ram(0x4000));
    let rom = Flags {
        read_only: true,
        dirty_log: false,
    };
    let logged = Flags {
        read_only: false,
        dirty_log: true,
    };
    let added = space.update("all", |e| {
        e.add_ram(Gpa(0x1000), low.clone(), 0, 0x2000, Flags::default())?;
        let high = e.add_ram(Gpa(0x3000), high.clone(), 0x1000, 0x2000, logged)?;
        e.add_ram(Gpa(0x5000), ram(0x1000), 0, 0x1000, rom)?;
        e.add_io(GpaRange::new(Gpa(0x6000), 0x123).unwrap(), IoId(0))?;
        e.add_ram(Gpa(0x8000), ram(0x1000), 0, 0x1000, Flags::default())?;
        Ok(high)
    });
    let logged = added.unwrap().wait();
    for (start, len) in [(0x1000, 0x5000), (0x8000, 0x1000)] {
        space.load().write(Gpa(start), &vec![1; len]).unwrap();
    }
    space.harvest(logged).unwrap();
    let dma = DmaSpace::new(space.clone(), followers.clone());
    Bench {
        memory: dma.memory(),
        space,
        followers,
        low,
        high,
        logged,
    }
}

impl Bench {
    fn discard(&self, start: u64, len: u64) -> Discarded {
        let range = GpaRange::new(Gpa(start), len).unwrap();
        self.memory.discard(range).unwrap()
    }

    /// Pages that read as zeros.
    fn empty(&self) -> Vec<u64> {
        let pages = (1..6).chain([8]);
        let is_empty = |page: &u64| {
            let mut bytes = [0; 0x1000];
            let at = GuestAddress(page << 12);
            self.memory.read_slice(&mut bytes, at).unwrap();
            assert!(bytes == [0; 0x1000] || bytes == [1; 0x1000], "{at:?}");
            bytes[0] == 0
        };
        pages.filter(is_empty).collect()
    }
}

#[test]
fn pages_are_given_back_read_as_zeros_and_are_followed() {
    let bench = bench();
    assert_eq!((held(&bench.low), held(&bench.high)), (0x2000, 0x2000));
    let done = bench.discard(0x2000, 0x2000);
    let (freed, ignored) = (0x2000, 0);
    assert_eq!(done, Discarded { freed, ignored });
    assert_eq!((held(&bench.low), held(&bench.high)), (0x1000, 0x1000));
    let heard = std::mem::take(&mut *bench.followers.0.lock());
    assert_eq!(heard, [(0x2000, 0x1000), (0x3000, 0x1000)]);
    let dirty = bench.space.harvest(bench.logged).unwrap();
    let dirty: Vec<_> = dirty.iter().map(|gfn| gfn.0).collect();
    assert_eq!(dirty, [3], "the log of the region that has one");
    assert_eq!(bench.empty(), [2, 3]);
}

#[test]
fn memory_that_was_given_back_can_be_written_again() {
    let bench = bench();
    bench.discard(0x1000, 0x1000);
    bench.memory.write_obj(7u64, GuestAddress(0x1800)).unwrap();
    let mut bytes = [0; 16];
    let at = GuestAddress(0x17f8);
    bench.memory.read_slice(&mut bytes, at).unwrap();
    assert_eq!(bytes[..9], [0, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(held(&bench.low), 0x2000);
}

#[test]
fn only_whole_pages_are_discarded() {
    let table: [(u64, u64, &[u64]); 5] = [
        (0x1000, 0xfff, &[]),
        (0x1001, 0x1ffe, &[]),
        (0x1fff, 0x1001, &[2]),
        (0x1fff, 0x2002, &[2, 3]),
        (0x8000, 0x1000, &[8]),
    ];
    for (start, len, expected) in table {
        let bench = bench();
        let freed = 0x1000 * expected.len() as u64;
        assert_eq!(bench.discard(start, len).freed, freed, "{start:#x}");
        assert_eq!(bench.empty(), expected, "{start:#x}");
    }
}

#[test]
fn a_file_of_the_hosts_keeps_its_bytes() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    let region = RamRegion::of_file(file, 0x2000, FileAccess::ReadWrite).unwrap();
    let bench = bench();
    let added = bench.space.update("a file", |e| {
        e.add_ram(Gpa(0x10_0000), region, 0, 0x2000, Flags::default())
    });
    added.unwrap().wait();
    let map = bench.space.load();
    map.write(Gpa(0x10_0000), &[7; 0x2000]).unwrap();
    let memory = DmaSpace::new(bench.space.clone(), bench.followers.clone()).memory();
    let range = GpaRange::new(Gpa(0x10_0000), 0x2000).unwrap();
    let ignored = Discarded {
        freed: 0,
        ignored: 0x2000,
    };
    assert_eq!(memory.discard(range).unwrap(), ignored);
    let mut bytes = [0; 0x2000];
    map.read(Gpa(0x10_0000), &mut bytes).unwrap();
    assert_eq!(bytes, [7; 0x2000]);
}

#[test]
fn what_is_no_ram_to_write_is_ignored() {
    let bench = bench();
    let done = bench.discard(0, 1 << 52);
    assert_eq!(bench.empty(), [1, 2, 3, 4, 8]);
    let freed = 0x5000;
    let ignored = (1 << 52) - freed;
    assert_eq!(done, Discarded { freed, ignored });
    for (start, len) in [(0x5000, 0x3000), (0x9000, 0x1000), (1 << 51, 1 << 51)] {
        assert_eq!(bench.discard(start, len).ignored, len, "{start:#x}");
    }
}
