//! How the driver hears of its device: by the front end's descriptors, and the channel back to it.
//!
//! ```text
//!   used buffers         SET_VRING_CALL's descriptor of that ring
//!   needs a reset        SET_VRING_ERR's descriptors of all rings
//!   configuration        VHOST_USER_BACKEND_CONFIG_CHANGE_MSG on SET_BACKEND_REQ_FD's socket
//! ```
//!
//! Descriptors come and go while the device runs, under a lock that is held for a system call which does not wait.
//!
//! The library's own end of the channel has no way to say that the configuration has changed, so the message is
//! written here: a header without a body, that asks for no answer. It is idempotent: one that finds the socket full
//! is told by those that are in it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::net::{SendFlags, send};
use umbra_virtio::{Event, Wire};
use vhost::vhost_user::message::BackendReq;

/// Version 1 of the protocol, in a header's flags.
const VERSION: u32 = 1;

#[derive(Default)]
struct Ring {
    call: Option<Event>,
    error: Option<Event>,
}

#[derive(Default)]
struct Ends {
    rings: Vec<Ring>,
    channel: Option<UnixStream>,
}

/// The front end's ends of all notifications.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Mutex<Ends>>);

impl Lines {
    /// None yet, of so many rings.
    pub fn new(rings: usize) -> Self {
        let rings = (0..rings).map(|_| Ring::default()).collect();
        Self(Arc::new(Mutex::new(Ends {
            rings,
            channel: None,
        })))
    }

    /// Sets where used buffers of a ring are told; nowhere if the driver polls.
    pub fn set_call(&self, ring: usize, fd: Option<OwnedFd>) {
        let mut ends = self.0.lock();
        ends.rings[ring].call = fd.map(Event::to_signal);
        // Whatever the one before was told too late.
        if let Some(call) = &ends.rings[ring].call {
            call.signal();
        }
    }

    /// Sets where it is told that a ring is no more.
    pub fn set_error(&self, ring: usize, fd: Option<OwnedFd>) {
        self.0.lock().rings[ring].error = fd.map(Event::to_signal);
    }

    /// Sets the channel to the front end.
    pub fn set_channel(&self, channel: Option<UnixStream>) {
        self.0.lock().channel = channel;
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        let mut ends = self.0.lock();
        ends.channel = None;
        ends.rings
            .iter_mut()
            .for_each(|ring| *ring = Ring::default());
    }
}

impl Wire for Lines {
    fn used_buffers(&self, queue: u16) {
        let ends = self.0.lock();
        let ring = ends.rings.get(usize::from(queue));
        if let Some(call) = ring.and_then(|ring| ring.call.as_ref()) {
            call.signal();
        }
    }

    fn config_changed(&self) {
        let ends = self.0.lock();
        let Some(channel) = &ends.channel else {
            return;
        };
        let words = [BackendReq::CONFIG_CHANGE_MSG.into(), VERSION, 0u32];
        let message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let sent = send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if let Err(error) = sent {
            tracing::debug!(%error, "a front end does not hear of a changed configuration");
        }
    }

    fn needs_reset(&self) {
        for error in self.0.lock().rings.iter().filter_map(|r| r.error.as_ref()) {
            error.signal();
        }
    }
}
