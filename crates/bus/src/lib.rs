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
