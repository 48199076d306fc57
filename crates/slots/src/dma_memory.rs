//! Guest RAM for devices that work through `vm-memory`, as the rings of `virtio-queue` do.
//!
//! ```text
//!   DmaSpace ── memory() ──> DmaMemory: one map, kept mapped; a vm_memory::GuestMemory
//!                                └─ get_slices(gpa, len, rights) -> VolatileSlice + DmaMark
//!   store to the slice, then DmaMark::mark_dirty(offset, len):
//!       1. the dirty log of the region     as for any write
//!       2. Dma::written(range)             shadow page tables, decoded code
//! ```
//!
//! [`Dma::write`] copies, and keeps all followers true in one step. The users of `vm-memory` store
//! through host addresses instead, but every one of them ends a store with `Bitmap::mark_dirty`: that is
//! the hook. So the bitmap of this memory is not the dirty log itself, but a mark that knows its
//! guest-physical address, writes the log and reports to the machine's [`Dma`].
//!
//! *Order.* A store is followed a moment after it is in memory, not in the same step. Nobody can tell:
//! a device says that its data are there by a later store (the used index) or an interrupt, and by then
//! the report of the data has returned. Up to there the guest may see old translations or execute
//! old code, as on a processor whose caches nobody has flushed yet.
//!
//! *What goes past it.* Whoever takes the raw pointer of a slice (`ptr_guard_mut`, for `readv` or an
//! io_uring) has to call `slice.bitmap().mark_dirty(0, len)` when the bytes have come, before it tells
//! the guest; that is so with every bitmap of `vm-memory`, and its own `read_volatile` does it.
//! Nothing of this crate hands out a slice without a mark.
//!
//! *Rights.* A slice for writing is given for RAM that the guest may write; a slice for reading of any
//! RAM. I/O windows and holes are errors.
//!
//! *Maps that change.* A [`DmaMemory`] is one map. Taking it is a look at the current one and two
//! counters, so a device takes it anew for every run over its queue and drops it before it sleeps. RAM
//! that left meanwhile stays mapped as long as the old map is held: a store then goes to memory that
//! no longer belongs to the guest, as does one by real hardware into a module that was pulled. A
//! request that the host works on while its device sleeps keeps the map it was made from, and gives the
//! mark by that.
//!
//! *Cost.* A slice is one binary search among the slots; a store is, besides, what [`Dma::written`]
//! costs: nothing for a backend whose processors read memory themselves, the MMU's lock and two
//! look-ups a page for the software processor.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory as VmMemory, GuestMemoryError, Permissions, VolatileSlice,
};

use crate::snapshot::GuestMemory;
use crate::volatile::volatile;
use crate::{AddressSpace, Dma, Gpa, GpaRange, Hold, RamTarget, Snapshot, Target};

/// Where a device takes its memory from.
#[derive(Clone)]
pub struct DmaSpace {
    space: Arc<AddressSpace>,
    dma: Arc<dyn Dma>,
}

impl DmaSpace {
    /// Joins a map and the machine's way to write it. Both belong to the same machine.
    pub fn new(space: Arc<AddressSpace>, dma: Arc<dyn Dma>) -> Self {
        Self { space, dma }
    }

    /// Returns memory as the current map has it.
    pub fn memory(&self) -> DmaMemory {
        DmaMemory {
            map: self.space.load_full(),
            dma: self.dma.clone(),
        }
    }

    /// Holds the map still, see [`AddressSpace::hold`].
    pub fn hold(&self) -> Hold<'_> {
        self.space.hold()
    }

    /// Returns the way that copies.
    pub fn dma(&self) -> &Arc<dyn Dma> {
        &self.dma
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DmaSpace").field(&self.space).finish()
    }
}

/// Guest RAM of one map, for a device. Cheap to make and to clone; not to be kept across a
/// wait, but by what the host works on meanwhile.
///
/// As a `Bitmap` it is the marks of all addresses: an offset is a guest-physical address.
#[derive(Clone)]
pub struct DmaMemory {
    map: Arc<Snapshot>,
    dma: Arc<dyn Dma>,
}

