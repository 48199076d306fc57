//! Which guest frames are page tables that are shadowed, and how far the shadow can be trusted.
//!
//! ```text
//!             shadowed                    every stale write right is gone
//!   (nobody) ─────────> Settling(ticket) ────────────────> Protected
//!                          ^                                  │ trapped writes to a leaf table,
//!                          │ a flush found nothing changed    v Config::unsync
//!                          '──────────────────────────────  Unsync
//! ```
//!
//! * *Protected*: every write traps, so the shadow follows the table at once.
//! * *Settling*: no shadow entry allows writes any more and no new write right is given out, but a
//!   processor may still hold one in its own cache; the ticket tells when none does. Until then
//!   the shadow is as good as a TLB: right after the next flush. When the ticket is complete, the
//!   table is read once more and is protected.
//! * *Unsync*: writes do not trap. The shadow is as good as a TLB.
//!
//! Tables that are not protected are listed, and every flush that the guest makes reads them
//! again ([`Tables::flush`](crate::tables::Tables::flush)). The mark is set before the guest
//! entries are read, and a processor that wrote one before its flush sees the mark (rule R36).

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use umbra_slots::Gfn;

use crate::flush::Ticket;
use crate::page::PageId;

/// How far the shadow of a table can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Settling(Ticket),
    Protected,
    Unsync,
}

/// A guest frame that is a shadowed table.
#[derive(Clone, Debug)]
pub(crate) struct Shadowed {
    /// Its shadow pages, one a role.
    pub pages: SmallVec<[PageId; 2]>,
    pub state: State,
    /// Trapped writes since it was last protected.
    pub trapped: u32,
}

/// All shadowed frames. The larger regions that hold some are counted, because they cannot be
/// mapped by one entry.
#[derive(Debug, Default)]
pub(crate) struct ShadowedMap {
    frames: FxHashMap<Gfn, Shadowed>,
    in_2m: FxHashMap<u64, u32>,
}

impl ShadowedMap {
    pub fn get(&self, gfn: Gfn) -> Option<&Shadowed> {
        self.frames.get(&gfn)
    }

    pub fn get_mut(&mut self, gfn: Gfn) -> Option<&mut Shadowed> {
        self.frames.get_mut(&gfn)
    }

    /// Tells whether writes to the frame must trap.
    pub fn is_tracked(&self, gfn: Gfn) -> bool {
        self.frames
            .get(&gfn)
            .is_some_and(|s| s.state != State::Unsync)
    }

    /// Tells whether some frame of the range is shadowed, in whatever state.
    pub fn any_in(&self, first: Gfn, count: u64) -> bool {
        let regions = (first.0 >> 9)..=((first.0 + count - 1) >> 9);
        if count < 512 {
            return (first.0..first.0 + count).any(|gfn| self.frames.contains_key(&Gfn(gfn)));
        }
        if regions.clone().count() > self.in_2m.len() {
            return self.in_2m.keys().any(|region| regions.contains(region));
        }
        regions.into_iter().any(|r| self.in_2m.contains_key(&r))
    }

    /// Adds a page to a frame. `Some` state if the frame was none before.
    pub fn add(&mut self, gfn: Gfn, page: PageId, state: State) {
        let shadowed = self.frames.entry(gfn).or_insert_with(|| {
            *self.in_2m.entry(gfn.0 >> 9).or_default() += 1;
            Shadowed {
                pages: SmallVec::new(),
                state,
                trapped: 0,
            }
        });
        shadowed.pages.push(page);
    }

    /// Takes a page out. The frame is forgotten with its last page.
    pub fn remove(&mut self, gfn: Gfn, page: PageId) {
        let shadowed = self.frames.get_mut(&gfn).expect("its page is shadowed");
        shadowed.pages.retain(|p| *p != page);
        if !shadowed.pages.is_empty() {
            return;
        }
        self.frames.remove(&gfn);
        let count = self
            .in_2m
            .get_mut(&(gfn.0 >> 9))
            .expect("counted when added");
        *count -= 1;
        if *count == 0 {
            self.in_2m.remove(&(gfn.0 >> 9));
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Gfn, &Shadowed)> {
        self.frames.iter().map(|(&gfn, s)| (gfn, s))
    }
}
