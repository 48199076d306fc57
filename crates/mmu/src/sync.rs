//! Bringing the shadow of a table up to date with the table.
//!
//! Three callers: a trapped write (the entries it touched), a flush by the guest (tables that are
//! not protected), and the end of settling (the whole table).

use std::sync::Arc;

use smallvec::SmallVec;
use umbra_slots::{Gfn, Snapshot};
use umbra_x86::Gva;

use crate::config::Unsync;
use crate::entry::{Entry, Leaf, Mmio};
use crate::flush::Port;
use crate::guest_entry::{GuestEntry, GuestPage};
use crate::memory::TableRef;
use crate::page::{EntryAt, PageId, Role};
use crate::rights::Rights;
use crate::shadowed::State;
use crate::tables::Tables;

/// A leaf table that is written this often without a walk through it is no table any more, or is
/// about to be rewritten: cheaper to shadow it again later than to follow.
const FLOOD_LEAF: u32 = 16;
/// The same for directories.
const FLOOD_DIRECTORY: u32 = 4;
/// How many tables may be unsync: each is read again at every flush.
const UNSYNC_MAX: usize = 16;

impl Tables {
    /// Follows a trapped write of `len` bytes at `offset` into the table `gfn`.
    pub fn follow_write(&mut self, map: &Snapshot, gfn: Gfn, offset: usize, len: usize) {
        self.stats.tracked_writes += 1;
        tracing::trace!(gfn = gfn.0, offset, len, "tracked write");
        let Some(shadowed) = self.shadowed.get_mut(gfn) else {
            return; // no table any more; the write was an ordinary one
        };
        shadowed.trapped = shadowed.trapped.saturating_add(1);
        let (trapped, pages) = (shadowed.trapped, shadowed.pages.clone());
        if self.may_unsync(gfn, trapped, &pages) {
            self.unsync(gfn);
        }
        for id in pages {
            let page = &mut self.pages[id];
            page.writes += 1;
            let flood = if page.role.level == 1 {
                FLOOD_LEAF
            } else {
                FLOOD_DIRECTORY
            };
            if page.writes >= flood {
                self.stats.pages_flooded += 1;
                self.zap(id);
                continue;
            }
            let size = page.role.rules.format.entry_size();
            let Some(table) = TableRef::find(map, gfn.gpa(), size) else {
                self.zap(id);
                continue;
            };
            for index in offset / size..(offset + len).div_ceil(size) {
                self.sync_entry(id, index, table.entry(index).load());
            }
        }
    }

    fn may_unsync(&self, gfn: Gfn, trapped: u32, pages: &[PageId]) -> bool {
        let Unsync::After(writes) = self.config.unsync else {
            return false;
        };
        let state = self.shadowed.get(gfn).map(|s| s.state);
        trapped >= writes
            && state == Some(State::Protected)
            && self.unsettled.len() < UNSYNC_MAX
            && pages.iter().all(|&id| self.pages[id].role.level == 1)
    }

    /// Lets a table be written. The mark comes before any write right is given out: both need
    /// the lock (rule R36).
    fn unsync(&mut self, gfn: Gfn) {
        let shadowed = self.shadowed.get_mut(gfn).expect("the caller found it");
        shadowed.state = State::Unsync;
        shadowed.trapped = 0;
        self.list_unsettled(gfn);
        self.stats.unsynced += 1;
        tracing::trace!(gfn = gfn.0, "unsync");
    }

    /// Makes an unsync table trap again, as far as the shadow decides.
    pub fn begin_settling(&mut self, gfn: Gfn) {
        let ticket = self.protect(gfn);
        let shadowed = self.shadowed.get_mut(gfn).expect("the caller found it");
        shadowed.state = State::Settling(ticket);
        shadowed.trapped = 0;
        self.list_unsettled(gfn);
    }

