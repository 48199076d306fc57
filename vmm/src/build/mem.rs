//! Memory that comes and goes in blocks: what a memory device's blocks are made of.
//!
//! ```text
//!   device's thread ── GuestMap ──> Pool: one change of the map ──┬─> slots of one region, made as it is used
//!                                                                 └─> the janitor's thread, of what has left:
//!                                        waits for processors, then gives the host its pages back
//! ```
//! The device's thread must not wait for a processor, as a processor may wait for it (a reset); so somebody else
//! does. What was taken out is inaccessible when the guest hears of it in any case: what has still to be waited
//! for are accesses that began before.
//!
//! A run of blocks is one slot if they were plugged upwards, and else a few.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use umbra_devices::virtio::mem::GuestMap;
use umbra_devices::virtio::{Mem, MemOptions};
use umbra_slots::{
    AddressSpace, Editor, Flags, Gpa, GpaRange, HugePages, RamOptions, RamRegion, SlotError,
    SlotId, Stale, Target,
};

use super::high::{Shown, is_of};
use super::virtio::{Control, Helper, Made, Surroundings};
use crate::error::{BuildError, MemError};
use crate::spec::MemSpec;

/// Makes the device; none of its memory is in the map.
pub fn make(id: &str, spec: &MemSpec, around: &Surroundings<'_>) -> Result<Made, BuildError> {
    let made = try_make(id, spec, around);
    made.map_err(|source| BuildError::Mem {
        id: id.to_owned(),
        source,
    })
}

fn try_make(id: &str, spec: &MemSpec, around: &Surroundings<'_>) -> Result<Made, MemError> {
    let len = spec.max;
    // First: what fits no processor is not asked of the host.
    let claim = around.high.claim(len).ok_or(MemError::NoRoom { len })?;
    let region = RamRegion::new(RamOptions {
        len,
        huge: HugePages::Transparent,
        prefault: false,
    })?;
    let options = MemOptions {
        name: id.to_owned(),
        range: claim.range(),
        block: spec.block,
        requested: spec.size,
    };
    let range = claim.range();
    let shown = Shown::nothing(around.space, claim, region);
    let (memory, blocks) = HotMemory::start(shown).map_err(MemError::Thread)?;
    let made = Mem::new(options, blocks);
    let (device, control) = made.expect("the plan's size is one of the device's");
    tracing::debug!(id, %range, "memory to plug");
    Ok(Made {
        device: Box::new(device),
        control: Some(Control::Mem(control)),
        helper: Helper::hot_memory(memory),
    })
}

/// What has left the map.
struct Freed {
    range: GpaRange,
    stale: Stale,
}

/// The memory, and the map that it comes into.
struct Pool {
    space: Arc<AddressSpace>,
    region: Arc<RamRegion>,
    start: Gpa,
    freed: Sender<Freed>,
}

/// The device's way to the map, for as long as the memory is there.
struct Blocks(Weak<Pool>);

/// The memory of a device. All of it leaves the map when this is dropped, which waits as [`Shown`] does.
pub struct HotMemory {
    pool: Option<Arc<Pool>>,
    janitor: Option<JoinHandle<()>>,
    /// After what else holds the memory.
    _shown: Shown,
}

impl HotMemory {
    fn start(shown: Shown) -> std::io::Result<(Self, Blocks)> {
        let (freed, leavers) = channel();
        let (space, region) = (shown.space().clone(), shown.region().clone());
        let start = shown.range().start();
        let janitor = Janitor {
            space: space.clone(),
            region: region.clone(),
            start,
        };
        let thread = thread::Builder::new().name("memory-janitor".into());
        let janitor = thread.spawn(move || janitor.run(&leavers))?;
        let pool = Arc::new(Pool {
            space,
            region,
            start,
            freed,
        });
        let blocks = Blocks(Arc::downgrade(&pool));
        let memory = Self {
            pool: Some(pool),
            janitor: Some(janitor),
            _shown: shown,
        };
        Ok((memory, blocks))
    }
}

