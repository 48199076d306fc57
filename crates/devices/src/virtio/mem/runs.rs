//! Which blocks are plugged: runs of them, by their numbers.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of block numbers.
#[derive(Debug, Default)]
pub struct Runs {
    /// First and end of each run; no two touch.
    runs: BTreeMap<u64, u64>,
    count: u64,
}

impl Runs {
    /// Returns how many blocks there are in it.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns how many of some blocks are in it.
    pub fn count_in(&self, blocks: &Range<u64>) -> u64 {
        let overlaps = self
            .runs
            .range(..blocks.end)
            .rev()
            .map(|(first, end)| (*first).max(blocks.start)..(*end).min(blocks.end))
            .take_while(|part| part.start < part.end);
        overlaps.map(|part| part.end - part.start).sum()
    }

    /// Returns the first run.
    pub fn first(&self) -> Option<Range<u64>> {
        let (first, end) = self.runs.first_key_value()?;
        Some(*first..*end)
    }

    /// Adds blocks, none of which is in it.
    pub fn insert(&mut self, blocks: Range<u64>) {
        self.count += blocks.end - blocks.start;
        let end = self.runs.remove(&blocks.end).unwrap_or(blocks.end);
        match self.runs.range_mut(..blocks.start).next_back() {
            Some((_, last)) if *last == blocks.start => *last = end,
            _ => drop(self.runs.insert(blocks.start, end)),
        }
    }

    /// Takes blocks out, all of which are in it: one run holds them.
    pub fn remove(&mut self, blocks: Range<u64>) {
        self.count -= blocks.end - blocks.start;
        let run = self.runs.range_mut(..=blocks.start).next_back();
        let (first, last) = run.expect("they are in it");
        let (first, end) = (*first, std::mem::replace(last, blocks.start));
        if first == blocks.start {
            self.runs.remove(&first);
        }
        if blocks.end < end {
            self.runs.insert(blocks.end, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_a_row_of_flags_would_be() {
        let (mut runs, mut flags) = (Runs::default(), [false; 32]);
        let mut state = 1_u64;
        for round in 0..5000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let (start, len) = ((state >> 40) % 32, (state >> 50) % 8);
            let blocks = start..(start + len).min(32);
            let part = &mut flags[blocks.start as usize..blocks.end as usize];
            let count = part.iter().filter(|flag| **flag).count();
            assert_eq!(runs.count_in(&blocks), count as u64, "round {round}");
            if part.is_empty() {
                continue;
            }
            if count == 0 {
                runs.insert(blocks);
                part.fill(true);
            } else if count == part.len() {
                runs.remove(blocks);
                part.fill(false);
            }
            assert_eq!(
                runs.count(),
                flags.iter().filter(|flag| **flag).count() as u64
            );
            let first = flags.iter().position(|flag| *flag).map(|at| at as u64);
            assert_eq!(runs.first().map(|run| run.start), first);
            // No two runs touch.
            let ends: Vec<_> = runs.runs.iter().collect();
            assert!(ends.windows(2).all(|two| two[0].1 < two[1].0));
        }
    }
}
