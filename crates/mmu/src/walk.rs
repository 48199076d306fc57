//! The walk of the guest's own tables (SDM vol. 3, 4.3 to 4.8).
//!
//! ```text
//!   1. read the entries from the root down; absent or reserved: page fault
//!   2. AND the rights over all levels; forbidden: page fault
//!   3. set accessed bits from the root down, and the dirty bit for a write, each by
//!      compare-and-swap against the value that was read; lost the race: walk again
//! ```
//!
//! A walk sees one map (rule R7) and touches no shadow structure. A table that is in no RAM reads
//! as all ones; what such a walk finds must not be remembered, because nothing would tell when
//! it changes.

use smallvec::SmallVec;
use umbra_slots::{Gfn, Gpa, Snapshot};
use umbra_x86::{Gva, PageFaultError, pte};

use crate::guest_entry::{GuestEntry, GuestPage};
use crate::memory::{EntryRef, TableRef};
use crate::mode::{Format, Mode};
use crate::rights::{Access, AccessKind, Rights};

/// Where a walk begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Root {
    /// CR3.
    pub cr3: u64,
    /// The page-directory-pointer registers, for PAE.
    pub pdptes: [u64; 4],
}

impl Root {
    /// The top table for an address. `None` if its page-directory-pointer register is not
    /// present.
    pub fn table(&self, format: Format, gva: u64) -> Option<Gfn> {
        match format {
            Format::Off => Some(Gfn((format.root_index(gva) as u64) << 18)),
            Format::Bits32 => Some(Gfn((self.cr3 & 0xffff_f000) >> 12)),
            Format::Level4 | Format::Level5 => Some(Gfn((self.cr3 & pte::FRAME) >> 12)),
            Format::Pae => {
                let pdpte = self.pdptes[format.root_index(gva)];
                (pdpte & pte::P != 0).then_some(Gfn((pdpte & pte::FRAME) >> 12))
            }
        }
    }
}

/// One level of a walk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    pub level: u8,
    pub table: Gfn,
    /// The AND of the rights of the levels above.
    pub rights_above: Rights,
    /// The value that the walk saw, accessed and dirty bits included.
    pub raw: u64,
    /// The entry itself; `None` if the table is in no RAM.
    pub entry: Option<EntryRef<'a>>,
}

impl Step<'_> {
    /// Tells whether the entry still says what the walk saw.
    pub fn unchanged(&self) -> bool {
        self.entry.is_some_and(|entry| entry.load() == self.raw)
    }
}

/// Where an address lands.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    /// One step a level, root first. Empty without paging.
    pub steps: SmallVec<[Step<'a>; 5]>,
    /// The page that the last entry maps, with the rights of the whole walk.
    pub page: GuestPage,
    /// The level of that entry.
    pub level: u8,
    /// The 4 KiB frame of the address.
    pub frame: Gfn,
    /// Some table is in no RAM.
    pub uncached: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The guest's tables forbid it.
    Fault(PageFaultError),
    /// A table changed under the walk.
    Raced,
}

/// Walks for one access and sets the accessed and dirty bits.
pub(crate) fn walk<'a>(
    map: &'a Snapshot,
    mode: &Mode,
    root: &Root,
    gva: Gva,
    access: Access,
) -> Result<Walk<'a>, Stop> {
    let format = mode.format();
    if format == Format::Off {
        return Ok(unpaged(gva));
    }
    let fault = |error| Err(Stop::Fault(error));
    let mut steps = SmallVec::new();
    let mut rights_above = Rights::ALL;
    let mut uncached = false;
    let mut level = format.root_level();
    let Some(mut table) = root.table(format, gva.0) else {
        return fault(mode.not_present(access));
    };
    let page = loop {
        let step = look(map, mode, gva, level, table, rights_above);
        uncached |= step.entry.is_none();
        steps.push(step);
        match mode.rules.decode(level, step.raw) {
            GuestEntry::Absent => return fault(mode.not_present(access)),
            GuestEntry::Reserved => return fault(mode.reserved(access)),
            GuestEntry::Page(page) => break page,
            GuestEntry::Table { frame, rights, .. } => {
                rights_above = rights_above.and(rights);
                table = frame;
                level -= 1;
            }
        }
    };
    let rights = rights_above.and(page.rights);
    if !mode.allows(rights, page.pkey, access) {
        return fault(mode.violation(rights, page.pkey, access));
    }
    let dirty = mark_used(map, &mut steps, access.kind == AccessKind::Write)?;
    let within = (gva.0 >> 12) & (format.span(level) - 1);
    Ok(Walk {
        steps,
        page: GuestPage {
            rights,
            accessed: true,
            dirty,
            ..page
        },
        level,
        frame: Gfn(page.frame.0 + within),
        uncached,
    })
}

