//! A map under change: each operation is checked when it is asked for.

use std::sync::Arc;

use crate::{Backing, Flags, Gpa, GpaRange, IoId, RamRegion, Slot, SlotError, SlotId};

const PAGE: u64 = 0x1000;

/// The next map while it is being made, inside [`AddressSpace::update`](crate::AddressSpace::update).
///
/// Operations take effect in order, and an error changes nothing.
#[derive(Debug)]
pub struct Editor {
    slots: Vec<Slot>,
    next_id: u32,
    max_slots: usize,
}

impl Editor {
    pub(crate) fn new(slots: Vec<Slot>, next_id: u32, max_slots: usize) -> Self {
        Self {
            slots,
            next_id,
            max_slots,
        }
    }

    /// Returns the slots as they stand now, by ascending address.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Shows `len` bytes of `region`, from `offset` on, to the guest at `start`.
    ///
    /// # Errors
    /// Anything not a multiple of 4 KiB, a range outside the region or the physical space, an
    /// overlap, too many slots, a slot to write of a region that is only read, or a host that will not
    /// map the part.
    pub fn add_ram(
        &mut self,
        start: Gpa,
        region: Arc<RamRegion>,
        offset: u64,
        len: u64,
        flags: Flags,
    ) -> Result<SlotId, SlotError> {
        let range = ram_range(start, len)?;
        aligned("offset", offset)?;
        inside(&region, offset, len)?;
        allowed(&region, flags)?;
        self.free(range, None)?;
        self.room()?;
        let view = region.view(offset, len)?;
        Ok(self.insert(
            range,
            Backing::Ram {
                region,
                offset,
                flags,
                view,
            },
        ))
    }

    /// Opens an I/O window. It may begin and end at any byte.
    ///
    /// # Errors
    /// An overlap, or too many slots.
    pub fn add_io(&mut self, range: GpaRange, id: IoId) -> Result<SlotId, SlotError> {
        self.free(range, None)?;
        self.room()?;
        Ok(self.insert(range, Backing::Io(id)))
    }

    /// Takes a slot away.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn remove(&mut self, id: SlotId) -> Result<(), SlotError> {
        let index = self.index(id)?;
        self.slots.remove(index);
        Ok(())
    }

    /// Moves a slot, RAM or window, to begin at `start`.
    ///
    /// # Errors
    /// If there is no such slot, or it does not fit there.
    pub fn move_to(&mut self, id: SlotId, start: Gpa) -> Result<(), SlotError> {
        let index = self.index(id)?;
        let slot = &self.slots[index];
        let len = slot.range.len();
        let range = match slot.backing {
            Backing::Ram { .. } => ram_range(start, len)?,
            Backing::Io(_) => {
                GpaRange::new(start, len).ok_or(SlotError::BadRange { start, len })?
            }
        };
        self.free(range, Some(id))?;
        self.slots[index].range = range;
        self.sort();
        Ok(())
    }

    /// Makes a RAM slot end `len` bytes after its start.
    ///
    /// # Errors
    /// If there is no such slot, it is a window, or the new end does not fit.
    pub fn resize(&mut self, id: SlotId, len: u64) -> Result<(), SlotError> {
        let index = self.index(id)?;
        let range = ram_range(self.slots[index].range.start(), len)?;
        let Backing::Ram { region, offset, .. } = &self.slots[index].backing else {
            return Err(SlotError::NotRam(id));
        };
        inside(region, *offset, len)?;
        self.free(range, Some(id))?;
        let resized = region.view(*offset, len)?;
        let slot = &mut self.slots[index];
        slot.range = range;
        if let Backing::Ram { view, .. } = &mut slot.backing {
            *view = resized;
        }
        Ok(())
    }

    /// Changes what may be done with a RAM slot. Turning the dirty log on begins a clean one.
    ///
    /// # Errors
    /// If there is no such slot, it is a window, or its region is only read and it would be written.
    pub fn set_flags(&mut self, id: SlotId, flags: Flags) -> Result<(), SlotError> {
        let index = self.index(id)?;
        let Backing::Ram {
            region, flags: now, ..
        } = &mut self.slots[index].backing
        else {
            return Err(SlotError::NotRam(id));
        };
        allowed(region, flags)?;
        *now = flags;
        Ok(())
    }

    pub(crate) fn finish(self) -> (Vec<Slot>, u32) {
        (self.slots, self.next_id)
    }

    fn index(&self, id: SlotId) -> Result<usize, SlotError> {
        self.slots
            .iter()
            .position(|s| s.id == id)
            .ok_or(SlotError::NoSuchSlot(id))
    }

    fn room(&self) -> Result<(), SlotError> {
        if self.slots.len() >= self.max_slots {
            return Err(SlotError::TooMany {
                max: self.max_slots,
            });
        }
        Ok(())
    }

    fn free(&self, range: GpaRange, except: Option<SlotId>) -> Result<(), SlotError> {
        let taken = |s: &&Slot| Some(s.id) != except && s.range.overlaps(&range);
        match self.slots.iter().find(taken) {
            Some(slot) => Err(SlotError::Overlap {
                range,
                with: slot.id,
                taken: slot.range,
            }),
            None => Ok(()),
        }
    }

    fn insert(&mut self, range: GpaRange, backing: Backing) -> SlotId {
        let id = SlotId(self.next_id);
        self.next_id += 1;
        self.slots.push(Slot { id, range, backing });
        self.sort();
        id
    }

    fn sort(&mut self) {
        self.slots.sort_by_key(|s| s.range.start());
    }
}

fn aligned(what: &'static str, value: u64) -> Result<(), SlotError> {
    if value.is_multiple_of(PAGE) {
        Ok(())
    } else {
        Err(SlotError::Misaligned { what, value })
    }
}

fn ram_range(start: Gpa, len: u64) -> Result<GpaRange, SlotError> {
    aligned("start", start.0)?;
    aligned("length", len)?;
    GpaRange::new(start, len).ok_or(SlotError::BadRange { start, len })
}

fn inside(region: &RamRegion, offset: u64, len: u64) -> Result<(), SlotError> {
    match offset.checked_add(len) {
        Some(end) if end <= region.len() => Ok(()),
        _ => Err(SlotError::OutsideRegion {
            offset,
            len,
            region_len: region.len(),
        }),
    }
}

fn allowed(region: &RamRegion, flags: Flags) -> Result<(), SlotError> {
    if region.is_read_only() && !flags.read_only {
        return Err(SlotError::ReadOnlyRegion);
    }
    Ok(())
}
