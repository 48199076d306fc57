//! Guest memory, and a virtio device.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use umbra_irq::Unconnected;
use umbra_slots::AddressSpace;
use umbra_virtio::{Device, MmioTransport, Transport};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::Memory;

/// The machine, which can be used as its memory.
pub struct Machine {
    transport: Arc<MmioTransport>,
    memory: Memory,
}

impl Deref for Machine {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        &self.memory
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }
}

impl Machine {
    /// Makes one with this device.
    pub fn new(device: Box<dyn Device>) -> Self {
        Self::with(|_| device)
    }

    /// Makes one with a device that knows its map.
    pub fn with(device: impl FnOnce(&AddressSpace) -> Box<dyn Device>) -> Self {
        let memory = Memory::new();
        let device = device(&memory.space);
        Self {
            transport: MmioTransport::new(device, memory.dma(), Arc::new(Unconnected)),
            memory,
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
}
