//! A virtio device in a process of its own: the back end of vhost-user.
//!
//! ```text
//!   monitor: front end                          this process
//!     driver's registers                          Server: a socket, one front end after the other
//!     │  messages, descriptors  ── socket ──>       Backend: features, memory, rings
//!     │                                               │ a Queue for each ring that runs
//!   guest's memory  <── the same file, mapped ──>     v
//!     rings: kick ──────────── eventfd ──────>      Device::activate(Activation)     as in the monitor
//!            call <─────────── eventfd ───────        { queues, memory, interrupt }
//! ```
//!
//! To a [`Device`](umbra_virtio::Device) this is one more transport: it is activated with queues, guest memory and an
//! interrupt, and knows nothing of where the guest is.
//!
//! The messages are those of QEMU's `docs/interop/vhost-user.rst`; the `vhost` crate reads and answers them. Its
//! sister `vhost-user-backend` is not used: that one owns rings, threads and memory, and calls a device for one event
//! of one ring at a time, so that devices which have threads of their own could not run under it, and there would be
//! two kinds of each device.
//!
//! **The front end is hostile**, and so is its guest. Every number is checked where it arrives; what is wrong ends the
//! connection with an [`Error`], and the next front end finds the device as new. What it can do is end this process by
//! memory that it takes away (SIGBUS, see `memory`): it is the front end's device alone.
//!
//! **Threads and locks.** One thread serves the socket, and takes the lock of the session for each message; devices
//! have threads of their own, which know queues, memory and the interrupt. Nothing waits for the front end but reads and
//! writes of its socket, and those end when a [`Stopper`] shuts it.
//!
//! Not here: packed rings, IOMMUs (IOTLB messages), notifications by messages or by polling, postcopy, the
//! device's state as a stream, VHOST_USER_PROTOCOL_F_STATUS (the library does not know its messages).
//!
//! Start reading at [`Server`], then [`Backend`].
#![forbid(unsafe_code)]

mod backend;
mod error;
mod handler;
mod inflight;
mod log;
mod memory;
mod ring;
mod server;
mod socket;
mod wire;

pub use backend::Backend;
pub use error::{Error, ListenError};
pub use server::{Server, Stopper, Visits};
pub use socket::Socket;
