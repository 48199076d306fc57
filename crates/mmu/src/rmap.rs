//! The reverse map: which leaves map a frame.
//!
//! Every leaf is here exactly once, under its first frame; no MMIO entry ever is (rule R37).

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use umbra_slots::Gfn;

use crate::page::EntryAt;

type Leaves = SmallVec<[EntryAt; 2]>;

/// The first frames of the large leaves that could cover a frame, smallest size first: 2 MiB,
/// 4 MiB, 1 GiB.
const LARGE_MASKS: [u64; 3] = [0x1ff, 0x3ff, 0x3_ffff];

/// Leaves by frame.
#[derive(Debug, Default)]
pub(crate) struct Rmap {
    small: FxHashMap<Gfn, Leaves>,
    large: FxHashMap<Gfn, Leaves>,
}

impl Rmap {
    fn of(&mut self, span: u64) -> &mut FxHashMap<Gfn, Leaves> {
        if span == 1 {
            &mut self.small
        } else {
            &mut self.large
        }
    }

    /// Adds a leaf of `span` frames.
    pub fn add(&mut self, first: Gfn, span: u64, at: EntryAt) {
        let leaves = self.of(span).entry(first).or_default();
        debug_assert!(!leaves.contains(&at));
        leaves.push(at);
    }

    /// Takes a leaf out.
    ///
    /// # Panics
    /// If it is not there.
    pub fn remove(&mut self, first: Gfn, span: u64, at: EntryAt) {
        let map = self.of(span);
        let leaves = map.get_mut(&first).expect("a leaf is in the reverse map");
        let i = leaves.iter().position(|&e| e == at);
        leaves.swap_remove(i.expect("a leaf is in the reverse map"));
        if leaves.is_empty() {
            map.remove(&first);
        }
    }

    /// The 4 KiB leaves of a frame.
    pub fn small(&self, gfn: Gfn) -> Leaves {
        self.small.get(&gfn).cloned().unwrap_or_default()
    }

    /// The large leaves that may cover a frame; the caller checks how far each reaches.
    pub fn large_near(&self, gfn: Gfn) -> Leaves {
        if self.large.is_empty() {
            return Leaves::new();
        }
        let mut near = Leaves::new();
        let mut last = None;
        for mask in LARGE_MASKS {
            let first = Gfn(gfn.0 & !mask);
            if last != Some(first) {
                near.extend(self.large.get(&first).into_iter().flatten().copied());
            }
            last = Some(first);
        }
        near
    }

    /// The frames that have 4 KiB leaves.
    pub fn small_frames(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.small.keys().copied()
    }

    /// The first frames of large leaves.
    pub fn large_frames(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.large.keys().copied()
    }

    /// The leaves of `span` frames that begin at a frame.
    pub fn leaves(&self, first: Gfn, span: u64) -> Leaves {
        let map = if span == 1 { &self.small } else { &self.large };
        map.get(&first).cloned().unwrap_or_default()
    }

    /// All leaves with the frame and whether they are listed as large ones, for the auditor.
    pub fn iter(&self) -> impl Iterator<Item = (Gfn, EntryAt, bool)> + '_ {
        let flat = |large| {
            move |(&gfn, leaves): (&Gfn, &Leaves)| {
                leaves.clone().into_iter().map(move |at| (gfn, at, large))
            }
        };
        let small = self.small.iter().flat_map(flat(false));
        small.chain(self.large.iter().flat_map(flat(true)))
    }
}
