//! Virtio devices whose work is done outside of the monitor: in another process (vhost-user), or by the host's kernel.
//!
//! ```text
//!   guest's driver ── rings ──> VhostUser: relay ── rings of ours ──> back end
//!                                  │                                     │ reads and writes the guest's
//!                                  │ connection: features, configuration │ buffers by itself
//!                                  'keeper'── unix socket ───────────────'
//!   AddressSpace::update ── Hub ── pieces of memory ─────────────────────^
//! ```
//! A [`VhostUser`] is a virtio device as any other. Its back end is found at a unix socket, says what it
//! offers, and is given guest memory and queues. It may die and come back ([`BackEndState`]): the guest waits.
//!
//! A [`VhostKernel`] is one whose back end is a node of the kernel's: an interface, sockets, or a device of the host's.
//! What follows holds for it as well, but that the kernel is trusted, and does not die.
//!
//! **Memory.** A back end maps guest memory slot by slot, and every change of the map reaches it in the right
//! order: see [`Hub`], of which each machine has one.
//!
//! **Rings.** A back end works on rings of the monitor's own and never sees the guest's: see the module of the
//! relay for what that is good for.
//!
//! **A back end is hostile**, as is the guest. It can read and write all guest memory that a device could; that
//! is what it is for. It cannot reach memory of the monitor, break the guest's rings, or make anybody wait for
//! more than five seconds; what it says wrongly costs it its connection.
//!
//! Not here: packed queues, descriptors by IOMMU, memory that only may be read, and memory that is a file of
//! the host's (a request with a buffer there is a fault of the driver's, as one outside of memory is), migration of a back end's state.
#![deny(unsafe_code)]

mod activity;
mod back_end;
mod channel;
mod config;
mod deadlines;
mod error;
mod gate;
mod hub;
mod keeper;
mod kernel;
mod kind;
mod link;
mod pace;
mod patience;
mod relay;
mod requests;
mod ring;
mod session;
mod table;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod user;

pub use deadlines::Deadlines;
pub use error::{BackEndError, RingError};
pub use hub::Hub;
pub use kernel::{
    VdpaOptions, VhostKernel, VhostKernelControl, VhostNetOptions, VhostVsockOptions, nodes,
};
pub use kind::{Kind, TAG_MAX};
pub use link::BackEndState;
pub use requests::Malformed;
pub use user::{VhostUser, VhostUserControl, VhostUserOptions};
