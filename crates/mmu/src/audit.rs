//! The auditor: every invariant of the shadow structures, checked the slow way (rule R37).

use std::collections::HashSet;

use umbra_slots::{Gfn, Snapshot, Target};

use crate::config::Audit;
use crate::entry::{Entry, Leaf, Mmio, Tag};
use crate::mmu::Mmu;
use crate::page::{EntryAt, Page, PageId};
use crate::shadowed::State;
use crate::tables::Tables;

impl Mmu {
    /// Checks every shadow structure against every other and against the map.
    ///
    /// Holds the map still meanwhile. Meant for tests and debug boots: it looks at every entry.
    ///
    /// # Errors
    /// One line for each violation.
    pub fn audit(&self) -> Result<(), Vec<String>> {
        let map = self.space.hold();
        let tables = self.tables.lock();
        let mut audit = Auditor {
            tables: &tables,
            map: &map,
            now: Tag::of(map.generation(), self.config.tag_bits),
            faults: Vec::new(),
        };
        audit.run();
        if audit.faults.is_empty() {
            Ok(())
        } else {
            Err(audit.faults)
        }
    }

    /// Runs the audit if enough slow faults have happened since the last one.
    ///
    /// # Panics
    /// If it finds something.
    pub(crate) fn audit_sometimes(&self) {
        let Audit::EveryFault(n) = self.config.audit else {
            return;
        };
        let due = {
            let mut tables = self.tables.lock();
            let due = n != 0 && tables.stats.slow_faults >= tables.next_audit;
            if due {
                tables.next_audit = tables.stats.slow_faults + u64::from(n);
            }
            due
        };
        if due && let Err(faults) = self.audit() {
            panic!("R37: {}", faults.join("\n"));
        }
    }
}

struct Auditor<'a> {
    tables: &'a Tables,
    map: &'a Snapshot,
    now: Tag,
    faults: Vec<String>,
}

