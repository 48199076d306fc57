//! For tests: a machine's memory, wire and doorbells, and a driver that works by polling.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_cpu::{Doorbell, DoorbellError, Doorbells};
use umbra_irq::Line;
use umbra_slots::{
    AccessError, AddressSpace, Dma, DmaSpace, Flags, Gpa, GpaRange, HugePages, IoId, Options,
    RamOptions, RamRegion,
};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::{Features, MmioTransport, Status};

/// RAM from address 0 on.
pub const RAM: u64 = 0x10_0000;
/// A page of read-only memory behind a hole.
pub const ROM: u64 = 0x20_0000;
/// Where queue 0 has its descriptors, available and used ring; queue n is 0x1_0000 * n higher.
pub const RINGS: [u64; 3] = [0x1_0000, 0x1_4000, 0x1_8000];

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A map with RAM, and a way to write it that counts reports.
pub struct Memory {
    /// The map.
    pub space: Arc<AddressSpace>,
    reports: AtomicU32,
}

impl Memory {
    /// Makes [`RAM`] bytes of memory at 0, and a page at [`ROM`].
    pub fn new() -> Arc<Self> {
        let space = AddressSpace::new(Options::default());
        let ram = |len| {
            let options = RamOptions {
                len,
                huge: HugePages::No,
                prefault: false,
            };
            RamRegion::new(options).unwrap()
        };
        let rom = Flags {
            read_only: true,
            dirty_log: false,
        };
        let added = space.update("test", |map| {
            map.add_ram(Gpa(0), ram(RAM), 0, RAM, Flags::default())?;
            map.add_ram(Gpa(ROM), ram(0x1000), 0, 0x1000, rom)
        });
        added.unwrap().wait();
        let reports = AtomicU32::new(0);
        Arc::new(Self { space, reports })
    }

    /// Returns it for a device.
    pub fn dma(self: &Arc<Self>) -> DmaSpace {
        DmaSpace::new(self.space.clone(), self.clone())
    }

    /// Returns how many stores of devices were reported.
    pub fn reports(&self) -> u32 {
        self.reports.load(Ordering::Relaxed)
    }

    /// Writes as the guest does.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.space.load().write(Gpa(at), bytes).unwrap();
    }

    /// Reads.
    pub fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.space.load().read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    /// Reads 16 bits.
    pub fn get_u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.get(at))
    }

    /// Reads 32 bits.
    pub fn get_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
}

impl Dma for Memory {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        self.space.load().read(gpa, data)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        self.space.load().write(gpa, data)
    }

    fn written(&self, _: GpaRange) {
        self.reports.fetch_add(1, Ordering::Relaxed);
    }
}

/// A wire that knows its level.
#[derive(Default)]
pub struct Level(AtomicBool);

impl Level {
    /// Tells whether it is high.
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Line for Level {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::Release);
    }
}

/// Doorbells that are rung by hand.
#[derive(Default)]
pub struct Bells(Mutex<BTreeMap<(u32, u64), OwnedFd>>);

impl Bells {
    /// Returns window and value of all that are there; the offset of those that ring for any value.
    pub fn hung(&self) -> Vec<(u32, u64)> {
        self.0.lock().keys().copied().collect()
    }

    /// Rings one.
    pub fn ring(&self, window: u32, value: u64) {
        let bells = self.0.lock();
        rustix::io::write(&bells[&(window, value)], &1u64.to_ne_bytes()).unwrap();
    }
}

impl Doorbells for Bells {
    fn add(&self, id: IoId, bell: Doorbell, event: BorrowedFd<'_>) -> Result<(), DoorbellError> {
        let key = (id.0, bell.value.unwrap_or(bell.offset));
        let old = self
            .0
            .lock()
            .insert(key, event.try_clone_to_owned().unwrap());
        assert!(old.is_none(), "{bell:?} is there already");
        Ok(())
    }

    fn remove(&self, id: IoId, bell: Doorbell) {
        let old = self
            .0
            .lock()
            .remove(&(id.0, bell.value.unwrap_or(bell.offset)));
        assert!(old.is_some(), "there is no {bell:?}");
    }

    fn remove_all(&self, id: IoId) {
        self.0.lock().retain(|(window, _), _| *window != id.0);
    }
}

