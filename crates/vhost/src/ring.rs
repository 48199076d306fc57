//! The driver's end of a split queue (virtio 1.3, 2.7), in memory that is shared with a device that nobody
//! trusts.
//!
//! ```text
//!   lend ── descriptors, available ring ──> publish ──> device ──> used ring ──> take_back
//! ```
//! What is lent to whom is kept here, outside of the shared memory: of what a device writes only the used ring
//! and two hints about notifications are read, and every element of it is checked against that. A device that
//! uses what was not lent has broken the queue, and nothing else.
//!
//! A chain of several buffers is a table of descriptors of its own where the device takes that (2.7.5.3), so
//! that a queue is full only when as many chains are lent as it has descriptors.
//!
//! Layout of one queue of `n` descriptors; queues follow each other, each on pages of its own:
//!
//! ```text
//!   descriptor table   16 n
//!   available ring     6 + 2 n
//!   used ring          6 + 8 n       at a multiple of 4
//!   tables             16 n for each descriptor; pages are there when they are touched
//! ```

use std::fs::File;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use umbra_virtio::ChainBuffer;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::back_end::RingPlace;
use crate::table::Piece;
use crate::{BackEndError, RingError};

const PAGE: usize = 0x1000;
const DESCRIPTOR: usize = 16;
/// Another descriptor follows.
const NEXT: u16 = 1;
/// The device writes.
const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
const INDIRECT: u16 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY.
const UNWANTED: u16 = 1;

/// Where rings usually are in a back end's table of memory: behind everything that a guest has, and where a processor
/// could have memory, for back ends that look at that.
pub const RINGS_AT: u64 = (1 << 52) - (1 << 40);

/// How a device has agreed to work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
}

/// Memory of some queues.
#[derive(Debug)]
pub struct RingMemory {
    map: MmapRegion,
    file: File,
    /// Where it is in a back end's table of memory.
    at: u64,
    places: Vec<Layout>,
}

/// Where the parts of a queue are in its memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    size: u16,
    table: usize,
    available: usize,
    used: usize,
    tables: usize,
    end: usize,
}

impl Layout {
    fn new(size: u16, table: usize) -> Self {
        let n = usize::from(size);
        let available = table + DESCRIPTOR * n;
        let used = (available + 6 + 2 * n).next_multiple_of(4);
        let tables = (used + 6 + 8 * n).next_multiple_of(PAGE);
        Self {
            size,
            table,
            available,
            used,
            tables,
            end: (tables + DESCRIPTOR * n * n).next_multiple_of(PAGE),
        }
    }
}

impl RingMemory {
    /// Makes memory for queues of these sizes, each a power of two, which a back end will find at an address.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new(sizes: &[u16], at: u64) -> Result<Arc<Self>, BackEndError> {
        let mut end = 0;
        let places: Vec<_> = sizes
            .iter()
            .map(|size| {
                let place = Layout::new(*size, end);
                end = place.end;
                place
            })
            .collect();
        let refused = |source: rustix::io::Errno| BackEndError::Host {
            what: "memory for rings",
            source: source.into(),
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("vhost-rings", flags).map_err(refused)?;
        let len = end.max(PAGE);
        ftruncate(&file, len as u64).map_err(refused)?;
        // A back end that made it shorter would kill us.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(refused)?;
        let file = File::from(file);
        let copy = file.try_clone().map_err(|source| BackEndError::Host {
            what: "a descriptor",
            source,
        })?;
        let map = MmapRegion::from_file(FileOffset::new(copy, 0), len);
        let map = map.map_err(|source| BackEndError::Host {
            what: "a mapping of rings",
            source: std::io::Error::other(source),
        })?;
        Ok(Arc::new(Self {
            map,
            file,
            at,
            places,
        }))
    }

    /// Returns it as a back end maps it.
    pub fn piece(self: &Arc<Self>) -> Piece {
        Piece::rings(self.clone(), self.at, self.map.size() as u64)
    }

    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the address of its first byte in this process.
    pub fn host_addr(&self) -> u64 {
        self.map.as_ptr() as u64
    }
}

/// One queue.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<RingMemory>,
    place: Layout,
    features: RingFeatures,
    /// Descriptors that are not lent.
    free: Vec<u16>,
    /// By the first descriptor: whose chain it is, and its descriptors.
    lent: Vec<Option<Lent>>,
    count: u16,
    available: Wrapping<u16>,
    published: Wrapping<u16>,
    used: Wrapping<u16>,
}

#[derive(Debug)]
struct Lent {
    token: usize,
    /// Those after the first one.
    others: Vec<u16>,
}

