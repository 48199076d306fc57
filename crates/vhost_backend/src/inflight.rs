//! Requests in flight, in a file that outlives this process ("Inflight I/O tracking" in QEMU's
//! `docs/interop/vhost-user.rst`, for split rings, version 1).
//!
//! ```text
//!   file:  ring 0 | ring 1 | …      each at a multiple of 64 bytes
//!   ring:  features u64 · version u16 · desc_num u16 · last_batch_head u16 · used_idx u16
//!          then for each descriptor: inflight u8 · 5 unused · next u16 · counter u64
//!
//!   taken      desc[head].counter = counter++ ; desc[head].inflight = 1
//!   giving     desc[head].next = last_batch_head ; last_batch_head = head      for each
//!              (the used ring's index is stored)
//!   given      desc[head].inflight = 0  for each ; used_idx = the used ring's index
//! ```
//!
//! Who finds `used_idx` behind the ring's index takes over from one that died between: the last batch was given,
//! and its marks go. What is marked then was taken and never given; it is taken again by the order of the counters.
//! The available ring goes on behind all of them: as many entries were taken as were given, and as are in flight.
//!
//! The file is the front end's, which may write anything there: numbers are checked where they come from it.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use umbra_virtio::Journal;
use vm_memory::{MmapRegion, VolatileMemory};

use crate::Error;
use crate::log::map;

const VERSION: u16 = 1;
const HEADER: u64 = 16;
const ENTRY: u64 = 16;
const ALIGN: u64 = 64;

const AT_VERSION: u64 = 8;
const AT_NUM: u64 = 10;
const AT_LAST_BATCH: u64 = 12;
const AT_USED: u64 = 14;
const AT_NEXT: u64 = 6;
const AT_COUNTER: u64 = 8;

/// The shape of a file: how many rings, and how many descriptors each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub rings: u16,
    pub size: u16,
}

impl Shape {
    /// Bytes of a ring.
    fn stride(self) -> u64 {
        (HEADER + ENTRY * u64::from(self.size)).next_multiple_of(ALIGN)
    }

