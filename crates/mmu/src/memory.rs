//! Guest tables as atomics: the one place that turns a host pointer into something to read.
//!
//! The guest's processors edit their tables while they are walked, so every look is an atomic
//! load and every accessed or dirty bit a compare-and-swap (SDM vol. 3, 4.8). Unsafe because RAM
//! is known by address only. Models of `cargo xtask loom` see a stand-in for each entry.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;
#[cfg(not(umbra_loom))]
use std::sync::atomic::AtomicU64;

use umbra_slots::{Gpa, RamTarget, Snapshot, Target};
#[cfg(umbra_loom)]
use umbra_sync::atomic::AtomicU64;
use umbra_sync::atomic::Ordering;

/// One entry of a guest table, alive as long as the map that it was found in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum EntryRef<'a> {
    Wide(&'a AtomicU64),
    Narrow(&'a AtomicU32),
}

impl EntryRef<'_> {
    /// Reads the entry.
    pub fn load(self) -> u64 {
        match self {
            EntryRef::Wide(entry) => entry.load(Ordering::Acquire),
            EntryRef::Narrow(entry) => u64::from(entry.load(Ordering::Acquire)),
        }
    }

    /// Replaces `old` by `new`; false if the entry was no longer `old`.
    pub fn replace(self, old: u64, new: u64) -> bool {
        match self {
            EntryRef::Wide(entry) => entry
                .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok(),
            EntryRef::Narrow(entry) => entry
                .compare_exchange(old as u32, new as u32, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok(),
        }
    }
}

/// A guest table: 4 KiB of RAM, alive as long as the map that it was found in.
#[derive(Clone, Copy)]
pub(crate) struct TableRef<'a> {
    ram: RamTarget<'a>,
    entry_size: usize,
}

impl<'a> TableRef<'a> {
    /// Finds the table that begins at `gpa`, rounded down to its 4 KiB page. `None` if that is no
    /// RAM.
    pub fn find(map: &'a Snapshot, gpa: Gpa, entry_size: usize) -> Option<Self> {
        match map.resolve(gpa.gfn().gpa()) {
            Target::Ram(ram) => Some(Self { ram, entry_size }),
            Target::Io { .. } | Target::Nothing => None,
        }
    }

    /// The RAM that holds the table.
    pub fn ram(&self) -> &RamTarget<'a> {
        &self.ram
    }

    /// The entry at `index`.
    ///
    /// # Panics
    /// If the index is outside the 4 KiB.
    pub fn entry(&self, index: usize) -> EntryRef<'a> {
        let offset = index * self.entry_size;
        assert!(offset + self.entry_size <= 0x1000);
        let at = self.ram.host.as_ptr().wrapping_add(offset);
        // SAFETY: `from_ptr` wants (1) alignment: `host` is the address of a 4 KiB-aligned byte of
        // a page-aligned mapping, and `offset` a multiple of the entry's size, 4 or 8;
        // (2) validity for 'a: the page lies in a RAM slot of the map borrowed for 'a, slots are
        // multiples of 4 KiB inside their region, and the map keeps the region mapped;
        // (3) no non-atomic access through a reference: guest RAM is only ever touched through
        // raw pointers, volatile slices and atomics.
        unsafe {
            match self.entry_size {
                4 => EntryRef::Narrow(AtomicU32::from_ptr(at.cast())),
                #[cfg(not(umbra_loom))]
                _ => EntryRef::Wide(AtomicU64::from_ptr(at.cast())),
                #[cfg(umbra_loom)]
                _ => EntryRef::Wide(umbra_sync::word_at(at.addr(), || at.cast::<u64>().read())),
            }
        }
    }
}
