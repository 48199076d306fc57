//! One instruction at privilege level 3, run twice: on this machine and on the software processor, in
//! 64-bit mode or in compatibility mode, with 16- and 32-bit segments.
//!
//! ```text
//!   0x4000_0000  code    one page of INT3, the instruction somewhere in it
//!   0x4002_0000  memory  what the instruction may address; no code
//!   0x4002_4000  hole    not present
//!   0x4018_0000  private to level 0 in the guest: tables and the harness
//! ```
//! Whatever happens ends in an exception: that of the instruction, or the INT3 where it went. Both
//! must agree in vector, error code, address, registers, selectors, flags and memory.

pub mod generate;
pub mod guest;
pub mod host;
pub mod tables;

use tables::{CODE, USER_CODE_32, USER_CODE_64};

pub use tables::MEMORY;

pub const AREA: u64 = CODE;
pub const SIZE: usize = 0x20_0000;
/// Where pages without code begin.
pub const DATA: u64 = AREA + 0x1000;
pub const MEMORY_LEN: usize = 0x4000;
pub const HOLE: u64 = MEMORY + MEMORY_LEN as u64;
pub const HOLE_LEN: u64 = 0xd_0000;

const INT3: u8 = 0xcc;
const PAGE: usize = 0x1000;

/// State before, and the instruction.
pub struct Case {
    pub text: String,
    pub bytes: Vec<u8>,
    /// Where the instruction is in its page.
    pub offset: usize,
    /// Flags that the manual leaves undefined, as EFLAGS bits.
    pub undefined: u32,
    pub gpr: [u64; 16],
    pub flags: u32,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub es: u16,
    pub fx: [u8; 512],
    pub memory: Vec<u8>,
}

impl Case {
    /// The page of code.
    pub fn page(&self) -> Vec<u8> {
        let mut page = vec![INT3; PAGE];
        let end = PAGE.min(self.offset + self.bytes.len());
        page[self.offset..end].copy_from_slice(&self.bytes[..end - self.offset]);
        page
    }

    /// The instruction pointer, relative to CS.
    pub fn rip(&self) -> u64 {
        code_base(self.cs) + self.offset as u64
    }
}

/// Where the page of code begins for a code segment.
pub fn code_base(cs: u16) -> u64 {
    if matches!(cs, USER_CODE_32 | USER_CODE_64) {
        CODE
    } else {
        0
    }
}

/// State after.
#[derive(Debug)]
pub struct Outcome {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub flags: u32,
    /// CS, SS, DS, ES.
    pub selectors: [u16; 4],
    pub fx: [u8; 512],
    pub vector: u8,
    pub error: u32,
    pub cr2: u64,
    pub memory: Vec<u8>,
}
