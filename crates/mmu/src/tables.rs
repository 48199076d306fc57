//! All shadow structures of a machine, and the few operations that keep them consistent.
//!
//! Everything here runs under the MMU lock. An entry changes only through [`Tables::set_leaf`],
//! [`Tables::set_mmio`], [`Tables::link`] and [`Tables::clear`], which keep the reverse map and
//! the parent lists: so a present entry that becomes MMIO goes through the ordinary drop (R13).

use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use umbra_slots::{Gfn, Snapshot};
use umbra_sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use crate::age::Age;
use crate::config::Config;
use crate::entry::{Entry, Leaf, Mmio};
use crate::flush::{Flush, Hub, Port, Ticket};
use crate::page::{EntryAt, PageId, Role, Slab};
use crate::rmap::Rmap;
use crate::shadowed::{ShadowedMap, State};
use crate::statistics::Statistics;

/// The numbers that are used without the lock.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// See `Mmu::epoch`.
    pub epoch: AtomicU64,
    /// How many tables are listed as not protected.
    pub unsettled: AtomicUsize,
}

impl Published {
    /// See `Mmu::epoch`. Needs no lock.
    pub fn bump_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

/// How leaves lose the write right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Protection {
    /// Large leaves go altogether, so that their frames can be told apart.
    pub split_large: bool,
    /// The slot is read-only from now on.
    pub read_only: bool,
}

impl Protection {
    /// For one frame among others: it became a table, or was found dirty.
    pub const SPLIT: Self = Self {
        split_large: true,
        read_only: false,
    };
}

/// The shadow structures.
pub(crate) struct Tables {
    pub config: Config,
    pub hub: Arc<Hub>,
    pub published: Arc<Published>,
    pub pages: Slab,
    pub shadowed: ShadowedMap,
    pub direct: FxHashMap<(Gfn, Role), PageId>,
    pub rmap: Rmap,
    pub age: Age,
    /// The current era; pages of an older one are obsolete.
    pub validity: u64,
    /// Tables in another state than protected.
    pub unsettled: Vec<Gfn>,
    pub stats: Statistics,
    /// At which number of slow faults the auditor looks next.
    pub next_audit: u64,
}

impl Tables {
    pub fn new(config: Config, hub: Arc<Hub>, published: Arc<Published>) -> Self {
        Self {
            config,
            hub,
            published,
            pages: Slab::default(),
            shadowed: ShadowedMap::default(),
            direct: FxHashMap::default(),
            rmap: Rmap::default(),
            age: Age::default(),
            validity: 0,
            unsettled: Vec::new(),
            stats: Statistics::default(),
            next_audit: 0,
        }
    }

    /// Counts a drop, or a loss of rights, of a present entry.
    pub fn bump_epoch(&self) {
        self.published.bump_epoch();
    }

    /// Tells whether a page may be used: not thrown away and of the current era.
    pub fn is_valid(&self, id: PageId) -> bool {
        let page = &self.pages[id];
        !page.zapped && page.validity == self.validity
    }

    /// Finds or makes the page that shadows the table `gfn` in this role. A table that was none
    /// before is write-protected first.
    pub fn table_page(&mut self, map: &Snapshot, gfn: Gfn, role: Role, me: &Arc<Port>) -> PageId {
        debug_assert!(role.direct.is_none());
        if let Some(id) = self.find(gfn, role) {
            self.settle(map, gfn, me);
            return id;
        }
        let id = self.new_page(gfn, role);
        match self.shadowed.get(gfn).map(|s| s.state) {
            None => {
                let ticket = self.protect(gfn);
                self.shadowed.add(gfn, id, State::Settling(ticket));
                self.list_unsettled(gfn);
                // The mark before the guest's entries are read: pairs with the fence in
                // `VcpuMmu::guest_flush` (rule R36).
                fence(Ordering::SeqCst);
                self.settle(map, gfn, me);
            }
            Some(State::Unsync) if role.level > 1 => {
                // Only leaf tables may be unsync, and now it is also something else.
                self.shadowed.add(gfn, id, State::Unsync);
                self.begin_settling(gfn);
                self.settle(map, gfn, me);
            }
            Some(state) => {
                self.shadowed.add(gfn, id, state);
                self.settle(map, gfn, me);
            }
        }
        id
    }

