//! Answering from the shadow, and filling it.
//!
//! ```text
//!   lookup: root ─> … ─> leaf, rights suffice ──────────────> Ram
//!                        leaf, a protected table, write ────> Tracked
//!                        MMIO, rights suffice, tag current ─> Mmio
//!                        anything else: the slow path
//!   install: the walk's tables ─> shadow pages, each guest entry compared with what the walk saw
//!            the last one ─> leaf | direct pages | MMIO entry with the tag of the walk's map
//! ```
//!
//! A stale MMIO entry is never repaired in place and never taken for a spurious fault: it goes
//! the whole slow way (rule R11), which may make it MMIO again, RAM, or absent (R12).

use std::ptr::NonNull;
use std::sync::Arc;

use umbra_slots::{Generation, Gfn, Gpa, RamTarget, Snapshot, Target};
use umbra_x86::Gva;

use crate::entry::{Entry, Leaf, Mmio, Tag};
use crate::flush::Port;
use crate::guest_entry::GuestPage;
use crate::mode::{Format, Mode};
use crate::page::{EntryAt, PageId, Role};
use crate::rights::{Access, AccessKind, Rights};
use crate::sync::mmio_rights;
use crate::tables::Tables;
use crate::translation::{Kind, RamPage, Translation};
use crate::walk::{Step, Walk};

/// A slow fault needs at most a root, four tables and three direct pages.
const PAGES_PER_FAULT: usize = 8;

/// What became of an attempt to remember a walk.
pub(crate) enum Outcome {
    /// The answer.
    Done(Translation),
    /// A guest entry is no longer what the walk saw.
    Raced,
}

/// One access, with what is needed to judge it.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub mode: &'a Mode,
    pub gva: Gva,
    pub access: Access,
    pub port: &'a Arc<Port>,
}

impl Request<'_> {
    fn answer(&self, frame: Gfn, kind: Kind) -> Translation {
        let gpa = Gpa(frame.gpa().0 | self.gva.page_offset());
        Translation { gpa, kind }
    }

    fn is_write(&self) -> bool {
        self.access.kind == AccessKind::Write
    }

    fn ram(&self, leaf: &Leaf, host: u64) -> Kind {
        let may = |kind| {
            self.mode
                .allows(leaf.rights, leaf.pkey, self.access.with_kind(kind))
        };
        Kind::Ram(RamPage {
            page: NonNull::new(std::ptr::with_exposed_provenance_mut(host as usize))
                .expect("no RAM is mapped at host address 0"),
            read: may(AccessKind::Read),
            write: leaf.writable && may(AccessKind::Write),
            fetch: may(AccessKind::Fetch),
            global: leaf.global && self.mode.pge,
            large: leaf.large,
        })
    }
}

impl Tables {
    /// Answers from the shadow, if it can. `now` gives the current generation; it is asked only
    /// for MMIO.
    pub fn lookup(
        &mut self,
        root: PageId,
        request: &Request<'_>,
        now: impl FnOnce() -> Generation,
    ) -> Option<Translation> {
        let (mut id, gva) = (root, request.gva.0);
        loop {
            let page = &mut self.pages[id];
            if page.writes != 0 {
                page.writes = 0;
            }
            let format = page.role.rules.format;
            let index = format.index(page.role.level, gva);
            match page.entry(index) {
                Entry::Absent => return None,
                Entry::Table(child) => id = child,
                Entry::Leaf(leaf) => {
                    let within = gva >> 12 & (page.role.span() - 1);
                    let frame = Gfn(page.frame(index).0 + within);
                    return self.leaf_hit(request, leaf, frame, within);
                }
                Entry::Mmio(mmio) => return self.mmio_hit(request, mmio, now()),
            }
        }
    }

    fn leaf_hit(
        &mut self,
        request: &Request<'_>,
        leaf: Leaf,
        frame: Gfn,
        within: u64,
    ) -> Option<Translation> {
        if !request.mode.allows(leaf.rights, leaf.pkey, request.access) {
            return None;
        }
        if request.is_write() && !leaf.writable {
            // Known to be a trapped write; everything else that a write may lack is settled by
            // the slow path.
            let tracked = leaf.dirty && !leaf.read_only && self.shadowed.is_tracked(frame);
            return tracked.then(|| request.answer(frame, Kind::Tracked));
        }
        self.stats.ram_hits += 1;
        let kind = request.ram(&leaf, leaf.host + (within << 12));
        Some(request.answer(frame, kind))
    }

