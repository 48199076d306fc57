//! What a processor backend is: the contract between a machine and whatever executes its guest.
//!
//! ```text
//!   vmm ── run(&dyn Io) ──> Vcpu          a callback for I/O: the processor never stops in the
//!       <── Exit ──────────               middle of an instruction; a value for leaving the loop
//!   any thread ── kick() ──> Kick         makes the current or the next run return Kicked
//! ```
//!
//! [`Vcpu::run`] returns for reasons that somebody else has to decide about. Everything that the
//! guest can do to devices arrives through [`Io`] on the processor's own thread. A guest that
//! misbehaves is a value ([`Exit`]); a host that fails is an error ([`CpuError`]).
//!
//! A [`Backend`] is what executes the guest of one machine: it makes the processors and brings the
//! interrupt controllers that go with them. What only some backends can do is an `Option` of a
//! capability ([`Doorbells`], [`EventInterrupts`], [`CoalescedPorts`]); who uses one works without it, too.
//!
//! No backend lives here, and this crate must never learn what a bus or a device is.
//! Start reading at [`Vcpu`], then [`Backend`].
//!
//! ```
//! use std::cell::Cell;
//! use umbra_cpu::{Io, Served};
//! use umbra_slots::Gpa;
//!
//! /// A machine of one port, for whichever processor runs in it.
//! #[derive(Default)]
//! struct OnePort(Cell<u8>);
//!
//! impl Io for OnePort {
//!     fn mmio_read(&self, _: Gpa, data: &mut [u8]) -> Served {
//!         data.fill(0xff);
//!         Served::Done
//!     }
//!     fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
//!         Served::Done
//!     }
//!     fn port_read(&self, _: u16, data: &mut [u8]) {
//!         data.fill(self.0.get());
//!     }
//!     fn port_write(&self, _: u16, data: &[u8]) {
//!         self.0.set(data[0]);
//!     }
//! }
//!
//! let (io, mut data) = (OnePort::default(), [0]);
//! io.port_write(0x80, &[7]);
//! io.port_read(0x80, &mut data);
//! assert_eq!(data, [7]);
//! ```
#![forbid(unsafe_code)]

mod backend;
mod coalesced;
mod doorbell;
mod interrupts;
mod state;
pub mod template;

use std::sync::Arc;

pub use backend::{Backend, Statistics};
pub use coalesced::CoalescedPorts;
pub use doorbell::{Doorbell, DoorbellError, Doorbells};
pub use interrupts::{EventInterrupts, EventLine, InterruptError, MsiVector};
pub use state::{Part, StateError};

use umbra_slots::Gpa;
use umbra_x86::state::CpuState;
use umbra_x86::vcpu::VcpuState;

/// The machine around a processor, as the processor sees it: addresses and bytes.
///
/// Called on the thread that is inside [`Vcpu::run`], and on no other: it may keep what belongs to
/// one processor. `data` is 1, 2, 4 or 8 bytes for memory and
/// 1, 2 or 4 for ports, little endian, and may cross the end of a device: splitting is the
/// callee's business.
pub trait Io {
    /// Reads guest-physical memory that is no RAM.
    fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> Served;
    /// Writes guest-physical memory that is no RAM, or is read-only.
    fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> Served;
    /// Reads a port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// Writes a port.
    fn port_write(&self, port: u16, data: &[u8]);
}

/// What became of a memory access that a processor took for one to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Served {
    /// A device answered, or nobody did and the bus floated.
    Done,
    /// The map has changed since the processor decided: there is RAM now, and nothing was done.
    /// The processor decides again. It must not be written from here: only the processor's own way
    /// to memory keeps shadow page tables and decoded code true.
    Memory,
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Exit {
    /// Somebody called [`Kick::kick`].
    Kicked,
    /// The guest can make no progress any more (a triple fault; SDM vol. 3, 6.15).
    Shutdown(Box<Crash>),
    /// The backend cannot execute what the guest asks of it, though a processor might: an
    /// instruction that it cannot emulate, a state that it cannot enter. Or it has executed something in
    /// two ways, and they differ.
    Stuck(Box<Crash>),
    /// The guest asked the backend itself, past all devices, to end the machine.
    System(SystemEvent),
}

/// What a guest can ask of the backend itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// Power off.
    PowerOff,
    /// Restart.
    Reset,
    /// The guest's kernel says that it has crashed.
    Crash,
}

/// What is known about a guest that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Which exceptions led there, in words.
    pub reason: String,
    /// The registers at the instruction that could not be completed.
    pub state: CpuState,
    /// The bytes at the instruction pointer, as many as could be read; 15 at most.
    pub code: Vec<u8>,
    /// The last walk of the guest's page tables, one line a level, outermost first.
    pub walk: Vec<String>,
}

/// The host or the backend failed; the guest is not to blame.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The backend cannot work on this host.
    #[error("the {backend} processor cannot run here: {reason}")]
    Unsupported {
        /// Which backend.
        backend: &'static str,
        /// What it lacks and what to do about it.
        reason: String,
    },
    /// A system call of the host failed.
    #[error("{call} failed")]
    Host {
        /// The call.
        call: &'static str,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// A state that this processor cannot represent, or that contradicts itself. The processor has
    /// not changed.
    #[error("the processor cannot take this state")]
    State(#[from] StateError),
}

/// One virtual processor. It belongs to the thread that runs it.
pub trait Vcpu: Send {
    /// Executes the guest until something has to be decided outside.
    ///
    /// Blocks while the guest is halted. A [`Kick`] that came before the call, with no run in
    /// progress, makes it return [`Exit::Kicked`] at once; one kick ends one run.
    fn run(&mut self, io: &dyn Io) -> Result<Exit, CpuError>;

    /// Returns the registers. Only between runs.
    fn state(&self) -> CpuState;

    /// Replaces the registers. Only between runs; what is not part of [`CpuState`] keeps its value.
    fn set_state(&mut self, state: &CpuState) -> Result<(), CpuError>;

    /// Returns the whole state. Only between runs.
    ///
    /// What others sent to the processor and it has not acted upon is acted upon first, as far as it
    /// is no instruction: INIT, start-up messages, a timer that is due. Other processors of the
    /// machine may send more at any time, so all of them are stopped before the first is saved.
    fn save(&mut self) -> Result<VcpuState, CpuError>;

    /// Replaces the whole state. Only between runs, and once the machine's clock and memory are those
    /// that belong to it.
    ///
    /// An MSR that is not listed gets the value that it has after power-up.
    ///
    /// # Errors
    /// [`CpuError::State`] for what this backend cannot represent; nothing has then changed.
    fn restore(&mut self, state: &VcpuState) -> Result<(), CpuError>;

    /// Returns the handle by which other threads interrupt [`Vcpu::run`].
    fn kick_handle(&self) -> Arc<dyn Kick>;

    /// Returns counters, named, for people to read.
    fn statistics(&self) -> Statistics {
        Vec::new()
    }
}

/// Interrupts a run from another thread.
pub trait Kick: Send + Sync {
    /// Makes the run in progress, or else the next one, return [`Exit::Kicked`]. Never blocks.
    fn kick(&self);
}
