//! How a device reaches guest memory by itself.

use crate::{AccessError, Gpa, GpaRange};

/// Guest RAM as a device that masters the bus sees it.
///
/// A device must write through this, or through a [`DmaMemory`](crate::DmaMemory), which reports here,
/// and through nothing else: a bare write into a [`Snapshot`](crate::Snapshot) is seen by the dirty
/// log alone, not by shadow page tables and not by whoever keeps decoded code. The machine implements
/// it once, for all of its devices.
///
/// Addresses and lengths are the guest's and may be anything. May be called from any thread, also
/// under a device's own lock; blocks on short locks only. There are no devices behind these
/// addresses, only RAM: one device does not reach another.
pub trait Dma: Send + Sync {
    /// Reads RAM.
    ///
    /// # Errors
    /// If some byte is no RAM; `data` is then undefined.
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError>;

    /// Writes RAM.
    ///
    /// # Errors
    /// If some byte is no RAM, or may only be read. Bytes before it may have been written.
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError>;

    /// Hears that a device has stored to RAM by itself: the bytes are in memory and in the dirty log.
    /// When this returns, everybody who keeps something derived from them follows, so the device may
    /// tell the guest then. Nothing to do where processors read memory themselves.
    fn written(&self, range: GpaRange);
}
