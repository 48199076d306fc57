//! The bits of a shadow entry. Only this file knows them; everybody else sees [`Entry`].
//!
//! ```text
//!        63   62 61      52 51                12 11        3  2  1  0
//! Mmio  | 1 |  0 | tag high |  guest frame       | tag low  | U  W | 0 |
//!        63   56 55      52 51                12 11 8 .. 3    2  1  0
//! Leaf  |    0   |  pkey    |  host page         | 0 flags X  U  W | 1 |
//! Table |             0          |  page (32)    | 1        0      | 1 |
//! ```
//!
//! An MMIO entry says: when the map had a generation with this tag, there was no RAM at this
//! frame. Whoever decodes one field must not see another one (rule R1): the tag grows into all
//! its bits only after many changes of the map, so a field that leaks is not seen early.

use umbra_slots::{Generation, Gfn};

use crate::page::PageId;
use crate::rights::Rights;

/// Widest possible tag.
pub(crate) const TAG_BITS_MAX: u32 = TAG_LOW.width + TAG_HIGH.width;

/// A range of bits in an entry.
#[derive(Clone, Copy)]
struct Field {
    shift: u32,
    width: u32,
}

impl Field {
    const fn new(first: u32, last: u32) -> Self {
        Self {
            shift: first,
            width: last - first + 1,
        }
    }

    /// The bits of the field, in place.
    const fn mask(self) -> u64 {
        ((1u64 << self.width) - 1) << self.shift
    }

    /// The field's value; nothing of its neighbours.
    const fn get(self, raw: u64) -> u64 {
        (raw & self.mask()) >> self.shift
    }

    /// `value` in place.
    const fn put(self, value: u64) -> u64 {
        debug_assert!(value <= self.mask() >> self.shift);
        (value << self.shift) & self.mask()
    }
}

// Kinds.
const PRESENT: u64 = 1 << 0;
const TABLE: u64 = 1 << 11;
const MMIO: u64 = 1 << 63;

// Leaf and Mmio: write, user.
const ACCESS: Field = Field::new(1, 2);
// Mmio.
const TAG_LOW: Field = Field::new(3, 11);
const TAG_HIGH: Field = Field::new(52, 61);
// Mmio: guest frame. Leaf: host page.
const FRAME: Field = Field::new(12, 51);
// Leaf: write, user, execute.
const RIGHTS: Field = Field::new(1, 3);
const WRITABLE: u64 = 1 << 4;
const DIRTY: u64 = 1 << 5;
const READ_ONLY: u64 = 1 << 6;
const GLOBAL: u64 = 1 << 7;
const LARGE: u64 = 1 << 8;
const PKEY: Field = Field::new(52, 55);
// Table.
const CHILD: Field = Field::new(12, 43);

/// Adds a part of a layout, which must not touch what is there (rule R2).
const fn with(layout: u64, part: u64) -> u64 {
    assert!(layout & part == 0, "two fields share a bit");
    layout | part
}

const _: () = {
    let kinds = with(PRESENT, MMIO);
    let mmio = with(kinds, ACCESS.mask());
    let mmio = with(mmio, TAG_LOW.mask());
    let mmio = with(mmio, FRAME.mask());
    let _ = with(mmio, TAG_HIGH.mask());

    let leaf = with(with(kinds, TABLE), RIGHTS.mask());
    let leaf = with(leaf, WRITABLE);
    let leaf = with(leaf, DIRTY);
    let leaf = with(leaf, READ_ONLY);
    let leaf = with(leaf, GLOBAL);
    let leaf = with(leaf, LARGE);
    let leaf = with(leaf, FRAME.mask());
    let _ = with(leaf, PKEY.mask());

    let _ = with(with(kinds, TABLE), CHILD.mask());

    // Frames are 40 bits wide: 52-bit physical addresses, and host addresses below 2^52.
    assert!(FRAME.width == 40 && FRAME.shift == 12);
    assert!(TAG_LOW.width == 9 && TAG_HIGH.width == 10 && TAG_BITS_MAX == 19);
};

/// What a shadow entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing is known.
    Absent,
    /// The next level is this shadow page.
    Table(PageId),
    /// The address lands in RAM.
    Leaf(Leaf),
    /// The address lands where there was no RAM at some generation.
    Mmio(Mmio),
}

