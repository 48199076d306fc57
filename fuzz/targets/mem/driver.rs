//! A driver that plugs, unplugs and asks, and a map that holds the device to its word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use umbra_devices::virtio::mem::GuestMap;
use umbra_devices::virtio::{Mem, MemControl, MemOptions};
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};
use umbra_slots::{Gpa, GpaRange, SlotError};

const QUEUES: usize = 1;
/// Requests and answers.
const REQUEST: u64 = 0x1_8000;
const ANSWER: u64 = 0x1_9000;
/// The device's memory.
const START: u64 = 4 << 30;
const BLOCK: u64 = Mem::MIN_BLOCK;
const BLOCKS: usize = 40;

/// Which blocks are there; refuses now and then.
struct Map {
    there: Mutex<[bool; BLOCKS]>,
    refuses: AtomicBool,
}

impl Map {
    fn set(&self, range: GpaRange, to: bool) -> Result<(), SlotError> {
        let (offset, len) = (range.start().0 - START, range.len());
        assert!(
            offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK),
            "{range}"
        );
        let first = (offset / BLOCK) as usize;
        let mut there = self.there.lock();
        let blocks = &mut there[first..first + (len / BLOCK) as usize];
        assert!(blocks.iter().all(|block| *block != to), "{range} {to}");
        if self.refuses.load(Ordering::Relaxed) {
            return Err(SlotError::TooMany { max: 1 });
        }
        blocks.fill(to);
        Ok(())
    }

    fn plugged(&self) -> u64 {
        let there = self.there.lock();
        there.iter().filter(|block| **block).count() as u64 * BLOCK
    }
}

/// The map, as the device has it.
struct Blocks(Arc<Map>);

impl GuestMap for Blocks {
    fn plug(&mut self, range: GpaRange) -> Result<(), SlotError> {
        self.0.set(range, true)
    }

    fn unplug(&mut self, range: GpaRange) -> Result<(), SlotError> {
        self.0.set(range, false)
    }
}

/// The driver, and the owner's end of its device.
pub struct Driver {
    virtio: VirtioDriver,
    control: MemControl,
    map: Arc<Map>,
    /// The most that was requested so far.
    most: u64,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(8) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => u64::MAX - near,
        5 => VirtioDriver::rings(0)[near as usize % 3],
        _ => ANSWER + near,
    }
}

impl Driver {
    pub fn new(source: &mut Source<'_>) -> Self {
        let map = Arc::new(Map {
            there: Mutex::new([false; BLOCKS]),
            refuses: AtomicBool::new(false),
        });
        let requested = BLOCK * source.below(BLOCKS + 1) as u64;
        let options = MemOptions {
            name: "fuzz".into(),
            range: GpaRange::new(Gpa(START), BLOCKS as u64 * BLOCK).expect("far from the end"),
            block: BLOCK,
            requested,
        };
        let made = Mem::new(options, Blocks(map.clone()));
        let (device, control) = made.expect("the size is one of the device's");
        Self {
            virtio: VirtioDriver::new(Box::new(device), QUEUES),
            control,
            map,
            most: requested,
        }
    }

    /// Puts a request where the driver puts it.
    fn request(&self, kind: u16, address: u64, count: u16) {
        let mut bytes = [0; 24];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        self.virtio.put(REQUEST, &bytes);
    }

    /// A request that makes sense, mostly.
    fn ask(&mut self, source: &mut Source<'_>) {
        let kind = source.u16() % 5;
        let address = match source.below(8) {
            0 => source.u64(),
            1 => START - u64::from(source.u8()),
            2 => START + u64::from(source.u32()),
            _ => START + BLOCK * source.below(BLOCKS + 1) as u64,
        };
        let count = match source.below(8) {
            0 => source.u16(),
            _ => u16::from(source.u8() % 16),
        };
        self.request(kind, address, count);
        self.virtio.describe(0, 0, (REQUEST, 24, NEXT, 1));
        self.virtio.describe(0, 1, (ANSWER, 10, WRITE, 0));
        self.virtio.offer(0, 0);
    }

    /// A chain of anything.
    fn chain(&mut self, source: &mut Source<'_>) {
        let head = u16::from(source.u8() % 6);
        for index in head..head + 2 {
            let flags = source.u16() & 7;
            let len = [24, 10, 9, 23, source.u32()][source.below(5)];
            let at = [REQUEST, address(source)][source.below(2)];
            self.virtio
                .describe(0, index, (at, len, flags, source.u16() % 10));
        }
        self.virtio.offer(0, head);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(14) {
            0 => self.virtio.start(source.u32()),
            1 => self.virtio.toggle(),
            2 => self.virtio.write_config(source, 0x40),
            3 => {
                let bytes = match source.below(3) {
                    0 => source.u64(),
                    _ => BLOCK * source.below(BLOCKS + 2) as u64,
                };
                if self.control.request(bytes).is_ok() {
                    self.most = self.most.max(bytes);
                }
            }
            4 => {
                let refuses = source.below(2) == 0;
                self.map.refuses.store(refuses, Ordering::Relaxed);
            }
            5 => self.virtio.poke(source),
            6 => std::thread::yield_now(),
            7 | 8 => self.chain(source),
            _ => self.ask(source),
        }
        assert!(self.map.plugged() <= self.most);
    }

    /// Has one request answered.
    fn answer(&mut self, kind: u16, count: u16) -> [u8; 10] {
        self.request(kind, START, count);
        self.virtio.describe(0, 0, (REQUEST, 24, NEXT, 1));
        self.virtio.describe(0, 1, (ANSWER, 10, WRITE, 0));
        self.virtio.offer(0, 0);
        self.virtio.wait(0);
        self.virtio.load(ANSWER)
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(mut self) {
        const ACK: [u8; 10] = [0; 10];
        self.map.refuses.store(false, Ordering::Relaxed);
        self.virtio.start(u32::MAX);
        assert!(self.virtio.works());
        assert_eq!(self.control.plugged(), self.map.plugged());
        assert_eq!(self.answer(2, 0), ACK, "all goes");
        assert_eq!((self.control.plugged(), self.map.plugged()), (0, 0));
        let size = 3 * BLOCK;
        self.control
            .request(size)
            .expect("it is one of the device's");
        assert_eq!(self.answer(0, 3), ACK, "three blocks come");
        assert_eq!((self.control.plugged(), self.map.plugged()), (size, size));
        self.virtio.reset();
        self.virtio.check();
    }
}
