//! Blocks in a map that is compared with a row of flags.

use std::sync::Mutex;
use std::time::Duration;

use umbra_slots::{Change, Listener, Options, Wait};

use super::super::high::HighMemory;
use super::*;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const COUNT: usize = 32;

struct Bench {
    space: Arc<AddressSpace>,
    high: Arc<HighMemory>,
    memory: HotMemory,
    blocks: Blocks,
    start: u64,
}

fn bench(max_slots: usize) -> Bench {
    let space = AddressSpace::new(Options {
        max_slots,
        ..Options::default()
    });
    let high = HighMemory::new(1 << 30, 46);
    let region = RamRegion::new(RamOptions {
        len: COUNT as u64 * BLOCK,
        huge: HugePages::No,
        prefault: false,
    })
    .unwrap();
    let claim = high.claim(region.len()).unwrap();
    let start = claim.range().start().0;
    let shown = Shown::nothing(&space, claim, region);
    let (memory, blocks) = HotMemory::start(shown).unwrap();
    Bench {
        space,
        high,
        memory,
        blocks,
        start,
    }
}

impl Bench {
    fn range(&self, first: usize, count: usize) -> GpaRange {
        let start = Gpa(self.start + first as u64 * BLOCK);
        GpaRange::new(start, count as u64 * BLOCK).unwrap()
    }

    fn plug(&mut self, first: usize, count: usize) -> Result<(), SlotError> {
        self.blocks.plug(self.range(first, count))
    }

    fn unplug(&mut self, first: usize, count: usize) -> Result<(), SlotError> {
        self.blocks.unplug(self.range(first, count))
    }

    /// Which blocks are memory, from the first byte to the last.
    fn there(&self) -> [bool; COUNT] {
        let map = self.space.load_full();
        std::array::from_fn(|number| {
            let at = self.range(number, 1);
            let is_ram = |gpa| matches!(map.resolve(gpa), Target::Ram(_));
            let (first, last) = (is_ram(at.start()), is_ram(at.last()));
            assert_eq!(first, last, "block {number}");
            first
        })
    }

    fn write(&self, block: usize, value: u8) {
        let gpa = Gpa(self.range(block, 1).start().0 + 5000);
        self.space.load().write(gpa, &[value]).unwrap();
    }

    fn read(&self, block: usize) -> u8 {
        let mut byte = [0];
        let gpa = Gpa(self.range(block, 1).start().0 + 5000);
        self.space.load().read(gpa, &mut byte).unwrap();
        byte[0]
    }

    fn resident(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let pool = self.memory.pool.as_ref().unwrap();
        pool.region.file().metadata().unwrap().blocks() * 512
    }

    /// Waits until the janitor has nothing left to do.
    fn wait_resident(&self, bytes: u64) {
        let begin = std::time::Instant::now();
        while self.resident() != bytes {
            assert!(begin.elapsed().as_secs() < 10, "{}", self.resident());
            thread::yield_now();
        }
    }
}

#[test]
fn blocks_are_memory_exactly_while_they_are_plugged() {
    let mut bench = bench(64);
    let mut flags = [false; COUNT];
    let mut state = 7_u64;
    for round in 0..2000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let first = (state >> 40) as usize % COUNT;
        let there = flags[first];
        // As many alike as there are, up to eight.
        let alike = flags[first..].iter().take_while(|flag| **flag == there);
        let count = alike.count().min(1 + (state >> 50) as usize % 8);
        let generation = bench.space.generation();
        match there {
            true => bench.unplug(first, count).unwrap(),
            false => bench.plug(first, count).unwrap(),
        }
        assert_ne!(bench.space.generation(), generation);
        flags[first..first + count].fill(!there);
        assert_eq!(bench.there(), flags, "round {round}");
    }
}

#[test]
fn what_is_plugged_upwards_is_one_slot() {
    let mut bench = bench(64);
    for number in 0..COUNT {
        bench.plug(number, 1).unwrap();
    }
    assert_eq!(bench.space.load().slots().len(), 1);
    bench.unplug(3, 2).unwrap();
    assert_eq!(bench.space.load().slots().len(), 2);
}

