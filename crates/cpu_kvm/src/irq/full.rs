//! All controllers in the kernel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    kvm_irqchip, kvm_pit_config,
};
use umbra_cpu::{CpuError, EventLine, InterruptError};
use umbra_irq::{Chip, Line};

use crate::irq::events::failed;
use crate::irq::routes::{PINS, Route, Routes};
use crate::raw;
use crate::vm::{self, Vm};

pub struct Full {
    vm: Arc<Vm>,
}

/// The interrupt of the 8254, and the pin of the IOAPIC to which it is wired: the ACPI tables say so.
const TIMER: u32 = 0;
const TIMER_PIN: u32 = 2;
/// The 8259's cascade: no wire leads there.
const CASCADE: u32 = 2;

impl Full {
    pub fn new(vm: Arc<Vm>, routes: &Routes) -> Result<Self, CpuError> {
        vm.fd()
            .create_irq_chip()
            .map_err(vm::failed("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.fd()
            .create_pit2(pit)
            .map_err(vm::failed("KVM_CREATE_PIT2"))?;
        for chip in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            mask_all_inputs(&vm, chip)?;
        }
        routes
            .set_all((0..PINS).map(|gsi| (gsi, inputs(gsi))))
            .map_err(vm::failed("KVM_SET_GSI_ROUTING"))?;
        Ok(Self { vm })
    }

    pub fn event_line(
        &self,
        number: u32,
        trigger: BorrowedFd<'_>,
        resample: BorrowedFd<'_>,
    ) -> Result<Box<dyn EventLine>, InterruptError> {
        if number >= PINS || number == CASCADE {
            return Err(InterruptError::NoSuchLine { number });
        }
        let trigger = trigger.try_clone_to_owned().map_err(failed("dup"))?;
        raw::wire(self.vm.fd(), trigger.as_fd(), Some(resample), number)
            .map_err(failed("KVM_IRQFD"))?;
        Ok(Box::new(KernelLine {
            vm: self.vm.clone(),
            trigger,
            number,
        }))
    }
}

/// Masks an 8259 as firmware leaves it: after power-up KVM's would interrupt with vectors from 0 on.
fn mask_all_inputs(vm: &Vm, chip: u32) -> Result<(), CpuError> {
    let mut state = kvm_irqchip {
        chip_id: chip,
        ..Default::default()
    };
    vm.fd()
        .get_irqchip(&mut state)
        .map_err(vm::failed("KVM_GET_IRQCHIP"))?;
    state.chip.pic.imr = 0xff;
    vm.fd()
        .set_irqchip(&state)
        .map_err(vm::failed("KVM_SET_IRQCHIP"))
}

/// The inputs to which interrupt `gsi` is wired.
fn inputs(gsi: u32) -> Vec<Route> {
    let pic = match gsi {
        CASCADE => return Vec::new(),
        0..8 => Some((KVM_IRQCHIP_PIC_MASTER, gsi)),
        8..16 => Some((KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
        _ => None,
    };
    let pin = if gsi == TIMER { TIMER_PIN } else { gsi };
    pic.into_iter()
        .chain([(KVM_IRQCHIP_IOAPIC, pin)])
        .map(|(chip, input)| Route::Input { chip, input })
        .collect()
}

impl Chip for Full {
    fn line(&self, number: u32) -> Option<Arc<dyn Line>> {
        (number < PINS && number != CASCADE).then(|| {
            Arc::new(KvmLine {
                vm: self.vm.clone(),
                number,
            }) as Arc<dyn Line>
        })
    }
}

/// A line to the kernel's chips.
struct KvmLine {
    vm: Arc<Vm>,
    number: u32,
}

impl Line for KvmLine {
    fn set(&self, high: bool) {
        if let Err(error) = self.vm.fd().set_irq_line(self.number, high) {
            tracing::error!(line = self.number, high, %error, "KVM_IRQ_LINE failed");
        }
    }
}

/// A line that an event asserts in the kernel.
struct KernelLine {
    vm: Arc<Vm>,
    trigger: OwnedFd,
    number: u32,
}

impl EventLine for KernelLine {}

impl Drop for KernelLine {
    fn drop(&mut self) {
        if let Err(error) = raw::unwire(self.vm.fd(), self.trigger.as_fd(), self.number) {
            tracing::error!(line = self.number, %error, "KVM keeps an event wired");
        }
    }
}
