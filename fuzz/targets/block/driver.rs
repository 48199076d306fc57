//! A driver that makes requests: mostly whole ones, with anything in them.

use std::time::{Duration, Instant};

use umbra_devices::virtio::BlockControl;
use umbra_fuzz::{MORE, Machine, RAM, ROM, Source};
use umbra_slots::Gpa;

use crate::disk::{self, Check};

/// Descriptors, available and used ring.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
/// Where headers are, by descriptor.
const HEADERS: u64 = 0x5000;
/// Where status bytes are, by descriptor.
const STATUSES: u64 = 0x6000;
const DATA: u64 = 0x8000;
const SIZE: u16 = 8;

const STATUS: u64 = 0x70;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver, its machine, and its disk.
pub struct Driver {
    machine: Machine,
    control: BlockControl,
    check: Check,
    available: u16,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(10) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => u64::MAX - near,
        5 => RINGS[near as usize % 3],
        _ => DATA + 64 * near,
    }
}

fn len(source: &mut Source<'_>) -> u32 {
    match source.below(6) {
        0 => source.u32(),
        1 => u32::from(source.u8()),
        2 => 16 * u32::from(source.u8() & 3),
        _ => 512 * u32::from(source.u8() & 7),
    }
}

fn sector(source: &mut Source<'_>) -> u64 {
    match source.below(4) {
        0 => source.u64(),
        1 => u64::MAX - u64::from(source.u8()),
        _ => u64::from(source.u8() % 70),
    }
}

impl Driver {
    pub fn new(source: &mut Source<'_>) -> Self {
        let (device, control, check) = disk::device(source);
        let mut driver = Self {
            machine: Machine::new(Box::new(device)),
            control,
            check,
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
        self.machine
            .put(RINGS[1] + 2, &self.available.to_le_bytes());
        self.set(0x50, 0);
    }

    fn header(&self, head: u16, kind: u32, sector: u64) -> u64 {
        let at = HEADERS + 16 * u64::from(head);
        self.machine.put(at, &kind.to_le_bytes());
        self.machine.put(at + 8, &sector.to_le_bytes());
        at
    }

    /// A request of up to two buffers of data, which may be wrong anywhere.
    fn request(&mut self, source: &mut Source<'_>) {
        let head = u16::from(source.u8() % 5);
        let kind = match source.below(8) {
            0 => source.u32(),
            _ => source.pick(&[0, 1, 4, 8, 11, 13]),
        };
        let header = self.header(head, kind, sector(source));
        let (mut at, mut index) = (header, head);
        let mut length = match source.below(16) {
            0 => u32::from(source.u8()),
            _ => 16,
        };
        let mut flags = 0;
        for _ in 0..source.below(3) {
            self.describe(index, (at, length, flags | NEXT, index + 1));
            (at, length) = (address(source), len(source));
            let writes = matches!(kind, 0 | 8) != (source.below(8) == 0);
            flags = if writes { WRITE } else { 0 };
            index += 1;
        }
        self.describe(index, (at, length, flags | NEXT, index + 1));
        let status = match source.below(16) {
            0 => address(source),
            _ => STATUSES + u64::from(head),
        };
        self.describe(index + 1, (status, 1, WRITE, 0));
        self.offer(head);
    }

    /// Segments of DISCARD and WRITE_ZEROES, where data are.
    fn segment(&self, source: &mut Source<'_>) {
        let mut bytes = sector(source).to_le_bytes().to_vec();
        let count = match source.below(4) {
            0 => source.u32(),
            _ => u32::from(source.u8() & 7),
        };
        bytes.extend(count.to_le_bytes());
        bytes.extend(u32::from(source.u8() & 3).to_le_bytes());
        let place = DATA + 64 * u64::from(source.u8());
        self.machine.put(place, &bytes);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(12) {
            0 => self.start(source.u32()),
            1 => self.segment(source),
            2 => self.machine.toggle(),
            3 => {
                let offset = 0x100 + u64::from(source.u8() & 0x3f);
                let width = source.pick(&[1, 2, 4, 8]);
                self.machine.write(offset, source.bytes(width));
            }
            4 => {
                self.check.resize(source.below(80));
                // A host that fails does not say.
                let _ = self.control.refresh_size();
            }
            5 => self.check.fail(source.pick(&[None, Some(28), Some(5)])),
            6 => {
                let at = source.pick(&RINGS) + u64::from(source.u8());
                let bytes = source.bytes(8);
                self.machine.put(at, bytes);
            }
            7 => std::thread::yield_now(),
            _ => self.request(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(&mut self) {
        self.check.fail(None);
        self.check.resize(disk::LEN / 512);
        let len = self.control.refresh_size().expect("the host works");
        assert_eq!(len, disk::LEN as u64);
        self.start(u32::MAX);
        assert_eq!(self.get(STATUS), 15);
        let header = self.header(0, 0, 3);
        self.machine.put(STATUSES, &[0xee]);
        self.describe(0, (header, 16, NEXT, 1));
        self.describe(1, (DATA, 512, NEXT | WRITE, 2));
        self.describe(2, (STATUSES, 1, WRITE, 0));
        self.offer(0);
        let begin = Instant::now();
        while self.read::<4>(RINGS[2])[2] != 1 {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(5), "nothing comes back");
            std::thread::yield_now();
        }
        assert_eq!(self.read::<12>(RINGS[2])[8..], 513u32.to_le_bytes());
        assert_eq!(self.read::<1>(STATUSES), [0], "it was done");
        self.set(STATUS, 0);
        self.machine.check();
        self.check.check();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.machine.space.load();
        memory.read(Gpa(at), &mut bytes).expect("it is RAM");
        bytes
    }
}
