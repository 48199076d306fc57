//! One queue: the rings of `virtio-queue`, with nothing of a driver's misbehaviour passed over.
//!
//! ```text
//!   pop ──> Chain ── reader(), writer() ──> push(head, bytes written) ──> needs_interrupt
//!     └── unpop: look at it again later
//! ```
//!
//! `virtio-queue` is safe with any rings, but ends a chain in silence where it cannot go on, so that a
//! device would take half a chain for a whole one. A chain is therefore walked once when it is taken:
//!
//! * it has a first descriptor, and its last one says that it is the last;
//! * it is no longer than the queue (virtio 1.3, 2.7.5), also where descriptors are indirect;
//! * what the device may write comes after what it may read (2.7.4.2).
//!
//! The guest can change descriptors after that. Then a reader or writer, which walks again, is made of
//! other buffers; every one of them is looked up in guest memory before it is used.
//!
//! Addresses, sizes and rights are checked with every access, against the map that the caller brings:
//! a queue keeps no host address.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use umbra_slots::{DmaMark, DmaMemory, Gpa};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueState, QueueT, Reader, Writer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::journal::Kept;
use crate::{Event, Features, Interrupt, Journal};

/// The driver does not want to be interrupted (VIRTQ_AVAIL_F_NO_INTERRUPT, virtio 1.3, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Reads what the driver has put into a chain.
pub type ChainReader<'m> = Reader<'m, DmaMark<'m>>;
/// Writes what the driver will find in a chain.
pub type ChainWriter<'m> = Writer<'m, DmaMark<'m>>;

/// What a driver has done wrong. The device cannot go on with the queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The rings are wrong, or in no RAM.
    #[error("the rings cannot be used")]
    Rings(#[from] virtio_queue::Error),
    /// The size, or an address.
    #[error("a queue of {size} descriptors, 1 to {max} and a power of two, does not fit its rings")]
    Setup {
        /// What was asked for.
        size: u32,
        /// The largest.
        max: u16,
    },
    /// The flags of the available ring could not be read.
    #[error("the available ring cannot be read")]
    Flags(#[source] GuestMemoryError),
    /// A chain begins with a descriptor that does not exist.
    #[error("a chain begins at descriptor {head} of {size}")]
    Head {
        /// Its index.
        head: u16,
        /// How many there are.
        size: u16,
    },
    /// A chain does not end, or has more descriptors than the queue.
    #[error("the chain at descriptor {head} loops, is too long, or leaves the table or RAM")]
    Endless {
        /// Where it begins.
        head: u16,
    },
    /// A buffer to be read comes after one to be written.
    #[error("the chain at descriptor {head} has a readable buffer after a writable one")]
    Order {
        /// Where it begins.
        head: u16,
    },
    /// A buffer of a chain is not in RAM, or in RAM that may not be written.
    #[error("a buffer of the chain at descriptor {head} is out of reach")]
    Buffer {
        /// Where it begins.
        head: u16,
        /// Why.
        #[source]
        source: virtio_queue::Error,
    },
    /// Memory of a chain is no RAM, or RAM that may not be written.
    #[error("memory of the chain at descriptor {head} is out of reach")]
    Memory {
        /// Where it begins.
        head: u16,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// A chain has less room, or fewer bytes, than the device needs.
    #[error("the chain at descriptor {head} is too short")]
    Short {
        /// Where it begins.
        head: u16,
    },
}

/// How a driver has set a queue up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    pub max: u16,
    /// What was written, whether or not it is a size.
    pub size: u32,
    pub ready: bool,
    /// Descriptor table, available ring, used ring.
    pub addresses: [u64; 3],
}

impl Setup {
    pub fn new(max: u16) -> Self {
        Self {
            max,
            size: max.into(),
            ..Self::default()
        }
    }
}

/// Where the rings of a queue are, and how far a device has come with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The largest size that the device takes.
    pub max: u16,
    /// The size: whatever was asked for.
    pub size: u32,
    /// Descriptor table, available ring, used ring.
    pub addresses: [u64; 3],
    /// Index of the entry of the available ring that is looked at next.
    pub next_avail: u16,
    /// Index of the entry of the used ring that is written next.
    pub next_used: u16,
}

/// A queue that a device works on.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    rings: virtio_queue::Queue,
    event: Arc<Event>,
    /// How many chains were given to the driver since it was last asked whether it wants to hear.
    pushed: Wrapping<u16>,
    kept: Option<Box<Kept>>,
}