fn unpaged<'a>(gva: Gva) -> Walk<'a> {
    let frame = Gfn(gva.0 >> 12);
    Walk {
        steps: SmallVec::new(),
        page: unpaged_page(frame),
        level: 0,
        frame,
        uncached: false,
    }
}

/// What stands for a guest entry where there is no paging: everything is allowed.
pub(crate) fn unpaged_page(frame: Gfn) -> GuestPage {
    GuestPage {
        frame,
        rights: Rights::ALL,
        pkey: 0,
        global: false,
        accessed: true,
        dirty: true,
    }
}

fn look<'a>(
    map: &'a Snapshot,
    mode: &Mode,
    gva: Gva,
    level: u8,
    table: Gfn,
    rights_above: Rights,
) -> Step<'a> {
    let format = mode.format();
    let entry = TableRef::find(map, table.gpa(), format.entry_size())
        .map(|found| found.entry(format.index(level, gva.0)));
    let ones = match format {
        Format::Bits32 => u64::from(u32::MAX),
        _ => u64::MAX,
    };
    Step {
        level,
        table,
        rights_above,
        raw: entry.map_or(ones, EntryRef::load),
        entry,
    }
}

/// Sets accessed bits on the way, and the dirty bit at its end for a write. Tells whether the
/// dirty bit is set now.
fn mark_used(map: &Snapshot, steps: &mut [Step<'_>], write: bool) -> Result<bool, Stop> {
    let last = steps.len() - 1;
    for (i, step) in steps.iter_mut().enumerate() {
        let mut wanted = step.raw | pte::A;
        if i == last && write {
            wanted |= pte::D;
        }
        if wanted != step.raw {
            set_bits(map, step, wanted)?;
        }
    }
    // A table in ROM keeps neither bit; the write goes on all the same.
    Ok(write || steps[last].raw & pte::D != 0)
}

fn set_bits(map: &Snapshot, step: &mut Step<'_>, wanted: u64) -> Result<(), Stop> {
    let Some(entry) = step.entry else {
        return Ok(()); // all ones already; only reached if some bit is not
    };
    let table = TableRef::find(map, step.table.gpa(), 8).expect("the entry was found there");
    if table.ram().read_only {
        // The write is lost, as on a processor whose tables are in ROM.
        return Ok(());
    }
    if !entry.replace(step.raw, wanted) {
        return Err(Stop::Raced);
    }
    if table.ram().dirty_log {
        table.ram().mark_dirty(0x1000);
    }
    step.raw = wanted;
    Ok(())
}

/// Reads the four page-directory-pointer entries (SDM vol. 3, 4.4.1). `None` if one that is
/// present has a reserved bit set.
pub(crate) fn read_pdptes(map: &Snapshot, cr3: u64, phys_bits: u32) -> Option<[u64; 4]> {
    let base = cr3 & 0xffff_ffe0;
    let table = TableRef::find(map, Gpa(base), 8)?;
    let mut pdptes = [0; 4];
    for (i, pdpte) in pdptes.iter_mut().enumerate() {
        *pdpte = table.entry((base & 0xfff) as usize / 8 + i).load();
        if !pdpte_allowed(*pdpte, phys_bits) {
            return None;
        }
    }
    Some(pdptes)
}

/// Tells whether a page-directory-pointer entry is not present, or has no reserved bit set.
pub(crate) fn pdpte_allowed(pdpte: u64, phys_bits: u32) -> bool {
    let frame_bits = pte::FRAME & ((1 << phys_bits) - 1);
    let allowed = pte::P | pte::PWT | pte::PCD | 0xe00 | frame_bits;
    pdpte & pte::P == 0 || pdpte & !allowed == 0
}
