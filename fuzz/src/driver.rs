//! The driver of a virtio device, as far as all of them are alike: registers, and queues of eight
//! descriptors.

use std::ops::Deref;
use std::time::{Duration, Instant};

use umbra_slots::SlotError;
use umbra_virtio::Device;

use crate::{Machine, Source};

/// Descriptors, available and used ring of queue 0; those of queue n are [`STRIDE`] * n higher.
const RINGS: [u64; 3] = [0x1000, 0x1400, 0x1800];
const STRIDE: u64 = 0x1000;

const STATUS: u64 = 0x70;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;

/// A driver in its machine, which it can be used as. What a target puts into memory begins at
/// `0x1000 * (queues + 1)` or later.
pub struct VirtioDriver {
    machine: Machine,
    available: Vec<u16>,
}

impl Deref for VirtioDriver {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl VirtioDriver {
    /// Descriptors of each queue.
    pub const SIZE: u16 = 8;

    /// Makes a driver of so many queues, and starts the device with all of its features.
    pub fn new(device: Box<dyn Device>, queues: usize) -> Self {
        Self::in_machine(Machine::new(device), queues)
    }

    /// The same with a device that is in its machine.
    pub fn in_machine(machine: Machine, queues: usize) -> Self {
        let mut driver = Self {
            machine,
            available: vec![0; queues],
        };
        driver.start(u32::MAX);
        driver
    }

    /// Shows the machine's other memory, or takes it away.
    pub fn toggle(&mut self) {
        self.machine.toggle();
    }

    /// The same where somebody may refuse.
    ///
    /// # Errors
    /// If it was refused; nothing has changed.
    pub fn try_toggle(&mut self) -> Result<(), SlotError> {
        self.machine.try_toggle()
    }

    /// Returns where the rings of a queue are.
    pub fn rings(queue: u16) -> [u64; 3] {
        RINGS.map(|at| at + STRIDE * u64::from(queue))
    }

    /// Writes a register.
    pub fn set(&self, offset: u64, value: u32) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    /// Reads a register.
    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.machine.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.set(STATUS, 0);
        assert_eq!(self.get(STATUS), 0, "a reset is complete");
    }

    /// Tells whether the device works: DRIVER_OK, and no reset is needed.
    pub fn works(&self) -> bool {
        self.get(STATUS) == 15
    }

    /// Resets it, and starts it with those of its first 32 features that are in `features`, and with all queues
    /// that there are then.
    pub fn start(&mut self, features: u32) {
        self.reset();
        self.set(STATUS, 3);
        self.set(0x14, 0);
        let offered = self.get(0x10);
        for (select, word) in [(0, offered & features), (1, 1)] {
            self.set(0x24, select);
            self.set(0x20, word);
        }
        self.set(STATUS, 11);
        for queue in 0..self.available.len() as u16 {
            self.set_up(queue);
        }
        self.set(STATUS, 15);
    }

    fn set_up(&mut self, queue: u16) {
        self.set(0x30, queue.into());
        if self.get(0x34) == 0 {
            return;
        }
        self.set(0x38, Self::SIZE.into());
        let rings = Self::rings(queue);
        for (offset, at) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.set(offset, at as u32);
            self.set(offset + 4, 0);
        }
        self.set(0x44, 1);
        self.machine.put(rings[1], &[0; 4]);
        self.machine.put(rings[2], &[0; 4]);
        self.available[usize::from(queue)] = 0;
    }

    /// Writes a descriptor: address, length, flags, next.
    pub fn describe(&self, queue: u16, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let place = Self::rings(queue)[0] + 16 * u64::from(index);
        self.machine.put(place, &bytes);
    }

    /// Makes a chain available, and notifies.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let available = &mut self.available[usize::from(queue)];
        let ring = Self::rings(queue)[1];
        let slot = ring + 4 + 2 * u64::from(*available % Self::SIZE);
        self.machine.put(slot, &head.to_le_bytes());
        *available = available.wrapping_add(1);
        self.machine.put(ring + 2, &available.to_le_bytes());
        self.set(0x50, queue.into());
    }

    /// Returns how many chains were made available in a queue.
    pub fn offered(&self, queue: u16) -> u16 {
        self.available[usize::from(queue)]
    }

    /// Returns how many came back.
    pub fn used(&self, queue: u16) -> u16 {
        u16::from_le_bytes(self.load(Self::rings(queue)[2] + 2))
    }

    /// Waits until all came back.
    pub fn wait(&self, queue: u16) {
        let begin = Instant::now();
        while self.used(queue) != self.offered(queue) {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(5), "nothing comes back");
            std::thread::yield_now();
        }
    }

    /// Writes anything into a ring, or behind it.
    pub fn poke(&self, source: &mut Source<'_>) {
        let queue = source.below(self.available.len()) as u16;
        let at = source.pick(&Self::rings(queue)) + u64::from(source.u8());
        self.machine.put(at, source.bytes(8));
    }

    /// Writes anything into the device's configuration, of `len` bytes or more, in any width.
    pub fn write_config(&self, source: &mut Source<'_>, len: u8) {
        let offset = 0x100 + u64::from(source.u8() % len);
        let width = source.pick(&[1, 2, 4, 8]);
        self.machine.write(offset, source.bytes(width));
    }
}
