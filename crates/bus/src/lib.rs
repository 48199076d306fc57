//! Devices by id behind windows, and port I/O.
//!
//! ```text
//!   access ── Snapshot::resolve ──> Io { id, offset } ── Bus: id → device ──> DeviceMmio
//!   port   ── Ports: range → device ──────────────────────────────────────> DevicePio
//! ```
//!
//! The bus holds no memory addresses. Where a device is, the guest-physical map of `umbra-slots`
//! says, under an opaque [`IoId`](umbra_slots::IoId); a device that appears, moves or goes is
//! one [`AddressSpace::update`](umbra_slots::AddressSpace::update), which bumps the generation, and
//! nobody else has to be told. Ports have no map and no generation: [`Ports`] keeps its own ranges.
//!
//! A processor that hits the same window again needs no lookup: it keeps a [`LastHit`], which carries
//! the generation and is stale with it.
//!
//! What hits nothing reads as all ones, is dropped when written, and is counted. An access that
//! crosses a border is split as hardware does; see [`Bus::read`].
//!
//! **Locks**: a reader takes none. Writers of the tables come after the map's writer lock, and no
//! device is ever called with a lock held. [`Removed::wait`] waits for handlers that still run (rule R28).
//!
//! This crate must not know `cpu` (the machine composes the two) nor any device.
//! Start reading at [`Bus`].
//!
//! ```
//! use std::sync::Arc;
//! use umbra_bus::Bus;
//! use umbra_slots::{AddressSpace, Gpa, GpaRange, Options};
//! use vm_device::{DeviceMmio, bus::MmioAddress};
//!
//! /// Reads as the low byte of each offset.
//! struct Ramp;
//!
//! impl DeviceMmio for Ramp {
//!     fn mmio_read(&self, _base: MmioAddress, offset: u64, data: &mut [u8]) {
//!         data.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = at as u8);
//!     }
//!     fn mmio_write(&self, _base: MmioAddress, _offset: u64, _data: &[u8]) {}
//! }
//!
//! let bus = Bus::new(AddressSpace::new(Options::default()));
//! let window = GpaRange::new(Gpa(0xd000_0000), 6).expect("it is not empty and does not wrap");
//! bus.insert(window, Arc::new(Ramp))?;
//! let mut data = [0; 4];
//! bus.read(&bus.space().load(), Gpa(0xd000_0004), &mut data);
//! assert_eq!(data, [4, 5, 0xff, 0xff]); // two bytes are beyond its end
//! # Ok::<(), umbra_bus::BusError>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod gate;
mod last;
mod memory;
#[cfg(all(test, umbra_loom))]
mod models;
mod ports;
#[cfg(test)]
mod removal_tests;
mod split;
mod table;

use std::sync::Arc;

use vm_device::{DeviceMmio, DevicePio};

pub use error::BusError;
pub use gate::Removed;
pub use last::LastHit;
pub use memory::Bus;
pub use ports::{Ports, PortsError};

/// A device behind a memory window, shared by all processors.
pub type MmioDevice = Arc<dyn DeviceMmio + Send + Sync>;

/// A device behind ports, shared by all processors.
pub type PioDevice = Arc<dyn DevicePio + Send + Sync>;
