//! Guest memory in order, as the buffers of a chain: where one range ends and the next begins means
//! nothing (virtio 1.3, 2.7.4), so headers and data are cut off by bytes.

use umbra_slots::Gpa;

/// Ranges in order. Whether they are memory is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(Gpa, u32)>);

impl Ranges {
    pub fn new(ranges: impl IntoIterator<Item = (Gpa, u32)>) -> Self {
        Self(ranges.into_iter().filter(|(_, len)| *len != 0).collect())
    }

    pub fn as_slice(&self) -> &[(Gpa, u32)] {
        &self.0
    }

    /// Bytes of all: less than 2^16 ranges of less than 2^32.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// Takes up to `len` bytes away from the front.
    pub fn split_front(&mut self, len: u64) -> Self {
        let mut left = len;
        let (mut front, mut rest) = (Vec::new(), Vec::new());
        for &(at, len) in &self.0 {
            let taken = u64::from(len).min(left) as u32;
            left -= u64::from(taken);
            front.push((at, taken));
            // An address that wraps is no memory, and found to be none when it is used.
            rest.push((Gpa(at.0.wrapping_add(taken.into())), len - taken));
        }
        *self = Self::new(rest);
        Self::new(front)
    }

    /// Takes the last byte away; `None` if there is none.
    pub fn pop_byte(&mut self) -> Option<Gpa> {
        let (at, len) = self.0.last_mut()?;
        *len -= 1;
        let byte = Gpa(at.0.wrapping_add((*len).into()));
        if *len == 0 {
            self.0.pop();
        }
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_cut_off_at_both_ends() {
        let mut ranges = Ranges::new([(Gpa(10), 3), (Gpa(0), 0), (Gpa(20), 2)]);
        assert_eq!(
            ranges.split_front(4).as_slice(),
            [(Gpa(10), 3), (Gpa(20), 1)]
        );
        assert_eq!(ranges.as_slice(), [(Gpa(21), 1)]);
        assert_eq!(ranges.pop_byte(), Some(Gpa(21)));
        assert_eq!((ranges.pop_byte(), ranges.len()), (None, 0));
    }

    proptest! {
        /// Every byte is in exactly one of the parts, in order.
        #[test]
        fn no_byte_is_lost_or_twice(
            lens in proptest::collection::vec(0..20u32, 0..8),
            cut in 0..200u64,
        ) {
            let bytes = |ranges: &Ranges| -> Vec<u64> {
                let each = |(at, len): &(Gpa, u32)| at.0..at.0 + u64::from(*len);
                ranges.as_slice().iter().flat_map(each).collect()
            };
            let places = (0..).map(|place| Gpa(place * 100));
            let mut rest = Ranges::new(places.zip(lens));
            let all = bytes(&rest);
            let front = rest.split_front(cut);
            prop_assert_eq!(front.len(), cut.min(all.len() as u64));
            let last = rest.clone().pop_byte().map(|at| at.0);
            prop_assert_eq!(last, bytes(&rest).last().copied());
            prop_assert_eq!([bytes(&front), bytes(&rest)].concat(), all);
        }
    }
}