    /// Ends settling if every processor but `me` has dropped its old write rights: reads the
    /// table once more, after which every change of it traps. `me` drops its own before it runs
    /// the guest again.
    pub fn settle(&mut self, map: &Snapshot, gfn: Gfn, me: &Arc<Port>) -> bool {
        let Some(State::Settling(ticket)) = self.shadowed.get(gfn).map(|s| s.state) else {
            return false;
        };
        if !self.hub.is_done(ticket, Some(me)) {
            return false;
        }
        self.sync_table(map, gfn);
        if let Some(shadowed) = self.shadowed.get_mut(gfn) {
            shadowed.state = State::Protected;
        }
        self.unlist_unsettled(gfn);
        true
    }

    /// Reads every table again that is not protected: the guest flushed, and may from now on rely
    /// on what it wrote.
    pub fn flush(&mut self, map: &Snapshot, me: &Arc<Port>) {
        let listed: SmallVec<[Gfn; 16]> = self.unsettled.iter().copied().collect();
        for gfn in listed {
            if self.settle(map, gfn, me) {
                continue;
            }
            let changed = self.sync_table(map, gfn);
            let state = self.shadowed.get(gfn).map(|s| s.state);
            if !changed && state == Some(State::Unsync) {
                // Nobody writes it any more: trapping is cheaper than reading it at each flush.
                self.begin_settling(gfn);
                self.settle(map, gfn, me);
            }
        }
    }

    /// Reads again what one address depends on: its entry in unsync tables, and all of the tables
    /// that settle, because upper-level entries are flushed whatever the address is.
    pub fn flush_page(&mut self, map: &Snapshot, root: Option<PageId>, gva: Gva, me: &Arc<Port>) {
        let listed: SmallVec<[Gfn; 16]> = self.unsettled.iter().copied().collect();
        for gfn in listed {
            match self.shadowed.get(gfn).map(|s| s.state) {
                Some(State::Settling(_)) => {
                    if !self.settle(map, gfn, me) {
                        self.sync_table(map, gfn);
                    }
                }
                Some(State::Unsync) => self.sync_address(map, gfn, gva),
                Some(State::Protected) | None => {}
            }
        }
        if let Some(root) = root {
            self.check_path(map, root, gva);
        }
    }

    /// Reads the entry for an address again in every role of an unsync leaf table, whichever
    /// address space it belongs to: the translation may be a global one.
    fn sync_address(&mut self, map: &Snapshot, gfn: Gfn, gva: Gva) {
        let pages = self.shadowed.get(gfn).map(|s| s.pages.clone());
        for id in pages.unwrap_or_default() {
            let format = self.pages[id].role.rules.format;
            let index = format.index(self.pages[id].role.level, gva.0);
            match TableRef::find(map, gfn.gpa(), format.entry_size()) {
                Some(table) => drop(self.sync_entry(id, index, table.entry(index).load())),
                None => self.zap(id),
            }
        }
    }

    /// Reads the entries on the path to an address again, protected tables included: a device or
    /// the host may have written them behind the processor's back.
    fn check_path(&mut self, map: &Snapshot, root: PageId, gva: Gva) {
        let mut id = root;
        loop {
            let page = &self.pages[id];
            let (gfn, role) = (page.gfn, page.role);
            let index = role.rules.format.index(role.level, gva.0);
            if role.direct.is_some() {
                return;
            }
            let Some(table) = TableRef::find(map, gfn.gpa(), role.rules.format.entry_size()) else {
                return;
            };
            self.sync_entry(id, index, table.entry(index).load());
            match self.pages[id].entry(index) {
                Entry::Table(child) => id = child,
                _ => return,
            }
        }
    }

