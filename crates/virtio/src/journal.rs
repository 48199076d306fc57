//! Which chains of a queue are with the device, where that has to outlive the device's process.
//!
//! ```text
//!   pop ──> taken(head)                       again: heads that a device before this one had taken,
//!   push ─> giving(heads)                       which pop returns first, oldest first
//!             used index is stored
//!           given(used index)
//! ```
//!
//! A device that dies between has the journal tell who takes over what was never answered. A queue that has none
//! pays one branch for each of these.

use std::fmt;

/// Hears what becomes of the chains of a queue, on the thread that works on it.
pub trait Journal: Send {
    /// The chain that begins at `head` was taken.
    fn taken(&mut self, head: u16);
    /// The chain that was taken last, of those that were not given to the driver, is the driver's again.
    fn taken_back(&mut self);
    /// These chains are in the used ring, and the driver sees them with the next store of its index.
    fn giving(&mut self, heads: &mut dyn Iterator<Item = u16>);
    /// The index of the used ring was stored: the driver has those that were being given.
    fn given(&mut self, used: u16);
}

/// A queue's journal, and what is left of the one before.
pub(crate) struct Kept {
    pub journal: Box<dyn Journal>,
    /// Heads that are taken once more, the next one at the end.
    pub again: Vec<u16>,
    /// Those of them that were taken, the last one at the end.
    retaken: Vec<u16>,
    /// How many others were taken and are not the driver's again.
    fresh: u64,
}

impl Kept {
    /// `again` are heads by the order in which they were taken.
    pub fn new(journal: Box<dyn Journal>, mut again: Vec<u16>) -> Self {
        again.reverse();
        Self {
            journal,
            again,
            retaken: Vec::new(),
            fresh: 0,
        }
    }

    /// A chain of the available ring was taken.
    pub fn taken(&mut self, head: u16) {
        self.fresh += 1;
        self.journal.taken(head);
    }

    /// The next of those from before was taken. It is in the journal already.
    pub fn retaken(&mut self) {
        self.retaken.extend(self.again.pop());
    }

    /// The chain that was taken last goes back. Tells whether it is one of the available ring, whose index has
    /// to follow. All others were taken before.
    pub fn take_back(&mut self) -> bool {
        if self.fresh == 0 {
            self.again.extend(self.retaken.pop());
            return false;
        }
        self.fresh -= 1;
        self.journal.taken_back();
        true
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({} to take again)", self.again.len())
    }
}
