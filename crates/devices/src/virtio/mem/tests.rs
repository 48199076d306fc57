//! A driver of the memory device.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use umbra_slots::Gpa;
use umbra_virtio::Transport;
use umbra_virtio::testing::{Driver, NEXT, RAM, ROM, WRITE};

use super::*;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4 * MIB;
const START: u64 = 5 << 30;
const REQUEST: u64 = 0x2_0000;
const ANSWER: u64 = 0x2_1000;

/// Answers.
const ACK: (u16, u16) = (0, 0);
const NACK: (u16, u16) = (1, 0);
const BUSY: (u16, u16) = (2, 0);
const ERROR: (u16, u16) = (3, 0);
const ALL: (u16, u16) = (0, 0);
const NOTHING: (u16, u16) = (0, 1);
const SOME: (u16, u16) = (0, 2);

/// Requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// A map that remembers what it was told, and may refuse.
#[derive(Default)]
struct Map {
    told: Mutex<Vec<(bool, u64, u64)>>,
    refuses: AtomicBool,
}

impl Map {
    fn tell(&self, there: bool, range: GpaRange) -> Result<(), SlotError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(SlotError::TooMany { max: 3 });
        }
        let (first, len) = (range.start().0 - START, range.len());
        self.told.lock().push((there, first / BLOCK, len / BLOCK));
        Ok(())
    }
}

impl GuestMap for Arc<Map> {
    fn plug(&mut self, range: GpaRange) -> Result<(), SlotError> {
        self.tell(true, range)
    }

    fn unplug(&mut self, range: GpaRange) -> Result<(), SlotError> {
        self.tell(false, range)
    }
}

struct Bench {
    driver: Driver,
    control: MemControl,
    map: Arc<Map>,
    asked: u16,
}

fn options(requested: u64) -> MemOptions {
    MemOptions {
        name: "test".into(),
        range: GpaRange::new(Gpa(START), 16 * BLOCK).unwrap(),
        block: BLOCK,
        requested,
    }
}

fn bench(blocks: u64) -> Bench {
    let map = Arc::new(Map::default());
    let (device, control) = Mem::new(options(blocks * BLOCK), map.clone()).unwrap();
    let mut driver = Driver::new(Box::new(device), 16);
    driver.start(Features::RINGS);
    Bench {
        driver,
        control,
        map,
        asked: 0,
    }
}

impl Bench {
    fn request(&self, kind: u16, address: u64, count: u16) {
        let mut bytes = [0; 24];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        self.driver.memory.put(REQUEST, &bytes);
        self.driver.memory.put(ANSWER, &[0xaa; 12]);
    }

    /// Asks, and waits for the answer.
    fn ask_at(&mut self, kind: u16, address: u64, count: u16) -> (u16, u16) {
        self.request(kind, address, count);
        self.driver.describe(0, (REQUEST, 24, NEXT, 1));
        self.driver.describe(1, (ANSWER, 10, WRITE, 0));
        self.driver.offer(0);
        self.asked += 1;
        let asked = self.asked;
        self.driver.wait(|driver| driver.used_in(0) == asked);
        assert_eq!(self.driver.used((asked - 1) % 16), (0, 10));
        let memory = &self.driver.memory;
        assert_eq!(memory.get_u16(ANSWER + 10), 0xaaaa, "no more is written");
        (memory.get_u16(ANSWER), memory.get_u16(ANSWER + 8))
    }

    fn ask(&mut self, kind: u16, first: u64, count: u16) -> (u16, u16) {
        self.ask_at(kind, START + first * BLOCK, count)
    }

    /// What the map was told since this was called last.
    fn told(&self) -> Vec<(bool, u64, u64)> {
        std::mem::take(&mut self.map.told.lock())
    }

    fn config(&self) -> [u64; 7] {
        std::array::from_fn(|at| {
            let word = |half: u64| u64::from(self.driver.read(0x100 + 8 * at as u64 + 4 * half));
            word(0) | word(1) << 32
        })
    }
}

