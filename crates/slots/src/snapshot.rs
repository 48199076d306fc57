//! The map at one moment: slots, windows and generation in one immutable object.

use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, VolatileMemory};

use crate::{AccessError, Backing, DirtyLog, Generation, Gpa, IoId, Slot, SlotId};

/// Guest RAM as users of `vm-memory` see it; writes mark the dirty log.
pub type GuestMemory = GuestMemoryMmap<DirtyLog>;

/// The guest-physical map as one publication made it.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) slots: Vec<Slot>,
    pub(crate) generation: Generation,
    pub(crate) ram_epoch: u64,
}

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Memory.
    Ram(RamTarget<'a>),
    /// An I/O window.
    Io {
        /// Who answers.
        id: IoId,
        /// Offset in the window.
        offset: u64,
        /// Bytes from here to the window's end, at least one.
        remaining: u64,
    },
    /// Nothing; reads as all ones.
    Nothing,
}

/// A place in RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamTarget<'a> {
    /// The slot.
    pub slot: &'a Slot,
    /// Offset in the slot.
    pub offset: u64,
    /// Where the byte is in this process. Valid while the snapshot, or the region, is held.
    pub host: NonNull<u8>,
    /// The guest may not write here.
    pub read_only: bool,
    /// Guest writes must be marked, see [`RamTarget::mark_dirty`].
    pub dirty_log: bool,
    /// Bytes from here to the slot's end, at least one.
    pub remaining: u64,
}

impl RamTarget<'_> {
    fn log_offset(&self) -> Option<(&DirtyLog, usize)> {
        match &self.slot.backing {
            Backing::Ram { region, offset, .. } => {
                Some((region.dirty(), (offset + self.offset) as usize))
            }
            Backing::Io(_) => None,
        }
    }

    /// Marks the pages of `len` bytes from here as written.
    pub fn mark_dirty(&self, len: usize) {
        if let Some((log, offset)) = self.log_offset() {
            log.mark_dirty(offset, len);
        }
    }

    /// Tells whether this page is marked as written.
    pub fn is_dirty(&self) -> bool {
        self.log_offset()
            .is_some_and(|(log, offset)| log.dirty_at(offset))
    }
}

impl Snapshot {
    /// Returns the number of this map.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Returns a number that changes exactly when RAM went away or moved (not when it was added,
    /// grown or had its flags changed).
    pub fn ram_epoch(&self) -> u64 {
        self.ram_epoch
    }

    /// Returns all slots by ascending address.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns the slot of this name.
    pub fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots.iter().find(|s| s.id == id)
    }

    /// Returns the slot that holds the address.
    pub fn slot_at(&self, gpa: Gpa) -> Option<&Slot> {
        let after = self.slots.partition_point(|s| s.range.start() <= gpa);
        let slot = &self.slots[after.checked_sub(1)?];
        slot.range.contains(gpa).then_some(slot)
    }

    /// Returns the first slot that begins above the address: where a hole at `gpa` ends.
    pub fn next_slot(&self, gpa: Gpa) -> Option<&Slot> {
        let after = self.slots.partition_point(|s| s.range.start() <= gpa);
        self.slots.get(after)
    }

    /// Tells what is at the address.
    pub fn resolve(&self, gpa: Gpa) -> Target<'_> {
        let Some(slot) = self.slot_at(gpa) else {
            return Target::Nothing;
        };
        let offset = gpa.0 - slot.range.start().0;
        let remaining = slot.range.last().0 - gpa.0 + 1;
        match &slot.backing {
            Backing::Io(id) => Target::Io {
                id: *id,
                offset,
                remaining,
            },
            Backing::Ram {
                region,
                offset: base,
                flags,
                ..
            } => Target::Ram(RamTarget {
                slot,
                offset,
                host: region.host_addr(base + offset),
                read_only: flags.read_only,
                dirty_log: flags.dirty_log,
                remaining,
            }),
        }
    }

    /// Reads RAM, across slot borders if need be. Aligned reads of up to 8 bytes are single loads.
    ///
    /// # Errors
    /// If some byte is no RAM; `data` is then undefined.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < data.len() {
            let at = Gpa(gpa.0.wrapping_add(done as u64));
            let Target::Ram(ram) = self.resolve(at) else {
                return Err(AccessError::NotRam(at));
            };
            let len = piece(&ram, data.len() - done);
            slice(&ram, len).copy_to(&mut data[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Writes RAM as a device or a loader does: also where the guest may only read, and with the
    /// pages marked in the dirty log. Aligned writes of up to 8 bytes are single stores.
    ///
    /// # Errors
    /// If some byte is no RAM, or in a file that is only read; nothing has then been written.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        let mut checked = 0;
        while checked < data.len() {
            let at = Gpa(gpa.0.wrapping_add(checked as u64));
            let Target::Ram(ram) = self.resolve(at) else {
                return Err(AccessError::NotRam(at));
            };
            if !is_writable(&ram) {
                return Err(AccessError::ReadOnly(at));
            }
            checked += piece(&ram, data.len() - checked);
        }
        let mut done = 0;
        while done < data.len() {
            let at = Gpa(gpa.0.wrapping_add(done as u64));
            let Target::Ram(ram) = self.resolve(at) else {
                unreachable!("every piece was RAM of this immutable map a moment ago");
            };
            let len = piece(&ram, data.len() - done);
            slice(&ram, len).copy_from(&data[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Returns all RAM in the form that `vm-memory` users take. It keeps the memory mapped. Files that are
    /// only read are not among it: those users write what they like.
    pub fn guest_memory(&self) -> GuestMemory {
        let regions: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| match &slot.backing {
                Backing::Ram { region, view, .. } if !region.is_read_only() => {
                    Some((slot.range.start(), view))
                }
                Backing::Ram { .. } | Backing::Io(_) => None,
            })
            .map(|(start, view)| {
                let region = GuestRegionMmap::with_arc(view.clone(), GuestAddress(start.0));
                Arc::new(region.expect("a slot ends below 2^52"))
            })
            .collect();
        if regions.is_empty() {
            return GuestMemory::new();
        }
        GuestMemory::from_arc_regions(regions).expect("slots are sorted and do not overlap")
    }
}

/// How many of `wanted` bytes are in this slot.
fn piece(ram: &RamTarget<'_>, wanted: usize) -> usize {
    wanted.min(usize::try_from(ram.remaining).unwrap_or(usize::MAX))
}

/// Tells whether there is anything that this process could write.
fn is_writable(ram: &RamTarget<'_>) -> bool {
    matches!(&ram.slot.backing, Backing::Ram { region, .. } if !region.is_read_only())
}

fn slice<'a>(ram: &RamTarget<'a>, len: usize) -> vm_memory::VolatileSlice<'a, crate::DirtyRef<'a>> {
    let Backing::Ram { region, offset, .. } = &ram.slot.backing else {
        unreachable!("a RAM target is in a RAM slot");
    };
    region
        .map()
        .get_slice((offset + ram.offset) as usize, len)
        .expect("the editor let no slot reach past its region")
}
