//! The x86 manuals as types: control bits, page-table bits, exceptions, model-specific registers,
//! and the architectural state of one processor. No behaviour.
//!
//! Names are those of the Intel SDM; each module says which chapter it transcribes. This crate
//! knows no other crate of the workspace and must stay that way: it is the vocabulary in which
//! the others talk to each other.
//!
//! Start reading at [`state::CpuState`], then [`vcpu::VcpuState`], which is all of a processor.
//!
//! ```
//! use umbra_x86::{Exception, Gva, PageFaultError, vector};
//!
//! // A user-mode write to a page that is not there.
//! let error = PageFaultError(PageFaultError::WRITE | PageFaultError::USER);
//! let fault = Exception::page_fault(Gva(0x1000).0, error);
//! assert_eq!((fault.vector, fault.error, fault.cr2), (vector::PF, Some(6), Some(0x1000)));
//! ```
#![forbid(unsafe_code)]

pub mod control;
pub mod cpuid;
pub mod exception;
pub mod msr;
pub mod pte;
pub mod state;
pub mod vcpu;

pub use control::{cr0, cr4, efer, rflags};
pub use exception::{Exception, PageFaultError, vector};

use std::fmt;

/// A guest linear address (SDM vol. 3, 3.1: after segmentation, before paging).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gva(pub u64);

impl Gva {
    /// Returns the address of the 4 KiB page that holds this address.
    pub const fn page(self) -> Gva {
        Gva(self.0 & !0xfff)
    }

    /// Returns the offset of this address in its 4 KiB page.
    pub const fn page_offset(self) -> u64 {
        self.0 & 0xfff
    }
}

impl fmt::Display for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::LowerHex for Gva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}
