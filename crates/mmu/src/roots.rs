//! The roots that one processor uses.
//!
//! A root is pinned while it is current, so that it is not freed under the processor. A root that
//! is current no longer stays in the shadow like any other page, and is found again when CR3 comes
//! back to it.

use std::sync::Arc;

use smallvec::SmallVec;
use umbra_slots::Snapshot;

use crate::flush::Port;
use crate::mode::Mode;
use crate::page::PageId;
use crate::tables::Tables;
use crate::walk::Root;

/// One processor's roots.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    /// What they are the shadow of.
    pub guest: Root,
    /// The current ones, pinned; one for each GiB where the format has four.
    current: [Option<PageId>; 4],
    /// Earlier ones, to be unpinned when the lock is next held.
    unused: SmallVec<[PageId; 4]>,
}

impl Roots {
    /// Forgets the current roots.
    pub fn forget(&mut self) {
        let roots = self.current.iter_mut().filter_map(Option::take);
        self.unused.extend(roots);
    }

    /// The root for an address, if it is pinned and valid.
    pub fn current(&self, tables: &Tables, mode: &Mode, gva: u64) -> Option<PageId> {
        let id = self.current[mode.format().root_index(gva)]?;
        tables.is_valid(id).then_some(id)
    }

    /// The root for an address, if its shadow exists.
    #[inline]
    pub fn find(&mut self, tables: &mut Tables, mode: &Mode, gva: u64) -> Option<PageId> {
        let slot = mode.format().root_index(gva);
        if let Some(id) = self.current[slot] {
            if tables.is_valid(id) {
                return Some(id);
            }
            self.current[slot] = None;
            tables.unpin(id);
        }
        for id in self.unused.drain(..) {
            tables.unpin(id);
        }
        let table = self.guest.table(mode.format(), gva)?;
        let id = tables.find_root(table, mode)?;
        tables.stats.roots_found += 1;
        tables.pin(id);
        self.current[slot] = Some(id);
        Some(id)
    }

    /// The root for an address; makes its shadow if there is none. `None` if the guest has no
    /// table for the address.
    pub fn make(
        &mut self,
        tables: &mut Tables,
        map: &Snapshot,
        mode: &Mode,
        gva: u64,
        port: &Arc<Port>,
    ) -> Option<PageId> {
        if let Some(id) = self.find(tables, mode, gva) {
            return Some(id);
        }
        let table = self.guest.table(mode.format(), gva)?;
        let id = tables.make_root(map, table, mode, port);
        tables.stats.roots_made += 1;
        tables.pin(id);
        self.current[mode.format().root_index(gva)] = Some(id);
        Some(id)
    }

    /// Gives all roots back.
    pub fn unpin(&mut self, tables: &mut Tables) {
        self.forget();
        for id in self.unused.drain(..) {
            tables.unpin(id);
        }
    }
}