impl Queue {
    /// Makes the queue that the driver has set up, if its rings are in RAM.
    pub(crate) fn new(
        index: u16,
        setup: &Setup,
        features: Features,
        memory: &DmaMemory,
        event: Arc<Event>,
    ) -> Result<Self, QueueError> {
        let place = Place {
            max: setup.max,
            size: setup.size,
            addresses: setup.addresses,
            next_avail: 0,
            next_used: 0,
        };
        Self::at(index, &place, features, memory, event)
    }

    /// Makes a queue that goes on at some place, if its rings are in RAM. What the place says may be anything.
    ///
    /// # Errors
    /// If the size or an address cannot be.
    pub fn at(
        index: u16,
        place: &Place,
        features: Features,
        memory: &DmaMemory,
        event: Arc<Event>,
    ) -> Result<Self, QueueError> {
        let Place { max, size, .. } = *place;
        let mut rings = virtio_queue::Queue::new(max)?;
        rings.try_set_size(u16::try_from(size).map_err(|_| QueueError::Setup { size, max })?)?;
        let [table, available, used] = place.addresses.map(GuestAddress);
        rings.try_set_desc_table_address(table)?;
        rings.try_set_avail_ring_address(available)?;
        rings.try_set_used_ring_address(used)?;
        rings.set_event_idx(features.has(Features::EVENT_IDX));
        rings.set_next_avail(place.next_avail);
        rings.set_next_used(place.next_used);
        rings.set_ready(true);
        if !rings.is_valid(memory) {
            return Err(QueueError::Setup { size, max });
        }
        Ok(Self {
            index,
            rings,
            event,
            pushed: Wrapping(0),
            kept: None,
        })
    }

    /// Has a journal kept of the chains that are taken from now on. Those at `again`, which the journal has from
    /// a device before, are taken first, in this order; whatever is no chain any more is an error then.
    pub fn keep(&mut self, journal: Box<dyn Journal>, again: Vec<u16>) {
        self.kept = Some(Box::new(Kept::new(journal, again)));
    }

