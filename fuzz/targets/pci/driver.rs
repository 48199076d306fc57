//! A guest that does anything to its root bus, in steps that are likely to lead somewhere.

use std::time::{Duration, Instant};

use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, WRITE};
use umbra_irq::Msi;
use umbra_virtio::PciTransport;

use crate::machine::{ECAM, HIGH, LOW, LOW_LEN, Machine, OTHER_RAM, PLACES, function_bits};

/// Descriptors, available and used ring of the queue of a device; those of the next one are [`STRIDE`] higher.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const STRIDE: u64 = 0x4000;
const BUFFER: u64 = 0x2_0000;
const SIZE: u16 = 8;

const COMMAND: u64 = 0x04;
/// Memory space and bus master.
const ON: u16 = 6;
const BAR: u64 = PciTransport::BAR_REGISTER as u64;
/// Where in it the parts are.
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;

/// Registers of the common configuration, and how wide they are.
const COMMON: [(u64, usize); 17] = [
    (0x00, 4),
    (0x04, 4),
    (0x08, 4),
    (0x0c, 4),
    (0x10, 2),
    (0x12, 2),
    (0x14, 1),
    (0x15, 1),
    (0x16, 2),
    (0x18, 2),
    (0x1a, 2),
    (0x1c, 2),
    (0x1e, 2),
    (0x20, 8),
    (0x28, 4),
    (0x2c, 4),
    (0x30, 8),
];

/// The guest.
pub struct Driver {
    machine: Machine,
    /// Where in the configuration registers the way around the BAR is, and MSI-X.
    way: u64,
    msix: u64,
    available: [u16; PLACES.len()],
}

/// Where a BAR may be put.
fn place_of_bar(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(12) {
        0 => LOW - 0x1_0000 * (near & 1),
        1 => LOW + LOW_LEN - 0x8000 * (near & 3),
        2 => ECAM + 0x1_0000 * near - 0x8_0000,
        3 => OTHER_RAM + 0x1_0000 * (near & 1),
        4 => HIGH + 0x1_0000 * near,
        5 => source.u64(),
        6 => u64::MAX << (near & 0x3f),
        7 => RAM & !0xffff,
        8 => LOW + 0x100 * near,
        _ => LOW + 0x1_0000 * (near & 3),
    }
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(8) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => RINGS[near as usize % 3],
        5 => LOW + 0x100 * near,
        _ => BUFFER + near,
    }
}

/// Where in a BAR something is.
fn offset(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(6) {
        0 => u64::from(source.u16()),
        1 => near & 0x3f,
        2 => 0x1000 * (near & 0xf) + (near >> 4),
        3 => NOTIFY + (near & 7),
        4 => 0x1_0000 - (near & 15),
        _ => TABLE + (near & 0x3f),
    }
}

impl Driver {
    pub fn new() -> Self {
        let machine = Machine::new();
        let (mut way, mut msix) = (0, 0);
        let [mut at] = machine.config(0, 0x34);
        while at != 0 {
            let [id, next, _, kind] = machine.config(0, at.into());
            match (id, kind) {
                (9, 5) => way = u64::from(at),
                (0x11, _) => msix = u64::from(at),
                _ => {}
            }
            at = next;
        }
        assert!(way != 0 && msix != 0, "there are these capabilities");
        let mut driver = Self {
            machine,
            way,
            msix,
            available: [0; PLACES.len()],
        };
        for place in 0..PLACES.len() {
            driver.put_bar(place, LOW + 0x1_0000 * place as u64);
            driver.command(place, ON);
            driver.start(place, 1 << 29);
        }
        driver
    }

    fn put_bar(&self, place: usize, at: u64) {
        self.machine.set_config(place, BAR, &at.to_le_bytes());
    }

    fn command(&self, place: usize, bits: u16) {
        self.machine.set_config(place, COMMAND, &bits.to_le_bytes());
    }

    /// Writes into a BAR, wherever it is: something else may be there.
    fn set(&self, place: usize, offset: u64, data: &[u8]) {
        let at = self.machine.bar(place).wrapping_add(offset);
        // Not into memory, where it would only spoil the rings.
        if at > ROM {
            self.machine.write(at, data);
        }
    }

    fn get<const N: usize>(&self, place: usize, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        let at = self.machine.bar(place).wrapping_add(offset);
        self.machine.read(at, &mut data);
        data
    }

    fn rings(place: usize) -> [u64; 3] {
        RINGS.map(|ring| ring + STRIDE * place as u64)
    }

