//! Why a device cannot appear or move.

use umbra_slots::{IoId, SlotError};

/// Why a change of the bus was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// No device has this id.
    #[error("there is no device {}", id.0)]
    NoSuchDevice {
        /// The id.
        id: IoId,
    },
    /// The map refused the window.
    #[error(transparent)]
    Map(#[from] SlotError),
}
