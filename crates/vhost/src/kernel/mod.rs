//! Devices whose work the host's kernel does: vhost-net, vhost-vsock, vhost-vdpa.
//!
//! ```text
//!   VhostKernel ── relay ── rings of ours ──> Net    a node and a TAP queue for each pair of queues
//!        │                                    Vsock  a node; connections of the host's AF_VSOCK
//!        │                                    Vdpa   a node, which is a device of its own
//!        └─ what the kernel does not do: configuration, events of sockets, commands of an interface
//! ```
//! These are back ends as those of vhost-user are, on the same rings of the monitor's own and behind the same relay,
//! so what is said there of memory that is followed holds here. The differences:
//!
//! * **The kernel does not die**, so nobody looks for another one. It may say that it cannot go on with a queue (a
//!   buffer is in memory that has gone), or refuse something in the middle of a change: then the device asks its
//!   driver for a reset, after which the node is opened anew.
//! * **Memory** is addresses of this process. A net or vsock node takes a whole table, which it swaps for each of its
//!   queues between two requests (`vhost_set_memory`) and then flushes; so nothing has to stand still, and an update
//!   of the map returns when the kernel has let go, as [`Hub`](crate::Hub) promises. A table has as many pieces as
//!   the module's parameter `max_mem_regions` says, of which one is our rings.
//! * **The order of calls** is the one that is written down in [`node`].
//!
//! Not here: logging of what is written (`VHOST_F_LOG_ALL`: the relay knows it already), an IOMMU's misses, worker
//! threads of one's own, address spaces of vdpa devices, suspending these.

mod commands;
mod device;
mod net;
mod node;
#[cfg(test)]
mod recorder;
#[cfg(test)]
mod tests;
mod vdpa;
mod vsock;

pub use commands::Commands;
pub use device::{
    VdpaOptions, VhostKernel, VhostKernelControl, VhostNetOptions, VhostVsockOptions,
};

/// Where Linux has its nodes.
pub mod nodes {
    /// Interfaces.
    pub const NET: &str = "/dev/vhost-net";
    /// Sockets.
    pub const VSOCK: &str = "/dev/vhost-vsock";
}
