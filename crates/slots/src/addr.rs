//! Addresses and numbers as types of their own, so that none is taken for another.

use std::fmt;

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// The number of a 4 KiB guest-physical page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

impl Gpa {
    /// Returns the page that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> 12)
    }

    /// Returns the offset in the page.
    pub const fn page_offset(self) -> u64 {
        self.0 & 0xfff
    }
}

impl Gfn {
    /// Returns the address of the page's first byte. Bits that do not fit are lost; a frame number
    /// from a 52-bit physical address always fits.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << 12)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The number of one published map. Never reused, never reset; 64 bits do not wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names what is behind an I/O window. The map does not know what that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u32);
