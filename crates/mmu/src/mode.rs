//! The paging mode: which format the guest's tables have, and which checks apply
//! (SDM vol. 3, 4.1).

use umbra_x86::{cr0, cr4, efer};

/// The registers that paging depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagingRegs {
    /// CR0.
    pub cr0: u64,
    /// CR3, without the no-flush bit.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// PKRU.
    pub pkru: u32,
}

/// The shape of the guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    /// CR0.PG is off: linear is physical.
    Off,
    /// Two levels of 1024 four-byte entries.
    Bits32,
    /// Two levels of 512 under four page-directory-pointer registers.
    Pae,
    /// Four levels.
    Level4,
    /// Five levels.
    Level5,
}

impl Format {
    /// The level of the tables that roots point to. PAE and unpaged addresses have four roots of
    /// 1 GiB each.
    pub const fn root_level(self) -> u8 {
        match self {
            Format::Off | Format::Bits32 | Format::Pae => 2,
            Format::Level4 => 4,
            Format::Level5 => 5,
        }
    }

    /// Which root an address belongs to.
    pub const fn root_index(self, gva: u64) -> usize {
        match self {
            Format::Off | Format::Pae => (gva >> 30 & 3) as usize,
            _ => 0,
        }
    }

    /// Bits of the address that one level consumes.
    const fn index_bits(self) -> u32 {
        match self {
            Format::Bits32 => 10,
            _ => 9,
        }
    }

    /// Entries in a table.
    pub const fn entries(self) -> usize {
        1 << self.index_bits()
    }

    /// Bytes in an entry.
    pub const fn entry_size(self) -> usize {
        match self {
            Format::Bits32 => 4,
            _ => 8,
        }
    }

    /// How many 4 KiB pages an entry of this level maps, as a power of two.
    pub const fn span_shift(self, level: u8) -> u32 {
        self.index_bits() * (level as u32 - 1)
    }

    /// How many 4 KiB pages an entry of this level maps.
    pub const fn span(self, level: u8) -> u64 {
        1 << self.span_shift(level)
    }

    /// The index of the address in a table of this level.
    pub const fn index(self, level: u8, gva: u64) -> usize {
        (gva >> (12 + self.span_shift(level))) as usize & (self.entries() - 1)
    }

    /// The part of a linear address that translation looks at.
    pub const fn truncate(self, gva: u64) -> u64 {
        match self {
            Format::Level4 | Format::Level5 => gva,
            _ => gva & 0xffff_ffff,
        }
    }
}

/// Everything that decides what the bits of a guest entry mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    pub format: Format,
    /// EFER.NXE; without it bit 63 is reserved.
    pub nxe: bool,
    /// CR4.PSE, for 32-bit tables only; without it bit 7 is ignored.
    pub pse: bool,
    pub phys_bits: u8,
}

/// The paging mode of one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    pub rules: Rules,
    pub nxe: bool,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
    pub pge: bool,
    pub pke: bool,
    pub pkru: u32,
}

impl Mode {
    /// Derives the mode from the registers.
    pub fn new(regs: &PagingRegs, phys_bits: u32) -> Self {
        let long = regs.efer & efer::LMA != 0;
        let format = if regs.cr0 & cr0::PG == 0 {
            Format::Off
        } else if regs.cr4 & cr4::PAE == 0 {
            Format::Bits32
        } else if !long {
            Format::Pae
        } else if regs.cr4 & cr4::LA57 == 0 {
            Format::Level4
        } else {
            Format::Level5
        };
        let has = |bit| regs.cr4 & bit != 0;
        let nxe = regs.efer & efer::NXE != 0 && has(cr4::PAE);
        Self {
            rules: Rules {
                format,
                nxe: nxe && format != Format::Off,
                pse: has(cr4::PSE) && format == Format::Bits32,
                phys_bits: phys_bits as u8,
            },
            nxe,
            wp: regs.cr0 & cr0::WP != 0,
            smep: has(cr4::SMEP),
            smap: has(cr4::SMAP),
            pge: has(cr4::PGE),
            pke: has(cr4::PKE) && long,
            pkru: regs.pkru,
        }
    }

    /// The format of the tables.
    pub fn format(&self) -> Format {
        self.rules.format
    }

    /// CR0.PG.
    pub fn is_paging(&self) -> bool {
        self.rules.format != Format::Off
    }
}
