//! Bits of the guest's paging-structure entries (SDM vol. 3, 4.3 to 4.5).

/// The entry is present.
pub const P: u64 = 1 << 0;
/// Writes are allowed.
pub const RW: u64 = 1 << 1;
/// User-mode accesses are allowed.
pub const US: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// In a directory entry: maps a large page.
pub const PS: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// PAT selector of a large page.
pub const PAT_LARGE: u64 = 1 << 12;
/// Execute disable.
pub const XD: u64 = 1 << 63;
/// The frame of a 64-bit entry (52-bit physical addresses).
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// First bit of the protection key (four bits, 59 to 62).
pub const PKEY_SHIFT: u32 = 59;
