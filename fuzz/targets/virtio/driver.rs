//! A driver that does anything, in steps that are likely to lead somewhere.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_devices::virtio::Rng;
use umbra_fuzz::{MORE, Machine, RAM, ROM, Source};
use umbra_slots::Gpa;

/// Descriptors, available and used ring of the queue, where a good driver puts them.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const BUFFER: u64 = 0x8000;
/// Where an indirect table likes to be.
const TABLE: u64 = 0x4000;
const SIZE: u16 = 8;

const STATUS: u64 = 0x70;
const REGISTERS: [u64; 16] = [
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x100,
];

/// The driver, and its machine.
pub struct Driver {
    machine: Machine,
    available: u16,
}

/// Bytes that are the same in every run; now and then there are none.
fn bytes(to: &mut [u8]) -> io::Result<usize> {
    let len = to.len();
    to.fill(0x5a);
    match len % 7 {
        0 => Ok(len.div_ceil(2)),
        1 if len > 1 => Err(io::ErrorKind::Interrupted.into()),
        _ => Ok(len),
    }
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
        _ => BUFFER + near,
    }
}

fn len(source: &mut Source<'_>) -> u32 {
    match source.below(4) {
        0 => source.u32(),
        1 => u32::from(source.u16()),
        2 => 0,
        _ => u32::from(source.u8()),
    }
}

impl Driver {
    pub fn new() -> Self {
        Self {
            machine: Machine::new(Box::new(Rng::with_source(Arc::new(bytes)))),
            available: 0,
        }
    }

    fn set(&self, offset: u64, value: u32) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.machine.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn start(&mut self, features: [u32; 2], size: u32, rings: [u64; 3]) {
        self.set(STATUS, 0);
        assert_eq!(self.get(STATUS), 0, "a reset is complete");
        self.set(STATUS, 3);
        for (select, word) in (0..).zip(features) {
            self.set(0x24, select);
            self.set(0x20, word);
        }
        self.set(STATUS, 11);
        self.set(0x30, 0);
        self.set(0x38, size);
        for (offset, at) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.set(offset, at as u32);
            self.set(offset + 4, (at >> 32) as u32);
        }
        self.set(0x44, 1);
        self.machine.put(rings[1], &[0; 4]);
        self.machine.put(rings[2], &[0; 4]);
        self.available = 0;
        self.set(STATUS, 15);
    }

    fn describe(&self, at: u64, source: &mut Source<'_>) {
        let mut bytes = address(source).to_le_bytes().to_vec();
        bytes.extend(len(source).to_le_bytes());
        bytes.extend(u16::from(source.u8() & 7).to_le_bytes());
        bytes.extend(u16::from(source.u8() % 10).to_le_bytes());
        self.machine.put(at, &bytes);
    }

    fn offer(&mut self, head: u16) {
        let slot = RINGS[1] + 4 + 2 * u64::from(self.available % SIZE);
        self.machine.put(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.machine
            .put(RINGS[1] + 2, &self.available.to_le_bytes());
        self.set(0x50, 0);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(12) {
            0 => {
                let mut data = [0; 8];
                let width = source.pick(&[1, 2, 4, 8]);
                let offset = u64::from(source.u16());
                self.machine.read(offset, &mut data[..width]);
            }
            1 => {
                let offset = u64::from(source.u16() & 0x1ff);
                let width = source.pick(&[1, 2, 4, 8]);
                self.machine.write(offset, source.bytes(width));
            }
            2 | 3 => self.set(source.pick(&REGISTERS), len(source)),
            4 => {
                let features = [source.pick(&[0, 1 << 29, 1 << 28, 3 << 28]), 1];
                self.start(features, SIZE.into(), RINGS);
            }
            5 => {
                let rings = RINGS.map(|ring| match source.below(3) {
                    0 => address(source),
                    _ => ring,
                });
                self.start([source.u32(), source.u32()], len(source), rings);
            }
            6 => {
                let at = source.pick(&RINGS) + u64::from(source.u8());
                let bytes = source.bytes(8);
                self.machine.put(at, bytes);
            }
            7 | 8 => self.describe(RINGS[0] + 16 * source.below(8) as u64, source),
            9 => self.describe(TABLE + 16 * source.below(8) as u64, source),
            10 => self.offer(u16::from(source.u8() % 9)),
            _ => match source.below(3) {
                0 => self.machine.toggle(),
                1 => self.machine.check(),
                // The device has its turn.
                _ => std::thread::yield_now(),
            },
        }
    }

    /// Reads the used ring from an offset on.
    fn used<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.machine.space.load();
        memory
            .read(Gpa(RINGS[2] + offset), &mut bytes)
            .expect("it is RAM");
        bytes
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(mut self) {
        self.start([0, 1], SIZE.into(), RINGS);
        assert_eq!(self.get(STATUS), 15);
        let mut bytes = BUFFER.to_le_bytes().to_vec();
        bytes.extend([16, 0, 0, 0, 2, 0, 0, 0]);
        self.machine.put(RINGS[0], &bytes);
        self.offer(0);
        let begin = Instant::now();
        // First the index, then what it says is there: one read of both may see the length of before.
        while self.used::<2>(2) != [1, 0] {
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "nothing comes back"
            );
            std::thread::yield_now();
        }
        let filled = u32::from_le_bytes(self.used(8));
        assert_eq!(filled, 16, "all of it was filled");
        self.set(STATUS, 0);
        self.machine.check();
    }
}
