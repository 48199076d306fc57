//! A driver that lends, reports, hints and tells: mostly memory that it has.

use std::time::Duration;

use umbra_devices::virtio::{Balloon, BalloonControl, BalloonOptions};
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};

const QUEUES: usize = 5;
/// Page numbers and statistics.
const DATA: u64 = 0x1_8000;
/// From here on nothing of the driver's own is lost with a page.
const LENT: u64 = 0x2_0000;

/// The driver, and the owner's end of its device.
pub struct Driver {
    virtio: VirtioDriver,
    control: BalloonControl,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(10) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => u64::MAX - near,
        5 => VirtioDriver::rings(near as u16 % QUEUES as u16)[near as usize % 3],
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
            free_page_hinting: source.below(3) != 0,
            polling: None,
        };
        let (device, control) = Balloon::new(options).expect("the target is small");
        Self {
            virtio: VirtioDriver::new(Box::new(device), QUEUES),
            control,
        }
    }

    /// Starts with those of the device's features that are in `features`.
    fn start(&mut self, features: u32) {
        self.virtio.start(features);
        let lent = self.control.actual();
        assert_eq!(lent, 0, "what was lent is the guest's again");
    }

    /// A chain of up to three buffers, for any queue.
    fn chain(&mut self, source: &mut Source<'_>) {
        let queue = source.below(QUEUES) as u16;
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
            self.virtio
                .describe(queue, index, (at, len, flags | next, index + 1));
            flags |= [0, WRITE][source.below(2)];
        }
        self.virtio.offer(queue, head);
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
        self.virtio.put(DATA + 4 * u64::from(source.u8()), &bytes);
    }

    fn statistics(&self, source: &mut Source<'_>) {
        let mut bytes = Vec::new();
        for _ in 0..source.below(20) {
            bytes.extend((source.u16() % 20).to_le_bytes());
            bytes.extend(source.u64().to_le_bytes());
        }
        self.virtio.put(DATA, &bytes);
    }

    /// Hints: the host asks or has enough, the driver says which run it is in, or that it has no more.
    fn hint(&mut self, source: &mut Source<'_>) {
        // Without hints, or without a driver that knows them, it is refused.
        match source.below(6) {
            0 => drop(self.control.start_hinting(source.below(2) == 0)),
            1 => drop(self.control.stop_hinting()),
            _ => {
                let status = self.control.hinting();
                let command = match source.below(4) {
                    0 => 0,
                    1 => source.u32(),
                    _ => status.map_or(0, |status| status.host_cmd),
                };
                self.virtio.put(DATA, &command.to_le_bytes());
                self.virtio.describe(3, 0, (DATA, 4, 0, 0));
                self.virtio.offer(3, 0);
            }
        }
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(16) {
            0 => self.start(source.u32()),
            1 => self.numbers(source),
            2 => self.statistics(source),
            3 => self.virtio.toggle(),
            4 => self.virtio.write_config(source, 0x20),
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
            8 => self.virtio.poke(source),
            9 => std::thread::yield_now(),
            10 | 11 => self.hint(source),
            _ => self.chain(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(mut self) {
        self.start(u32::MAX);
        assert!(self.virtio.works());
        self.virtio.put(LENT, &[1; 0x3000]);
        let number = (LENT >> 12) as u32 + 1;
        self.virtio.put(DATA, &number.to_le_bytes());
        self.virtio.describe(0, 0, (DATA, 4, 0, 0));
        self.virtio.offer(0, 0);
        self.virtio.wait(0);
        let pages: [u8; 0x3000] = self.virtio.load(LENT);
        let expected = [[1; 0x1000], [0; 0x1000], [1; 0x1000]].concat();
        assert!(pages == expected[..], "the page, and nothing beside it");
        self.virtio.reset();
        self.virtio.check();
    }
}