    /// Resets a device, and starts it with these of its first 32 features.
    fn start(&mut self, place: usize, features: u32) {
        self.set(place, 0x14, &[0]);
        self.set(place, 0x14, &[3]);
        for (select, word) in [(0u32, features), (1, 1)] {
            self.set(place, 0x08, &select.to_le_bytes());
            self.set(place, 0x0c, &word.to_le_bytes());
        }
        self.set(place, 0x14, &[11]);
        self.set(place, 0x10, &1u16.to_le_bytes());
        self.set(place, 0x16, &0u16.to_le_bytes());
        self.set(place, 0x18, &SIZE.to_le_bytes());
        self.set(place, 0x1a, &0u16.to_le_bytes());
        let rings = Self::rings(place);
        for (field, at) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.set(place, field, &at.to_le_bytes());
        }
        self.machine.memory.put(rings[1], &[0; 4]);
        self.machine.memory.put(rings[2], &[0; 4]);
        self.available[place] = 0;
        self.set(place, 0x1c, &1u16.to_le_bytes());
        self.set(place, 0x14, &[15]);
    }

    fn describe(&self, place: usize, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let table = Self::rings(place)[0];
        self.machine
            .memory
            .put(table + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, place: usize, head: u16) {
        let ring = Self::rings(place)[1];
        let available = &mut self.available[place];
        let slot = ring + 4 + 2 * u64::from(*available % SIZE);
        self.machine.memory.put(slot, &head.to_le_bytes());
        *available = available.wrapping_add(1);
        self.machine.memory.put(ring + 2, &available.to_le_bytes());
        self.set(place, NOTIFY, &0u16.to_le_bytes());
    }

    fn chain(&mut self, place: usize, source: &mut Source<'_>) {
        let index = u16::from(source.u8() % 6);
        let flags = match source.below(8) {
            0 => u16::from(source.u8() & 7),
            1 | 2 => WRITE | NEXT,
            _ => WRITE,
        };
        let len = u32::from(source.u16()) >> source.below(16);
        self.describe(place, index, (address(source), len, flags, index + 1));
        self.offer(place, index);
    }

    /// An access of any width, as memory.
    fn access(&self, at: u64, source: &mut Source<'_>) {
        let mut data = [0; 8];
        let width = source.pick(&[1, 2, 3, 4, 8]);
        match source.below(2) {
            0 => self.machine.read(at, &mut data[..width]),
            _ => self.machine.write(at, source.bytes(width)),
        }
    }

    /// An access to any configuration register, as memory.
    fn ecam(&self, place: usize, source: &mut Source<'_>) {
        let near = u64::from(source.u8());
        let at = match source.below(8) {
            0 => u64::from(source.u32() & 0xf_ffff),
            // The host bridge.
            1 => near,
            // The window's end.
            2 => 0xf_fff0 + (near & 15),
            3 => function_bits(place) << 12 | u64::from(source.u16() & 0xfff),
            _ => function_bits(place) << 12 | near,
        };
        self.access(ECAM + at, source);
    }

    /// The same by ports, or an access to any port near them.
    fn ports(&self, place: usize, source: &mut Source<'_>) {
        let near = u64::from(source.u8());
        let select = match source.below(4) {
            0 => source.u32(),
            _ => 1 << 31 | (function_bits(place) << 8 | near) as u32,
        };
        let ports = &self.machine.ports;
        if source.below(4) != 0 {
            ports.write(0xcf8, &select.to_le_bytes());
        }
        let port = match source.below(4) {
            0 => 0xcf0 + (near as u16 & 31),
            _ => 0xcfc + (near as u16 & 3),
        };
        let mut data = [0; 8];
        let width = source.pick(&[1, 2, 3, 4, 8]);
        match source.below(2) {
            0 => ports.read(port, &mut data[..width]),
            _ => ports.write(port, source.bytes(width)),
        }
    }

    /// An access by the way around the BAR.
    fn around(&self, place: usize, source: &mut Source<'_>) {
        let bar = match source.below(16) {
            0 => source.u8(),
            _ => 0,
        };
        let len = source.pick(&[1u32, 2, 4, 4, 8, 0]);
        let offset = match source.below(8) {
            0 => source.u32(),
            _ => offset(source) as u32 & !len.saturating_sub(1),
        };
        let set = |register, data: &[u8]| self.machine.set_config(place, self.way + register, data);
        set(4, &[bar]);
        set(8, &offset.to_le_bytes());
        set(12, &len.to_le_bytes());
        let mut data = [0; 4];
        let width = source.pick(&[1, 2, 4]).min(len.max(1) as usize);
        match source.below(2) {
            0 => self.machine.read(
                ECAM + (function_bits(place) << 12) + self.way + 16,
                &mut data[..width],
            ),
            _ => set(16, source.bytes(width)),
        }
    }

    fn common(&self, place: usize, source: &mut Source<'_>) {
        let (at, width) = source.pick(&COMMON);
        match source.below(4) {
            0 => drop(self.get::<8>(place, at)),
            _ => self.set(place, at, source.bytes(width)),
        }
    }

    fn msix(&self, place: usize, source: &mut Source<'_>) {
        let control = u16::from(source.u8()) << 8;
        self.machine
            .set_config(place, self.msix + 2, &control.to_le_bytes());
        self.set(place, TABLE + 16 * source.below(3) as u64 + 12, &[0; 4]);
    }

    fn plug(&mut self, place: usize, source: &mut Source<'_>) {
        match source.below(3) {
            0 => self.machine.remove(place),
            _ => self.machine.add(place),
        }
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        let place = source.below(PLACES.len());
        match source.below(20) {
            0 | 1 => self.ecam(place, source),
            2 => self.ports(place, source),
            3 | 4 => self.put_bar(place, place_of_bar(source)),
            5 => self.machine.set_config(place, BAR, source.bytes(4)),
            6 | 7 => self.command(place, source.pick(&[0, 2, 4, 6, 6, 0x406])),
            8 | 9 => {
                let at = self.machine.bar(place).wrapping_add(offset(source));
                self.access(at, source);
            }
            10 | 11 => self.around(place, source),
            12 => self.common(place, source),
            13 => self.msix(place, source),
            14 => self.plug(place, source),
            15 => self.start(place, source.u32()),
            16 => match source.below(3) {
                0 => self.machine.memory.toggle(),
                1 => self.machine.pause(place, true),
                _ => self.machine.pause(place, false),
            },
            17 => {
                let at = source.pick(&Self::rings(place)) + u64::from(source.u8());
                self.machine.memory.put(at, source.bytes(8));
            }
            _ => self.chain(place, source),
        }
        self.machine.check_map();
    }

    /// Whatever was before: after a reset by configuration registers alone the device works, where its BAR is put.
    pub fn finish(mut self) {
        for place in 0..PLACES.len() {
            self.machine.add(place);
            self.machine.pause(place, false);
            self.command(place, 0);
            // BAR 0, the status, one byte.
            for (register, value) in [(4, 0u32), (8, 0x14), (12, 1)] {
                let value = value.to_le_bytes();
                let len = if register == 4 { 1 } else { 4 };
                self.machine
                    .set_config(place, self.way + register, &value[..len]);
            }
            self.machine.set_config(place, self.way + 16, &[0]);
            let [status] = self.machine.config(place, self.way + 16);
            assert_eq!(status, 0, "a reset is complete");
        }
        self.machine.check_map();
        for place in 0..PLACES.len() {
            self.put_bar(place, HIGH + 0x1_0000 * place as u64);
            self.command(place, ON);
        }
        self.machine.check_map();
        for place in 0..PLACES.len() {
            self.work(place);
        }
        self.machine.memory.check();
    }

    /// Has a device fill a buffer, and say so by a message.
    fn work(&mut self, place: usize) {
        let message = Msi {
            address: 0xfee0_1000,
            data: 0x40 + place as u32,
        };
        self.set(place, TABLE, &message.address.to_le_bytes());
        self.set(place, TABLE + 8, &message.data.to_le_bytes());
        self.set(place, TABLE + 12, &[0; 4]);
        self.machine
            .set_config(place, self.msix + 2, &0x8000u16.to_le_bytes());
        self.start(place, 0);
        assert_eq!(self.get(place, 0x14), [15]);
        let _earlier = self.machine.messages.take();
        self.machine.memory.put(BUFFER, &[0; 16]);
        self.describe(place, 0, (BUFFER, 16, WRITE, 0));
        self.offer(place, 0);
        let begin = Instant::now();
        let sent = loop {
            if let Some(sent) = self.machine.messages.take() {
                break sent;
            }
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(5), "no message comes");
            std::thread::yield_now();
        };
        assert_eq!(sent, message);
        let used = Self::rings(place)[2];
        assert_eq!(self.machine.memory.load(used + 2), [1, 0]);
        assert_eq!(self.machine.memory.load(BUFFER), [0x5a; 16]);
        self.set(place, 0x14, &[0]);
    }
}
