//! Which pieces of guest memory a back end has, and how it comes from one set to the next.
//!
//! A back end maps pieces: a part of a file at a guest-physical address. They come and go with the slots of
//! the map, but a slot that grows or shrinks must not take away from a back end what it works on in the part
//! that stays. So a step from one map to the next is one of these:
//!
//! ```text
//!   live      whole pieces go, new ones come beside what stays: nothing that the guest may use meanwhile is
//!             touched, and the back end works on
//!   stopped   something that stays has to be mapped anew (a piece is cut, or there are too many and they are
//!             joined): the back end's queues stand still
//! ```
//! All of this is arithmetic; who talks to back ends is [`Link`](crate::link::Link).

use std::fs::File;
use std::sync::Arc;

use umbra_slots::{Backing, Gpa, RamRegion, Slot, Snapshot, Target};

use crate::ring::RingMemory;

/// A piece of memory that a back end maps.
#[derive(Clone)]
pub struct Piece {
    start: u64,
    len: u64,
    memory: Memory,
    /// Where in the file it begins.
    offset: u64,
}

/// What is mapped.
#[derive(Clone)]
enum Memory {
    /// Memory of the guest.
    Guest(Arc<RamRegion>),
    /// Rings of ours.
    Rings(Arc<RingMemory>),
}

impl Memory {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Guest(one), Self::Guest(two)) => Arc::ptr_eq(one, two),
            (Self::Rings(one), Self::Rings(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl Piece {
    /// Makes a piece of memory that is no guest's.
    pub fn rings(memory: Arc<RingMemory>, start: u64, len: u64) -> Self {
        Self {
            start,
            len,
            memory: Memory::Rings(memory),
            offset: 0,
        }
    }

    /// Returns the guest-physical address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns the number of bytes.
    #[allow(clippy::len_without_is_empty, reason = "a piece is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns where in the file it begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        match &self.memory {
            Memory::Guest(region) => region.file(),
            Memory::Rings(memory) => memory.file(),
        }
    }

    /// Returns the address of its first byte in this process, which has it as long as there is the piece.
    pub fn host_addr(&self) -> u64 {
        match &self.memory {
            Memory::Guest(region) => region.host_addr(self.offset).as_ptr() as u64,
            Memory::Rings(memory) => memory.host_addr() + self.offset,
        }
    }

    fn end(&self) -> u64 {
        self.start + self.len
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Tells whether all of `self` is the same memory at the same place in `other`.
    fn is_within(&self, other: &Self) -> bool {
        self.memory.is(&other.memory)
            && other.start <= self.start
            && self.end() <= other.end()
            && self.offset.wrapping_sub(other.offset) == self.start - other.start
    }

    /// Tells whether both can be one piece.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.memory.is(&next.memory)
            && self.end() == next.start
            && self.offset + self.len == next.offset
    }

    /// The part from one address to another.
    fn part(&self, start: u64, end: u64) -> Self {
        Self {
            start,
            len: end - start,
            memory: self.memory.clone(),
            offset: self.offset + (start - self.start),
        }
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            start, len, offset, ..
        } = self;
        write!(f, "Piece({start:#x} + {len:#x} at {offset:#x})")
    }
}

impl PartialEq for Piece {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.len == other.len && self.is_within(other)
    }
}

impl Eq for Piece {}

/// Returns the memory of a map that back ends get, joined where that is possible.
pub fn pieces_of(map: &Snapshot) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for next in map.slots().iter().filter_map(piece_of) {
        match pieces.last_mut() {
            Some(last) if last.is_followed_by(&next) => last.len += next.len,
            _ => pieces.push(next),
        }
    }
    pieces
}

/// Tells whether back ends get a slot: memory of the guest's own, which it may write. Who has the descriptor of
/// memory that may only be read could write it; who has that of a file of the host's could make it shorter, which
/// ends this process, or reach what of it the guest is not shown.
fn is_shared(slot: &Slot) -> bool {
    match slot.backing() {
        Backing::Ram { region, flags, .. } => !flags.read_only && !region.is_of_file(),
        Backing::Io(_) => false,
    }
}

/// Tells whether back ends have all of a range; it may be any.
pub fn is_within_reach(map: &Snapshot, at: Gpa, len: u64) -> bool {
    let mut done = 0;
    while done < len {
        let Some(next) = at.0.checked_add(done) else {
            return false;
        };
        match map.resolve(Gpa(next)) {
            Target::Ram(ram) if is_shared(ram.slot) => done += ram.remaining,
            _ => return false,
        }
    }
    true
}

fn piece_of(slot: &Slot) -> Option<Piece> {
    match slot.backing() {
        Backing::Ram { region, offset, .. } if is_shared(slot) => Some(Piece {
            start: slot.range().start().0,
            len: slot.range().len(),
            memory: Memory::Guest(region.clone()),
            offset: *offset,
        }),
        _ => None,
    }
}

/// How a back end comes from the pieces that it has to those of another map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What it has to let go.
    pub remove: Vec<Piece>,
    /// What it has to take.
    pub add: Vec<Piece>,
    /// Its queues have to stand still meanwhile, and what goes has to go before the rest comes.
    pub stopped: bool,
}

impl Step {
    /// Tells whether there is nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// Returns what a back end has afterwards.
    pub fn apply(&self, has: &[Piece]) -> Vec<Piece> {
        let kept = has.iter().filter(|piece| !self.remove.contains(piece));
        let mut after: Vec<_> = kept.chain(&self.add).cloned().collect();
        after.sort_by_key(|piece| piece.start);
        after
    }
}

/// Says how a back end that `has` these pieces, sorted, comes to `wanted`, sorted and joined; it takes `max`
/// of them.
///
/// # Errors
/// How many there would be, if those are too many.
pub fn step(has: &[Piece], wanted: &[Piece], max: usize) -> Result<Step, usize> {
    let live = live(has, wanted);
    let most = has.len() + live.add.len();
    if !live.stopped && most <= max {
        return Ok(live);
    }
    if live.stopped && most - live.remove.len() <= max {
        return Ok(live);
    }
    if wanted.len() > max {
        return Err(wanted.len());
    }
    // Joined, they are as few as can be.
    let stays = |piece: &&Piece| wanted.contains(piece);
    Ok(Step {
        remove: has.iter().filter(|piece| !stays(piece)).cloned().collect(),
        add: wanted
            .iter()
            .filter(|piece| !has.contains(piece))
            .cloned()
            .collect(),
        stopped: true,
    })
}

/// The step that leaves every piece alone of which all stays.
fn live(has: &[Piece], wanted: &[Piece]) -> Step {
    let stays = |piece: &Piece| wanted.iter().any(|whole| piece.is_within(whole));
    let (kept, remove): (Vec<_>, Vec<_>) = has.iter().cloned().partition(stays);
    let add: Vec<_> = wanted.iter().flat_map(|whole| gaps(whole, &kept)).collect();
    let stopped = add
        .iter()
        .any(|new| remove.iter().any(|old| old.overlaps(new)));
    Step {
        remove,
        add,
        stopped,
    }
}

/// The parts of a piece that are in none of those, which are sorted.
fn gaps(whole: &Piece, kept: &[Piece]) -> Vec<Piece> {
    let mut gaps = Vec::new();
    let mut at = whole.start;
    for piece in kept.iter().filter(|piece| piece.is_within(whole)) {
        if at < piece.start {
            gaps.push(whole.part(at, piece.start));
        }
        at = piece.end();
    }
    if at < whole.end() {
        gaps.push(whole.part(at, whole.end()));
    }
    gaps
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
