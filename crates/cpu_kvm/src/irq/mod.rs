//! Interrupts: local APICs are in the kernel, and the other controllers there or here.
//!
//! ```text
//!   split   lines ──> IOAPIC, 8259, 8254 of umbra-irqchip ── messages ──> KVM_SIGNAL_MSI ──> APICs
//!           end of a level interrupt: KVM_EXIT_IOAPIC_EOI ──> IOAPIC
//!   full    lines ── KVM_IRQ_LINE ──> IOAPIC, 8259, 8254 in the kernel ──────────────────────> APICs
//!   both    events ── KVM_IRQFD ── route (KVM_SET_GSI_ROUTING) ──────────────────────────────> APICs
//! ```
//! Split is taken where the kernel offers it: less of the guest's input is parsed in the host's
//! kernel, and both backends have the same IOAPIC.

mod events;
mod full;
mod routes;
mod split;

use std::sync::Arc;

use kvm_bindings::kvm_msi;
use umbra_clock::{Clock, Timer};
use umbra_cpu::{CpuError, EventInterrupts};
use umbra_irq::{Chip, Controller, Line, Msi, MsiTarget};
use umbra_irqchip::Pic;

use crate::vm::Vm;
use events::Events;
use full::Full;
use routes::Routes;
use split::Split;

/// Which controllers are in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IrqchipMode {
    /// Only local APICs where the kernel offers that, else all.
    #[default]
    Auto,
    /// Only local APICs.
    Split,
    /// All.
    Full,
}

/// The interrupt controllers of a machine.
pub(crate) struct Irqchip {
    vm: Arc<Vm>,
    chips: Chips,
    events: Events,
}

enum Chips {
    Split(Arc<Split>),
    Full(Full),
}

impl Irqchip {
    /// Makes the controllers; before the first processor.
    pub fn new(vm: &Arc<Vm>, mode: IrqchipMode, clock: Clock) -> Result<Self, CpuError> {
        let split = match mode {
            IrqchipMode::Auto => vm.limits().split_irqchip,
            IrqchipMode::Split => true,
            IrqchipMode::Full => false,
        };
        let routes = Arc::new(Routes::new(vm.clone()));
        let chips = if split {
            Chips::Split(Split::new(vm.clone(), routes.clone(), clock)?)
        } else {
            Chips::Full(Full::new(vm.clone(), &routes)?)
        };
        Ok(Self {
            vm: vm.clone(),
            events: Events::new(vm.clone(), routes),
            chips,
        })
    }

    pub fn chip(&self) -> &dyn Chip {
        match &self.chips {
            Chips::Split(split) => split.chip(),
            Chips::Full(full) => full,
        }
    }

    pub fn pin(&self, number: u32) -> Option<Arc<dyn Line>> {
        match &self.chips {
            Chips::Split(split) => split.pin(number),
            // Below 16 a wire leads to the 8259 pair, too.
            Chips::Full(full) if number >= 16 => full.line(number),
            Chips::Full(_) => None,
        }
    }

    pub fn msi(&self) -> Arc<dyn MsiTarget> {
        Arc::new(SignalMsi(self.vm.clone()))
    }

    pub fn controllers(&self) -> Vec<Controller> {
        match &self.chips {
            Chips::Split(split) => split.controllers(),
            Chips::Full(_) => Vec::new(),
        }
    }

    pub fn timer(&self) -> Option<Arc<dyn Timer>> {
        match &self.chips {
            Chips::Split(split) => Some(split.timer()),
            Chips::Full(_) => None,
        }
    }

    /// Returns the 8259 pair if it is here, and its vectors have to be injected by hand.
    pub fn pic(&self) -> Option<Arc<Pic>> {
        match &self.chips {
            Chips::Split(split) => Some(split.pic()),
            Chips::Full(_) => None,
        }
    }

    /// Sets what makes the boot processor look at the 8259 pair.
    pub fn on_pic_change(&self, look: Box<dyn Fn() + Send + Sync>) {
        if let Chips::Split(split) = &self.chips {
            split.on_pic_change(look);
        }
    }

    /// Hears that a level-triggered vector was finished.
    pub fn end_of_interrupt(&self, vector: u8) {
        if let Chips::Split(split) = &self.chips {
            split.end_of_interrupt(vector);
        }
    }
}

impl EventInterrupts for Irqchip {
    fn msi(
        &self,
        event: std::os::fd::BorrowedFd<'_>,
    ) -> Result<Box<dyn umbra_cpu::MsiVector>, umbra_cpu::InterruptError> {
        self.events.msi(event)
    }

    fn line(
        &self,
        number: u32,
        trigger: std::os::fd::BorrowedFd<'_>,
        resample: std::os::fd::BorrowedFd<'_>,
    ) -> Result<Box<dyn umbra_cpu::EventLine>, umbra_cpu::InterruptError> {
        match &self.chips {
            Chips::Split(split) => split.event_line(number, trigger, resample),
            Chips::Full(full) => full.event_line(number, trigger, resample),
        }
    }
}

/// Sends messages by `KVM_SIGNAL_MSI`.
struct SignalMsi(Arc<Vm>);

impl MsiTarget for SignalMsi {
    fn send(&self, msi: Msi) {
        signal_msi(&self.0, msi);
    }
}

/// Sends a message; true if some local APIC took it.
fn signal_msi(vm: &Vm, msi: Msi) -> bool {
    let request = kvm_msi {
        address_lo: msi.address as u32,
        address_hi: (msi.address >> 32) as u32,
        data: msi.data,
        ..Default::default()
    };
    // An error is how KVM says that there is no such local APIC; 0 that it is not enabled, or that
    // the vector waits there already.
    matches!(vm.fd().signal_msi(request), Ok(1..))
}
