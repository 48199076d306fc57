//! Doorbells: writes of the guest that signal an event descriptor and nothing else.

use std::os::fd::BorrowedFd;

use umbra_slots::IoId;

/// A write that rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// Offset in the device's window.
    pub offset: u64,
    /// Width of the write in bytes: 1, 2, 4 or 8; 0 for a write of any width.
    pub len: u32,
    /// Only a write of this value rings; every value does where there is none.
    pub value: Option<u64>,
}

/// Lets writes to a device's window signal event descriptors without an exit to this process.
///
/// A doorbell belongs to a window of the map, not to an address: it moves with the window and is
/// silent as soon as the window has gone, whoever is behind its addresses then (rule R10). While a
/// window moves a write may reach the device instead, which must do the same as the doorbell does.
pub trait Doorbells: Send + Sync {
    /// Lets `event` be signalled by writes to the window `id` that match.
    ///
    /// # Errors
    /// If such a doorbell is there already, it does not lie in its window, or the host refuses; nothing
    /// has changed then. A window that is not in the map yet, or comes back smaller, leaves a doorbell
    /// that does not fit silent.
    fn add(&self, id: IoId, doorbell: Doorbell, event: BorrowedFd<'_>)
    -> Result<(), DoorbellError>;

    /// Takes a doorbell away; nothing if there is none. When this returns it does not ring.
    fn remove(&self, id: IoId, doorbell: Doorbell);

    /// Takes all doorbells of a window away; for a device that goes.
    fn remove_all(&self, id: IoId);
}

/// Why there is no such doorbell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorbellError {
    /// It would ring twice.
    #[error("window {id} has a doorbell {doorbell:?} already; remove it first", id = id.0)]
    Taken {
        /// The window.
        id: IoId,
        /// The doorbell.
        doorbell: Doorbell,
    },
    /// No such width.
    #[error("a doorbell is 1, 2, 4 or 8 bytes wide, or 0 for any width, not {len}")]
    Width {
        /// What was asked for.
        len: u32,
    },
    /// It would ring for somebody else.
    #[error(
        "a doorbell of {len} bytes at offset {offset:#x} does not lie in window {id} of {window:#x} bytes",
        id = id.0
    )]
    Outside {
        /// The window.
        id: IoId,
        /// Where in it.
        offset: u64,
        /// Width.
        len: u32,
        /// Size of the window in bytes.
        window: u64,
    },
    /// The host refused.
    #[error("the host refused a doorbell at offset {offset:#x} of window {id}", id = id.0)]
    Host {
        /// The window.
        id: IoId,
        /// Where in it.
        offset: u64,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
}
