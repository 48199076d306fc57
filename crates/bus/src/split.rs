//! Cuts an access where a device ends, and a cut piece into sizes that a bus transfers.

/// Returns how many bytes the next transfer moves: an access of `left` bytes at `address`, of
/// which `room` lie before the next border.
///
/// An access that fits goes through whole, even if misaligned: devices decide about that
/// themselves. One that does not fit is cut at the border, and the pieces into naturally aligned
/// powers of two, as a processor does with what its bus cannot transfer at once.
pub fn next_transfer(address: u64, left: usize, room: u64, whole: bool) -> usize {
    let fit = left.min(usize::try_from(room).unwrap_or(usize::MAX));
    if whole && fit == left {
        return left;
    }
    let aligned = 1usize << address.trailing_zeros().min(3);
    let largest = 1usize << fit.ilog2().min(3);
    aligned.min(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes into which an access is cut that has a border after `room` bytes.
    fn sizes(address: u64, len: usize, room: u64) -> Vec<usize> {
        let (mut done, mut sizes) = (0, Vec::new());
        while done < len {
            let at = done as u64;
            let room = if at < room { room - at } else { 1 << 20 };
            let size = next_transfer(address + at, len - done, room, done == 0);
            sizes.push(size);
            done += size;
        }
        sizes
    }

    #[test]
    fn what_fits_is_not_cut() {
        assert_eq!(sizes(0x1001, 4, 100), [4]);
        assert_eq!(sizes(0x1000, 8, 8), [8]);
    }

    #[test]
    fn what_does_not_fit_is_cut_into_aligned_powers_of_two() {
        assert_eq!(sizes(0x1004, 8, 4), [4, 4]);
        assert_eq!(sizes(0x1005, 8, 3), [1, 2, 4, 1]);
        assert_eq!(sizes(0x1003, 4, 1), [1, 2, 1]);
    }
}
