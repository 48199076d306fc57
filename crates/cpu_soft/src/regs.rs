//! The general registers, addressed by byte offset.
//!
//! A decoded operand names a register by the offset of its first byte in the file, so AH is offset
//! 1 and R8D is offset 64, and one access serves all of them. Two more slots make address
//! arithmetic free of branches: [`ZERO`] always reads zero, [`BLOCK_RIP`] holds the linear
//! instruction pointer of the block that is executing.

/// Slot that reads zero: "no base", "no index".
pub const ZERO: u8 = 16 * 8;
/// Slot that holds the instruction pointer at the start of the current block.
pub const BLOCK_RIP: u8 = 17 * 8;

/// Every `u8` offset plus eight bytes lies inside: 255 + 8 <= 33 * 8.
const SLOTS: usize = 33;

/// The register file.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct Regs {
    slots: [u64; SLOTS],
}

/// Returns the offset of general register `number` (0 to 15).
pub const fn offset(number: u8) -> u8 {
    number * 8
}

impl Regs {
    /// All zero.
    pub fn new() -> Self {
        Self { slots: [0; SLOTS] }
    }

    /// Reads `N` bytes (1, 2, 4, 8) at `offset`, zero-extended.
    #[inline(always)]
    pub fn get<const N: usize>(&self, offset: u8) -> u64 {
        let at = self
            .slots
            .as_ptr()
            .cast::<u8>()
            .wrapping_add(offset as usize);
        // SAFETY: `offset` is at most 255 and the file is 264 bytes long, so up to eight bytes
        // from there lie inside it; unaligned reads are used where the offset may be odd.
        unsafe {
            match N {
                1 => u64::from(at.read()),
                2 => u64::from(at.cast::<u16>().read_unaligned()),
                4 => u64::from(at.cast::<u32>().read_unaligned()),
                _ => at.cast::<u64>().read_unaligned(),
            }
        }
    }

    /// Writes the low `N` bytes of `value` at `offset`; a 32-bit write clears the upper half, as
    /// the processor does (SDM vol. 1, 3.4.1.1).
    #[inline(always)]
    pub fn set<const N: usize>(&mut self, offset: u8, value: u64) {
        let at = self
            .slots
            .as_mut_ptr()
            .cast::<u8>()
            .wrapping_add(offset as usize);
        // SAFETY: as in `get`; a 32-bit write stores eight bytes, still inside.
        unsafe {
            match N {
                1 => at.write(value as u8),
                2 => at.cast::<u16>().write_unaligned(value as u16),
                4 => at.cast::<u64>().write_unaligned(value & 0xffff_ffff),
                _ => at.cast::<u64>().write_unaligned(value),
            }
        }
    }

    /// Reads general register `number` whole.
    #[inline(always)]
    pub fn r(&self, number: usize) -> u64 {
        self.slots[number & 15]
    }

    /// Writes general register `number` whole.
    #[inline(always)]
    pub fn set_r(&mut self, number: usize, value: u64) {
        self.slots[number & 15] = value;
    }

    /// Sets what [`BLOCK_RIP`] reads.
    #[inline(always)]
    pub fn set_block_rip(&mut self, rip: u64) {
        self.slots[17] = rip;
    }

    /// Returns what [`BLOCK_RIP`] reads.
    #[inline(always)]
    pub fn block_rip(&self) -> u64 {
        self.slots[17]
    }

    /// Pointer to register 0, for native stubs, which index sixteen registers from it.
    pub fn as_mut_ptr(&mut self) -> *mut u64 {
        self.slots.as_mut_ptr()
    }
}
