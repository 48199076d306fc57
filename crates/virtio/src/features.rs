//! Feature bits (virtio 1.3, 2.2).

use std::fmt;

/// A set of feature bits, 0 to 127.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(u128);

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);
    /// VIRTIO_F_INDIRECT_DESC: descriptors in a table of their own.
    pub const INDIRECT_DESC: Self = Self::bit(28);
    /// VIRTIO_F_EVENT_IDX: each side says at which index it wants to be notified.
    pub const EVENT_IDX: Self = Self::bit(29);
    /// VIRTIO_F_VERSION_1: the device is no legacy one.
    pub const VERSION_1: Self = Self::bit(32);
    /// What a device whose queues are [`Queue`](crate::Queue)s can offer.
    pub const RINGS: Self = Self::VERSION_1
        .with(Self::INDIRECT_DESC)
        .with(Self::EVENT_IDX);

    /// Returns the set of one bit.
    ///
    /// # Panics
    /// If there is no such bit.
    pub const fn bit(number: u32) -> Self {
        Self(1 << number)
    }

    /// Returns the set of these bits, 0 to 63.
    pub const fn from_low(bits: u64) -> Self {
        Self(bits as u128)
    }

    /// Returns bits 0 to 63.
    pub const fn low(self) -> u64 {
        self.0 as u64
    }

    /// Returns what is in this set and not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns what is in both sets.
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the union of both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Tells whether all of `other` is in this set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns bits 32 * `select` to 32 * `select` + 31; zero where there are none.
    pub(crate) fn word(self, select: u32) -> u32 {
        if select > 3 {
            return 0;
        }
        (self.0 >> (32 * select)) as u32
    }

    /// Replaces these bits. Tells whether there are such.
    pub(crate) fn set_word(&mut self, select: u32, value: u32) -> bool {
        if select > 3 {
            return false;
        }
        let shift = 32 * select;
        self.0 = self.0 & !(u128::from(u32::MAX) << shift) | u128::from(value) << shift;
        true
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_32_bits_of_the_set() {
        let set = Features::VERSION_1
            .with(Features::bit(0))
            .with(Features::bit(127));
        let words: Vec<_> = (0..5).map(|select| set.word(select)).collect();
        assert_eq!(words, [1, 1, 0, 1 << 31, 0]);
        assert_eq!(set.word(u32::MAX), 0);
    }

    #[test]
    fn the_lower_half_is_64_bits_of_the_set() {
        let set = Features::from_low(1 << 63 | 5).with(Features::bit(64));
        assert_eq!(set.low(), 1 << 63 | 5);
        assert_eq!(set.without(Features::bit(2)).low(), 1 << 63 | 1);
        assert_eq!(set.without(set), Features::NONE);
    }

    #[test]
    fn a_word_is_replaced_and_others_stay() {
        let mut set = Features::bit(31).with(Features::bit(64));
        assert!(set.set_word(1, 0x8000_0001) && set.set_word(0, 2));
        assert_eq!(set, Features(1 << 64 | 0x8000_0001_0000_0002));
        assert!(!set.set_word(4, 1), "there is no such word");
        assert!(set.has(Features::bit(63)) && !set.has(Features::bit(31)));
        assert!(set.has(Features::NONE) && !set.has(Features::RINGS));
        assert_eq!(format!("{:?}", Features::bit(4)), "Features(0x10)");
    }
}