    /// Returns how many chains of a device before are still to be taken.
    pub fn left_again(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.again.len())
    }

    /// Returns its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Returns what a notification of the driver signals.
    pub fn event(&self) -> &Arc<Event> {
        &self.event
    }

    /// Returns addresses, size and how far the device has come.
    pub fn state(&self) -> QueueState {
        self.rings.state()
    }

    /// Takes the next chain, `None` if there is none.
    ///
    /// # Errors
    /// If the ring or the chain is wrong.
    pub fn pop<'m>(&mut self, memory: &'m DmaMemory) -> Result<Option<Chain<'m>>, QueueError> {
        let again = self
            .kept
            .as_ref()
            .and_then(|kept| kept.again.last().copied());
        if let Some(head) = again {
            return self.pop_again(memory, head).map(Some);
        }
        let before = self.rings.next_avail();
        let found = self.rings.iter(memory)?.next();
        let Some(inner) = found else {
            let available = self.rings.avail_idx(memory, Ordering::Acquire)?;
            if available.0 != before && !self.is_ring_readable(memory, before) {
                return Err(QueueError::Rings(virtio_queue::Error::FindMemoryRegion));
            }
            return Ok(None);
        };
        let chain = self.walked(memory, inner)?;
        if let Some(kept) = &mut self.kept {
            kept.taken(chain.head());
        }
        Ok(Some(chain))
    }

    fn walked<'m>(
        &self,
        memory: &'m DmaMemory,
        inner: DescriptorChain<&'m DmaMemory>,
    ) -> Result<Chain<'m>, QueueError> {
        let size = self.rings.size();
        let chain = Chain {
            memory,
            inner,
            size,
        };
        chain.walk(|_| ())?;
        Ok(chain)
    }

    /// Takes a chain that a device before this one had taken.
    ///
    /// Only a ring gives chains, and the entry of the available ring may be another one's by now. So a ring of one
    /// entry is written, for a moment, where the next used element will be: 8 bytes hold its flags, its index and
    /// the head. The driver looks there when the used index has passed it, and it has nothing left to see there from
    /// the last time around: a chain that is not answered yet is one that is not in the used ring.
    fn pop_again<'m>(&mut self, memory: &'m DmaMemory, head: u16) -> Result<Chain<'m>, QueueError> {
        let size = self.rings.size();
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        let place = 4 + 8 * u64::from(self.rings.next_used() % size);
        let place = self.rings.used_ring().checked_add(place);
        let place = GuestAddress(place.ok_or(virtio_queue::Error::AddressOverflow)?);
        memory
            .write_obj([0, 1u16.to_le(), head.to_le(), 0], place)
            .map_err(virtio_queue::Error::GuestMemory)?;
        let mut ring = virtio_queue::Queue::new(size)?;
        ring.try_set_desc_table_address(GuestAddress(self.rings.desc_table()))?;
        ring.try_set_avail_ring_address(place)?;
        ring.set_ready(true);
        let found = ring.iter(memory)?.next();
        let found = found.filter(|chain| chain.head_index() == head);
        // Somebody has written there who may not.
        let inner = found.ok_or(virtio_queue::Error::InvalidAvailRingIndex)?;
        let chain = self.walked(memory, inner)?;
        if let Some(kept) = &mut self.kept {
            kept.retaken();
        }
        Ok(chain)
    }

    /// Tells whether the entry of the available ring at `index` is in RAM.
    fn is_ring_readable(&self, memory: &DmaMemory, index: u16) -> bool {
        let at = 4 + 2 * u64::from(index % self.rings.size());
        let at = self.rings.avail_ring().checked_add(at);
        at.is_some_and(|at| memory.read_obj::<u16>(GuestAddress(at)).is_ok())
    }

    /// Gives the chain back that was taken last and not pushed: the next [`pop`](Self::pop) takes it
    /// again. Several that were taken are given back by as many calls.
    pub fn unpop(&mut self) {
        if self.kept.as_mut().is_none_or(|kept| kept.take_back()) {
            self.rings.go_to_previous_position();
        }
    }

    /// Gives a chain to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// If the used ring is no RAM any more.
    pub fn push(&mut self, memory: &DmaMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(memory, &[(head, written)])
    }

    /// Gives several chains to the driver in one step: it sees all of them or none. Each with the bytes
    /// that are in it; no more than the queue has descriptors.
    ///
    /// # Errors
    /// If the used ring is no RAM any more.
    pub fn push_all(&mut self, memory: &DmaMemory, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((last, last_written), before)) = used.split_last() else {
            return Ok(());
        };
        let next = Wrapping(self.rings.next_used());
        let mut at = next;
        for (head, written) in before {
            let place = 4 + 8 * u64::from(at.0 % self.rings.size());
            let place = self.rings.used_ring().checked_add(place);
            let place = place.ok_or(virtio_queue::Error::AddressOverflow)?;
            let element = [u32::from(*head).to_le(), written.to_le()];
            memory
                .write_obj(element, GuestAddress(place))
                .map_err(virtio_queue::Error::GuestMemory)?;
            at += 1;
        }
        if let Some(kept) = &mut self.kept {
            kept.journal.giving(&mut used.iter().map(|(head, _)| *head));
        }
        // The index is stored with the last one, and with it all become visible.
        self.rings.set_next_used(at.0);
        if let Err(error) = self.rings.add_used(memory, *last, *last_written) {
            self.rings.set_next_used(next.0);
            return Err(error.into());
        }
        if let Some(kept) = &mut self.kept {
            kept.journal.given(self.rings.next_used());
        }
        self.pushed += used.len() as u16;
        Ok(())
    }

    /// Tells whether the driver wants to be interrupted for what was pushed since the last call (virtio
    /// 1.3, 2.7.7).
    ///
    /// # Errors
    /// If the available ring is no RAM any more.
    pub fn needs_interrupt(&mut self, memory: &DmaMemory) -> Result<bool, QueueError> {
        // What was pushed comes before what the driver says now.
        fence(Ordering::SeqCst);
        let event_idx = self.rings.event_idx_enabled();
        let offset = match event_idx {
            true => 4 + 2 * u64::from(self.rings.size()),
            false => 0,
        };
        let place = self.rings.avail_ring().checked_add(offset);
        let place = place.ok_or(virtio_queue::Error::AddressOverflow)?;
        let said: u16 = memory
            .load(GuestAddress(place), Ordering::Relaxed)
            .map_err(QueueError::Flags)?;
        let (said, pushed) = (u16::from_le(said), std::mem::take(&mut self.pushed));
        if !event_idx {
            return Ok(said & NO_INTERRUPT == 0);
        }
        // The index that it waits for is among those of the last `pushed` ones.
        let next = Wrapping(self.rings.next_used());
        Ok(next - Wrapping(said) - Wrapping(1) < pushed)
    }

    /// Asks the driver to notify, or not to. Tells, when it is asked to, whether something has become
    /// available meanwhile, for which there may be no notification.
    ///
    /// # Errors
    /// If a ring is no RAM any more.
    pub fn expect(
        &mut self,
        memory: &DmaMemory,
        wanted: Notifications,
    ) -> Result<bool, QueueError> {
        match wanted {
            Notifications::Wanted => Ok(self.rings.enable_notification(memory)?),
            Notifications::Unwanted => {
                self.rings.disable_notification(memory)?;
                Ok(false)
            }
        }
    }

    /// Has `each` do the work for one chain after the other, at most as many as the queue has
    /// descriptors, gives them to the driver, and interrupts it once if it wants that. `each` returns
    /// how many bytes it has written, or `None` to have the chain kept for later.
    ///
    /// # Errors
    /// What `each` returns, or what the driver did wrong. The driver is not interrupted then.
    pub fn serve<E: From<QueueError>>(
        &mut self,
        memory: &DmaMemory,
        interrupt: &Interrupt,
        mut each: impl FnMut(&Chain<'_>) -> Result<Option<u32>, E>,
    ) -> Result<Served, E> {
        let mut pushed = false;
        let served = self.serve_some(memory, &mut pushed, &mut each)?;
        if pushed && self.needs_interrupt(memory)? {
            interrupt.used_buffers(self.index);
        }
        Ok(served)
    }

    fn serve_some<E: From<QueueError>>(
        &mut self,
        memory: &DmaMemory,
        pushed: &mut bool,
        each: &mut impl FnMut(&Chain<'_>) -> Result<Option<u32>, E>,
    ) -> Result<Served, E> {
        self.expect(memory, Notifications::Unwanted)?;
        for _ in 0..self.rings.size() {
            let Some(chain) = self.pop(memory)? else {
                if self.expect(memory, Notifications::Wanted)? {
                    return Ok(Served::More);
                }
                return Ok(Served::All);
            };
            let Some(written) = each(&chain)? else {
                self.unpop();
                return Ok(Served::Kept);
            };
            self.push(memory, chain.head(), written)?;
            *pushed = true;
        }
        Ok(Served::More)
    }
}

/// Whether a driver shall notify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifications {
    /// It shall.
    Wanted,
    /// It need not: the device looks by itself.
    Unwanted,
}

