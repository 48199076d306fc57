//! Guest memory with a pattern on both sides, and a virtio device.

use std::sync::Arc;

use umbra_irq::Unconnected;
use umbra_slots::{
    AccessError, AddressSpace, Dma, DmaSpace, Flags, Gpa, GpaRange, HugePages, Options, RamOptions,
    RamRegion, SlotId,
};
use umbra_virtio::{Device, MmioTransport, Transport};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::{GUARD, Guard};

/// Guest memory, from address 0, without a gap before the next piece.
pub const RAM: u64 = 0x4_0000;
/// Memory that comes and goes.
pub const MORE: u64 = RAM;
/// How much of it.
const MORE_LEN: u64 = 0x1_0000;
/// A page that may only be read.
pub const ROM: u64 = RAM + MORE_LEN;

struct Memory(Arc<AddressSpace>);

impl Dma for Memory {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.load().read(gpa, data)
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        self.0.load().write(gpa, data)
    }
    fn written(&self, range: GpaRange) {
        assert!(range.last().0 < ROM, "{range} may not be written");
    }
}

/// The machine.
pub struct Machine {
    /// Guest memory.
    pub space: Arc<AddressSpace>,
    transport: Arc<MmioTransport>,
    more: Arc<RamRegion>,
    shown: Option<SlotId>,
    guard: Guard,
    // Last: the guard looks at it.
    _region: Arc<RamRegion>,
}

fn region(len: u64) -> Arc<RamRegion> {
    RamRegion::new(RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    })
    .expect("the host has memory")
}

impl Machine {
    /// Makes one with this device.
    pub fn new(device: Box<dyn Device>) -> Self {
        let guard = GUARD as u64;
        let watched = region(RAM + 2 * guard);
        // SAFETY: 1. the region is one mapping of that length, and lives as long as the machine;
        // 2. guest memory is never under a Rust reference.
        let pattern = unsafe { Guard::new(watched.host_addr(0).as_ptr(), RAM as usize) };
        let space = AddressSpace::new(Options::default());
        let rom = Flags {
            read_only: true,
            dirty_log: false,
        };
        let ram = watched.clone();
        space
            .update("memory", |edit| {
                edit.add_ram(Gpa(0), ram, guard, RAM, Flags::default())?;
                edit.add_ram(Gpa(ROM), region(0x1000), 0, 0x1000, rom)
            })
            .expect("an empty map has room")
            .wait();
        let dma = DmaSpace::new(space.clone(), Arc::new(Memory(space.clone())));
        Self {
            transport: MmioTransport::new(device, dma, Arc::new(Unconnected)),
            space,
            more: region(MORE_LEN),
            shown: None,
            guard: pattern,
            _region: watched,
        }
    }

    /// Writes a register with any width.
    pub fn write(&self, offset: u64, data: &[u8]) {
        self.transport.mmio_write(MmioAddress(0), offset, data);
    }

    /// Reads a register with any width.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.mmio_read(MmioAddress(0), offset, data);
    }

    /// Has the device stop, and keep what it has.
    pub fn pause(&self) {
        self.transport.pause();
    }

    /// Has it go on.
    pub fn resume(&self) {
        self.transport.resume();
    }

    /// Writes memory; bytes outside are dropped.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        if at.saturating_add(bytes.len() as u64) <= ROM {
            let _ = self.space.load().write(Gpa(at), bytes);
        }
    }

    /// Shows the memory that comes and goes, or takes it away.
    pub fn toggle(&mut self) {
        let (more, shown) = (self.more.clone(), self.shown);
        let update = self.space.update("toggle", |edit| match shown {
            Some(slot) => edit.remove(slot).map(|()| None),
            None => edit
                .add_ram(Gpa(MORE), more, 0, MORE_LEN, Flags::default())
                .map(Some),
        });
        self.shown = update.expect("it was checked by hand").wait();
    }

    /// Checks what nobody may write.
    pub fn check(&self) {
        self.guard.check();
        let mut page = [0; 0x1000];
        let read = self.space.load().read(Gpa(ROM), &mut page);
        assert!(
            read.is_ok() && page == [0; 0x1000],
            "read-only memory was written"
        );
    }
}
