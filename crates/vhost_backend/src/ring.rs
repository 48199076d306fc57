//! What a front end has said of a ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use umbra_slots::{DmaMemory, Gpa};
use umbra_virtio::{Event, Features, Place, Queue};
use vm_memory::{Bytes, GuestAddress};

use crate::Error;
use crate::inflight::{Inflight, Journey};
use crate::memory::Memory;

/// The front end's addresses of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub table: u64,
    pub available: u64,
    pub used: u64,
}

/// What every ring may have.
const LARGEST: u16 = 1024;

/// A ring.
#[derive(Debug)]
pub(crate) struct Ring {
    pub index: u16,
    /// The most descriptors that it may have.
    pub max: u16,
    pub size: u16,
    pub addresses: Option<Addresses>,
    /// Index into the available ring.
    pub base: u16,
    /// The front end has said `base`, and does not know what was in flight then.
    pub is_base_theirs: bool,
    pub kick: Option<Arc<Event>>,
    pub enabled: bool,
}

impl Ring {
    /// Makes one with so many descriptors as the device has where a driver asks it. A front end has nobody to ask, so
    /// it may have more.
    pub fn new(index: u16, size: u16) -> Self {
        Self {
            index,
            max: size.max(LARGEST),
            size,
            addresses: None,
            base: 0,
            is_base_theirs: true,
            kick: None,
            enabled: false,
        }
    }

    /// Tells whether it has all that it needs, and is enabled, if that is needed as well.
    pub fn runs(&self, all_enabled: bool) -> bool {
        self.addresses.is_some() && self.kick.is_some() && (self.enabled || all_enabled)
    }

    fn translate(&self, memory: &Memory) -> Result<[u64; 3], Error> {
        let Addresses {
            table,
            available,
            used,
        } = self.addresses.expect("a ring that runs has one");
        let one = |part, address| match memory.translate(address) {
            Some(Gpa(gpa)) => Ok(gpa),
            None => Err(Error::Address {
                ring: self.index.into(),
                part,
                address,
            }),
        };
        Ok([
            one("descriptor table", table)?,
            one("available ring", available)?,
            one("used ring", used)?,
        ])
    }

    /// Makes the queue of a ring that is complete.
    pub fn queue(
        &mut self,
        regions: &Memory,
        memory: &DmaMemory,
        features: Features,
        inflight: Option<&Arc<Inflight>>,
    ) -> Result<Queue, Error> {
        let ring = self.index.into();
        let addresses = self.translate(regions)?;
        let used = used_index(memory, addresses[2]).ok_or(Error::Address {
            ring,
            part: "used ring's index",
            address: addresses[2],
        })?;
        let journey = match inflight {
            Some(file) => Some(file.journal(self.index, self.size, used)?),
            None => None,
        };
        if let Some(journey) = &journey
            && std::mem::take(&mut self.is_base_theirs)
        {
            // No more than the ring has descriptors.
            self.base = used.wrapping_add(journey.again.len() as u16);
        }
        let place = Place {
            max: self.max,
            size: self.size.into(),
            addresses,
            next_avail: self.base,
            next_used: used,
        };
        let event = self.kick.clone().expect("a ring that runs has one");
        let queue = Queue::at(self.index, &place, features, memory, event);
        let mut queue = queue.map_err(|source| Error::Queue { ring, source })?;
        if let Some(Journey { track, again }) = journey {
            if !again.is_empty() {
                tracing::info!(
                    ring,
                    requests = again.len(),
                    "taken over from a back end before"
                );
            }
            queue.keep(Box::new(track), again);
        }
        Ok(queue)
    }

    /// Returns where a device goes on that has not said it: behind what it has answered.
    pub fn answered(&self, regions: &Memory, memory: &DmaMemory) -> Option<u16> {
        let [_, _, used] = self.addresses.and(self.translate(regions).ok())?;
        used_index(memory, used)
    }
}

fn used_index(memory: &DmaMemory, ring: u64) -> Option<u16> {
    let at = GuestAddress(ring.checked_add(2)?);
    let index: u16 = memory.load(at, Ordering::Acquire).ok()?;
    Some(u16::from_le(index))
}
