//! Small sets that say where it is not worth looking.

/// Slots of a chunk.
pub const CHUNK: usize = 8;

/// Chunks of an array, a bit each.
#[derive(Clone, Copy)]
pub struct Chunks<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Chunks<WORDS> {
    /// No chunk.
    pub const NONE: Self = Self([0; WORDS]);

    /// Adds the chunk of slot `index`.
    #[inline(always)]
    pub fn touch(&mut self, index: usize) {
        let chunk = index / CHUNK;
        self.0[chunk / 64 % WORDS] |= 1 << (chunk % 64);
    }

    /// The slots of all chunks that were added.
    pub fn slots(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let words = self.0.into_iter().enumerate();
        let chunks = words.flat_map(|(word, bits)| {
            let rests = std::iter::successors(Some(bits), |rest| Some(rest & rest.wrapping_sub(1)));
            rests
                .take_while(|rest| *rest != 0)
                .map(move |rest| word * 64 + rest.trailing_zeros() as usize)
        });
        chunks.map(|n| n * CHUNK..(n + 1) * CHUNK)
    }

    /// Calls `visit` with each slot of them.
    #[inline(always)]
    pub fn each(self, mut visit: impl FnMut(usize)) {
        for (word, mut bits) in self.0.into_iter().enumerate() {
            while bits != 0 {
                let chunk = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                (chunk * CHUNK..(chunk + 1) * CHUNK).for_each(&mut visit);
            }
        }
    }
}

/// Places of [`Writers`].
const PLACES: usize = 4096;

/// Which slot holds the entry through which a page is written: a page becomes a page table, or has code,
/// far more often than it is worth looking through all slots.
#[derive(Clone, Copy)]
pub struct Writers([u16; PLACES]);

/// Who writes the pages that share a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// No slot.
    Nobody,
    /// This slot, if it does still.
    Slot(usize),
    /// Several, perhaps.
    Many,
}

impl Writers {
    /// No page is written.
    pub const NONE: Self = Self([Self::NOBODY; PLACES]);
    const NOBODY: u16 = u16::MAX;
    const MANY: u16 = u16::MAX - 1;

    /// The place of a page.
    #[inline(always)]
    pub fn place(page: u64) -> usize {
        let hash = page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - PLACES.trailing_zeros())) as usize
    }

    /// Who writes the pages of `place`.
    #[inline(always)]
    pub fn get(&self, place: usize) -> Writer {
        match self.0[place] {
            Self::NOBODY => Writer::Nobody,
            Self::MANY => Writer::Many,
            slot => Writer::Slot(slot.into()),
        }
    }

    /// Says who writes the pages of `place`.
    #[inline(always)]
    pub fn set(&mut self, place: usize, writer: Writer) {
        self.0[place] = match writer {
            Writer::Nobody => Self::NOBODY,
            Writer::Slot(slot) => u16::try_from(slot).unwrap_or(Self::MANY),
            Writer::Many => Self::MANY,
        };
    }
}

/// A set of numbers that may hold more than was put in: what it lacks needs no search. INVLPG is
/// most often about pages of data, and would look through thousands of jumps for nothing.
#[derive(Clone, Copy)]
pub struct Filter<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Filter<WORDS> {
    /// Nothing.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Word and bit for `number`.
    #[inline(always)]
    fn place(number: u64) -> (usize, u64) {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((hash >> 6) as usize % WORDS, 1 << (hash & 63))
    }

    /// Puts `number` in.
    #[inline(always)]
    pub fn insert(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.0[word] |= bit;
    }

    /// Tells whether `number` may have been put in.
    pub fn may_have(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word] & bit != 0
    }

    /// Takes `number` out, unless one of those that are left has the same place.
    pub fn remove(&mut self, number: u64, mut left: impl Iterator<Item = u64>) {
        let place = Self::place(number);
        if left.all(|other| Self::place(other) != place) {
            self.0[place.0] &= !place.1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_keeps_what_shares_its_place() {
        let mut filter = Filter::<1>::EMPTY;
        let place = Filter::<1>::place;
        let twin = (1..).find(|n| place(*n) == place(0)).unwrap_or(0);
        filter.insert(0);
        filter.insert(twin);
        filter.remove(0, [twin].into_iter());
        assert!(filter.may_have(twin));
        filter.remove(twin, std::iter::empty());
        assert!(!filter.may_have(twin) && !filter.may_have(0));
    }
}
