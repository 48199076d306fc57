//! A page table that all processors share and change: pages of 4 KiB at addresses of their own.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::boot::pml4;
use crate::page::bit;

/// A slot of the top table that nothing else uses, and the address that it is for.
const SLOT: usize = 3;
const BASE: u64 = (SLOT as u64) << 39;

/// A page of memory, or a table.
#[repr(C, align(4096))]
pub struct Page(pub [AtomicU64; 512]);

impl Page {
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    /// Its address: physical, and where it is mapped one to one.
    pub fn address(&self) -> u64 {
        &raw const *self as u64
    }
}

static TABLES: [Page; 3] = [const { Page::new() }; 3];

/// The entries of the last table, by use.
pub mod index {
    /// The page that each processor moves, and all use.
    pub const SHARED: usize = 0;
    /// The functions for all, once more.
    pub const FUNCTIONS: usize = 16;
    /// The device, once more.
    pub const DEVICE: usize = 17;
    /// Pages that come and go, [`PER_CPU`] for each processor.
    pub const COMING: usize = 64;
    pub const PER_CPU: usize = 8;
}

/// Makes the tables.
pub fn prepare() {
    for [table, next] in [[0, 1], [1, 2]] {
        TABLES[table].0[0].store(TABLES[next].address() | bit::P | bit::RW, SeqCst);
    }
    // SAFETY: nobody else uses the slot.
    unsafe { (&raw mut pml4[SLOT]).write_volatile(TABLES[0].address() | bit::P | bit::RW) }
}

/// The entry of a page.
pub fn entry(index: usize) -> &'static AtomicU64 {
    &TABLES[2].0[index]
}

/// Where it is mapped.
pub fn address(index: usize) -> u64 {
    BASE + 0x1000 * index as u64
}