#[test]
fn it_is_a_memory_device_and_says_what_it_has() {
    let bench = bench(3);
    assert_eq!((bench.driver.read(0x08), bench.driver.read(0x34)), (24, 64));
    let expected = [BLOCK, 0, START, 16 * BLOCK, 16 * BLOCK, 0, 3 * BLOCK];
    assert_eq!(bench.config(), expected);
    bench.driver.write(0x100, 0);
    assert_eq!(bench.config(), expected);
    let control = &bench.control;
    assert_eq!(
        (control.block(), control.range().start()),
        (BLOCK, Gpa(START))
    );
}

#[test]
fn blocks_come_and_go_and_the_map_hears_of_each_change() {
    let mut bench = bench(8);
    assert_eq!(bench.ask(STATE, 0, 16), NOTHING);
    assert_eq!(bench.ask(PLUG, 2, 4), ACK);
    assert_eq!(bench.ask(PLUG, 9, 2), ACK);
    assert_eq!(bench.told(), [(true, 2, 4), (true, 9, 2)]);
    assert_eq!(bench.config()[5], 6 * BLOCK);
    assert_eq!(bench.control.plugged(), 6 * BLOCK);
    let states = [
        (2, 4, ALL),
        (1, 2, SOME),
        (6, 3, NOTHING),
        (0, 16, SOME),
        (9, 1, ALL),
    ];
    for (first, count, expected) in states {
        assert_eq!(bench.ask(STATE, first, count), expected, "{first} {count}");
    }
    assert_eq!(bench.ask(UNPLUG, 3, 2), ACK);
    assert_eq!(bench.told(), [(false, 3, 2)]);
    assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(bench.told(), [(false, 2, 1), (false, 5, 1), (false, 9, 2)]);
    assert_eq!((bench.config()[5], bench.ask(STATE, 0, 16)), (0, NOTHING));
    assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(bench.told(), []);
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut bench = bench(16);
    assert_eq!(bench.ask(PLUG, 4, 4), ACK);
    bench.told();
    let table = [
        ("plugged already", PLUG, START + 7 * BLOCK, 2),
        ("not plugged", UNPLUG, START + 7 * BLOCK, 2),
        ("below", PLUG, START - BLOCK, 1),
        ("behind", PLUG, START + 16 * BLOCK, 1),
        ("over the end", PLUG, START + 15 * BLOCK, 2),
        ("far over it", STATE, START, u16::MAX),
        ("no block", PLUG, START, 0),
        ("in the middle", PLUG, START + BLOCK / 2, 1),
        ("not aligned", STATE, START + 1, 1),
        ("the last address", UNPLUG, u64::MAX, u16::MAX),
        ("at 0", STATE, 0, 1),
        ("no request", 4, START, 1),
        ("nor this", u16::MAX, START, 1),
    ];
    for (what, kind, address, count) in table {
        assert_eq!(bench.ask_at(kind, address, count), ERROR, "{what}");
    }
    assert_eq!((bench.told(), bench.control.plugged()), (vec![], 4 * BLOCK));
    assert!(!bench.driver.needs_reset());
}

#[test]
fn no_more_is_plugged_than_was_requested() {
    let mut bench = bench(4);
    assert_eq!(bench.ask(PLUG, 0, 5), NACK);
    assert_eq!(bench.ask(PLUG, 0, 3), ACK);
    assert_eq!(bench.ask(PLUG, 3, 2), NACK);
    assert_eq!(bench.ask(PLUG, 8, 1), ACK);
    assert_eq!(bench.ask(PLUG, 9, 1), NACK);
    bench.control.request(2 * BLOCK).unwrap();
    assert_eq!(bench.ask(UNPLUG, 0, 1), ACK);
    assert_eq!(bench.ask(PLUG, 0, 1), NACK, "it is still too much");
    assert_eq!(bench.told(), [(true, 0, 3), (true, 8, 1), (false, 0, 1)]);
}

