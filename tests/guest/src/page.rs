//! Four tables of one's own, for one address that nothing else uses.
#![allow(unsafe_code)]

use core::ptr;

use crate::boot::pml4;
use crate::cpu;

/// The address that the tables lead to.
pub const AT: u64 = 0x100_0000_0000;

/// Bits of an entry (SDM vol. 3, 4.5).
pub mod bit {
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    /// Beyond any physical address of 51 bits and less.
    pub const RESERVED: u64 = 1 << 51;
    pub const NX: u64 = 1 << 63;
    /// All that a table needs.
    pub const TABLE: u64 = P | RW | US;
}

#[repr(align(4096))]
struct Table([u64; 512]);

static mut TABLES: [Table; 3] = [const { Table([0; 512]) }; 3];

/// 2 MiB with something to execute at both ends of a page, on a border of 2 MiB.
pub const DATA: u64 = 64 << 20;
/// Where in a page code for privilege level 3 is; that for level 0 is at its beginning.
pub const USER_CODE: u64 = 16;

/// The entry of the table at `level` (4 is the top) that `AT` goes through.
pub fn entry(level: usize) -> *mut u64 {
    // SAFETY: addresses of statics, taken and not read.
    unsafe {
        match level {
            4 => &raw mut pml4[2],
            n => &raw mut TABLES[n - 1].0[0],
        }
    }
}

/// Makes tables that lead to a page of [`DATA`], and puts code there: RET, and INT 0x80 for level 3.
pub fn prepare() {
    for level in 2..=4 {
        set(level, entry(level - 1) as u64 & !0xfff | bit::TABLE);
    }
    set(1, DATA | bit::TABLE);
    // SAFETY: nothing else is there.
    unsafe {
        ptr::write_volatile(DATA as *mut u8, 0xc3);
        ptr::write_volatile((DATA + USER_CODE) as *mut [u8; 2], [0xcd, 0x80]);
    }
}

/// Sets an entry and forgets what was remembered of the address.
pub fn set(level: usize, value: u64) {
    // SAFETY: `entry` points to an entry that nobody else writes.
    unsafe { ptr::write_volatile(entry(level), value) }
    cpu::invlpg(AT);
}

/// Reads an entry.
pub fn get(level: usize) -> u64 {
    // SAFETY: as in `set`.
    unsafe { ptr::read_volatile(entry(level)) }
}
