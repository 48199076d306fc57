//! Ranges of pages out of what a driver names one by one, or in pieces.

use umbra_slots::{Gpa, GpaRange};

/// Bytes of a page of the balloon, whatever the guest's own pages are (5.5.6).
pub const PAGE: u64 = 0x1000;

/// Returns the page of a number as it is in the inflate queue. There is one for each number.
pub fn page(number: u32) -> GpaRange {
    let start = Gpa(u64::from(number) * PAGE);
    GpaRange::new(start, PAGE).expect("2^32 pages end at 2^44")
}

/// Joins ranges that touch or overlap, in ascending order: neighbours are one request to the host.
pub fn join(ranges: &mut Vec<GpaRange>) {
    ranges.sort_unstable_by_key(|range| range.start());
    ranges.dedup_by(|next, joined| match joined.last().0 + 1 >= next.start().0 {
        true => {
            *joined = hull(*joined, *next);
            true
        }
        false => false,
    });
}

/// The range from the start of the first to the end that is further.
fn hull(first: GpaRange, next: GpaRange) -> GpaRange {
    let last = first.last().max(next.last());
    GpaRange::new(first.start(), last.0 - first.start().0 + 1).expect("between ends of ranges")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> GpaRange {
        GpaRange::new(Gpa(start), len).unwrap()
    }

    fn joined(parts: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut ranges: Vec<_> = parts.iter().map(|(at, len)| range(*at, *len)).collect();
        join(&mut ranges);
        let pairs = ranges.iter().map(|range| (range.start().0, range.len()));
        pairs.collect()
    }

    #[test]
    fn a_page_is_4_kib_and_the_last_one_ends_at_16_tib() {
        assert_eq!(page(3), range(0x3000, 0x1000));
        assert_eq!(page(u32::MAX), range((1 << 44) - 0x1000, 0x1000));
    }

    #[test]
    fn neighbours_are_joined_in_any_order() {
        type Ranges<'a> = &'a [(u64, u64)];
        let table: [(Ranges<'_>, Ranges<'_>); 6] = [
            (&[], &[]),
            (&[(3, 1), (1, 1), (2, 1)], &[(1, 3)]),
            (&[(1, 1), (3, 1)], &[(1, 1), (3, 1)]),
            (&[(5, 1), (5, 1), (5, 1)], &[(5, 1)]),
            (&[(0, 10), (2, 3), (9, 4), (20, 1)], &[(0, 13), (20, 1)]),
            (&[((1 << 52) - 1, 1), (0, 1 << 52)], &[(0, 1 << 52)]),
        ];
        for (parts, expected) in table {
            assert_eq!(joined(parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn many_pages_without_a_gap_are_one_range() {
        let mut ranges: Vec<_> = (0..0x1_0000).rev().map(page).collect();
        join(&mut ranges);
        assert_eq!(ranges, [range(0, 0x1000_0000)]);
    }
}