/// An entry that maps RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Host address of the first byte, a multiple of 4 KiB.
    pub host: u64,
    /// What the guest's entries allow, over all levels.
    pub rights: Rights,
    /// The guest's protection key.
    pub pkey: u8,
    /// Writes need nobody's attention: dirty in the guest's entry, no table, logged, not read-only.
    pub writable: bool,
    /// The guest's dirty bit is set.
    pub dirty: bool,
    /// The slot is read-only.
    pub read_only: bool,
    /// The guest's global bit.
    pub global: bool,
    /// The guest page is larger than 4 KiB.
    pub large: bool,
}

/// An entry that remembers an address without RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mmio {
    /// The guest frame.
    pub gfn: Gfn,
    /// Write (only if also dirty in the guest's entry) and user.
    pub rights: Rights,
    /// When that was so.
    pub tag: Tag,
}

/// The generation, modulo 2 to the width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(pub u32);

impl Tag {
    /// Returns the tag of a generation.
    pub const fn of(generation: Generation, bits: u32) -> Self {
        Self((generation.0 & ((1 << bits) - 1)) as u32)
    }
}

fn flag(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

impl Leaf {
    fn encode(self) -> u64 {
        debug_assert_eq!(self.host & !FRAME.mask(), 0, "host pages lie below 2^52");
        PRESENT
            | self.host & FRAME.mask()
            | RIGHTS.put(u64::from(self.rights.bits()))
            | PKEY.put(u64::from(self.pkey))
            | flag(self.writable, WRITABLE)
            | flag(self.dirty, DIRTY)
            | flag(self.read_only, READ_ONLY)
            | flag(self.global, GLOBAL)
            | flag(self.large, LARGE)
    }

    fn decode(raw: u64) -> Self {
        Self {
            host: raw & FRAME.mask(),
            rights: Rights::from_bits(RIGHTS.get(raw) as u8),
            pkey: PKEY.get(raw) as u8,
            writable: raw & WRITABLE != 0,
            dirty: raw & DIRTY != 0,
            read_only: raw & READ_ONLY != 0,
            global: raw & GLOBAL != 0,
            large: raw & LARGE != 0,
        }
    }
}

impl Mmio {
    fn encode(self) -> u64 {
        let tag = u64::from(self.tag.0);
        MMIO | FRAME.put(self.gfn.0)
            | ACCESS.put(u64::from(self.rights.bits() & Rights::WRITE_USER.bits()))
            | TAG_LOW.put(tag & ((1 << TAG_LOW.width) - 1))
            | TAG_HIGH.put(tag >> TAG_LOW.width)
    }

    fn decode(raw: u64) -> Self {
        let tag = TAG_LOW.get(raw) | TAG_HIGH.get(raw) << TAG_LOW.width;
        Self {
            gfn: Gfn(FRAME.get(raw)),
            rights: Rights::from_bits(ACCESS.get(raw) as u8),
            tag: Tag(tag as u32),
        }
    }
}

impl Entry {
    /// Returns the bits.
    pub fn encode(self) -> u64 {
        match self {
            Entry::Absent => 0,
            Entry::Table(page) => PRESENT | TABLE | CHILD.put(u64::from(page.0)),
            Entry::Leaf(leaf) => leaf.encode(),
            Entry::Mmio(mmio) => mmio.encode(),
        }
    }

    /// Returns what the bits say.
    ///
    /// # Panics
    /// If [`Entry::encode`] never makes such bits.
    pub fn decode(raw: u64) -> Self {
        match raw {
            0 => Entry::Absent,
            _ if raw & (MMIO | PRESENT) == MMIO => Entry::Mmio(Mmio::decode(raw)),
            _ if raw & (MMIO | PRESENT | TABLE) == PRESENT | TABLE => {
                Entry::Table(PageId(CHILD.get(raw) as u32))
            }
            _ if raw & (MMIO | PRESENT | TABLE) == PRESENT => Entry::Leaf(Leaf::decode(raw)),
            _ => panic!("{raw:#x} is no shadow entry"),
        }
    }
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