/// A driver: registers, and rings at [`RINGS`].
pub struct Driver {
    /// What it drives.
    pub transport: Arc<MmioTransport>,
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// The interrupt.
    pub line: Arc<Level>,
    size: u16,
    available: Vec<u16>,
}

impl Driver {
    /// Gives the device a driver whose queues have `size` descriptors.
    pub fn new(device: Box<dyn crate::Device>, size: u16) -> Self {
        Self::with_memory(Memory::new(), device, size)
    }

    /// The same with memory that somebody else has, too.
    pub fn with_memory(memory: Arc<Memory>, device: Box<dyn crate::Device>, size: u16) -> Self {
        let line = Arc::new(Level::default());
        let queues = device.queue_sizes().len();
        Self {
            transport: MmioTransport::new(device, memory.dma(), line.clone()),
            memory,
            line,
            size,
            available: vec![0; queues],
        }
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.mmio_read(MmioAddress(0), offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        let data = value.to_le_bytes();
        self.transport.mmio_write(MmioAddress(0), offset, &data);
    }

    /// Returns the status.
    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    /// Tells whether the device asks for a reset.
    pub fn needs_reset(&self) -> bool {
        Status(self.status()).has(Status::NEEDS_RESET)
    }

    /// Accepts features; tells whether they are agreed on.
    pub fn agree(&self, features: Features) -> bool {
        self.write(0x70, 1);
        self.write(0x70, 3);
        for select in 0..4 {
            self.write(0x24, select);
            self.write(0x20, features.word(select));
        }
        self.write(0x70, 11);
        Status(self.status()).has(Status::FEATURES_OK)
    }

    /// Sets a queue up where [`RINGS`] says.
    pub fn set_up(&mut self, queue: u32) {
        let rings = RINGS.map(|at| at + 0x1_0000 * u64::from(queue));
        self.set_up_at(queue, self.size.into(), rings);
        self.available[queue as usize] = 0;
        self.memory.put(rings[1], &[0; 4]);
        self.memory.put(rings[2], &[0; 4]);
    }

    /// Sets a queue up anywhere.
    pub fn set_up_at(&self, queue: u32, size: u32, rings: [u64; 3]) {
        self.write(0x30, queue);
        self.write(0x38, size);
        for (offset, at) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
            self.write(offset, at as u32);
            self.write(offset + 4, (at >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Goes all the way from reset to DRIVER_OK, with all queues.
    pub fn start(&mut self, features: Features) {
        self.write(0x70, 0);
        assert!(self.agree(features.with(Features::VERSION_1)));
        for queue in 0..self.available.len() {
            self.set_up(queue as u32);
        }
        self.write(0x70, 15);
        assert_eq!(self.status(), 15);
    }

    /// Writes descriptor `index` of queue 0: address, length, flags, next.
    pub fn describe(&self, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        self.describe_at(RINGS[0] + 16 * u64::from(index), (at, len, flags, next));
    }

    /// Writes a descriptor anywhere.
    pub fn describe_at(&self, place: u64, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.put(place, &bytes);
    }

    /// Makes the chain at `head` available in a queue, without a notification.
    pub fn offer_in(&mut self, queue: u32, head: u16) {
        let next = &mut self.available[queue as usize];
        let ring = RINGS[1] + 0x1_0000 * u64::from(queue);
        let slot = ring + 4 + 2 * u64::from(*next % self.size);
        self.memory.put(slot, &head.to_le_bytes());
        *next = next.wrapping_add(1);
        self.memory.put(ring + 2, &next.to_le_bytes());
    }

    /// Makes the chain at `head` available in queue 0, and notifies.
    pub fn offer(&mut self, head: u16) {
        self.offer_in(0, head);
        self.write(0x50, 0);
    }

    /// Returns the used index of a queue.
    pub fn used_in(&self, queue: u32) -> u16 {
        self.memory
            .get_u16(RINGS[2] + 0x1_0000 * u64::from(queue) + 2)
    }

    /// Returns descriptor and length of a used element of queue 0.
    pub fn used(&self, index: u16) -> (u32, u32) {
        let at = RINGS[2] + 4 + 8 * u64::from(index % self.size);
        (self.memory.get_u32(at), self.memory.get_u32(at + 4))
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// If it takes ten seconds.
    pub fn wait(&self, what: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !what(self) {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(10), "it does not happen");
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
