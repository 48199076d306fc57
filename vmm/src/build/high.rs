//! Guest-physical addresses above all RAM, and memory there that comes and goes with a device.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_slots::{AddressSpace, Backing, Flags, Gpa, GpaRange, RamRegion, Slot, SlotError};

use crate::layout;

/// Gives out the addresses: those that are free, from the lowest on.
pub struct HighMemory {
    first: u64,
    /// One past the last.
    end: u64,
    /// Begin and length of what was given out.
    taken: Mutex<BTreeMap<u64, u64>>,
}

impl HighMemory {
    /// What lies above `memory` bytes of RAM, as far as physical addresses of so many bits reach.
    pub fn new(memory: u64, physical_bits: u32) -> Arc<Self> {
        Arc::new(Self {
            first: layout::high(memory),
            // Ranges of the map end at 2^52.
            end: 1 << physical_bits.min(52),
            taken: Mutex::default(),
        })
    }

    /// Takes `len` bytes; `None` if there is no room.
    pub fn claim(self: &Arc<Self>, len: u64) -> Option<Claim> {
        let mut taken = self.taken.lock();
        let mut start = self.first;
        for (begin, len_there) in &*taken {
            if start.checked_add(len)? <= *begin {
                break;
            }
            start = (begin + len_there).next_multiple_of(layout::HIGH_ALIGNMENT);
        }
        if start.checked_add(len)? > self.end {
            return None;
        }
        let range = GpaRange::new(Gpa(start), len)?;
        taken.insert(start, len);
        let from = self.clone();
        Some(Claim { range, from })
    }
}

/// Addresses that are somebody's, until it is dropped.
pub struct Claim {
    range: GpaRange,
    from: Arc<HighMemory>,
}

impl Claim {
    /// Which they are.
    pub fn range(&self) -> GpaRange {
        self.range
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.from.taken.lock().remove(&self.range.start().0);
    }
}

/// How long memory that leaves is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Memory that is shown to the guest until this is dropped. That waits until processors and devices are past it,
/// and nobody has it mapped any more: the caller holds no lock that one of them may want.
pub struct Shown {
    space: Arc<AddressSpace>,
    region: Arc<RamRegion>,
    range: GpaRange,
    /// Given back last; never if the map keeps a slot.
    claim: Option<Claim>,
}

/// Tells whether a slot shows a part of a region.
pub fn is_of(slot: &Slot, region: &Arc<RamRegion>) -> bool {
    matches!(slot.backing(), Backing::Ram { region: shown, .. } if Arc::ptr_eq(shown, region))
}

impl Shown {
    /// Shows all of a region, which is as long as what was claimed.
    pub fn new(
        space: &Arc<AddressSpace>,
        claim: Claim,
        region: Arc<RamRegion>,
    ) -> Result<Self, SlotError> {
        let (start, len) = (claim.range().start(), claim.range().len());
        let flags = Flags {
            read_only: region.is_read_only(),
            dirty_log: false,
        };
        let added = space.update("a device brings memory", |map| {
            map.add_ram(start, region.clone(), 0, len, flags)
        })?;
        added.wait();
        Ok(Self::nothing(space, claim, region))
    }

    /// Shows nothing of a region; somebody else shows and hides parts of it within what was claimed.
    pub fn nothing(space: &Arc<AddressSpace>, claim: Claim, region: Arc<RamRegion>) -> Self {
        Self {
            space: space.clone(),
            region,
            range: claim.range(),
            claim: Some(claim),
        }
    }

    /// Returns the map.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Returns the memory.
    pub fn region(&self) -> &Arc<RamRegion> {
        &self.region
    }

    /// Returns where it has room.
    pub fn range(&self) -> GpaRange {
        self.range
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let removed = self.space.update("a device takes its memory along", |map| {
            let ours = map.slots().iter().filter(|slot| is_of(slot, &self.region));
            let ids: Vec<_> = ours.map(Slot::id).collect();
            ids.into_iter().try_for_each(|id| map.remove(id))
        });
        match removed {
            Ok(updated) => {
                updated.stale.wait();
                wait_until_unused(&self.region);
            }
            Err(error) => {
                let range = self.range;
                tracing::error!(%range, %error, "memory of a device that has gone stays in the map");
                std::mem::forget(self.claim.take());
            }
        }
    }
}

/// Waits until nobody else has the memory: an access that began before it left, or a request of a device for
/// which the host still works.
fn wait_until_unused(region: &Arc<RamRegion>) {
    let until = Instant::now() + PATIENCE;
    while Arc::strong_count(region) > 1 {
        if Instant::now() > until {
            tracing::warn!(
                "memory of a device that has gone is still used: its file stays open until then"
            );
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_slots::{HugePages, Options, RamOptions, Target};

    const GIB: u64 = 1 << 30;

    fn start(claim: &Option<Claim>) -> Option<u64> {
        claim.as_ref().map(|claim| claim.range().start().0 / GIB)
    }

    #[test]
    fn addresses_are_given_out_from_the_lowest_on_and_taken_back() {
        let high = HighMemory::new(512 << 20, 33);
        let claims = [GIB, 3 * GIB / 2, 2 << 20].map(|len| high.claim(len));
        assert_eq!(claims.each_ref().map(start), [Some(4), Some(5), Some(7)]);
        assert!(high.claim(2 << 20).is_none(), "33 bits end at 8 GiB");
        let [first, second, third] = claims;
        drop(second);
        assert!(high.claim(2 * GIB + 1).is_none());
        let again = high.claim(2 * GIB);
        assert_eq!(start(&again), Some(5));
        drop((first, again));
        assert_eq!(start(&high.claim(3 * GIB)), Some(4));
        drop(third);
        assert!(high.claim(u64::MAX).is_none());
        assert!(high.claim(0).is_none());
    }

    #[test]
    fn they_lie_above_ram() {
        for (memory, first) in [(1, 4), (3 * GIB, 4), (3 * GIB + 1, 5), (5 * GIB, 6)] {
            let high = HighMemory::new(memory, 46);
            assert_eq!(start(&high.claim(1)), Some(first), "{memory:#x}");
        }
        assert!(HighMemory::new(3 * GIB, 32).claim(1).is_none());
    }

    #[test]
    fn memory_leaves_the_map_with_what_it_was_shown_for() {
        let space = AddressSpace::new(Options::default());
        let high = HighMemory::new(GIB, 46);
        let options = RamOptions {
            len: 2 << 20,
            huge: HugePages::No,
            prefault: false,
        };
        let region = RamRegion::new(options).unwrap();
        let weak = Arc::downgrade(&region);
        let claim = high.claim(region.len()).unwrap();
        let shown = Shown::new(&space, claim, region).unwrap();
        let is_there = || matches!(space.load().resolve(Gpa(4 * GIB)), Target::Ram(_));
        assert!(is_there() && start(&high.claim(1)) == Some(5));
        let reader = space.load_full();
        let later = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(reader);
        });
        drop(shown);
        assert!(weak.upgrade().is_none(), "the reader is waited for");
        later.join().unwrap();
        assert!(!is_there() && start(&high.claim(1)) == Some(4));
    }
}
