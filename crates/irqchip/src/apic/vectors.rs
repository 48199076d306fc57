//! A set of interrupt vectors: the 256-bit registers IRR, ISR and TMR (SDM vol. 3, 11.8.4).

/// A set of vectors, 0 to 255.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors([u32; 8]);

impl Vectors {
    /// The set whose registers, 0 to 7, are `words`.
    pub fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }

    /// Adds `vector`; tells whether it was not there.
    pub fn insert(&mut self, vector: u8) -> bool {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Takes `vector` out; tells whether it was there.
    pub fn remove(&mut self, vector: u8) -> bool {
        let word = &mut self.0[usize::from(vector >> 5)];
        let bit = 1 << (vector & 31);
        let had = *word & bit != 0;
        *word &= !bit;
        had
    }

    /// Tells whether `vector` is there.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    /// Returns the highest vector, which has the highest priority.
    pub fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rfind(|(_, word)| **word != 0)?;
        Some((index as u32 * 32 + 31 - word.leading_zeros()) as u8)
    }

    /// Returns the 32-bit register `index` (0 to 7) as the guest reads it.
    pub fn word(&self, index: u32) -> u32 {
        self.0[index as usize & 7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_wins_across_words() {
        let mut set = Vectors::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 255, 17] {
            assert!(set.insert(vector));
            assert!(!set.insert(vector));
        }
        for expected in [255, 32, 31, 17, 0] {
            assert_eq!(set.highest(), Some(expected));
            assert!(set.remove(expected));
        }
        assert!(!set.remove(255));
    }

    #[test]
    fn words_read_as_the_guest_sees_them() {
        let mut set = Vectors::default();
        set.insert(0x41);
        assert_eq!(set.word(2), 1 << 1);
        assert_eq!(set.word(1), 0);
    }
}
