//! Guest memory with a pattern on both sides.

use std::sync::Arc;

use umbra_slots::{
    AccessError, AddressSpace, Dma, DmaSpace, Flags, Gpa, GpaRange, HugePages, Options, RamOptions,
    RamRegion, SlotError, SlotId,
};

use crate::{GUARD, Guard};

/// Guest memory, from address 0, without a gap before the next piece.
pub const RAM: u64 = 0x4_0000;
/// Memory that comes and goes.
pub const MORE: u64 = RAM;
/// How much of it.
const MORE_LEN: u64 = 0x1_0000;
/// A page that may only be read.
pub const ROM: u64 = RAM + MORE_LEN;

struct Reach(Arc<AddressSpace>);

impl Dma for Reach {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.load().read(gpa, data)
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        self.0.load().write(gpa, data)
    }
    fn written(&self, range: GpaRange) {
        assert!(range.last().0 < ROM, "{range} may not be written");
    }
}

/// The memory.
pub struct Memory {
    /// The map.
    pub space: Arc<AddressSpace>,
    more: Arc<RamRegion>,
    shown: Option<SlotId>,
    guard: Guard,
    // Last: the guard looks at it.
    _region: Arc<RamRegion>,
}

/// Makes memory.
pub fn region(len: u64) -> Arc<RamRegion> {
    RamRegion::new(RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    })
    .expect("the host has memory")
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// Makes it, in a map of its own.
    pub fn new() -> Self {
        let guard = GUARD as u64;
        let watched = region(RAM + 2 * guard);
        // SAFETY: 1. the region is one mapping of that length, and lives as long as this;
        // 2. guest memory is never under a Rust reference.
        let pattern = unsafe { Guard::new(watched.host_addr(0).as_ptr(), RAM as usize) };
        let space = AddressSpace::new(Options::default());
        let rom = Flags {
            read_only: true,
            dirty_log: false,
        };
        let ram = watched.clone();
        space
            .update("memory", |edit| {
                edit.add_ram(Gpa(0), ram, guard, RAM, Flags::default())?;
                edit.add_ram(Gpa(ROM), region(0x1000), 0, 0x1000, rom)
            })
            .expect("an empty map has room")
            .wait();
        Self {
            space,
            more: region(MORE_LEN),
            shown: None,
            guard: pattern,
            _region: watched,
        }
    }

    /// Returns it as a device reaches it.
    pub fn dma(&self) -> DmaSpace {
        DmaSpace::new(self.space.clone(), Arc::new(Reach(self.space.clone())))
    }

    /// Reads guest memory, which is there.
    pub fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.space.load();
        memory.read(Gpa(at), &mut bytes).expect("it is RAM");
        bytes
    }

    /// Writes memory; bytes outside are dropped.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        if at.saturating_add(bytes.len() as u64) <= ROM {
            let _ = self.space.load().write(Gpa(at), bytes);
        }
    }

    /// Shows the memory that comes and goes, or takes it away.
    pub fn toggle(&mut self) {
        self.try_toggle().expect("it was checked by hand");
    }

    /// The same where somebody may refuse.
    ///
    /// # Errors
    /// If it was refused; nothing has changed.
    pub fn try_toggle(&mut self) -> Result<(), SlotError> {
        let (more, shown) = (self.more.clone(), self.shown);
        let update = self.space.update("toggle", |edit| match shown {
            Some(slot) => edit.remove(slot).map(|()| None),
            None => edit
                .add_ram(Gpa(MORE), more, 0, MORE_LEN, Flags::default())
                .map(Some),
        })?;
        self.shown = update.wait();
        Ok(())
    }

    /// Checks what nobody may write.
    pub fn check(&self) {
        self.guard.check();
        let mut page = [0; 0x1000];
        let read = self.space.load().read(Gpa(ROM), &mut page);
        assert!(
            read.is_ok() && page == [0; 0x1000],
            "read-only memory was written"
        );
    }
}
