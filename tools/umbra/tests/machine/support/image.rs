//! Guests of a few instructions: multiboot images, in 32-bit protected mode without paging.

use std::path::{Path, PathBuf};

/// Where `code` is entered.
pub const ENTRY: u32 = 0x10_0040;

/// `jmp $`.
pub const SPIN: [u8; 2] = [0xeb, 0xfe];

/// Writes an image that executes `code` at [`ENTRY`] into `directory`.
pub fn multiboot(directory: &Path, code: &[u8]) -> PathBuf {
    // Flag 16: the addresses are in the header.
    let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let load = ENTRY - 0x40;
    let end = ENTRY + code.len() as u32;
    let header = [magic, flags, checksum, load, load, end, end + 0x1000, ENTRY];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(0x40, 0);
    bytes.extend(code);
    let path = directory.join("guest");
    std::fs::write(&path, bytes).unwrap();
    path
}