impl Ring {
    /// Makes the queue at `index` of the memory, which is zeros.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(memory: &Arc<RingMemory>, index: usize, features: RingFeatures) -> Self {
        let place = memory.places[index];
        Self {
            memory: memory.clone(),
            place,
            features,
            free: (0..place.size).rev().collect(),
            lent: (0..place.size).map(|_| None).collect(),
            count: 0,
            available: Wrapping(0),
            published: Wrapping(0),
            used: Wrapping(0),
        }
    }

    /// Returns where it is, for a back end.
    pub fn place(&self) -> RingPlace {
        let Layout {
            size,
            table,
            available,
            used,
            ..
        } = self.place;
        RingPlace {
            size,
            addresses: [table, available, used].map(|at| self.memory.at + at as u64),
            host: [table, available, used].map(|at| self.memory.host_addr() + at as u64),
            base: 0,
        }
    }

    fn slice(&self) -> VolatileSlice<'_> {
        self.memory.map.as_volatile_slice()
    }

    fn load(&self, at: usize, order: Ordering) -> u16 {
        let value = self.slice().load(at, order);
        u16::from_le(value.expect("the layout is inside of the memory"))
    }

    fn store(&self, at: usize, value: u16, order: Ordering) {
        let stored = self.slice().store(value.to_le(), at, order);
        stored.expect("the layout is inside of the memory");
    }

    fn describe(&self, at: usize, (address, len): (u64, u32), (flags, next): (u16, u16)) {
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let written = self.slice().write_slice(&bytes, at);
        written.expect("the layout is inside of the memory");
    }

    /// Lends a chain; `false` if there is no room now. It is seen by the device after
    /// [`publish`](Self::publish).
    ///
    /// # Panics
    /// If it has no buffers, or more than the queue has descriptors.
    pub fn lend(&mut self, token: usize, buffers: &[ChainBuffer]) -> bool {
        let most = usize::from(self.place.size);
        assert!((1..=most).contains(&buffers.len()), "{}", buffers.len());
        let in_table = self.features.indirect && buffers.len() > 1;
        let wanted = if in_table { 1 } else { buffers.len() };
        if self.free.len() < wanted {
            return false;
        }
        let taken = self.free.split_off(self.free.len() - wanted);
        let (head, others) = (taken[0], taken[1..].to_vec());
        if in_table {
            let table = self.place.tables + DESCRIPTOR * most * usize::from(head);
            let indexes: Vec<_> = (0..buffers.len() as u16).collect();
            self.write_chain(table, &indexes, buffers);
            let bytes = (DESCRIPTOR * buffers.len()) as u32;
            let at = self.place.table + DESCRIPTOR * usize::from(head);
            self.describe(at, (self.memory.at + table as u64, bytes), (INDIRECT, 0));
        } else {
            self.write_chain(self.place.table, &taken, buffers);
        }
        self.lent[usize::from(head)] = Some(Lent { token, others });
        self.count += 1;
        let slot = usize::from(self.available.0 % self.place.size);
        let at = self.place.available + 4 + 2 * slot;
        self.store(at, head, Ordering::Relaxed);
        self.available += 1;
        true
    }

    /// Writes a chain into a table, at these places of it.
    fn write_chain(&self, table: usize, indexes: &[u16], buffers: &[ChainBuffer]) {
        let nexts = indexes[1..].iter().copied().map(Some).chain([None]);
        for ((index, next), buffer) in indexes.iter().zip(nexts).zip(buffers) {
            let write = if buffer.is_writable { WRITE } else { 0 };
            let more = if next.is_some() { NEXT } else { 0 };
            let at = table + DESCRIPTOR * usize::from(*index);
            let links = (write | more, next.unwrap_or(0));
            self.describe(at, (buffer.at.0, buffer.len), links);
        }
    }

    /// Shows the device what was lent. Tells whether it wants to be notified of that.
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.available);
        if old == new {
            return false;
        }
        self.store(self.place.available + 2, new.0, Ordering::Release);
        self.published = new;
        // What is available comes before what the device says now.
        fence(Ordering::SeqCst);
        if !self.features.event_idx {
            return self.load(self.place.used, Ordering::Relaxed) & UNWANTED == 0;
        }
        let at = self.place.used + 4 + 8 * usize::from(self.place.size);
        let event = Wrapping(self.load(at, Ordering::Relaxed));
        new - event - Wrapping(1) < new - old
    }

    /// Takes back a chain that the device has used: whose it is, and how many bytes it says it has written.
    ///
    /// # Errors
    /// If it has used what it was not lent. The queue is of no use any more.
    pub fn take_back(&mut self) -> Result<Option<(usize, u32)>, RingError> {
        let index = Wrapping(self.load(self.place.used + 2, Ordering::Acquire));
        let by = (index - self.used).0;
        if by == 0 {
            return Ok(None);
        }
        if by > self.count {
            let lent = self.count;
            return Err(RingError::Index { by, lent });
        }
        let slot = usize::from(self.used.0 % self.place.size);
        let mut element = [0; 8];
        let at = self.place.used + 4 + 8 * slot;
        let read = self.slice().read_slice(&mut element, at);
        read.expect("the layout is inside of the memory");
        let [id, written] = [&element[..4], &element[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("four bytes")));
        let lent = usize::try_from(id).ok();
        let lent = lent.and_then(|id| self.lent.get_mut(id)?.take());
        let Some(Lent { token, others }) = lent else {
            return Err(RingError::NotLent(id));
        };
        // It is smaller than the queue, which has 2^15 descriptors at most.
        self.free.push(id as u16);
        self.free.extend(others);
        self.count -= 1;
        self.used += 1;
        Ok(Some((token, written)))
    }

    /// Asks the device to signal when it has used something, or not to. Tells, when it is asked to, whether it
    /// has meanwhile.
    pub fn expect(&mut self, wanted: bool) -> bool {
        if self.features.event_idx {
            let at = self.place.available + 4 + 2 * usize::from(self.place.size);
            // One that was used already is none that it signals.
            let event = match wanted {
                true => self.used,
                false => self.used - Wrapping(1),
            };
            self.store(at, event.0, Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { UNWANTED };
            self.store(self.place.available, flags, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        wanted && self.load(self.place.used + 2, Ordering::Acquire) != self.used.0
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
