//! Answers: where an address lands, or why the guest gets a page fault.

use std::ptr::NonNull;

use umbra_slots::{Generation, Gpa};
use umbra_x86::{Exception, Gva, PageFaultError};

/// Where a linear address lands for one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// What is there.
    pub kind: Kind,
}

/// What an access meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RAM; the access may be done at the host address.
    Ram(RamPage),
    /// A write to RAM that is a shadowed page table: must go through
    /// [`VcpuMmu::tracked`](crate::VcpuMmu::tracked).
    Tracked,
    /// No RAM in the map of this generation: dispatch by guest-physical address.
    Mmio {
        /// When that was so.
        generation: Generation,
    },
    /// A write to RAM that the guest may only read.
    ReadOnly,
}

/// A 4 KiB page of RAM and what may be done with it, in the access's own mode, without asking
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamPage {
    /// Host address of the page's first byte.
    pub page: NonNull<u8>,
    /// Data reads are allowed.
    pub read: bool,
    /// Writes are allowed and need nobody's attention.
    pub write: bool,
    /// Fetches are allowed.
    pub fetch: bool,
    /// The guest marked the translation global, and CR4.PGE is on.
    pub global: bool,
    /// The guest's page is larger than 4 KiB.
    pub large: bool,
}

/// A page fault for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The linear address, for CR2.
    pub gva: Gva,
    /// The error code.
    pub error: PageFaultError,
}

impl From<PageFault> for Exception {
    fn from(fault: PageFault) -> Self {
        Exception::page_fault(fault.gva.0, fault.error)
    }
}
