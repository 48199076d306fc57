//! Who must know of a change of the map, and when.
//!
//! ```text
//!   update(): writer lock held
//!     listener.prepare(change)           before anything: may refuse the change
//!     listener.publish(change, swap)     around the swap: may hold its own lock across it
//!     ── swap: from here on load() gives the new map ──
//!     listener.followed()                could it follow? if not, the map is taken back
//!     listener.published(change)         after it: throw away what left; may return a wait
//!   writer lock released
//!   Stale::wait()                        runs the waits; no lock is held
//! ```

use std::sync::Arc;

use crate::{Backing, DirtyPages, GpaRange, Slot, SlotError, Snapshot};

/// Something to be waited for once all locks are released.
pub type Wait = Box<dyn FnOnce() + Send>;

/// A change of the map, as listeners see it.
#[derive(Clone, Debug)]
pub struct Change {
    /// The map until now.
    pub old: Arc<Snapshot>,
    /// The map from now on; its generation is one higher.
    pub new: Arc<Snapshot>,
    /// Who asked, for traces.
    pub cause: &'static str,
}

impl Change {
    /// Returns the ranges that showed RAM in the old map and do not show the same RAM in the new.
    pub fn removed_ram(&self) -> impl Iterator<Item = GpaRange> + '_ {
        removed_ram(&self.old.slots, &self.new.slots)
    }

    /// Returns the ranges of RAM that stayed but may no longer be written as before: they became
    /// read-only, or their writes must be logged from now on.
    pub fn restricted_ram(&self) -> impl Iterator<Item = GpaRange> + '_ {
        self.new.slots.iter().filter_map(|new| {
            let is = new.ram_flags()?;
            let was = self.old.slot(new.id)?.ram_flags()?;
            let lost = (is.read_only && !was.read_only) || (is.dirty_log && !was.dirty_log);
            lost.then_some(new.range)
        })
    }
}

/// See [`Change::removed_ram`].
pub(crate) fn removed_ram(old: &[Slot], new: &[Slot]) -> impl Iterator<Item = GpaRange> {
    old.iter()
        .filter(|slot| matches!(slot.backing, Backing::Ram { .. }))
        .filter_map(|slot| {
            let Some(now) = new.iter().find(|s| s.id == slot.id) else {
                return Some(slot.range);
            };
            if !slot.same_memory(now) {
                return Some(slot.range);
            }
            let kept = now.range.len();
            (kept < slot.range.len()).then(|| {
                let start = crate::Gpa(slot.range.start().0 + kept);
                GpaRange::new(start, slot.range.len() - kept).expect("part of a valid range")
            })
        })
}

/// Someone who keeps things derived from the map.
///
/// Called with the writer lock held: must not call [`update`](crate::AddressSpace::update), call
/// a device, or wait for a vCPU.
pub trait Listener: Send + Sync {
    /// Is called before anything happens.
    ///
    /// # Errors
    /// If it could not follow this change; then nothing changes.
    fn prepare(&self, change: &Change) -> Result<(), SlotError> {
        let _ = change;
        Ok(())
    }

    /// Is called around the swap and must call `swap` exactly once.
    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        let _ = change;
        swap();
    }

    /// Is asked after the swap whether it followed. If some listener did not, the old map is
    /// published once more, under a number of its own (rule R5), and every listener hears of that as
    /// of any other change.
    ///
    /// # Errors
    /// If the host refused what the new map needs.
    fn followed(&self) -> Result<(), SlotError> {
        Ok(())
    }

    /// Is called after the swap. What it returns is run by [`Stale::wait`](crate::Stale::wait).
    fn published(&self, change: &Change) -> Option<Wait> {
        let _ = change;
        None
    }

    /// Is called before the dirty bits of a part of a slot are read and cleared: who has marks of
    /// its own adds them to the region's log.
    ///
    /// # Errors
    /// If the host refused to give them.
    fn collect(&self, slot: &Slot, part: GpaRange) -> Result<(), SlotError> {
        let _ = (slot, part);
        Ok(())
    }

    /// Is called when dirty bits have been read and cleared: take away the write rights of these
    /// pages. What it returns is run before the caller of the harvest sees the list.
    fn harvested(&self, map: &Snapshot, pages: &DirtyPages) -> Option<Wait> {
        let _ = (map, pages);
        None
    }
}
