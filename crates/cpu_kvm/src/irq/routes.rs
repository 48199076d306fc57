//! Where interrupt numbers lead (`KVM_SET_GSI_ROUTING`).
//!
//! KVM takes the whole table each time, and swaps it in one step: an event that comes meanwhile goes
//! by the old table or by the new one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use parking_lot::Mutex;
use umbra_irq::Msi;

use crate::vm::Vm;

/// How many numbers belong to pins: those of the IOAPIC.
pub const PINS: u32 = umbra_irqchip::PINS as u32;

/// Where one number leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To local APICs, as a message.
    Msi(Msi),
    /// To an input of a chip in the kernel.
    Input {
        /// `KVM_IRQCHIP_…`.
        chip: u32,
        /// Which input.
        input: u32,
    },
}

/// All routes of a machine.
pub struct Routes {
    vm: Arc<Vm>,
    table: Mutex<BTreeMap<u32, Vec<Route>>>,
}

impl Routes {
    pub fn new(vm: Arc<Vm>) -> Self {
        Self {
            vm,
            table: Mutex::default(),
        }
    }

    /// Takes a number for a message, without a route at first; `None` if all are taken.
    pub fn allocate(&self) -> Option<u32> {
        let mut table = self.table.lock();
        let number = (PINS..self.vm.limits().routes).find(|gsi| !table.contains_key(gsi))?;
        table.insert(number, Vec::new());
        Some(number)
    }

    /// Gives a number back.
    pub fn free(&self, gsi: u32) {
        let mut table = self.table.lock();
        let had = table.remove(&gsi).is_some_and(|routes| !routes.is_empty());
        if had && let Err(error) = self.commit(&table) {
            tracing::warn!(gsi, %error, "KVM keeps an interrupt route");
        }
    }

    /// Sets where a number leads. If KVM refuses, it leads where it led.
    pub fn set(&self, gsi: u32, routes: Vec<Route>) -> io::Result<()> {
        self.set_all([(gsi, routes)])
    }

    /// Sets where several numbers lead, in one step.
    pub fn set_all(&self, changes: impl IntoIterator<Item = (u32, Vec<Route>)>) -> io::Result<()> {
        let mut table = self.table.lock();
        let before = table.clone();
        table.extend(changes);
        if *table == before {
            return Ok(());
        }
        let result = self.commit(&table);
        if result.is_err() {
            *table = before;
        }
        result
    }

    fn commit(&self, table: &BTreeMap<u32, Vec<Route>>) -> io::Result<()> {
        let all = table
            .iter()
            .flat_map(|(gsi, routes)| routes.iter().map(|route| entry(*gsi, *route)));
        let all: Vec<_> = all.collect();
        let request = KvmIrqRouting::from_entries(&all)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        self.vm.fd().set_gsi_routing(&request).map_err(Into::into)
    }
}

fn entry(gsi: u32, route: Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        ..Default::default()
    };
    match route {
        Route::Msi(msi) => {
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: msi.address as u32,
                address_hi: (msi.address >> 32) as u32,
                data: msi.data,
                ..Default::default()
            };
        }
        Route::Input { chip, input } => {
            entry.type_ = KVM_IRQ_ROUTING_IRQCHIP;
            entry.u.irqchip = kvm_irq_routing_irqchip {
                irqchip: chip,
                pin: input,
            };
        }
    }
    entry
}
