//! A processor, 4 MiB of memory at 0 and nothing else: what the tests of a running one stand on.

#![allow(dead_code, reason = "each test that shares this needs other parts")]

use std::sync::Arc;

use umbra_clock::Clock;
use umbra_cpu::{Io, Served};
use umbra_cpu_soft::{Alarm, CodePages, Meter, SoftVcpu, SoftVcpuParts};
use umbra_irqchip::{Apics, LocalApic};
use umbra_mmu::{Config, Mmu};
use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, RamOptions, RamRegion};
use umbra_x86::cpuid::Table;

pub const RAM: u64 = 0x40_0000;

pub struct Processor {
    pub space: Arc<AddressSpace>,
    pub vcpu: SoftVcpu,
    pub apic: Arc<LocalApic>,
    /// Where decoded code is.
    pub code: Arc<CodePages>,
    pub clock: Clock,
    /// What carries messages, even to oneself.
    _apics: Arc<Apics>,
}

impl Processor {
    pub fn new(cpuid: Table) -> Self {
        Self::in_time(cpuid, Clock::start())
    }

    /// One for which it is as late as `clock` says.
    pub fn in_time(cpuid: Table, clock: Clock) -> Self {
        Self::of_kind(cpuid, clock, processor())
    }

    /// One that executes as `processor` says, whatever `UMBRA_PROCESSOR` does.
    pub fn of_kind(cpuid: Table, clock: Clock, processor: umbra_cpu_soft::Processor) -> Self {
        Self::measured(cpuid, clock, processor, None)
    }

    /// The same, and somebody looks where its time goes if there is a meter.
    pub fn measured(
        cpuid: Table,
        clock: Clock,
        processor: umbra_cpu_soft::Processor,
        meter: Option<Arc<Meter>>,
    ) -> Self {
        let space = AddressSpace::new(umbra_slots::Options::default());
        let options = RamOptions {
            len: RAM,
            huge: HugePages::default(),
            prefault: false,
        };
        let ram = RamRegion::new(options).expect("guest memory");
        let added = space
            .update("test", |map| {
                map.add_ram(Gpa(0), ram, 0, RAM, Flags::default())
            })
            .expect("an empty map has room");
        let _ = added.stale;
        let apics = Apics::new(1, clock);
        let apic = apics.apic(0);
        let code = Arc::new(CodePages::new());
        let vcpu = SoftVcpu::new(SoftVcpuParts {
            id: 0,
            boot: true,
            space: space.clone(),
            mmu: Mmu::new(space.clone(), Config::default()),
            apic: apic.clone(),
            clock,
            cpuid,
            code: code.clone(),
            processor,
            alarm: Alarm::new(clock),
            meter,
        })
        .expect("a processor");
        Self {
            space,
            vcpu,
            apic,
            code,
            clock,
            _apics: apics,
        }
    }

    pub fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; RAM as usize];
        self.read(0, &mut memory);
        memory
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.space.load().write(Gpa(at), bytes).expect("RAM");
    }

    pub fn read(&self, at: u64, bytes: &mut [u8]) {
        self.space.load().read(Gpa(at), bytes).expect("RAM");
    }
}

/// What `UMBRA_PROCESSOR` says: `interpreter`, `both`, else everything is translated at once.
fn processor() -> umbra_cpu_soft::Processor {
    match std::env::var("UMBRA_PROCESSOR").as_deref() {
        Ok("interpreter") => umbra_cpu_soft::Processor::Interpreter,
        Ok("both") => umbra_cpu_soft::Processor::Both,
        _ => umbra_cpu_soft::Processor::Eager,
    }
}

/// No device: all ones.
pub struct Nothing;

impl Io for Nothing {
    fn mmio_read(&self, _: Gpa, data: &mut [u8]) -> Served {
        data.fill(0xff);
        Served::Done
    }
    fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
        Served::Done
    }
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
}
