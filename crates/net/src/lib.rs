//! The host's end of network devices: where a guest's frames go and come from.
//!
//! ```text
//!   device ── Port ──> Tap          a queue of a TAP interface: root, or an interface made for the user
//!                 └──> Stream       frames over a unix socket, as QEMU's `-netdev stream` has them
//!                        └─ Passt   user-mode networking by passt: no root, no interface
//! ```
//!
//! A port carries frames with a [`Header`] before each. A TAP queue passes that on, so that checksums
//! and segmentation are left to whoever is last; over a socket a frame has to be complete.
//!
//! Nothing here blocks, and nothing knows virtio queues or guests.
//!
//! ```
//! use umbra_net::{Mac, MacError};
//!
//! let mac: Mac = "02:00:00:00:00:01".parse()?;
//! assert_eq!(mac.to_string(), "02:00:00:00:00:01");
//! assert!(matches!("03:00:00:00:00:01".parse::<Mac>(), Err(MacError::Multicast { .. })));
//! # Ok::<(), MacError>(())
//! ```

mod header;
mod mac;
mod passt;
mod port;
mod stream;
mod tap;

pub use header::Header;
pub use mac::{Mac, MacError};
pub use passt::{Passt, PasstError};
pub use port::{Offloads, Port, Sent};
pub use stream::{Stream, StreamError};
pub use tap::{Tap, TapError};

/// Bytes of the largest frame, with its header: 64 KiB of segmented payload, and the headers of Ethernet with
/// a VLAN tag.
pub const FRAME_MAX: usize = Header::LEN + 0x1_0000 + 18;
