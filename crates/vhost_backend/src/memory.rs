//! The guest's memory, as the front end shows it: regions of files, each at a guest address, with the address at
//! which the front end itself has it.
//!
//! ```text
//!   SET_MEM_TABLE, ADD_MEM_REG ──> Region { guest address, length, front end's address } ──> a slot of the map
//!   REM_MEM_REG ──> the slot goes; the answer waits until nobody has the memory mapped
//!   SET_VRING_ADDR: the front end's addresses ── translate ──> guest addresses
//! ```
//!
//! Devices work with guest addresses only, and take the map anew for every run. So a region that comes disturbs
//! nobody, and one that goes is mapped as long as a run, or a request that the host works on, takes.
//!
//! **A file that becomes shorter** under its mapping is SIGBUS for who touches it, and the end of this process. A
//! memfd that is sealed (F_SEAL_SHRINK) cannot; of another one a line is logged, and it is taken: who can send the
//! signal is the front end alone, whose device this is. The same goes for the files of the dirty log and of requests
//! in flight.

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use umbra_slots::{
    AccessError, AddressSpace, Dma, DmaSpace, Flags, Gpa, GpaRange, MappingWatch, Options,
    RamRegion, SlotId,
};

use crate::Error;
use crate::log::Log;

/// How many regions there can be. QEMU takes the least of its back ends, and needs one for each module of memory.
pub(crate) const MAX_REGIONS: usize = 509;
/// How often it is looked whether memory is free.
const LOOK: Duration = Duration::from_micros(50);

/// What a front end says of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub gpa: Gpa,
    pub len: u64,
    /// Where the front end has it.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

struct Region {
    shown: Shown,
    slot: SlotId,
    watch: MappingWatch,
}

/// Memory that was taken away, and may still be mapped.
#[must_use]
pub(crate) struct Leaving(Vec<MappingWatch>);

impl Leaving {
    /// Waits until nobody has it mapped; `false` if that takes longer.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.0.iter().any(MappingWatch::is_mapped) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }
}

/// All regions.
pub(crate) struct Memory {
    space: Arc<AddressSpace>,
    regions: Vec<Region>,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            space: AddressSpace::new(Options::default()),
            regions: Vec::new(),
        }
    }

    /// Returns it for a device, whose stores are marked in a log.
    pub fn for_device(&self, log: Option<Arc<Log>>) -> DmaSpace {
        let dma = Stores {
            space: self.space.clone(),
            log,
        };
        DmaSpace::new(self.space.clone(), Arc::new(dma))
    }

    /// Returns where it ends.
    pub fn end(&self) -> Gpa {
        let ends = self.regions.iter().map(|r| r.shown.gpa.0 + r.shown.len);
        Gpa(ends.max().unwrap_or(0))
    }

    /// Replaces all regions.
    pub fn replace(&mut self, regions: Vec<(Shown, File)>) -> Result<Leaving, Error> {
        let mut mapped = Vec::new();
        for (shown, file) in regions {
            mapped.push((shown, open(&shown, file)?));
        }
        let old: Vec<_> = self.regions.iter().map(|region| region.slot).collect();
        let updated = self.space.update("memory table", |map| {
            for slot in old {
                map.remove(slot)?;
            }
            let mut slots = Vec::new();
            for (shown, ram) in &mapped {
                slots.push(map.add_ram(shown.gpa, ram.clone(), 0, shown.len, Flags::default())?);
            }
            Ok(slots)
        })?;
        let slots = updated.wait();
        let new = mapped
            .into_iter()
            .zip(slots)
            .map(|((shown, ram), slot)| Region {
                shown,
                slot,
                watch: ram.watch(),
            });
        let old = std::mem::replace(&mut self.regions, new.collect());
        Ok(Leaving(
            old.into_iter().map(|region| region.watch).collect(),
        ))
    }

    /// Adds one.
    pub fn add(&mut self, shown: Shown, file: File) -> Result<(), Error> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(Error::Regions { max: MAX_REGIONS });
        }
        let ram = open(&shown, file)?;
        let watch = ram.watch();
        let updated = self.space.update("memory added", |map| {
            map.add_ram(shown.gpa, ram, 0, shown.len, Flags::default())
        })?;
        let slot = updated.wait();
        self.regions.push(Region { shown, slot, watch });
        Ok(())
    }

    /// Takes the region away that is at these addresses. Where it is in its file is not said again.
    pub fn remove(&mut self, shown: Shown) -> Result<Leaving, Error> {
        let same = |region: &Region| {
            let there = region.shown;
            (there.gpa, there.len, there.user) == (shown.gpa, shown.len, shown.user)
        };
        let Some(at) = self.regions.iter().position(same) else {
            return Err(Error::NoRegion {
                gpa: shown.gpa,
                len: shown.len,
            });
        };
        let slot = self.regions[at].slot;
        let updated = self
            .space
            .update("memory removed", |map| map.remove(slot))?;
        updated.wait();
        Ok(Leaving(vec![self.regions.swap_remove(at).watch]))
    }

    /// Returns the guest's address for one of the front end's.
    pub fn translate(&self, user: u64) -> Option<Gpa> {
        self.regions.iter().find_map(|Region { shown, .. }| {
            let offset = user.checked_sub(shown.user)?;
            (offset < shown.len).then_some(Gpa(shown.gpa.0 + offset))
        })
    }
}

fn open(shown: &Shown, file: File) -> Result<Arc<RamRegion>, Error> {
    let Shown {
        gpa, len, offset, ..
    } = *shown;
    let ram = RamRegion::shared(file, offset, len);
    let ram = ram.map_err(|source| Error::Region { gpa, len, source })?;
    if !ram.is_sealed() {
        tracing::info!(
            %gpa, len,
            "the front end's memory is not sealed: if its file becomes shorter, this process ends by SIGBUS"
        );
    }
    Ok(ram)
}

/// The way to write it: the processors of the guest see memory as it is.
struct Stores {
    space: Arc<AddressSpace>,
    log: Option<Arc<Log>>,
}

impl Dma for Stores {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        self.space.load().read(gpa, data)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        self.space.load().write(gpa, data)?;
        if let Some(range) = GpaRange::new(gpa, data.len() as u64) {
            self.written(range);
        }
        Ok(())
    }

    fn written(&self, range: GpaRange) {
        if let Some(log) = &self.log {
            log.mark(range);
        }
    }
}
