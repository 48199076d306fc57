//! Interrupts that event descriptors raise without passing through this process.

use std::os::fd::BorrowedFd;

use umbra_irq::Msi;

/// Wires event descriptors to interrupts.
///
/// What an event raises stays wired until the returned value is dropped. Events that were signalled
/// before, or while nothing could be delivered, are not lost: the descriptor keeps them.
pub trait EventInterrupts {
    /// Lets `event` raise a message-signalled interrupt, which is masked at first.
    ///
    /// # Errors
    /// If the backend has no route left, or the host refuses.
    fn msi(&self, event: BorrowedFd<'_>) -> Result<Box<dyn MsiVector>, InterruptError>;

    /// Lets `trigger` assert the level-triggered line `number`. When the guest has ended the
    /// interrupt the line falls, and `resample` is signalled: a device that still wants attention
    /// signals `trigger` again.
    ///
    /// # Errors
    /// If there is no such line, or the host refuses.
    fn line(
        &self,
        number: u32,
        trigger: BorrowedFd<'_>,
        resample: BorrowedFd<'_>,
    ) -> Result<Box<dyn EventLine>, InterruptError>;
}

/// A message-signalled interrupt whose message may change.
pub trait MsiVector: Send + Sync {
    /// Sets the message, and lets events through. Those that came while the vector was masked are
    /// delivered with the new message, as one.
    ///
    /// # Errors
    /// If the host refuses; the vector is masked then.
    fn set(&self, msi: Msi) -> Result<(), InterruptError>;

    /// Holds events back. One that was signalled before may still be delivered.
    fn mask(&self);
}

/// A line that is wired to a descriptor.
pub trait EventLine: Send + Sync {}

/// Why an event raises no interrupt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterruptError {
    /// No such line.
    #[error("there is no interrupt line {number} that an event could assert")]
    NoSuchLine {
        /// What was asked for.
        number: u32,
    },
    /// All routes are in use.
    #[error("all {max} interrupt routes are in use; take fewer vectors or devices")]
    NoRoute {
        /// How many there are.
        max: u32,
    },
    /// The host refused.
    #[error("{call} failed")]
    Host {
        /// The call.
        call: &'static str,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
}