#[test]
fn the_host_has_what_was_unplugged_and_what_stays_keeps_its_bytes() {
    let mut bench = bench(64);
    bench.plug(0, 8).unwrap();
    for block in 0..8 {
        bench.write(block, 1 + block as u8);
    }
    assert_eq!(bench.resident(), 8 * 0x1000);
    bench.unplug(2, 3).unwrap();
    bench.wait_resident(5 * 0x1000);
    assert_eq!(
        [0, 1, 5, 6, 7].map(|block| bench.read(block)),
        [1, 2, 6, 7, 8]
    );
    bench.plug(2, 3).unwrap();
    assert_eq!([2, 3, 4].map(|block| bench.read(block)), [0; 3]);
}

/// A processor that is inside memory which leaves the map: says that it is waited for, and goes when it is told.
struct Inside {
    waited_for: Sender<()>,
    goes: Mutex<Option<Receiver<()>>>,
}

impl Listener for Inside {
    fn published(&self, change: &Change) -> Option<Wait> {
        change.removed_ram().next()?;
        let (waited_for, goes) = (self.waited_for.clone(), self.goes.lock().unwrap().take()?);
        Some(Box::new(move || {
            waited_for.send(()).unwrap();
            goes.recv().unwrap();
        }))
    }
}

#[test]
fn the_host_gets_nothing_back_while_a_processor_is_inside() {
    let mut bench = bench(64);
    let (waited_for, is_waited_for) = channel();
    let (go, goes) = channel();
    let goes = Mutex::new(Some(goes));
    bench
        .space
        .add_listener(Arc::new(Inside { waited_for, goes }));
    bench.plug(0, 2).unwrap();
    bench.write(0, 1);
    bench.write(1, 1);
    bench.unplug(1, 1).unwrap();
    let told = is_waited_for.recv_timeout(Duration::from_secs(10));
    assert_eq!(told, Ok(()), "nobody waits");
    assert_eq!(bench.resident(), 2 * 0x1000);
    go.send(()).unwrap();
    bench.wait_resident(0x1000);
}

#[test]
fn what_is_plugged_again_before_the_janitor_comes_is_left_alone() {
    let mut bench = bench(64);
    bench.plug(0, COUNT).unwrap();
    for _ in 0..200 {
        bench.unplug(4, 4).unwrap();
        bench.plug(4, 4).unwrap();
        bench.write(5, 77);
        thread::yield_now();
        assert_eq!(bench.read(5), 77);
    }
    drop(bench.memory);
}

#[test]
fn a_map_without_room_is_left_as_it_was() {
    let mut bench = bench(2);
    bench.plug(0, 8).unwrap();
    bench.plug(16, 1).unwrap();
    let before = bench.there();
    assert!(matches!(bench.plug(20, 1), Err(SlotError::TooMany { .. })));
    assert!(bench.unplug(3, 1).is_err(), "two pieces would be left");
    assert_eq!(bench.there(), before);
    bench.unplug(7, 1).unwrap();
    bench.unplug(0, 1).unwrap();
}

#[test]
fn all_of_it_goes_with_its_owner() {
    let mut bench = bench(64);
    for number in [1, 5, 9] {
        bench.plug(number, 2).unwrap();
    }
    bench.unplug(5, 1).unwrap();
    let region = Arc::downgrade(&bench.memory.pool.as_ref().unwrap().region);
    drop(bench.memory);
    assert!(region.upgrade().is_none());
    assert_eq!(bench.space.load().slots().len(), 0);
    let again = bench.high.claim(BLOCK).unwrap();
    assert_eq!(again.range().start().0, bench.start, "the place is free");
    let late = GpaRange::new(Gpa(bench.start), BLOCK).unwrap();
    assert!(bench.blocks.plug(late).is_err());
}