#[test]
fn a_driver_hears_of_a_new_size_once_and_of_none_that_is_the_same() {
    let bench = bench(4);
    let generation = bench.driver.read(0xfc);
    bench.control.request(4 * BLOCK).unwrap();
    assert_eq!(
        (bench.driver.read(0x60), bench.driver.read(0xfc)),
        (0, generation)
    );
    bench.control.request(5 * BLOCK).unwrap();
    assert_eq!(
        (bench.driver.read(0x60), bench.driver.line.is_high()),
        (2, true)
    );
    assert_ne!(bench.driver.read(0xfc), generation);
    assert_eq!(bench.config()[6], 5 * BLOCK);
    bench.driver.write(0x64, 2);
    // While it stands still nobody is told; then once.
    bench.driver.transport.pause();
    bench.control.request(6 * BLOCK).unwrap();
    bench.control.request(7 * BLOCK).unwrap();
    assert_eq!(bench.driver.read(0x60), 0);
    bench.driver.transport.resume();
    assert_eq!(bench.driver.read(0x60), 2);
}

#[test]
fn a_size_that_no_guest_could_have_is_refused() {
    let bench = bench(0);
    let too_much = SizeError::TooMuch {
        bytes: 17 * BLOCK,
        max: 16 * BLOCK,
    };
    assert_eq!(bench.control.request(17 * BLOCK), Err(too_much));
    let odd = SizeError::Blocks {
        bytes: BLOCK + 1,
        block: BLOCK,
    };
    assert_eq!(bench.control.request(BLOCK + 1), Err(odd));
    assert_eq!(bench.control.requested(), 0);
    let map = Arc::new(Map::default());
    assert!(Mem::new(options(BLOCK / 2), map).is_err());
}

#[test]
fn a_reset_leaves_blocks_where_they_are() {
    let mut bench = bench(4);
    assert_eq!(bench.ask(PLUG, 1, 3), ACK);
    bench
        .driver
        .start(Features::RINGS.with(UNPLUGGED_INACCESSIBLE));
    bench.asked = 0;
    assert_eq!(
        (bench.config()[5], bench.ask(STATE, 1, 3)),
        (3 * BLOCK, ALL)
    );
    assert_eq!(bench.told(), [(true, 1, 3)]);
}

#[test]
fn a_map_that_refuses_makes_the_device_busy_and_nothing_is_changed() {
    let mut bench = bench(8);
    assert_eq!(bench.ask(PLUG, 0, 3), ACK);
    bench.map.refuses.store(true, Ordering::Relaxed);
    assert_eq!(bench.ask(PLUG, 4, 1), BUSY);
    assert_eq!(bench.ask(UNPLUG, 1, 1), BUSY);
    assert_eq!(bench.ask(UNPLUG_ALL, 0, 0), BUSY);
    assert_eq!(bench.control.plugged(), 3 * BLOCK);
    bench.map.refuses.store(false, Ordering::Relaxed);
    assert_eq!(bench.ask(UNPLUG, 1, 1), ACK);
    assert_eq!(bench.ask(PLUG, 4, 1), ACK);
    assert_eq!(bench.told(), [(true, 0, 3), (false, 1, 1), (true, 4, 1)]);
}

#[test]
fn requests_that_cannot_be_read_or_answered_need_a_reset_and_are_not_done() {
    type Buffers = [(u64, u32, u16); 2];
    let table: [(&str, Buffers); 6] = [
        (
            "a short request",
            [(REQUEST, 23, NEXT), (ANSWER, 10, WRITE)],
        ),
        ("a short answer", [(REQUEST, 24, NEXT), (ANSWER, 9, WRITE)]),
        ("nothing to write", [(REQUEST, 24, NEXT), (ANSWER, 10, 0)]),
        ("nowhere to read", [(RAM, 24, NEXT), (ANSWER, 10, WRITE)]),
        ("nowhere to write", [(REQUEST, 24, NEXT), (ROM, 10, WRITE)]),
        ("no end", [(REQUEST, 24, NEXT), (ANSWER, 10, NEXT | WRITE)]),
    ];
    for (what, buffers) in table {
        let mut bench = bench(8);
        bench.request(PLUG, START, 1);
        for (index, (at, len, flags)) in (0..).zip(buffers) {
            bench.driver.describe(index, (at, len, flags, 1 - index));
        }
        bench.driver.offer(0);
        bench.driver.wait(Driver::needs_reset);
        assert_eq!(bench.driver.used_in(0), 0, "{what}");
        let done = bench.told();
        // Where an answer goes is known to be no memory only when it is written.
        assert!(done.is_empty() || what == "nowhere to write", "{what}");
    }
}