/// How far [`Queue::serve`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Served {
    /// Nothing is left, and the driver will notify.
    All,
    /// There may be more, and no notification for it.
    More,
    /// A chain was kept, and there may be no notification for it.
    Kept,
}

/// A chain of buffers that the driver has made available.
#[derive(Debug)]
pub struct Chain<'m> {
    memory: &'m DmaMemory,
    inner: DescriptorChain<&'m DmaMemory>,
    /// Of the queue.
    size: u16,
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainBuffer {
    /// Where it is; anywhere.
    pub at: Gpa,
    /// How long it is; zero, too.
    pub len: u32,
    /// The device may write it, and has nothing to read there.
    pub is_writable: bool,
}

impl<'m> Chain<'m> {
    /// Goes from the first descriptor to the last, in the right order.
    fn walk(&self, mut each: impl FnMut(ChainBuffer)) -> Result<(), QueueError> {
        let (head, size) = (self.head(), self.size);
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        let (mut ended, mut writable) = (false, false);
        for descriptor in self.inner.clone().take(size.into()) {
            if writable && !descriptor.is_write_only() {
                return Err(QueueError::Order { head });
            }
            writable = descriptor.is_write_only();
            ended = !descriptor.has_next();
            each(ChainBuffer {
                at: Gpa(descriptor.addr().0),
                len: descriptor.len(),
                is_writable: writable,
            });
        }
        ended.then_some(()).ok_or(QueueError::Endless { head })
    }

    /// Returns its first descriptor, by which it is pushed.
    pub fn head(&self) -> u16 {
        self.inner.head_index()
    }

    /// Returns its buffers, those to read before those to write, as the descriptors are now. Whether
    /// there is memory is not looked at.
    ///
    /// # Errors
    /// If the guest has changed the chain into a wrong one.
    pub fn buffers(&self) -> Result<Vec<ChainBuffer>, QueueError> {
        let mut buffers = Vec::new();
        self.walk(|buffer| buffers.push(buffer))?;
        Ok(buffers)
    }

    /// Returns a reader over the buffers that the driver has filled.
    ///
    /// # Errors
    /// If one is not in RAM.
    pub fn reader(&self) -> Result<ChainReader<'m>, QueueError> {
        Reader::new(self.memory, self.inner.clone()).map_err(|source| self.out_of_reach(source))
    }

    /// Returns a writer over the buffers that the device may fill.
    ///
    /// # Errors
    /// If one is not in RAM, or in RAM that may not be written.
    pub fn writer(&self) -> Result<ChainWriter<'m>, QueueError> {
        Writer::new(self.memory, self.inner.clone()).map_err(|source| self.out_of_reach(source))
    }

    fn out_of_reach(&self, source: virtio_queue::Error) -> QueueError {
        QueueError::Buffer {
            head: self.head(),
            source,
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
