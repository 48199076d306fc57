//! A driver that asks for flushes, in chains that are mostly right.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use umbra_devices::virtio::Pmem;
use umbra_fuzz::{MORE, Machine, RAM, ROM, Source};
use umbra_slots::{Gpa, GpaRange};

/// Descriptors, available and used ring of the queue.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const REQUEST: u64 = 0x8000;
const ANSWER: u64 = 0x9000;
const SIZE: u16 = 8;

const STATUS: u64 = 0x70;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// What stands where an answer will be.
const NONE: u32 = 0xaaaa_aaaa;

/// What the host's flushes do.
#[derive(Default)]
struct Host {
    /// How many have begun.
    began: AtomicU32,
    /// 0: they succeed, 1: they fail, 2: they take some time.
    mood: AtomicU32,
}

impl Host {
    fn flush(&self) -> io::Result<()> {
        self.began.fetch_add(1, Ordering::SeqCst);
        match self.mood.load(Ordering::SeqCst) {
            1 => return Err(io::ErrorKind::StorageFull.into()),
            2 => std::thread::sleep(Duration::from_micros(100)),
            _ => {}
        }
        Ok(())
    }
}

/// The driver, its machine, and the host's file.
pub struct Driver {
    machine: Machine,
    host: Arc<Host>,
    available: u16,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(8) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => ROM + near,
        4 => source.u64(),
        5 => u64::MAX - near,
        6 => RINGS[near as usize % 3],
        _ => REQUEST + near,
    }
}

impl Driver {
    /// Starts one, and the device.
    pub fn new() -> Self {
        let host = Arc::new(Host::default());
        let theirs = host.clone();
        let range = GpaRange::new(Gpa(1 << 32), 2 << 20).expect("it is a range");
        let device = Pmem::new("fuzz", range, Box::new(move || theirs.flush()));
        let mut driver = Self {
            machine: Machine::new(Box::new(device.expect("the host has threads"))),
            host,
            available: 0,
        };
        driver.start(u32::MAX);
        driver
    }

    fn set(&self, offset: u64, value: u32) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.machine.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn word(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        let memory = self.machine.space.load();
        memory.read(Gpa(at), &mut bytes).expect("it is RAM");
        u32::from_le_bytes(bytes)
    }

    /// Starts with those of the device's features that are in `features`.
    fn start(&mut self, features: u32) {
        self.set(STATUS, 0);
        assert_eq!(self.get(STATUS), 0, "a reset is complete");
        self.set(STATUS, 3);
        self.set(0x14, 0);
        let offered = self.get(0x10);
        for (select, word) in [(0, offered & features), (1, 1)] {
            self.set(0x24, select);
            self.set(0x20, word);
        }
        self.set(STATUS, 11);
        self.set(0x30, 0);
        self.set(0x38, SIZE.into());
        for (offset, at) in [0x80, 0x90, 0xa0].into_iter().zip(RINGS) {
            self.set(offset, at as u32);
            self.set(offset + 4, 0);
        }
        self.set(0x44, 1);
        self.machine.put(RINGS[1], &[0; 4]);
        self.machine.put(RINGS[2], &[0; 4]);
        self.available = 0;
        self.set(STATUS, 15);
    }

    fn describe(&self, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.machine.put(RINGS[0] + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, head: u16) {
        let slot = RINGS[1] + 4 + 2 * u64::from(self.available % SIZE);
        self.machine.put(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        let index = self.available.to_le_bytes();
        self.machine.put(RINGS[1] + 2, &index);
        self.set(0x50, 0);
    }

    /// A request, mostly one that makes sense.
    fn ask(&mut self, source: &mut Source<'_>) {
        let pair = u16::from(source.u8() % 4);
        let at = 16 * u64::from(pair);
        let kind = match source.below(8) {
            0 => source.u32(),
            _ => 0,
        };
        self.machine.put(REQUEST + at, &kind.to_le_bytes());
        let head = 2 * pair;
        let (mut request, mut answer) = ((REQUEST + at, 4), (ANSWER + at, 4));
        match source.below(12) {
            0 => request = (address(source), source.u8().into()),
            1 => answer = (address(source), source.u8().into()),
            2 => answer.1 = source.u32(),
            _ => {}
        }
        let last = match source.below(16) {
            0 => u16::from(source.u8() & 7),
            _ => WRITE,
        };
        self.describe(head, (request.0, request.1, NEXT, head + 1));
        self.describe(head + 1, (answer.0, answer.1, last, head));
        self.offer(head);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(16) {
            0 => self.start(source.u32()),
            1 => self.machine.toggle(),
            2 => {
                let offset = u64::from(source.u16() & 0x1ff);
                let width = source.pick(&[1, 2, 4, 8]);
                self.machine.write(offset, source.bytes(width));
            }
            3 => {
                let at = source.pick(&RINGS) + u64::from(source.u8());
                let bytes = source.bytes(8);
                self.machine.put(at, bytes);
            }
            4 => self.machine.pause(),
            5 => self.machine.resume(),
            6 | 7 => {
                let mood = source.below(3) as u32;
                self.host.mood.store(mood, Ordering::SeqCst);
            }
            8 => std::thread::yield_now(),
            9 => self.machine.check(),
            _ => self.ask(source),
        }
    }

    /// Whatever was before: after a reset the device does its work, with a flush that begins then.
    pub fn finish(mut self) {
        self.machine.resume();
        self.start(u32::MAX);
        assert_eq!(self.get(STATUS), 15);
        self.host.mood.store(0, Ordering::SeqCst);
        self.machine.put(REQUEST, &[0; 4]);
        self.machine.put(ANSWER, &NONE.to_le_bytes());
        self.describe(0, (REQUEST, 4, NEXT, 1));
        self.describe(1, (ANSWER, 4, WRITE, 0));
        let began = self.host.began.load(Ordering::SeqCst);
        self.offer(0);
        let begin = Instant::now();
        while self.word(RINGS[2]) >> 16 != 1 {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(5), "nothing comes back");
            std::thread::yield_now();
        }
        assert_eq!(self.word(ANSWER), 0, "it lasts");
        let now = self.host.began.load(Ordering::SeqCst);
        assert!(now > began, "a flush from before is none for this request");
        self.set(STATUS, 0);
        self.machine.check();
    }
}
