//! Interrupt wires: a line, a message, a chip. Traits and tiny types only.
//!
//! A device is given a [`Line`] or a [`MsiTarget`] and never learns which controller, backend or
//! processor is behind it. This crate must not know any of them either.
#![forbid(unsafe_code)]

use std::sync::Arc;

use vm_device::{DeviceMmio, DevicePio};

/// A level-sensitive interrupt input of a controller.
///
/// May be called from any thread; does not block beyond the controller's own short lock.
pub trait Line: Send + Sync {
    /// Drives the wire high (`true`) or low. Driving it to the level it has is no event.
    fn set(&self, high: bool);

    /// Pulses the wire: high, then low. For edge-triggered inputs.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A message-signalled interrupt: one memory write (SDM vol. 3, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where the write goes; 0xfeexxxxx for processors.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Takes message-signalled interrupts.
pub trait MsiTarget: Send + Sync {
    /// Delivers `msi`. A message to nobody is dropped, as the bus does.
    fn send(&self, msi: Msi);
}

/// A line that leads nowhere: for a device whose interrupt nobody wired.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconnected;

impl Line for Unconnected {
    fn set(&self, _high: bool) {}
}

/// A chip with numbered inputs.
pub trait Chip: Send + Sync {
    /// Returns input `number`, or `None` where the chip has no such input.
    fn line(&self, number: u32) -> Option<Arc<dyn Line>>;
}

/// A controller that is a device too, and where it is.
pub enum Controller {
    /// In memory.
    Memory {
        /// First guest-physical address.
        start: u64,
        /// Number of bytes.
        len: u64,
        /// The device.
        device: Arc<dyn DeviceMmio + Send + Sync>,
    },
    /// Behind ports.
    Ports {
        /// First port.
        first: u16,
        /// Number of ports.
        len: u16,
        /// The device.
        device: Arc<dyn DevicePio + Send + Sync>,
    },
}
