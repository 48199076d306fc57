//! Why a backend does not take a state.

use std::fmt;

/// A part of a [`VcpuState`](umbra_x86::vcpu::VcpuState) that a processor cannot represent, or that
/// contradicts another part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value:#x}: {why}")]
pub struct StateError {
    /// Which part.
    pub what: Part,
    /// Its value.
    pub value: u64,
    /// What is wrong about it, in words.
    pub why: &'static str,
}

/// A part of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A register, by the manual's name; `CS.base` and its like for the hidden part of a segment.
    Register(&'static str),
    /// A model-specific register.
    Msr(u32),
    /// A component of the XSAVE image.
    Xsave(u32),
    /// The register at this offset of the local APIC's page.
    Lapic(u32),
    /// A field of the events.
    Event(&'static str),
    /// A field of the time.
    Time(&'static str),
    /// Something of the backend itself.
    Other(&'static str),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Register(name) | Part::Event(name) | Part::Time(name) | Part::Other(name) => {
                f.write_str(name)
            }
            Part::Msr(number) => write!(f, "MSR {number:#x}"),
            Part::Xsave(number) => write!(f, "XSAVE component {number}"),
            Part::Lapic(offset) => write!(f, "local APIC register {offset:#x}"),
        }
    }
}