impl Drop for HotMemory {
    fn drop(&mut self) {
        // Nobody frees anything after this, so the janitor ends.
        self.pool = None;
        if let Some(janitor) = self.janitor.take() {
            // One that has panicked has said so.
            let _ = janitor.join();
        }
    }
}

impl Blocks {
    /// The device works no longer when the memory has gone.
    fn pool(&self) -> Result<Arc<Pool>, SlotError> {
        self.0.upgrade().ok_or(SlotError::TooMany { max: 0 })
    }
}

impl GuestMap for Blocks {
    fn plug(&mut self, range: GpaRange) -> Result<(), SlotError> {
        let pool = self.pool()?;
        let plugged = pool
            .space
            .update("memory is plugged", |map| pool.show(map, range))?;
        // Nothing has left.
        drop(plugged.stale);
        Ok(())
    }

    fn unplug(&mut self, range: GpaRange) -> Result<(), SlotError> {
        let pool = self.pool()?;
        let stale = pool
            .space
            .update("memory is unplugged", |map| pool.hide(map, range))?
            .stale;
        // It waits, and is dropped unwaited, if it has panicked: the memory stays.
        let _ = pool.freed.send(Freed { range, stale });
        Ok(())
    }
}

impl Pool {
    fn offset(&self, at: Gpa) -> u64 {
        at.0 - self.start.0
    }

    /// Shows blocks, of which none is there.
    fn show(&self, map: &mut Editor, range: GpaRange) -> Result<(), SlotError> {
        let ours = map.slots().iter().filter(|slot| is_of(slot, &self.region));
        let below = ours
            .map(|slot| (slot.id(), slot.range()))
            .find(|(_, there)| there.start().0 + there.len() == range.start().0);
        match below {
            Some((id, there)) => map.resize(id, there.len() + range.len()),
            None => self.add(map, range.start().0, range.start().0 + range.len()),
        }
    }

    /// Takes blocks out, all of which are there.
    fn hide(&self, map: &mut Editor, range: GpaRange) -> Result<(), SlotError> {
        let ours = map.slots().iter().filter(|slot| is_of(slot, &self.region));
        let touched: Vec<(SlotId, GpaRange)> = ours
            .filter(|slot| slot.range().overlaps(&range))
            .map(|slot| (slot.id(), slot.range()))
            .collect();
        let (start, end) = (range.start().0, range.start().0 + range.len());
        for (id, there) in touched {
            let (first, last) = (there.start().0, there.start().0 + there.len());
            match start.saturating_sub(first) {
                0 => map.remove(id)?,
                left => map.resize(id, left)?,
            }
            if end < last {
                self.add(map, end, last)?;
            }
        }
        Ok(())
    }

    fn add(&self, map: &mut Editor, start: u64, end: u64) -> Result<(), SlotError> {
        let (start, len) = (Gpa(start), end - start);
        let offset = self.offset(start);
        map.add_ram(start, self.region.clone(), offset, len, Flags::default())?;
        Ok(())
    }
}

/// Gives the host its pages back.
struct Janitor {
    space: Arc<AddressSpace>,
    region: Arc<RamRegion>,
    start: Gpa,
}

impl Janitor {
    /// Pages that are given back while the map is held still.
    const STEP: u64 = Mem::MIN_BLOCK;

    fn run(self, leavers: &Receiver<Freed>) {
        let mut told = false;
        for Freed { range, stale } in leavers {
            stale.wait();
            let result = self.give_back(range);
            if let (Err(error), false) = (result, told) {
                told = true;
                tracing::warn!(%range, %error, "the host does not take back memory that was unplugged");
            }
        }
    }

    /// Gives back what has not been plugged again.
    fn give_back(&self, range: GpaRange) -> Result<(), umbra_slots::RamError> {
        for at in (0..range.len()).step_by(Self::STEP as usize) {
            let gpa = Gpa(range.start().0 + at);
            // Nothing is plugged meanwhile: it would be lost.
            let map = self.space.hold();
            if !matches!(map.resolve(gpa), Target::Ram(_)) {
                self.region.discard(gpa.0 - self.start.0, Self::STEP)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