    /// Finds the valid page of a frame and a role.
    pub fn find(&self, gfn: Gfn, role: Role) -> Option<PageId> {
        if role.direct.is_some() {
            let id = *self.direct.get(&(gfn, role))?;
            return self.is_valid(id).then_some(id);
        }
        let shadowed = self.shadowed.get(gfn)?;
        let fits = |id: &&PageId| self.pages[**id].role == role && self.is_valid(**id);
        shadowed.pages.iter().find(fits).copied()
    }

    /// Finds or makes the direct page that maps the frames from `gfn` on.
    pub fn direct_page(&mut self, gfn: Gfn, role: Role) -> PageId {
        debug_assert!(role.direct.is_some());
        if let Some(id) = self.find(gfn, role) {
            return id;
        }
        if let Some(&obsolete) = self.direct.get(&(gfn, role)) {
            self.zap(obsolete);
        }
        let id = self.new_page(gfn, role);
        self.direct.insert((gfn, role), id);
        id
    }

    fn new_page(&mut self, gfn: Gfn, role: Role) -> PageId {
        let id = self.pages.insert(gfn, role, self.validity);
        self.remember_age(id);
        self.stats.pages_made += 1;
        id
    }

    /// Takes the write right from every leaf that maps a frame, splits large ones, and posts a
    /// flush of the write translations that processors hold.
    pub fn protect(&mut self, gfn: Gfn) -> Ticket {
        self.protect_leaves(gfn, Protection::SPLIT);
        // Also without any writable leaf: a processor's cache may outlive the leaf it came from.
        self.hub.post(Flush::Writers(gfn), None)
    }

    /// Takes the write right from every leaf that maps a frame. Flushing is the caller's business.
    pub fn protect_leaves(&mut self, gfn: Gfn, how: Protection) {
        for at in self.rmap.small(gfn) {
            self.protect_leaf(at, how);
        }
        for at in self.large_leaves(gfn) {
            if how.split_large {
                self.clear(at);
            } else {
                self.protect_leaf(at, how);
            }
        }
    }

    /// The large leaves that map a frame.
    pub fn large_leaves(&self, gfn: Gfn) -> SmallVec<[EntryAt; 2]> {
        let mut leaves = self.rmap.large_near(gfn);
        leaves.retain(|at| {
            let page = &self.pages[at.page];
            let first = page.frame(at.index.into()).0;
            (first..first + page.role.span()).contains(&gfn.0)
        });
        leaves
    }

    fn protect_leaf(&mut self, at: EntryAt, how: Protection) {
        let page = &mut self.pages[at.page];
        let Entry::Leaf(leaf) = page.entry(at.index.into()) else {
            unreachable!("the reverse map names leaves only");
        };
        let protected = Leaf {
            writable: false,
            read_only: leaf.read_only || how.read_only,
            ..leaf
        };
        page.set(at.index.into(), Entry::Leaf(protected));
        if leaf.writable {
            self.stats.leaves_protected += 1;
            self.bump_epoch();
        }
    }

    /// Makes the entry a leaf for the frames from `frame` on.
    pub fn set_leaf(&mut self, at: EntryAt, leaf: Leaf, frame: Gfn) {
        let page = &mut self.pages[at.page];
        let index = usize::from(at.index);
        if let Entry::Leaf(was) = page.entry(index)
            && was.host == leaf.host
            && page.frame(index) == frame
        {
            page.set(index, Entry::Leaf(leaf));
            if loses(&was, &leaf) {
                self.bump_epoch();
            }
            return;
        }
        self.clear(at);
        let page = &mut self.pages[at.page];
        page.set(index, Entry::Leaf(leaf));
        page.set_frame(index, frame);
        let span = page.role.span();
        self.rmap.add(frame, span, at);
    }

    /// Makes the entry remember that there is no RAM.
    pub fn set_mmio(&mut self, at: EntryAt, mmio: Mmio) {
        self.clear(at);
        self.pages[at.page].set(at.index.into(), Entry::Mmio(mmio));
        self.stats.mmio_marks += 1;
    }

