//! A driver that makes requests: mostly whole ones, with anything in them.

use umbra_devices::virtio::BlockControl;
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};

use crate::disk::{self, Check};

/// Where headers are, by descriptor.
const HEADERS: u64 = 0x5000;
/// Where status bytes are, by descriptor.
const STATUSES: u64 = 0x6000;
const DATA: u64 = 0x8000;

/// The driver, and its disk.
pub struct Driver {
    virtio: VirtioDriver,
    control: BlockControl,
    check: Check,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(10) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => u64::MAX - near,
        5 => VirtioDriver::rings(0)[near as usize % 3],
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
        Self {
            virtio: VirtioDriver::new(Box::new(device), 1),
            control,
            check,
        }
    }

    fn header(&self, head: u16, kind: u32, sector: u64) -> u64 {
        let at = HEADERS + 16 * u64::from(head);
        self.virtio.put(at, &kind.to_le_bytes());
        self.virtio.put(at + 8, &sector.to_le_bytes());
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
            self.virtio
                .describe(0, index, (at, length, flags | NEXT, index + 1));
            (at, length) = (address(source), len(source));
            let writes = matches!(kind, 0 | 8) != (source.below(8) == 0);
            flags = if writes { WRITE } else { 0 };
            index += 1;
        }
        self.virtio
            .describe(0, index, (at, length, flags | NEXT, index + 1));
        let status = match source.below(16) {
            0 => address(source),
            _ => STATUSES + u64::from(head),
        };
        self.virtio.describe(0, index + 1, (status, 1, WRITE, 0));
        self.virtio.offer(0, head);
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
        self.virtio.put(place, &bytes);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(12) {
            0 => self.virtio.start(source.u32()),
            1 => self.segment(source),
            2 => self.virtio.toggle(),
            3 => self.virtio.write_config(source, 0x40),
            4 => {
                self.check.resize(source.below(80));
                // A host that fails does not say.
                let _ = self.control.refresh_size();
            }
            5 => self.check.fail(source.pick(&[None, Some(28), Some(5)])),
            6 => self.virtio.poke(source),
            7 => std::thread::yield_now(),
            _ => self.request(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(mut self) {
        self.check.fail(None);
        self.check.resize(disk::LEN / 512);
        let len = self.control.refresh_size().expect("the host works");
        assert_eq!(len, disk::LEN as u64);
        self.virtio.start(u32::MAX);
        assert!(self.virtio.works());
        let header = self.header(0, 0, 3);
        self.virtio.put(STATUSES, &[0xee]);
        self.virtio.describe(0, 0, (header, 16, NEXT, 1));
        self.virtio.describe(0, 1, (DATA, 512, NEXT | WRITE, 2));
        self.virtio.describe(0, 2, (STATUSES, 1, WRITE, 0));
        self.virtio.offer(0, 0);
        self.virtio.wait(0);
        let used = VirtioDriver::rings(0)[2];
        assert_eq!(self.virtio.load::<12>(used)[8..], 513u32.to_le_bytes());
        assert_eq!(self.virtio.load::<1>(STATUSES), [0], "it was done");
        self.virtio.reset();
        self.virtio.check();
        self.check.check();
    }
}