    /// Bytes of the file.
    pub fn len(self) -> u64 {
        self.stride() * u64::from(self.rings)
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct Inflight {
    map: MmapRegion<()>,
    shape: Shape,
}

impl Inflight {
    /// Makes a file in which nothing is in flight.
    pub fn make(shape: Shape) -> Result<File, Error> {
        let make = || -> io::Result<File> {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("vhost-inflight", flags)?;
            ftruncate(&file, shape.len())?;
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            fcntl_add_seals(&file, seals)?;
            Ok(file.into())
        };
        let file = make().map_err(Error::host("a file for requests in flight"))?;
        let clone = file
            .try_clone()
            .map_err(Error::host("a file for requests in flight"))?;
        drop(Self::map(clone, 0, shape.len(), shape)?);
        Ok(file)
    }

    /// Maps `len` bytes of a file that this or another back end has made.
    pub fn map(file: File, offset: u64, len: u64, shape: Shape) -> Result<Self, Error> {
        if len < shape.len() {
            return Err(Error::Inflight("it is too short for its rings"));
        }
        let map = map(file, offset, shape.len(), "requests in flight")?;
        let inflight = Self { map, shape };
        for ring in 0..shape.rings {
            inflight.begin(ring)?;
        }
        Ok(inflight)
    }

    fn begin(&self, ring: u16) -> Result<(), Error> {
        let at = self.at(ring);
        match self.u16(at + AT_VERSION).load(Ordering::Acquire) {
            // Nobody has used it yet.
            0 => {
                self.u16(at + AT_NUM)
                    .store(self.shape.size, Ordering::Relaxed);
                self.u16(at + AT_VERSION).store(VERSION, Ordering::Release);
                Ok(())
            }
            VERSION if self.u16(at + AT_NUM).load(Ordering::Acquire) == self.shape.size => Ok(()),
            VERSION => Err(Error::Inflight("a ring of it has another size")),
            _ => Err(Error::Inflight("it is of another version")),
        }
    }

    /// Makes the journal of a ring that goes on where the used ring's index is `used`. Returns it with the heads
    /// that are in flight, in the order in which they were taken.
    pub fn journal(self: &Arc<Self>, ring: u16, size: u16, used: u16) -> Result<Journey, Error> {
        if ring >= self.shape.rings || size > self.shape.size {
            return Err(Error::Inflight("a ring is not in it, or larger"));
        }
        let track = Track {
            at: self.at(ring),
            file: self.clone(),
            size,
            counter: 0,
            batch: Vec::new(),
        };
        Ok(track.recover(used))
    }

    fn at(&self, ring: u16) -> u64 {
        self.shape.stride() * u64::from(ring)
    }

    // All places are multiples of the size of what is there, below the file's end.

    fn u8(&self, at: u64) -> &AtomicU8 {
        let found = self.map.get_atomic_ref(at as usize);
        found.expect("inside the file")
    }

    fn u16(&self, at: u64) -> &AtomicU16 {
        let found = self.map.get_atomic_ref(at as usize);
        found.expect("inside the file, and aligned")
    }

    fn u64(&self, at: u64) -> &AtomicU64 {
        let found = self.map.get_atomic_ref(at as usize);
        found.expect("inside the file, and aligned")
    }
}

/// A journal, and what it begins with.
#[derive(Debug)]
pub(crate) struct Journey {
    pub track: Track,
    /// Heads that are in flight.
    pub again: Vec<u16>,
}

/// The journal of one ring.
#[derive(Debug)]
pub(crate) struct Track {
    file: Arc<Inflight>,
    /// Where the ring is in the file.
    at: u64,
    /// Descriptors of the ring.
    size: u16,
    counter: u64,
    /// What is being given.
    batch: Vec<u16>,
}

impl Track {
    fn entry(&self, head: u16) -> u64 {
        self.at + HEADER + ENTRY * u64::from(head)
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        self.file.u8(self.entry(head))
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        self.file.u16(self.entry(head) + AT_NEXT)
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        self.file.u64(self.entry(head) + AT_COUNTER)
    }

    fn last_batch(&self) -> &AtomicU16 {
        self.file.u16(self.at + AT_LAST_BATCH)
    }

    fn used(&self) -> &AtomicU16 {
        self.file.u16(self.at + AT_USED)
    }

    /// Heads that are marked, the one taken first at the beginning.
    fn marked(&self) -> Vec<u16> {
        let all = (0..self.size).filter(|head| self.mark(*head).load(Ordering::Acquire) == 1);
        // Counters may change under our eyes: each is read once.
        let mut heads: Vec<_> = all
            .map(|head| (self.counter(head).load(Ordering::Acquire), head))
            .collect();
        heads.sort_unstable();
        heads.into_iter().map(|(_, head)| head).collect()
    }

    fn recover(mut self, used: u16) -> Journey {
        let last = used.wrapping_sub(self.used().load(Ordering::Acquire));
        let mut head = self.last_batch().load(Ordering::Acquire);
        // A batch is no larger than its ring; whatever else the file says is no batch.
        for _ in 0..last.min(self.size) {
            if head >= self.size {
                break;
            }
            self.mark(head).store(0, Ordering::Release);
            head = self.next(head).load(Ordering::Acquire);
        }
        self.used().store(used, Ordering::Release);
        let again = self.marked();
        let newest = again.last().map(|head| self.counter(*head));
        self.counter = newest.map_or(0, |counter| counter.load(Ordering::Acquire).wrapping_add(1));
        Journey { track: self, again }
    }
}

impl Journal for Track {
    fn taken(&mut self, head: u16) {
        self.counter(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.mark(head).store(1, Ordering::Release);
    }

    fn taken_back(&mut self) {
        if let Some(head) = self.marked().last() {
            self.mark(*head).store(0, Ordering::Release);
        }
    }

    fn giving(&mut self, heads: &mut dyn Iterator<Item = u16>) {
        self.batch.clear();
        // A head that is none is refused by the ring.
        for head in heads.filter(|head| *head < self.size) {
            self.next(head)
                .store(self.last_batch().load(Ordering::Relaxed), Ordering::Relaxed);
            self.last_batch().store(head, Ordering::Release);
            self.batch.push(head);
        }
    }

    fn given(&mut self, used: u16) {
        for head in &self.batch {
            self.mark(*head).store(0, Ordering::Release);
        }
        self.used().store(used, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { rings: 2, size: 8 };

    fn file() -> File {
        Inflight::make(SHAPE).unwrap()
    }

    fn open(file: &File) -> Arc<Inflight> {
        let map = Inflight::map(file.try_clone().unwrap(), 0, SHAPE.len(), SHAPE);
        Arc::new(map.unwrap())
    }

    fn journey(file: &File, used: u16) -> Journey {
        open(file).journal(1, 8, used).unwrap()
    }

    #[test]
    fn what_was_taken_and_not_given_is_found_in_its_order() {
        let file = file();
        let Journey { mut track, again } = journey(&file, 0);
        assert!(again.is_empty());
        for head in [5, 2, 7, 0] {
            track.taken(head);
        }
        track.giving(&mut [2].into_iter());
        track.given(1);
        track.taken(2);
        track.taken(1);
        track.taken_back();
        assert_eq!(journey(&file, 1).again, [5, 7, 0, 2]);
        assert!(open(&file).journal(0, 8, 0).unwrap().again.is_empty());
    }

    #[test]
    fn counters_go_on_behind_those_of_a_device_before() {
        let file = file();
        let mut track = journey(&file, 0).track;
        track.taken(5);
        track.taken(2);
        let mut track = journey(&file, 0).track;
        track.taken(1);
        assert_eq!(journey(&file, 0).again, [5, 2, 1]);
    }

    #[test]
    fn a_batch_whose_end_was_not_seen_was_given_if_the_index_says_so() {
        for (used, again) in [(0, vec![3, 4, 5]), (2, vec![4])] {
            let file = file();
            let mut track = journey(&file, 0).track;
            for head in [3, 4, 5] {
                track.taken(head);
            }
            track.giving(&mut [5, 3].into_iter());
            // Here its process dies: before, or after it has stored the index.
            assert_eq!(journey(&file, used).again, again);
            assert_eq!(journey(&file, used).again, again);
        }
    }

    #[test]
    fn nothing_in_the_file_leads_out_of_it() {
        let file = file();
        let track = journey(&file, 0).track;
        track.last_batch().store(8, Ordering::Relaxed);
        assert!(journey(&file, 1).again.is_empty());
        let track = journey(&file, 1).track;
        track.last_batch().store(0, Ordering::Relaxed);
        track.next(0).store(0xffff, Ordering::Relaxed);
        assert!(journey(&file, 0x8000).again.is_empty());
        for head in 0..8 {
            track.next(head).store(head, Ordering::Relaxed);
            track.mark(head).store(0xff, Ordering::Relaxed);
        }
        assert!(journey(&file, 3).again.is_empty());
    }

    #[test]
    fn a_file_of_another_kind_is_refused() {
        let wrong = |edit: &dyn Fn(&Inflight), shape: Shape, len| {
            let file = file();
            edit(&open(&file));
            Inflight::map(file, 0, len, shape).unwrap_err().to_string()
        };
        let version = |file: &Inflight| file.u16(AT_VERSION).store(2, Ordering::Relaxed);
        let small = Shape { size: 4, ..SHAPE };
        let long = Shape { rings: 3, ..SHAPE };
        let table = [
            (wrong(&version, SHAPE, SHAPE.len()), "version"),
            (wrong(&|_| (), small, SHAPE.len()), "another size"),
            (wrong(&|_| (), SHAPE, SHAPE.len() - 1), "too short"),
            (wrong(&|_| (), long, long.len()), "cannot be used"),
        ];
        for (refused, why) in table {
            assert!(refused.contains(why), "{refused}");
        }
        let refused = open(&file()).journal(2, 8, 0).unwrap_err();
        assert!(refused.to_string().contains("not in it"));
        assert!(open(&file()).journal(0, 16, 0).is_err());
    }
}
