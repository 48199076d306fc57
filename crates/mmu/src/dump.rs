//! Guest tables and shadow tables side by side, for people.
//!
//! The guest's tables are walked from its root; where a shadow page stands for a table, each entry
//! is shown with what the shadow says. Entries that follow each other with the same rights, to frames
//! that follow each other, and with the same kind of shadow, are one line. The caller holds the
//! processors still, or gets a picture of several moments.

use std::fmt::Write;

use umbra_slots::{Generation, Gfn, Snapshot};

use crate::entry::{Entry, Tag};
use crate::guest_entry::{GuestEntry, GuestPage};
use crate::memory::TableRef;
use crate::mmu::Mmu;
use crate::mode::{Format, Mode, PagingRegs};
use crate::page::PageId;
use crate::rights::Rights;
use crate::tables::Tables;
use crate::walk::{Root, read_pdptes};

/// A guest may build tables that refer to each other in circles of any size.
const LINES_MAX: usize = 200_000;

impl Mmu {
    /// Describes the tables of a processor with these registers, one line for each run of entries;
    /// only what translates `address` if there is one.
    pub fn describe_tables(&self, regs: &PagingRegs, address: Option<u64>) -> Vec<String> {
        let map = self.space.hold();
        let tables = self.tables.lock();
        let mode = Mode::new(regs, self.config.phys_bits);
        let mut dump = Dump {
            map: &map,
            tables: &tables,
            mode,
            address,
            now: map.generation(),
            lines: Vec::new(),
        };
        dump.head(regs);
        dump.roots(regs);
        dump.lines
    }
}

/// One entry as it is shown.
#[derive(Clone, PartialEq)]
struct Shown {
    guest: String,
    /// First frame of what the guest maps.
    frame: u64,
    shadow: String,
}

/// A run of entries that are shown as one.
struct Run {
    first: Shown,
    gva: u64,
    index: usize,
    count: u64,
}

struct Dump<'a> {
    map: &'a Snapshot,
    tables: &'a Tables,
    mode: Mode,
    address: Option<u64>,
    now: Generation,
    lines: Vec<String>,
}