    /// Compares every entry of a table's shadow pages with the table. Tells whether some entry
    /// had to change.
    pub fn sync_table(&mut self, map: &Snapshot, gfn: Gfn) -> bool {
        self.stats.synced += 1;
        let pages = self.shadowed.get(gfn).map(|s| s.pages.clone());
        let mut changed = false;
        for id in pages.unwrap_or_default() {
            let page = &self.pages[id];
            if page.present == 0 {
                continue;
            }
            let size = page.role.rules.format.entry_size();
            let Some(table) = TableRef::find(map, gfn.gpa(), size) else {
                self.zap(id);
                changed = true;
                continue;
            };
            for index in 0..self.pages[id].len() {
                if !self.pages[id].is_absent(index) {
                    changed |= self.sync_entry(id, index, table.entry(index).load());
                }
            }
        }
        tracing::trace!(gfn = gfn.0, changed, "sync");
        changed
    }

    /// Makes one entry follow what the guest's entry says now: keeps, adjusts or drops it, never
    /// fills it. Tells whether it had to change.
    pub fn sync_entry(&mut self, id: PageId, index: usize, raw: u64) -> bool {
        let page = &self.pages[id];
        let at = EntryAt {
            page: id,
            index: index as u16,
        };
        let now = match page.entry(index) {
            Entry::Absent => return false,
            was => (was, page.role.rules.decode(page.role.level, raw)),
        };
        match now {
            (Entry::Leaf(leaf), GuestEntry::Page(guest)) => self.sync_leaf(at, leaf, guest),
            (Entry::Mmio(mmio), GuestEntry::Page(guest)) => self.sync_mmio(at, mmio, guest),
            (
                Entry::Table(child),
                GuestEntry::Table {
                    frame,
                    rights,
                    accessed,
                },
            ) => {
                let role = page.role;
                let wanted = Role {
                    level: role.level - 1,
                    rights: role.rights.and(rights),
                    ..role
                };
                let kept = &self.pages[child];
                let same = accessed && kept.gfn == frame && kept.role == wanted;
                self.keep_or_clear(at, same)
            }
            (Entry::Table(child), GuestEntry::Page(guest)) => {
                let role = page.role;
                let guest = GuestPage {
                    rights: role.rights.and(guest.rights),
                    ..guest
                };
                let wanted = Role::split(role.rules, role.level - 1, &guest);
                let kept = &self.pages[child];
                let same = guest.accessed && kept.gfn == guest.frame && kept.role == wanted;
                self.keep_or_clear(at, same)
            }
            _ => self.keep_or_clear(at, false),
        }
    }

    fn keep_or_clear(&mut self, at: EntryAt, keep: bool) -> bool {
        if !keep {
            self.clear(at);
        }
        !keep
    }

    fn sync_leaf(&mut self, at: EntryAt, leaf: Leaf, guest: GuestPage) -> bool {
        let page = &self.pages[at.page];
        if !guest.accessed || page.frame(at.index.into()) != guest.frame {
            return self.keep_or_clear(at, false);
        }
        let now = Leaf {
            rights: page.role.rights.and(guest.rights),
            pkey: guest.pkey,
            global: guest.global,
            dirty: guest.dirty,
            writable: leaf.writable && guest.dirty,
            ..leaf
        };
        if now != leaf {
            self.set_leaf(at, now, guest.frame);
        }
        now != leaf
    }

    fn sync_mmio(&mut self, at: EntryAt, mmio: Mmio, guest: GuestPage) -> bool {
        let page = &self.pages[at.page];
        let rights = mmio_rights(page.role.rights.and(guest.rights), guest.dirty);
        let same = guest.accessed
            && guest.pkey == 0
            && mmio.gfn == guest.frame
            && mmio.rights == rights
            && page.role.level == 1;
        self.keep_or_clear(at, same)
    }
}

/// What an MMIO entry keeps of the guest's rights: a write that must still set the dirty bit is
/// none that the entry may answer.
pub(crate) fn mmio_rights(rights: Rights, dirty: bool) -> Rights {
    let kept = rights.and(Rights::WRITE_USER);
    if dirty {
        kept
    } else {
        kept.without(Rights::WRITE)
    }
}