impl DmaMemory {
    /// Returns the map.
    pub fn map(&self) -> &Arc<Snapshot> {
        &self.map
    }

    /// Returns the RAM at an address, if such an access may be made there.
    fn ram(&self, gpa: Gpa, access: Permissions) -> Option<RamTarget<'_>> {
        match self.map.resolve(gpa) {
            Target::Ram(ram) if ram.read_only && access.has_write() => None,
            Target::Ram(ram) => Some(ram),
            Target::Io { .. } | Target::Nothing => None,
        }
    }

    fn pieces(&self, gpa: Gpa, len: usize, access: Permissions) -> Pieces<'_> {
        Pieces {
            memory: self,
            at: gpa,
            left: len,
            access,
        }
    }
}

impl fmt::Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMemory(generation {})", self.map.generation())
    }
}

impl VmMemory for DmaMemory {
    type PhysicalMemory = GuestMemory;
    type Bitmap = Self;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.pieces(Gpa(addr.0), count, access)
            .all(|piece| piece.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, DmaMark<'a>>, GuestMemoryError> {
        Ok(self.pieces(Gpa(addr.0), count, access))
    }
}

/// Consecutive guest memory, slot by slot. Ends with the first address that may not be reached.
struct Pieces<'a> {
    memory: &'a DmaMemory,
    at: Gpa,
    left: usize,
    access: Permissions,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<VolatileSlice<'a, DmaMark<'a>>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let Some(ram) = self.memory.ram(self.at, self.access) else {
            self.left = 0;
            let address = GuestAddress(self.at.0);
            return Some(Err(GuestMemoryError::InvalidGuestAddress(address)));
        };
        let len = usize::try_from(ram.remaining).map_or(self.left, |rest| rest.min(self.left));
        let mark = DmaMark::new(self.memory, self.at);
        let slice = volatile(&ram, len, mark);
        // Slots end below 2^52: no address wraps before it is beyond them.
        self.at = Gpa(self.at.0 + len as u64);
        self.left -= len;
        Some(Ok(slice))
    }
}

impl FusedIterator for Pieces<'_> {}

impl<'a> GuestMemorySliceIterator<'a, DmaMark<'a>> for Pieces<'a> {}

/// Takes the report of a store, for addresses from one on.
#[derive(Clone, Copy)]
pub struct DmaMark<'a> {
    memory: &'a DmaMemory,
    at: Gpa,
}

impl<'a> DmaMark<'a> {
    pub(crate) fn new(memory: &'a DmaMemory, at: Gpa) -> Self {
        Self { memory, at }
    }

    /// The address `offset` bytes further; beyond every slot if there is none.
    fn further(&self, offset: usize) -> Gpa {
        Gpa(self.at.0.saturating_add(offset as u64))
    }
}

impl fmt::Debug for DmaMark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMark({})", self.at)
    }
}

impl WithBitmapSlice<'_> for DmaMark<'_> {
    type S = Self;
}

impl BitmapSlice for DmaMark<'_> {}

impl Bitmap for DmaMark<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(range) = GpaRange::new(self.further(offset), len as u64) else {
            return; // nothing was stored
        };
        let (mut at, mut left) = (range.start(), range.len());
        while left != 0 {
            let Some(ram) = self.memory.ram(at, Permissions::Read) else {
                break; // a mark beyond the slice that was stored to
            };
            let piece = left.min(ram.remaining);
            ram.mark_dirty(piece as usize);
            (at, left) = (Gpa(at.0 + piece), left - piece);
        }
        self.memory.dma.written(range);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.memory
            .ram(self.further(offset), Permissions::Read)
            .is_some_and(|ram| ram.is_dirty())
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            at: self.further(offset),
            ..*self
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DmaMemory {
    type S = DmaMark<'a>;
}

impl Bitmap for DmaMemory {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(offset).mark_dirty(0, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(offset).dirty_at(0)
    }

    fn slice_at(&self, offset: usize) -> DmaMark<'_> {
        DmaMark::new(self, Gpa(offset as u64))
    }
}

#[cfg(test)]
#[path = "dma_memory_tests.rs"]
mod tests;
