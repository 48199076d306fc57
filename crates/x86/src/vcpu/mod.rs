//! The complete state of one virtual processor between two instructions, as a value that every
//! backend can give and take and that can be written to a file.
//!
//! ```text
//!   VcpuState              on KVM
//!     registers            KVM_GET_REGS, KVM_GET_SREGS2 (without apic_base and interrupt_bitmap)
//!     pdptes               KVM_GET_SREGS2, or nothing
//!     debug                KVM_GET_DEBUGREGS
//!     xcr0, xsave          KVM_GET_XCRS, KVM_GET_XSAVE2
//!     msrs                 KVM_GET_MSRS
//!     lapic                KVM_GET_LAPIC
//!     events, activity     KVM_GET_VCPU_EVENTS, KVM_GET_MP_STATE
//!     time                 KVM_GET_CLOCK, KVM_VCPU_TSC_OFFSET or IA32_TIME_STAMP_COUNTER, KVM_GET_TSC_KHZ
//! ```
//! Each piece of state stands in one place: an MSR that is part of something else ([`elsewhere`])
//! is not in the list. What a processor *can* do (CPUID) is the machine's configuration and not
//! here; nor is memory, nor anything that a processor may forget, such as translations.
//!
//! Whoever applies a state one part at a time keeps to this order, for each part is read in the
//! light of those before it: registers, time, IA32_APIC_BASE, local APIC, IA32_TSC_DEADLINE, other
//! MSRs, events, activity. The task priority is part of `lapic`, and CR8 repeats its upper half.
//!
//! These types come from files that others wrote. Deserialising one checks shapes and lengths and
//! refuses what it does not know; whether the *values* make sense, a backend says when it takes
//! them. Byte images are strings of lower-case hexadecimal digits, two a byte, in either kind of
//! format.

mod events;
mod hex;
mod lapic;
mod msrs;
mod xsave;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::state::CpuState;

pub use events::{Events, HeldException, HeldInterrupt, Nmi, Shadow, Stage};
pub use hex::BadHex;
pub use lapic::{BadLapic, LapicImage};
pub use msrs::{BadMsrs, Msrs, elsewhere};
pub use xsave::{BadXsave, Component, XsaveImage};

/// The state of one virtual processor between two instructions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// General, segment and control registers, flags, EFER.
    pub registers: CpuState,
    /// The four page-directory-pointer registers while paging is of the PAE kind (SDM vol. 3,
    /// 4.4.1): memory may say something else since they were loaded. `None` otherwise, and where a
    /// backend cannot tell; they are then loaded from the table that CR3 names.
    pub pdptes: Option<[u64; 4]>,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// XCR0: which state components XSAVE handles (SDM vol. 1, 13.3); 1 where there is no XSAVE.
    pub xcr0: u64,
    /// x87, MMX, SSE and further state, PKRU among it.
    pub xsave: XsaveImage,
    /// Model-specific registers that are not part of anything else here.
    pub msrs: Msrs,
    /// The local APIC.
    pub lapic: LapicImage,
    /// What is being delivered, or held back.
    pub events: Events,
    /// What the processor is doing.
    pub activity: Activity,
    /// When this was, and the time-stamp counter at that time.
    pub time: Time,
}

/// DR0 to DR3, DR6 and DR7 (SDM vol. 3, 18.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugRegisters {
    /// DR0 to DR3: linear addresses.
    pub address: [u64; 4],
    /// DR6: status.
    pub dr6: u64,
    /// DR7: control.
    pub dr7: u64,
}

impl Default for DebugRegisters {
    /// The state after power-up or INIT (SDM vol. 3, table 10-1).
    fn default() -> Self {
        Self {
            address: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}

/// What a processor is doing: KVM's "MP state".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Activity {
    /// Executing (`KVM_MP_STATE_RUNNABLE`).
    #[default]
    Running,
    /// Halted until an interrupt, the instruction pointer behind HLT (`KVM_MP_STATE_HALTED`).
    Halted,
    /// An application processor after power-up that has seen no INIT yet
    /// (`KVM_MP_STATE_UNINITIALIZED`). A backend for which this is the same as the next may say that.
    WaitForInit,
    /// An application processor that waits for its start-up message (`KVM_MP_STATE_INIT_RECEIVED`).
    WaitForSipi,
    /// The start-up message has come and was not acted upon yet (`KVM_MP_STATE_SIPI_RECEIVED`).
    SipiReceived {
        /// Its vector: the number of the page at which the processor starts in real mode.
        vector: u8,
    },
}

/// A moment, on the two scales that a processor knows.
///
/// The machine's clock is one for all its processors, so two processors that were saved at
/// different moments keep the difference of their counters: the counter reads
/// `tsc + (clock - clock_ns) * tsc_khz / 10^6` when the machine's clock reads `clock`. What runs
/// down by itself (the current count of the local APIC's timer) is of this moment, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// The machine's clock, in nanoseconds: what kvmclock shows as system time.
    pub clock_ns: u64,
    /// IA32_TIME_STAMP_COUNTER at that time, IA32_TSC_ADJUST included (SDM vol. 3, 18.17).
    pub tsc: u64,
    /// Frequency of the time-stamp counter, in kHz.
    pub tsc_khz: u32,
}