    /// Makes the entry refer to a page of the next lower level.
    pub fn link(&mut self, at: EntryAt, child: PageId) {
        if self.pages[at.page].entry(at.index.into()) == Entry::Table(child) {
            return;
        }
        self.clear(at);
        debug_assert_eq!(
            self.pages[at.page].role.level,
            self.pages[child].role.level + 1
        );
        self.pages[at.page].set(at.index.into(), Entry::Table(child));
        self.pages[child].parents.push(at);
    }

    /// Makes the entry absent, whatever it was.
    pub fn clear(&mut self, at: EntryAt) {
        let index = usize::from(at.index);
        let page = &mut self.pages[at.page];
        let was = page.entry(index);
        if was == Entry::Absent {
            return;
        }
        page.set(index, Entry::Absent);
        match was {
            Entry::Absent | Entry::Mmio(_) => {}
            Entry::Leaf(_) => {
                let (frame, span) = (page.frame(index), page.role.span());
                self.rmap.remove(frame, span, at);
                self.stats.leaves_dropped += 1;
                self.bump_epoch();
            }
            Entry::Table(child) => {
                let parents = &mut self.pages[child].parents;
                let i = parents.iter().position(|&p| p == at);
                parents.swap_remove(i.expect("a child knows its parents"));
                self.bump_epoch();
            }
        }
    }

    /// Throws a page away: nothing refers to it, it refers to nothing. A pinned root stays as an
    /// invalid page until it is unpinned.
    ///
    /// Processors' caches need no flush: they hold what the guest has not flushed itself, and
    /// frames that leave the map are flushed by whoever takes them out.
    pub fn zap(&mut self, id: PageId) {
        if self.pages[id].zapped {
            return;
        }
        tracing::trace!(
            page = id.0,
            gfn = self.pages[id].gfn.0,
            level = self.pages[id].role.level,
            "zap"
        );
        for index in 0..self.pages[id].len() {
            if self.pages[id].present == 0 {
                break;
            }
            let index = index as u16;
            self.clear(EntryAt { page: id, index });
        }
        while let Some(&parent) = self.pages[id].parents.last() {
            self.clear(parent);
        }
        let (gfn, role) = (self.pages[id].gfn, self.pages[id].role);
        if role.direct.is_none() {
            self.shadowed.remove(gfn, id);
            if self.shadowed.get(gfn).is_none() {
                self.unlist_unsettled(gfn);
            }
        } else if self.direct.get(&(gfn, role)) == Some(&id) {
            self.direct.remove(&(gfn, role));
        }
        self.stats.pages_zapped += 1;
        // Also if it held nothing: its table is no longer watched for what processors cached.
        self.bump_epoch();
        if self.pages[id].pins == 0 {
            self.pages.remove(id);
        } else {
            self.pages[id].zapped = true;
        }
    }

    /// Keeps a root alive.
    pub fn pin(&mut self, id: PageId) {
        self.pages[id].pins += 1;
    }

    /// Gives a root back; frees it if it was thrown away meanwhile.
    pub fn unpin(&mut self, id: PageId) {
        let page = &mut self.pages[id];
        page.pins -= 1;
        if page.pins == 0 && page.zapped {
            self.pages.remove(id);
        }
    }

    pub fn list_unsettled(&mut self, gfn: Gfn) {
        if !self.unsettled.contains(&gfn) {
            self.unsettled.push(gfn);
        }
        self.publish_unsettled();
    }

    pub fn unlist_unsettled(&mut self, gfn: Gfn) {
        self.unsettled.retain(|&g| g != gfn);
        self.publish_unsettled();
    }

    fn publish_unsettled(&self) {
        let count = self.unsettled.len();
        self.published.unsettled.store(count, Ordering::SeqCst);
    }
}

/// Tells whether something that `was` allowed `is` no longer.
fn loses(was: &Leaf, is: &Leaf) -> bool {
    !is.rights.contains(was.rights)
        || (was.writable && !is.writable)
        || was.pkey != is.pkey
        || was.global != is.global
}