impl Auditor<'_> {
    fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    fn run(&mut self) {
        let tables = self.tables;
        for (id, page) in tables.pages.iter() {
            self.page(id, page);
            for index in 0..page.len() {
                let at = EntryAt {
                    page: id,
                    index: index as u16,
                };
                self.entry(at, page);
            }
        }
        self.reverse_map();
        self.shadowed();
    }

    fn page(&mut self, id: PageId, page: &Page) {
        let found = (0..page.len()).filter(|&i| !page.is_absent(i)).count();
        if found != page.present as usize {
            self.fault(format!("{id:?} counts {} of {found} entries", page.present));
        }
        if page.zapped && (page.pins == 0 || found != 0 || !page.parents.is_empty()) {
            self.fault(format!("{id:?} was thrown away and is still in use"));
        }
        for &parent in &page.parents {
            let up = self.tables.pages.get(parent.page);
            if up.map(|p| p.entry(parent.index.into())) != Some(Entry::Table(id)) {
                self.fault(format!(
                    "{id:?} has parent {parent:?}, which does not refer to it"
                ));
            }
        }
        let unique: HashSet<_> = page.parents.iter().collect();
        if unique.len() != page.parents.len() {
            self.fault(format!("{id:?} lists a parent twice"));
        }
        let known = if page.zapped {
            true
        } else if page.role.direct.is_some() {
            self.tables.direct.get(&(page.gfn, page.role)) == Some(&id)
        } else {
            let shadowed = self.tables.shadowed.get(page.gfn);
            shadowed.is_some_and(|s| s.pages.contains(&id))
        };
        if !known {
            self.fault(format!("{id:?} of {} cannot be found by its key", page.gfn));
        }
    }

    fn entry(&mut self, at: EntryAt, page: &Page) {
        match page.entry(at.index.into()) {
            Entry::Absent => {}
            Entry::Table(child) => self.link(at, page, child),
            Entry::Leaf(leaf) => self.leaf(at, page, leaf),
            Entry::Mmio(mmio) => self.mmio(at, page, mmio),
        }
    }

    fn link(&mut self, at: EntryAt, page: &Page, child: PageId) {
        let Some(below) = self.tables.pages.get(child) else {
            return self.fault(format!("{at:?} refers to {child:?}, which is gone"));
        };
        if below.role.level + 1 != page.role.level {
            self.fault(format!("{at:?} skips a level"));
        }
        if below.parents.iter().filter(|&&p| p == at).count() != 1 {
            self.fault(format!("{child:?} does not know its parent {at:?}"));
        }
        if page.validity == self.tables.validity && below.validity != page.validity {
            self.fault(format!("{at:?} refers to {child:?}, which is obsolete"));
        }
        if !page.role.rights.contains(below.role.rights) {
            self.fault(format!("{child:?} has more rights than its parent {at:?}"));
        }
    }

    fn leaf(&mut self, at: EntryAt, page: &Page, leaf: Leaf) {
        let first = page.frame(at.index.into());
        let span = page.role.span();
        if !page.role.rights.contains(leaf.rights) {
            self.fault(format!("{at:?} has more rights than its page"));
        }
        if leaf.writable && (leaf.read_only || !leaf.dirty) {
            self.fault(format!("{at:?} is writable, but read-only or clean"));
        }
        if span > 1 && self.tables.shadowed.any_in(first, span) {
            self.fault(format!(
                "{at:?} maps a table among {span} frames from {first}"
            ));
        }
        if leaf.writable && self.tables.shadowed.is_tracked(first) {
            self.fault(format!("{at:?} maps table {first} writable"));
        }
        match self.map.resolve(first.gpa()) {
            Target::Ram(ram) => {
                if ram.host.as_ptr().addr() as u64 != leaf.host {
                    self.fault(format!("{at:?} maps {first} to another host page"));
                }
                if ram.remaining >> 12 < span {
                    self.fault(format!("{at:?} reaches past the slot of {first}"));
                }
                if leaf.writable && ram.read_only {
                    self.fault(format!("{at:?} maps read-only {first} writable"));
                }
                if span > 1 && ram.dirty_log {
                    self.fault(format!("{at:?} maps logged {first} by a large entry"));
                }
            }
            Target::Io { .. } | Target::Nothing => {
                self.fault(format!("{at:?} maps {first}, where there is no RAM"));
            }
        }
        let listed = self.tables.rmap.leaves(first, span);
        if listed.iter().filter(|&&l| l == at).count() != 1 {
            self.fault(format!("{at:?} is not once in the reverse map of {first}"));
        }
    }

    fn mmio(&mut self, at: EntryAt, page: &Page, mmio: Mmio) {
        if page.role.level != 1 {
            self.fault(format!("{at:?} is MMIO above the last level"));
        }
        let usable = page.validity == self.tables.validity && mmio.tag == self.now;
        let is_ram = matches!(self.map.resolve(mmio.gfn.gpa()), Target::Ram(_));
        if usable && is_ram {
            self.fault(format!("{at:?} is valid MMIO over RAM at {}", mmio.gfn));
        }
    }

    fn reverse_map(&mut self) {
        let tables = self.tables;
        for (gfn, at, large) in tables.rmap.iter() {
            let page = tables.pages.get(at.page);
            let mapped = page.map(|p| (p.entry(at.index.into()), p.frame(at.index.into())));
            let right = matches!(mapped, Some((Entry::Leaf(_), frame)) if frame == gfn);
            if !right || page.is_some_and(|p| (p.role.span() > 1) != large) {
                self.fault(format!("the reverse map of {gfn} names {at:?}: {mapped:?}"));
            }
        }
    }

    fn shadowed(&mut self) {
        let tables = self.tables;
        for (gfn, shadowed) in tables.shadowed.iter() {
            for &id in &shadowed.pages {
                let page = tables.pages.get(id);
                if page.is_none_or(|p| p.gfn != gfn || p.zapped) {
                    self.fault(format!("table {gfn} lists {id:?}, which shadows another"));
                }
                let high = page.is_some_and(|p| p.role.level > 1);
                if shadowed.state == State::Unsync && high {
                    self.fault(format!("table {gfn} is unsync and {id:?} no leaf table"));
                }
            }
            let listed = tables.unsettled.contains(&gfn);
            if listed == (shadowed.state == State::Protected) {
                self.fault(format!(
                    "table {gfn}, {:?}, is listed {listed}",
                    shadowed.state
                ));
            }
            self.table_in_ram(gfn);
        }
    }

    fn table_in_ram(&mut self, gfn: Gfn) {
        if !matches!(self.map.resolve(gfn.gpa()), Target::Ram(_)) {
            self.fault(format!("table {gfn} is in no RAM"));
        }
    }
}
