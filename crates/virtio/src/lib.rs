//! What a virtio device is, and how drivers reach it: memory-mapped and by PCI (virtio 1.3).
//!
//! ```text
//!   vCPU thread                                       worker thread of the device
//!   transport ── registers ──> Session                Handler::serve(queue, memory)
//!     │   status, features, queues    │                 │   pop ─> Chain: reader, writer
//!     │                               v                 │   push, interrupt if it is wanted
//!     │              Device::activate(Activation) ──────'
//!     │                { queues, memory, interrupt }    ^             │
//!     └─ notification ──> Event ────────────────────────┘             v
//!          (or a doorbell of the backend)               Interrupt ──> Wire ──> line, or MSI-X
//! ```
//!
//! A [`Device`] says what it is and does its work; a transport is how the driver reaches it. What
//! both agreed on, and in which order that may happen (virtio 1.3, 2.1 and 3.1), is a `Session`,
//! which every transport has one of.
//!
//! **Everything from the driver is hostile.** Registers take any access: a wrong width, place or
//! order is ignored, or reads as zero. Rings are looked at by `virtio-queue`, and a [`Queue`] turns
//! what that lets pass in silence into a [`QueueError`]: a chain that loops, ends nowhere, is in the
//! wrong order, or an index that is too far ahead. Then the device works no more and asks for a reset
//! (DEVICE_NEEDS_RESET, 2.1.2), which the driver may give it; nobody else is affected.
//!
//! **Guest memory** is reached through [`umbra_slots::DmaMemory`] only, whose stores are seen by dirty log,
//! shadow page tables and decoded code. A queue keeps guest addresses and no host addresses, and a
//! worker takes the map anew for every run.
//!
//! **Threads and locks.** A transport's lock is held by a processor in a register access; it comes
//! before the map's writer lock (doorbells) and before an interrupt controller's. A worker takes no
//! transport lock: it knows its queues, guest memory, and the [`Interrupt`], which has a lock of its
//! own. So a reset, which waits for the worker under the transport's lock, ends: a worker stops after
//! what it is doing, and that is at most one run over its queue.
//!
//! **Other transports** are made outside: a device needs an [`Activation`], whose queues [`Queue::at`] makes at any place
//! of their rings, an [`Interrupt`] over a [`Wire`], and somebody who owns it. A [`Journal`] makes what a queue's device
//! has outlive the device.
//!
//! Not here: packed rings, legacy drivers, resets of one queue (VIRTIO_F_RING_RESET), shared
//! memory regions. Devices are in `umbra-devices`.
//!
//! Start reading at [`Device`], then [`MmioTransport`] or [`PciTransport`]; `examples/device.rs` is a device with a driver.
#![forbid(unsafe_code)]

mod bells;
mod device;
#[cfg(any(test, feature = "testing"))]
pub mod echo;
mod event;
mod features;
mod front;
mod interrupt;
mod journal;
mod mmio;
mod pci;
mod queue;
mod queue_worker;
mod session;
mod status;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;
mod worker;

pub use device::{ActivateError, Activation, Device, read_config};
pub use event::Event;
pub use features::Features;
pub use interrupt::{Interrupt, Wire};
pub use journal::Journal;
pub use mmio::MmioTransport;
pub use pci::PciTransport;
pub use queue::{
    Chain, ChainBuffer, ChainReader, ChainWriter, Notifications, Place, Queue, QueueError, Served,
};
pub use queue_worker::{Alarm, Fault, Handler, Next, QueueWorker};
pub use status::Status;
pub use transport::Transport;
pub use worker::Worker;