    fn mmio_hit(
        &mut self,
        request: &Request<'_>,
        mmio: Mmio,
        now: Generation,
    ) -> Option<Translation> {
        let current = Tag::of(now, self.config.tag_bits);
        let valid = mmio.tag == current;
        tracing::trace!(
            gva = request.gva.0,
            gfn = mmio.gfn.0,
            tag = mmio.tag.0,
            generation = now.0,
            valid,
            "check"
        );
        if !valid {
            self.stats.mmio_stale += 1;
            return None;
        }
        // The entry keeps no execute right and no dirty bit of its own: what it cannot allow is
        // for the slow path to allow, or to refuse with the right error code (rule R34).
        let fetch = request.access.kind == AccessKind::Fetch;
        let clean_write = request.is_write() && !mmio.rights.contains(Rights::WRITE);
        if fetch || clean_write || !request.mode.allows(mmio.rights, 0, request.access) {
            return None;
        }
        self.stats.mmio_hits += 1;
        let kind = Kind::Mmio { generation: now };
        Some(request.answer(mmio.gfn, kind))
    }

    /// Remembers a walk and gives its answer. The caller has checked, in this lock section, that
    /// `map` is still current (rule R8).
    pub fn install(
        &mut self,
        map: &Snapshot,
        root: PageId,
        walk: &Walk<'_>,
        request: &Request<'_>,
    ) -> Outcome {
        let mut id = root;
        for (i, step) in walk.steps.iter().enumerate() {
            let page = &mut self.pages[id];
            page.used = true;
            page.writes = 0;
            debug_assert_eq!((page.gfn, page.role.level), (step.table, step.level));
            if !step.unchanged() {
                return Outcome::Raced;
            }
            let Some(next) = walk.steps.get(i + 1) else {
                break;
            };
            let child = self.child(map, id, step, next, request);
            let index = request.mode.format().index(step.level, request.gva.0);
            self.link(at(id, index), child);
            id = child;
        }
        Outcome::Done(self.install_last(map, id, walk, request))
    }

    fn child(
        &mut self,
        map: &Snapshot,
        parent: PageId,
        step: &Step<'_>,
        next: &Step<'_>,
        request: &Request<'_>,
    ) -> PageId {
        let index = request.mode.format().index(step.level, request.gva.0);
        let role = Role {
            rules: request.mode.rules,
            level: next.level,
            rights: next.rights_above,
            direct: None,
        };
        if let Entry::Table(child) = self.pages[parent].entry(index) {
            let page = &self.pages[child];
            if page.gfn == next.table && page.role == role {
                return child;
            }
        }
        self.table_page(map, next.table, role, request.port)
    }

    /// Fills the entry that maps the address: the guest's own, or those of direct pages under it.
    fn install_last(
        &mut self,
        map: &Snapshot,
        mut id: PageId,
        walk: &Walk<'_>,
        request: &Request<'_>,
    ) -> Translation {
        let target = map.resolve(walk.frame.gpa());
        let format = request.mode.format();
        loop {
            let role = self.pages[id].role;
            let index = format.index(role.level, request.gva.0);
            let first = Gfn(walk.frame.0 & !(role.span() - 1));
            match &target {
                Target::Ram(ram) if self.one_entry_may_map(ram, walk.frame, first, role.span()) => {
                    return self.install_ram(at(id, index), ram, first, walk, request);
                }
                Target::Io { .. } | Target::Nothing if role.level == 1 => {
                    return self.install_mmio(map, at(id, index), walk, request);
                }
                _ => {
                    let split = Role::split(request.mode.rules, role.level - 1, &walk.page);
                    let child = self.direct_page(first, split);
                    self.link(at(id, index), child);
                    self.pages[child].used = true;
                    id = child;
                }
            }
        }
    }

    /// Tells whether `span` frames from `first` on can be mapped by one entry: all in this slot,
    /// none of them a table, none to be logged alone.
    fn one_entry_may_map(&self, ram: &RamTarget<'_>, frame: Gfn, first: Gfn, span: u64) -> bool {
        if span == 1 {
            return true;
        }
        let before = frame.0 - first.0;
        let after = span - before;
        self.config.large_pages
            && !ram.dirty_log
            && ram.offset >> 12 >= before
            && ram.remaining >> 12 >= after
            && !self.shadowed.any_in(first, span)
    }

