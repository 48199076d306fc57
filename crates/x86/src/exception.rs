//! Exceptions and interrupts (SDM vol. 3, chapter 6).

/// Vectors of the architectural exceptions.
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// Bound range exceeded.
    pub const BR: u8 = 5;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack-segment fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 floating-point error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// Machine check.
    pub const MC: u8 = 18;
    /// SIMD floating-point error.
    pub const XM: u8 = 19;
}

/// An exception that is about to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// The linear address for CR2; page faults only.
    pub cr2: Option<u64>,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error: None,
            cr2: None,
        }
    }

    /// An exception with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self {
            vector,
            error: Some(error),
            cr2: None,
        }
    }

    /// A page fault at `address`.
    pub const fn page_fault(address: u64, error: PageFaultError) -> Self {
        Self {
            vector: vector::PF,
            error: Some(error.0),
            cr2: Some(address),
        }
    }
}

/// The error code of a page fault (SDM vol. 3, 4.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFaultError(pub u32);

impl PageFaultError {
    /// The fault was a protection violation, not a non-present page.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was a user-mode one.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in a paging-structure entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch (reported when NXE or SMEP is on).
    pub const FETCH: u32 = 1 << 4;
    /// A protection key forbade the access.
    pub const PKEY: u32 = 1 << 5;
}
