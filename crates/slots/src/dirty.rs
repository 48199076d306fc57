//! The dirty log: one bit a 4 KiB page of a region, set by whoever writes.
//!
//! ```text
//!   writers                                   harvest (AddressSpace::harvest)
//!   device, Snapshot::write: mark after       1. read and clear the bits
//!     the bytes are written                   2. listeners take write rights away from the pages
//!   shadow MMU: mark before it gives a        3. … and wait until no cached right is left
//!     write right to a vCPU                   4. only now the caller sees the list
//! ```
//!
//! So a write is either in the memory that the caller copies after step 4, or marked for the next
//! harvest (rule R39). A report may name pages that did not change.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use crate::Gfn;

const PAGE_SHIFT: usize = 12;

/// The dirty bits of a region, or of the part of it from some page on.
#[derive(Clone)]
pub struct DirtyLog {
    words: Arc<[AtomicU64]>,
    base: usize,
}

impl DirtyLog {
    /// Makes a clean log for `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        let words = len.div_ceil(1 << PAGE_SHIFT).div_ceil(64);
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            base: 0,
        }
    }

    /// Makes one in which nothing is marked.
    pub(crate) fn none() -> Self {
        Self {
            words: Arc::new([]),
            base: 0,
        }
    }

    /// Tells from now on whether anybody holds these bits: a mapping does until it is no more.
    pub(crate) fn watch(&self) -> Weak<[AtomicU64]> {
        Arc::downgrade(&self.words)
    }

    /// The same bits, seen from `offset` bytes further.
    pub(crate) fn at_offset(&self, offset: usize) -> Self {
        Self {
            words: self.words.clone(),
            base: self.base + offset,
        }
    }

    fn whole(&self) -> DirtyRef<'_> {
        DirtyRef {
            words: &self.words,
            base: self.base,
        }
    }

    /// Reads and clears the bits of `pages` pages from byte `offset` on, as words of 64 pages.
    pub(crate) fn take(&self, offset: usize, pages: u64) -> Vec<u64> {
        let first = (self.base + offset) >> PAGE_SHIFT;
        let mut taken = vec![0; (pages as usize).div_ceil(64)];
        for page in 0..pages as usize {
            let bit = first + page;
            // A relaxed look first: clean pages, the most, cost no locked instruction.
            let Some(word) = self.words.get(bit / 64) else {
                break;
            };
            let mask = 1 << (bit % 64);
            if word.load(Ordering::Relaxed) & mask != 0 {
                word.fetch_and(!mask, Ordering::AcqRel);
                taken[page / 64] |= 1 << (page % 64);
            }
        }
        taken
    }
}

impl fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtyLog({} words)", self.words.len())
    }
}

impl Default for DirtyLog {
    fn default() -> Self {
        Self::new(0)
    }
}

/// A borrowed part of a [`DirtyLog`].
#[derive(Clone, Copy, Debug)]
pub struct DirtyRef<'a> {
    words: &'a [AtomicU64],
    base: usize,
}

impl DirtyRef<'_> {
    fn word(&self, offset: usize) -> Option<(&AtomicU64, u64)> {
        let bit = (self.base + offset) >> PAGE_SHIFT;
        Some((self.words.get(bit / 64)?, 1 << (bit % 64)))
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = DirtyRef<'a>;
}

impl WithBitmapSlice<'_> for DirtyRef<'_> {
    type S = Self;
}

impl BitmapSlice for DirtyRef<'_> {}

impl Bitmap for DirtyRef<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        let first_page = (self.base + offset) >> PAGE_SHIFT;
        let last_page = (self.base + offset + last) >> PAGE_SHIFT;
        for page in first_page..=last_page {
            let Some(word) = self.words.get(page / 64) else {
                return;
            };
            let mask = 1 << (page % 64);
            if word.load(Ordering::Acquire) & mask == 0 {
                word.fetch_or(mask, Ordering::AcqRel);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.word(offset)
            .is_some_and(|(word, mask)| word.load(Ordering::Acquire) & mask != 0)
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            words: self.words,
            base: self.base + offset,
        }
    }
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.whole().mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.whole().dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> DirtyRef<'_> {
        self.whole().slice_at(offset)
    }
}

impl NewBitmap for DirtyLog {
    fn with_len(len: usize) -> Self {
        Self::new(len)
    }
}

/// The pages that a harvest found written, by guest frame number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyPages {
    pub(crate) first: Gfn,
    pub(crate) words: Vec<u64>,
}

impl DirtyPages {
    /// Returns the page of the lowest bit of the first word.
    pub fn first(&self) -> Gfn {
        self.first
    }

    /// Returns the bits, 64 pages a word, lowest page in the lowest bit.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Returns the written pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.words.iter().enumerate().flat_map(move |(i, &word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| Gfn(self.first.0 + i as u64 * 64 + bit))
        })
    }

    /// Returns how many pages were written.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Tells whether no page was written.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&w| w == 0)
    }
}