    fn install_ram(
        &mut self,
        at: EntryAt,
        ram: &RamTarget<'_>,
        first: Gfn,
        walk: &Walk<'_>,
        request: &Request<'_>,
    ) -> Translation {
        let within = walk.frame.0 - first.0;
        let host = ram.host.as_ptr().expose_provenance() as u64;
        let leaf = self.leaf(ram, walk, request, host - (within << 12));
        self.set_leaf(at, leaf, first);
        request.answer(walk.frame, self.ram_kind(&leaf, host, walk.frame, request))
    }

    /// What a leaf for this walk may say. Write rights are given only if no write has to be
    /// noticed.
    fn leaf(
        &mut self,
        ram: &RamTarget<'_>,
        walk: &Walk<'_>,
        request: &Request<'_>,
        host: u64,
    ) -> Leaf {
        let tracked = self.shadowed.is_tracked(walk.frame);
        let mut writable = walk.page.dirty && !ram.read_only && !tracked;
        if writable && ram.dirty_log {
            if request.is_write() {
                ram.mark_dirty(1); // before the right is given out, rule R39
            }
            writable = ram.is_dirty();
        }
        let GuestPage {
            rights,
            pkey,
            global,
            dirty,
            ..
        } = walk.page;
        Leaf {
            host,
            rights,
            pkey,
            writable,
            dirty,
            read_only: ram.read_only,
            global,
            large: walk.level > 1,
        }
    }

    fn ram_kind(&self, leaf: &Leaf, host: u64, frame: Gfn, request: &Request<'_>) -> Kind {
        if !request.is_write() || leaf.writable {
            return request.ram(leaf, host);
        }
        if leaf.read_only {
            return Kind::ReadOnly; // never remembered as MMIO: reads would go there too (R14)
        }
        debug_assert!(self.shadowed.is_tracked(frame));
        Kind::Tracked
    }

    fn install_mmio(
        &mut self,
        map: &Snapshot,
        at: EntryAt,
        walk: &Walk<'_>,
        request: &Request<'_>,
    ) -> Translation {
        let generation = map.generation();
        if walk.page.pkey == 0 {
            let tag = Tag::of(generation, self.config.tag_bits);
            let mmio = Mmio {
                gfn: walk.frame,
                rights: mmio_rights(walk.page.rights, walk.page.dirty),
                tag,
            };
            tracing::trace!(
                gva = request.gva.0,
                gfn = mmio.gfn.0,
                tag = tag.0,
                generation = generation.0,
                "mark"
            );
            self.set_mmio(at, mmio);
        } else {
            self.clear(at); // the entry has no room for a protection key
        }
        request.answer(walk.frame, Kind::Mmio { generation })
    }

    /// Gives the answer of a walk that cannot be remembered: a guest table is in no RAM, so that
    /// nothing would tell when it changes.
    pub fn uncached(
        &mut self,
        map: &Snapshot,
        walk: &Walk<'_>,
        request: &Request<'_>,
    ) -> Translation {
        self.stats.uncached += 1;
        self.bump_epoch(); // nor would anything tell the processor
        let kind = match map.resolve(walk.frame.gpa()) {
            Target::Ram(ram) => {
                let host = ram.host.as_ptr().expose_provenance() as u64;
                let leaf = self.leaf(&ram, walk, request, host);
                self.ram_kind(&leaf, host, walk.frame, request)
            }
            Target::Io { .. } | Target::Nothing => Kind::Mmio {
                generation: map.generation(),
            },
        };
        request.answer(walk.frame, kind)
    }

    /// Finds the shadow of a root table, if it exists.
    pub fn find_root(&self, table: Gfn, mode: &Mode) -> Option<PageId> {
        self.find(table, root_role(table, mode))
    }

    /// Finds or makes the shadow of a root table.
    pub fn make_root(
        &mut self,
        map: &Snapshot,
        table: Gfn,
        mode: &Mode,
        port: &Arc<Port>,
    ) -> PageId {
        let role = root_role(table, mode);
        match role.direct {
            Some(_) => self.direct_page(table, role),
            None => self.table_page(map, table, role, port),
        }
    }

    /// Makes room for what one slow fault may need, before it holds any page.
    pub fn prepare(&mut self) {
        self.make_room(PAGES_PER_FAULT);
    }
}

/// The role of a root: a direct page where the guest does not page.
fn root_role(table: Gfn, mode: &Mode) -> Role {
    let level = mode.format().root_level();
    if mode.format() == Format::Off {
        return Role::split(mode.rules, level, &crate::walk::unpaged_page(table));
    }
    Role {
        rules: mode.rules,
        level,
        rights: Rights::ALL,
        direct: None,
    }
}

fn at(page: PageId, index: usize) -> EntryAt {
    EntryAt {
        page,
        index: index as u16,
    }
}
