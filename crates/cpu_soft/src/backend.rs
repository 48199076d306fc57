//! The software processors of one machine, with the shadow MMU and the controllers that they share.

use std::sync::Arc;

use umbra_clock::{Clock, Timer};
use umbra_cpu::{Backend, CpuError, Statistics, Vcpu};
use umbra_irq::{Chip, Controller, Line, MsiTarget};
use umbra_irqchip::Chipset;
use umbra_mmu::{Config, Mmu, PagingRegs};
use umbra_slots::{AddressSpace, Dma};
use umbra_x86::cpuid::Table;
use umbra_x86::state::CpuState;

use crate::dma::DeviceMemory;
use crate::{Alarm, CodePages, Meter, Processor, SoftVcpu, SoftVcpuParts};

/// How to make a [`SoftBackend`].
pub struct SoftConfig {
    /// Number of processors.
    pub cpus: u32,
    /// What CPUID shows on each of them, by number.
    pub cpuid: Vec<Table>,
    /// How the MMU works, and whether it checks itself.
    pub mmu: Config,
    /// Whether hot code is translated.
    pub processor: Processor,
    /// Whether it is looked where time goes, and what is counted then: see [`Meter`].
    pub measure: bool,
}

/// Software processors, shadow MMU, interrupt controllers.
pub struct SoftBackend {
    space: Arc<AddressSpace>,
    clock: Clock,
    config: SoftConfig,
    mmu: Arc<Mmu>,
    code: Arc<CodePages>,
    chipset: Chipset,
    alarm: Arc<Alarm>,
    meter: Option<Arc<Meter>>,
}

impl SoftBackend {
    /// Makes everything but the processors.
    pub fn new(space: Arc<AddressSpace>, clock: Clock, config: SoftConfig) -> Arc<Self> {
        let chipset = Chipset::new(config.cpus, clock);
        chipset.apics.apic(0).set_virtual_wire();
        Arc::new(Self {
            mmu: Mmu::new(space.clone(), config.mmu),
            code: Arc::new(CodePages::new()),
            alarm: Alarm::new(clock),
            meter: config.measure.then(Meter::start),
            space,
            clock,
            config,
            chipset,
        })
    }
}

impl Backend for SoftBackend {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, CpuError> {
        let vcpu = SoftVcpu::new(SoftVcpuParts {
            id,
            boot: id == 0,
            space: self.space.clone(),
            mmu: self.mmu.clone(),
            apic: self.chipset.apics.apic(id),
            clock: self.clock,
            cpuid: self.config.cpuid[id as usize].clone(),
            code: self.code.clone(),
            processor: self.config.processor,
            alarm: self.alarm.clone(),
            meter: self.meter.clone(),
        })?;
        Ok(Box::new(vcpu))
    }

    fn physical_bits(&self) -> u32 {
        self.config.cpuid[0].physical_bits()
    }

    fn chip(&self) -> &dyn Chip {
        &self.chipset.chips
    }

    fn pin(&self, number: u32) -> Option<Arc<dyn Line>> {
        self.chipset.chips.ioapic.line(number)
    }

    fn msi(&self) -> Arc<dyn MsiTarget> {
        self.chipset.apics.clone()
    }

    fn dma(&self) -> Arc<dyn Dma> {
        Arc::new(DeviceMemory {
            space: self.space.clone(),
            mmu: self.mmu.clone(),
            code: self.code.clone(),
        })
    }

    fn controllers(&self) -> Vec<Controller> {
        self.chipset.chips.controllers()
    }

    fn timer(&self) -> Option<Arc<dyn Timer>> {
        Some(self.chipset.chips.pit.clone())
    }

    fn describe_tables(&self, state: &CpuState, address: Option<u64>) -> Option<Vec<String>> {
        let registers = PagingRegs {
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            pkru: 0, // not in the tables: applied at the access
        };
        Some(self.mmu.describe_tables(&registers, address))
    }

    fn statistics(&self) -> Statistics {
        self.mmu.statistics()
    }
}
