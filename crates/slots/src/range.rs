//! A range of guest-physical addresses that cannot be empty and cannot wrap.

use std::fmt;

use crate::{Gfn, Gpa};

/// One past the highest guest-physical address that x86 can form (52 bits).
const LIMIT: u64 = 1 << 52;

/// A range of guest-physical addresses: not empty, inside the 52-bit physical space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpaRange {
    first: Gpa,
    last: Gpa,
}

impl GpaRange {
    /// Makes the range of `len` bytes from `start`.
    ///
    /// Returns `None` if `len` is zero or the range reaches past the 52-bit physical space.
    pub const fn new(start: Gpa, len: u64) -> Option<Self> {
        if len == 0 || start.0 >= LIMIT || len > LIMIT - start.0 {
            return None;
        }
        let last = Gpa(start.0 + (len - 1));
        Some(Self { first: start, last })
    }

    /// Returns the first address.
    pub const fn start(&self) -> Gpa {
        self.first
    }

    /// Returns the last address, which belongs to the range.
    pub const fn last(&self) -> Gpa {
        self.last
    }

    /// Returns the number of bytes; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Tells whether `gpa` lies inside.
    pub const fn contains(&self, gpa: Gpa) -> bool {
        self.first.0 <= gpa.0 && gpa.0 <= self.last.0
    }

    /// Tells whether the two ranges share an address.
    pub const fn overlaps(&self, other: &GpaRange) -> bool {
        self.first.0 <= other.last.0 && other.first.0 <= self.last.0
    }

    /// Returns the first page that the range touches.
    pub const fn first_gfn(&self) -> Gfn {
        self.first.gfn()
    }

    /// Returns the last page that the range touches.
    pub const fn last_gfn(&self) -> Gfn {
        self.last.gfn()
    }

    /// Tells whether the range touches the page.
    pub const fn touches(&self, gfn: Gfn) -> bool {
        self.first.gfn().0 <= gfn.0 && gfn.0 <= self.last.gfn().0
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first.0, self.last.0)
    }
}