impl Dump<'_> {
    fn head(&mut self, regs: &PagingRegs) {
        let bits = self.tables.config.tag_bits;
        let tag = Tag::of(self.now, bits).0;
        self.lines.push(format!(
            "cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}: {:?}",
            regs.cr0,
            regs.cr3,
            regs.cr4,
            regs.efer,
            self.mode.format()
        ));
        self.lines.push(format!(
            "generation {}, tag {tag} of {bits} bits; {} shadow pages",
            self.now.0,
            self.tables.pages.len()
        ));
    }

    fn roots(&mut self, regs: &PagingRegs) {
        let format = self.mode.format();
        let pdptes = match format {
            Format::Pae => read_pdptes(self.map, regs.cr3, self.tables.config.phys_bits),
            _ => Some([0; 4]),
        };
        let Some(pdptes) = pdptes else {
            self.lines
                .push("the page-directory pointers are not valid".into());
            return;
        };
        let guest = Root {
            cr3: regs.cr3,
            pdptes,
        };
        let roots = if matches!(format, Format::Off | Format::Pae) {
            4
        } else {
            1
        };
        for root in 0..roots {
            let gva = root << 30;
            let Some(table) = guest.table(format, gva) else {
                continue;
            };
            let shadow = self.tables.find_root(table, &self.mode);
            if format == Format::Off {
                self.shadow_only(shadow, gva);
            } else {
                self.table(table, format.root_level(), gva, shadow);
            }
        }
    }

    fn is_wanted(&self, level: u8, index: usize) -> bool {
        let format = self.mode.format();
        self.address
            .is_none_or(|gva| format.index(level, format.truncate(gva)) == index)
    }

    /// A guest table and everything under it.
    fn table(&mut self, gfn: Gfn, level: u8, base: u64, shadow: Option<PageId>) {
        let format = self.mode.format();
        let Some(table) = TableRef::find(self.map, gfn.gpa(), format.entry_size()) else {
            self.lines.push(format!(
                "{}table {gfn} is in no RAM",
                indent(self.mode.format(), level)
            ));
            return;
        };
        let state = match self.tables.shadowed.get(gfn) {
            Some(shadowed) => format!("{:?}", shadowed.state),
            None => "not shadowed".into(),
        };
        self.lines
            .push(format!("{}table {gfn}, {state}", indent(format, level)));
        let mut run: Option<Run> = None;
        for index in 0..format.entries() {
            if self.lines.len() >= LINES_MAX || !self.is_wanted(level, index) {
                continue;
            }
            let guest = self.mode.rules.decode(level, table.entry(index).load());
            let gva = canonical(
                format,
                base | (index as u64) << (12 + format.span_shift(level)),
            );
            let below = shadow.map(|id| self.tables.pages[id].entry(index));
            if guest == GuestEntry::Absent && below.is_none_or(|entry| entry == Entry::Absent) {
                self.end(level, run.take());
                continue;
            }
            let shown = self.show(&guest, below);
            if let GuestEntry::Table { frame, .. } = guest {
                self.end(level, run.take());
                let one = Run {
                    first: shown,
                    gva,
                    index,
                    count: 1,
                };
                self.end(level, Some(one));
                let child = match below {
                    Some(Entry::Table(child)) => Some(child),
                    _ => None,
                };
                if level > 1 {
                    self.table(frame, level - 1, gva, child);
                }
                continue;
            }
            run = self.join(level, run, shown, gva, index);
        }
        self.end(level, run);
    }

    /// Where the guest does not page there are shadow pages only.
    fn shadow_only(&mut self, root: Option<PageId>, gva: u64) {
        let text = match root {
            Some(id) => format!(
                "no paging: {} entries from {gva:#x} on",
                self.tables.pages[id].present
            ),
            None => format!("no paging: nothing from {gva:#x} on"),
        };
        self.lines.push(text);
    }

    fn join(
        &mut self,
        level: u8,
        run: Option<Run>,
        shown: Shown,
        gva: u64,
        index: usize,
    ) -> Option<Run> {
        let span = self.mode.format().span(level);
        if let Some(mut run) = run {
            let next = run.first.frame.wrapping_add(run.count * span);
            let follows = run.first.guest == shown.guest && run.first.shadow == shown.shadow;
            if follows && next == shown.frame {
                run.count += 1;
                return Some(run);
            }
            self.end(level, Some(run));
        }
        Some(Run {
            first: shown,
            gva,
            index,
            count: 1,
        })
    }

    fn end(&mut self, level: u8, run: Option<Run>) {
        let Some(run) = run else { return };
        let times = match run.count {
            1 => String::new(),
            n => format!(" x{n}"),
        };
        let Shown {
            guest,
            frame,
            shadow,
        } = run.first;
        self.lines.push(format!(
            "{}[{:3}] {:016x}{times}: {guest} {:#x} | {shadow}",
            indent(self.mode.format(), level),
            run.index,
            run.gva,
            frame << 12,
        ));
    }

    fn show(&self, guest: &GuestEntry, shadow: Option<Entry>) -> Shown {
        let (guest, frame) = match guest {
            GuestEntry::Absent => ("absent".into(), 0),
            GuestEntry::Reserved => ("reserved bits".into(), 0),
            GuestEntry::Table {
                frame,
                rights,
                accessed,
            } => {
                let accessed = if *accessed { "A" } else { "-" };
                (format!("table {}{accessed}", letters(*rights)), frame.0)
            }
            GuestEntry::Page(page) => (page_letters(page), page.frame.0),
        };
        Shown {
            guest,
            frame,
            shadow: self.shadow(shadow),
        }
    }

    fn shadow(&self, entry: Option<Entry>) -> String {
        match entry {
            None | Some(Entry::Absent) => "-".into(),
            Some(Entry::Table(id)) => self.child(id),
            Some(Entry::Leaf(leaf)) => {
                let mut text = format!("RAM {}", letters(leaf.rights));
                for (set, word) in [
                    (leaf.writable, " writable"),
                    (leaf.read_only, " read-only"),
                    (leaf.large, " large"),
                ] {
                    text += if set { word } else { "" };
                }
                text
            }
            Some(Entry::Mmio(mmio)) => {
                let current = Tag::of(self.now, self.tables.config.tag_bits);
                let valid = if mmio.tag == current {
                    "valid"
                } else {
                    "STALE"
                };
                format!("MMIO {} tag {} {valid}", letters(mmio.rights), mmio.tag.0)
            }
        }
    }

    /// A shadow page by its number; of one that splits a large guest page, what is in it.
    fn child(&self, id: PageId) -> String {
        let page = &self.tables.pages[id];
        let mut text = format!("page {}", id.0);
        if page.role.direct.is_none() {
            return text;
        }
        let current = Tag::of(self.now, self.tables.config.tag_bits);
        let (mut ram, mut valid, mut stale) = (0, 0, 0);
        for index in 0..page.len() {
            match page.entry(index) {
                Entry::Leaf(_) | Entry::Table(_) => ram += 1,
                Entry::Mmio(mmio) if mmio.tag == current => valid += 1,
                Entry::Mmio(_) => stale += 1,
                Entry::Absent => {}
            }
        }
        let written = write!(
            text,
            " splits it: {ram} RAM, {valid} MMIO valid, {stale} MMIO STALE"
        );
        written.expect("a String takes everything");
        text
    }
}

fn indent(format: Format, level: u8) -> String {
    "  ".repeat(usize::from(format.root_level() - level))
}

/// Extends the sign of a linear address.
fn canonical(format: Format, gva: u64) -> u64 {
    let bits = match format {
        Format::Level4 => 48,
        Format::Level5 => 57,
        _ => return gva,
    };
    ((gva << (64 - bits)) as i64 >> (64 - bits)) as u64
}

fn letters(rights: Rights) -> String {
    let mut text = String::new();
    for (right, letter) in [
        (Rights::WRITE, 'W'),
        (Rights::USER, 'U'),
        (Rights::EXECUTE, 'X'),
    ] {
        text.push(if rights.contains(right) { letter } else { '-' });
    }
    text
}

fn page_letters(page: &GuestPage) -> String {
    let mut text = letters(page.rights);
    for (set, letter) in [(page.accessed, 'A'), (page.dirty, 'D'), (page.global, 'G')] {
        text.push(if set { letter } else { '-' });
    }
    if page.pkey != 0 {
        let written = write!(text, " key {}", page.pkey);
        written.expect("a String takes everything");
    }
    text
}
