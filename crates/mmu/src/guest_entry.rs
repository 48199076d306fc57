//! What an entry of the guest's own tables says (SDM vol. 3, 4.3 to 4.5).

use umbra_slots::Gfn;
use umbra_x86::pte;

use crate::mode::{Format, Rules};
use crate::rights::Rights;

/// A guest entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestEntry {
    /// P is clear.
    Absent,
    /// A reserved bit is set.
    Reserved,
    /// Refers to a table of the next lower level.
    Table {
        frame: Gfn,
        rights: Rights,
        accessed: bool,
    },
    /// Maps a page.
    Page(GuestPage),
}

/// An entry that maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GuestPage {
    /// First frame of the page.
    pub frame: Gfn,
    pub rights: Rights,
    pub pkey: u8,
    pub global: bool,
    pub accessed: bool,
    pub dirty: bool,
}

impl Rules {
    /// Decodes an entry of a table of this level.
    pub fn decode(&self, level: u8, raw: u64) -> GuestEntry {
        if raw & pte::P == 0 {
            return GuestEntry::Absent;
        }
        match self.format {
            Format::Bits32 => self.decode32(level, raw),
            _ => self.decode64(level, raw),
        }
    }

    fn decode32(&self, level: u8, raw: u64) -> GuestEntry {
        let large = level == 2 && self.pse && raw & pte::PS != 0;
        if level == 2 && !large {
            return self.table(raw, Gfn(raw >> 12 & 0xf_ffff));
        }
        if !large {
            return self.page(raw, Gfn(raw >> 12 & 0xf_ffff));
        }
        // PSE-36: bits 13 to 20 are bits 32 to 39 of the address, as far as they exist.
        let high = raw >> 13 & 0xff;
        let high_bits = (u32::from(self.phys_bits) - 32).min(8);
        if high >> high_bits != 0 || raw & 1 << 21 != 0 {
            return GuestEntry::Reserved;
        }
        self.page(raw, Gfn((raw >> 12 & 0xf_fc00) | high << 20))
    }

    fn decode64(&self, level: u8, raw: u64) -> GuestEntry {
        let large = raw & pte::PS != 0 && (level == 2 || level == 3);
        if raw & self.reserved64(level, raw) != 0 {
            return GuestEntry::Reserved;
        }
        let frame = raw & pte::FRAME;
        if level == 1 {
            self.page(raw, Gfn(frame >> 12))
        } else if large {
            // Bit 12 is the PAT selector; the bits between it and the frame were reserved.
            self.page(raw, Gfn((frame & !pte::PAT_LARGE) >> 12))
        } else {
            self.table(raw, Gfn(frame >> 12))
        }
    }

    fn reserved64(&self, level: u8, raw: u64) -> u64 {
        let mut reserved = pte::FRAME & !((1u64 << self.phys_bits) - 1);
        if !self.nxe {
            reserved |= pte::XD;
        }
        if self.format == Format::Pae {
            reserved |= 0x7ff << 52;
        }
        let page_size = raw & pte::PS != 0;
        match level {
            2 if page_size => reserved |= 0xff << 13,
            3 if page_size => reserved |= 0x1_ffff << 13,
            4 | 5 => reserved |= pte::PS,
            _ => {}
        }
        reserved
    }

    fn rights(&self, raw: u64) -> Rights {
        let execute = self.format == Format::Bits32 || raw & pte::XD == 0;
        Rights::new(raw & pte::RW != 0, raw & pte::US != 0, execute)
    }

    fn table(&self, raw: u64, frame: Gfn) -> GuestEntry {
        GuestEntry::Table {
            frame,
            rights: self.rights(raw),
            accessed: raw & pte::A != 0,
        }
    }

    fn page(&self, raw: u64, frame: Gfn) -> GuestEntry {
        let keys = matches!(self.format, Format::Level4 | Format::Level5);
        GuestEntry::Page(GuestPage {
            frame,
            rights: self.rights(raw),
            pkey: if keys {
                (raw >> pte::PKEY_SHIFT & 0xf) as u8
            } else {
                0
            },
            global: raw & pte::G != 0,
            accessed: raw & pte::A != 0,
            dirty: raw & pte::D != 0,
        })
    }
}
