//! A driver that lends, reports and tells: mostly memory that it has.

use std::time::{Duration, Instant};

use umbra_devices::virtio::{Balloon, BalloonControl, BalloonOptions};
use umbra_fuzz::{MORE, Machine, RAM, ROM, Source};
use umbra_slots::Gpa;

/// Descriptors, available and used ring of queue 0; those of queue n are 0x3000 * n higher.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const QUEUES: u32 = 5;
/// Page numbers and statistics.
const DATA: u64 = 0x1_8000;
/// From here on nothing of the driver's own is lost with a page.
const LENT: u64 = 0x2_0000;
const SIZE: u16 = 8;

const STATUS: u64 = 0x70;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver, its machine, and its owner's end of the device.
pub struct Driver {
    machine: Machine,
    control: BalloonControl,
    available: [u16; QUEUES as usize],
}

fn rings(queue: u32) -> [u64; 3] {
    RINGS.map(|at| at + 0x3000 * u64::from(queue))
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(10) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => u64::MAX - near,
        5 => rings(near as u32 % QUEUES)[near as usize % 3],
        6 => DATA + 4 * near,
        _ => LENT + 0x200 * near,
    }
}

fn len(source: &mut Source<'_>) -> u32 {
    match source.below(5) {
        0 => source.u32(),
        1 => u32::from(source.u8()),
        2 => 0x1000 * u32::from(source.u8()),
        _ => 4 * u32::from(source.u8()),
    }
}

impl Driver {
    pub fn new(source: &mut Source<'_>) -> Self {
        let options = BalloonOptions {
            name: "fuzz".into(),
            target: source.u32().into(),
            deflate_on_oom: source.below(2) == 0,
            free_page_reporting: source.below(4) != 0,
        };
        let (device, control) = Balloon::new(options).expect("the target is small");
        let mut driver = Self {
            machine: Machine::new(Box::new(device)),
            control,
            available: [0; QUEUES as usize],
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
        assert_eq!(
            self.control.actual(),
            0,
            "what was lent is the guest's again"
        );
        self.set(STATUS, 3);
        self.set(0x14, 0);
        let offered = self.get(0x10);
        for (select, word) in [(0, offered & features), (1, 1)] {
            self.set(0x24, select);
            self.set(0x20, word);
        }
        self.set(STATUS, 11);
        for queue in 0..QUEUES {
            self.set(0x30, queue);
            if self.get(0x34) == 0 {
                continue;
            }
            self.set(0x38, SIZE.into());
            let rings = rings(queue);
            for (offset, at) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
                self.set(offset, at as u32);
                self.set(offset + 4, 0);
            }
            self.set(0x44, 1);
            self.machine.put(rings[1], &[0; 4]);
            self.machine.put(rings[2], &[0; 4]);
        }
        self.available = [0; QUEUES as usize];
        self.set(STATUS, 15);
    }

    fn describe(&self, queue: u32, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let place = rings(queue)[0] + 16 * u64::from(index);
        self.machine.put(place, &bytes);
    }

    fn offer(&mut self, queue: u32, head: u16) {
        let available = &mut self.available[queue as usize];
        let ring = rings(queue)[1];
        let slot = ring + 4 + 2 * u64::from(*available % SIZE);
        self.machine.put(slot, &head.to_le_bytes());
        *available = available.wrapping_add(1);
        self.machine.put(ring + 2, &available.to_le_bytes());
        self.set(0x50, queue);
    }

    /// A chain of up to three buffers, for any queue.
    fn chain(&mut self, source: &mut Source<'_>) {
        let queue = source.below(QUEUES as usize) as u32;
        let head = u16::from(source.u8() % 6);
        let mut flags = match (queue >= 3) != (source.below(8) == 0) {
            true => WRITE,
            false => 0,
        };
        let more = source.below(3) as u16;
        for index in head..=head + more {
            let next = match index < head + more {
                true => NEXT,
                false => 0,
            };
            let (at, len) = (address(source), len(source));
            self.describe(queue, index, (at, len, flags | next, index + 1));
            flags |= [0, WRITE][source.below(2)];
        }
        self.offer(queue, head);
    }

    /// Page numbers, mostly of memory that is there.
    fn numbers(&self, source: &mut Source<'_>) {
        let mut bytes = Vec::new();
        for _ in 0..source.below(32) {
            let number = match source.below(8) {
                0 => source.u32(),
                1 => u32::MAX - u32::from(source.u8()),
                _ => (LENT >> 12) as u32 + u32::from(source.u8() % 0x38),
            };
            bytes.extend(number.to_le_bytes());
        }
        self.machine.put(DATA + 4 * u64::from(source.u8()), &bytes);
    }

    fn statistics(&self, source: &mut Source<'_>) {
        let mut bytes = Vec::new();
        for _ in 0..source.below(20) {
            bytes.extend((source.u16() % 20).to_le_bytes());
            bytes.extend(source.u64().to_le_bytes());
        }
        self.machine.put(DATA, &bytes);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(14) {
            0 => self.start(source.u32()),
            1 => self.numbers(source),
            2 => self.statistics(source),
            3 => self.machine.toggle(),
            4 => {
                let offset = 0x100 + u64::from(source.u8() & 0x1f);
                let width = source.pick(&[1, 2, 4, 8]);
                self.machine.write(offset, source.bytes(width));
            }
            5 => {
                // Too large a target is refused.
                let _ = self.control.set_target(source.u64() >> (source.u8() % 64));
            }
            6 => {
                let millis = Duration::from_millis(source.u64());
                let interval = (source.below(2) == 0).then_some(millis);
                self.control.set_polling(interval);
            }
            7 => self.control.request_statistics(),
            8 => {
                let place = rings(source.below(QUEUES as usize) as u32);
                let at = source.pick(&place) + u64::from(source.u8());
                let bytes = source.bytes(8);
                self.machine.put(at, bytes);
            }
            9 => std::thread::yield_now(),
            _ => self.chain(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(&mut self) {
        self.start(u32::MAX);
        assert_eq!(self.get(STATUS), 15);
        self.machine.put(LENT, &[1; 0x3000]);
        let number = (LENT >> 12) as u32 + 1;
        self.machine.put(DATA, &number.to_le_bytes());
        self.describe(0, 0, (DATA, 4, 0, 0));
        self.offer(0, 0);
        let begin = Instant::now();
        while self.read::<4>(RINGS[2])[2] != 1 {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(5), "nothing comes back");
            std::thread::yield_now();
        }
        let pages: [u8; 0x3000] = self.read(LENT);
        let expected = [[1; 0x1000], [0; 0x1000], [1; 0x1000]].concat();
        assert!(pages == expected[..], "the page, and nothing beside it");
        self.set(STATUS, 0);
        self.machine.check();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.machine.space.load();
        memory.read(Gpa(at), &mut bytes).expect("it is RAM");
        bytes
    }
}
