//! One slot of the map: a range and what is behind it.

use std::fmt;
use std::sync::Arc;

use vm_memory::MmapRegion;

use crate::{DirtyLog, GpaRange, IoId, RamRegion};

/// Names a slot for as long as its address space lives; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(crate) u32);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What may be done with a RAM slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The guest reads RAM; its writes go to the machine like those to an I/O window.
    pub read_only: bool,
    /// Every write marks its page in the region's [`DirtyLog`]. Without it guest writes may or
    /// may not be marked.
    pub dirty_log: bool,
}

/// What is behind a slot.
#[derive(Clone, Debug)]
pub enum Backing {
    /// Memory.
    Ram {
        /// The memory.
        region: Arc<RamRegion>,
        /// Where in the region the slot begins.
        offset: u64,
        /// What may be done with it.
        flags: Flags,
        /// The slot's part of the region as one mapping, for users of `vm-memory`.
        #[doc(hidden)]
        view: Arc<MmapRegion<DirtyLog>>,
    },
    /// Something that the machine dispatches by this number.
    Io(IoId),
}

/// A range of guest-physical addresses with one thing behind it.
#[derive(Clone, Debug)]
pub struct Slot {
    pub(crate) id: SlotId,
    pub(crate) range: GpaRange,
    pub(crate) backing: Backing,
}

impl Slot {
    /// Returns the slot's name.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// Returns where the slot is.
    pub fn range(&self) -> GpaRange {
        self.range
    }

    /// Returns what is behind it.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// Returns the flags of a RAM slot, `None` for an I/O window.
    pub fn ram_flags(&self) -> Option<Flags> {
        match self.backing {
            Backing::Ram { flags, .. } => Some(flags),
            Backing::Io(_) => None,
        }
    }

    /// Tells whether both slots show the same memory at the same address, up to the shorter's end.
    pub(crate) fn same_memory(&self, other: &Slot) -> bool {
        let (
            Backing::Ram { region, offset, .. },
            Backing::Ram {
                region: other_region,
                offset: other_offset,
                ..
            },
        ) = (&self.backing, &other.backing)
        else {
            return false;
        };
        self.range.start() == other.range.start()
            && offset == other_offset
            && Arc::ptr_eq(region, other_region)
    }
}
