//! Guest memory that is given back to the host, for a balloon.
//!
//! ```text
//!   DmaMemory::discard(range)
//!     whole pages of RAM that the guest may write     a hole in the region's file, slot by slot
//!     then DmaMark::mark_dirty                         as after any store of a device
//!     I/O windows, holes, read-only RAM, files         left alone, and counted
//! ```
//!
//! RAM is a file that is mapped shared, so what is freed is a piece of the file: every mapping of it, also
//! another process's, loses its pages and finds zeros at the next touch. Nobody has to be asked before:
//! addresses stay as they are. That the page reads as zeros now is a store, and is followed as one: dirty
//! log, shadow page tables and decoded code see it before [`DmaMemory::discard`] returns.

use vm_memory::bitmap::Bitmap;

use crate::dma_memory::DmaMark;
use crate::{Backing, DmaMemory, Gpa, GpaRange, RamError, RamTarget, Target};

const PAGE: u64 = 0x1000;

/// What became of a range that was to be discarded. Both are bytes of whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discarded {
    /// RAM that reads as zeros now, and takes no memory of the host until it is touched.
    pub freed: u64,
    /// No RAM, or RAM that the guest may not write: as it was.
    pub ignored: u64,
}

impl DmaMemory {
    /// Gives the whole 4 KiB pages of a range back to the host, as far as they are RAM that may be written;
    /// they read as zeros then. Pages that are in the range in part are left alone.
    ///
    /// Where the host has larger pages (hugetlbfs), those that are covered in part read as zeros, too, but
    /// stay with the guest.
    ///
    /// # Errors
    /// If the host refuses. What comes before has been given back.
    pub fn discard(&self, range: GpaRange) -> Result<Discarded, RamError> {
        // Ranges end at 2^52 at the latest: nothing wraps.
        let end = (range.last().0 + 1) & !(PAGE - 1);
        let mut at = range.start().0.next_multiple_of(PAGE);
        let mut done = Discarded::default();
        while at < end {
            let (len, ram) = self.piece_at(Gpa(at), end - at);
            match ram {
                Some(ram) => {
                    self.discard_ram(&ram, Gpa(at), len)?;
                    done.freed += len;
                }
                None => done.ignored += len,
            }
            at += len;
        }
        Ok(done)
    }

    /// Returns how many of `wanted` bytes are of one kind, and the RAM if they are RAM to be discarded.
    fn piece_at(&self, gpa: Gpa, wanted: u64) -> (u64, Option<RamTarget<'_>>) {
        match self.map().resolve(gpa) {
            Target::Ram(ram) if !ram.read_only && !is_of_file(&ram) => {
                (ram.remaining.min(wanted), Some(ram))
            }
            Target::Ram(RamTarget { remaining, .. }) | Target::Io { remaining, .. } => {
                (remaining.min(wanted), None)
            }
            Target::Nothing => {
                let next = self.map().next_slot(gpa);
                let hole = next.map_or(wanted, |slot| slot.range().start().0 - gpa.0);
                (hole.min(wanted), None)
            }
        }
    }

    fn discard_ram(&self, ram: &RamTarget<'_>, gpa: Gpa, len: u64) -> Result<(), RamError> {
        let Backing::Ram { region, offset, .. } = ram.slot.backing() else {
            unreachable!("a RAM target is in a RAM slot");
        };
        let result = region.discard(offset + ram.offset, len);
        // After an error, too: a part may have been given back.
        DmaMark::new(self, gpa).mark_dirty(0, len as usize);
        result
    }
}

/// A hole in a file of the host's would be data that is lost.
fn is_of_file(ram: &RamTarget<'_>) -> bool {
    matches!(ram.slot.backing(), Backing::Ram { region, .. } if region.is_of_file())
}

#[cfg(test)]
#[path = "discard_tests.rs"]
mod tests;
