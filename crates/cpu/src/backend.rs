//! What executes the guest of one machine, and what comes with it.

use std::sync::Arc;

use umbra_clock::Timer;
use umbra_irq::{Chip, Controller, Line, MsiTarget};
use umbra_slots::Dma;
use umbra_x86::state::CpuState;

use crate::{CoalescedPorts, CpuError, Doorbells, EventInterrupts, Vcpu};

/// Counters, named, for people to read.
pub type Statistics = Vec<(&'static str, u64)>;

/// The processors of one machine and the interrupt controllers around them.
///
/// Local APICs belong to the processors everywhere. The other controllers of a PC may be inside the
/// backend or in this process; then they are devices, and the machine puts them on its bus.
pub trait Backend: Send + Sync {
    /// Returns the backend's name, as users write it.
    fn name(&self) -> &'static str;

    /// Makes processor `id` in its power-up state. Number 0 starts at once, the others wait for it
    /// to wake them. Each is made once.
    ///
    /// # Errors
    /// If the host refuses.
    fn vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, CpuError>;

    /// Returns the width of physical addresses, as CPUID tells the guest.
    fn physical_bits(&self) -> u32;

    /// Returns the interrupt lines by the numbers that the ACPI tables use: below 16 those of ISA.
    fn chip(&self) -> &dyn Chip;

    /// Returns pin `number` of the IOAPIC, for what is wired there and nowhere else; `None` where it
    /// has no such pin, or no wire leads there alone.
    fn pin(&self, number: u32) -> Option<Arc<dyn Line>>;

    /// Returns where message-signalled interrupts go.
    fn msi(&self) -> Arc<dyn MsiTarget>;

    /// Returns the one way by which devices reach guest memory.
    fn dma(&self) -> Arc<dyn Dma>;

    /// Returns the controllers that the machine has to put on its bus.
    fn controllers(&self) -> Vec<Controller>;

    /// Returns the timer that somebody has to tick, if there is one.
    fn timer(&self) -> Option<Arc<dyn Timer>>;

    /// Returns how notifications reach event descriptors without an exit, where that exists.
    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        None
    }

    /// Returns how event descriptors raise interrupts without this process, where that exists.
    fn event_interrupts(&self) -> Option<&dyn EventInterrupts> {
        None
    }

    /// Returns how port writes wait for the next exit, where that exists.
    fn coalesced_ports(&self) -> Option<&dyn CoalescedPorts> {
        None
    }

    /// Describes the page tables of a processor in `state` that stands still, for people; only what
    /// translates `address` if there is one. `None` where the backend cannot look into them.
    fn describe_tables(&self, state: &CpuState, address: Option<u64>) -> Option<Vec<String>> {
        let _ = (state, address);
        None
    }

    /// Returns what the processors of the machine share and count.
    fn statistics(&self) -> Statistics {
        Vec::new()
    }
}
