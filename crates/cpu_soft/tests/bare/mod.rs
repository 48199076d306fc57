//! A processor, 4 MiB of memory and nothing else: bytes are written, a state is set, and what runs
//! ends in an exception that nobody handles.

#![allow(dead_code, reason = "each test that shares this needs other parts")]

#[path = "../processor/mod.rs"]
mod processor;

use std::sync::Arc;

pub use processor::Nothing;
use processor::Processor;
use umbra_clock::Clock;
use umbra_cpu::{Exit, Io, Vcpu};
use umbra_cpu_soft::{CodePages, SoftVcpu, model};
use umbra_irqchip::LocalApic;
use umbra_slots::AddressSpace;
use umbra_x86::cpuid::Table;
use umbra_x86::state::{CpuState, DescriptorTable, Segment};
use umbra_x86::{cr0, cr4, efer, rflags};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const CODE: u64 = 0x1_0000;
pub const STACK: u64 = 0x2_0000;
pub const PML4: u64 = 0x10_1000;
/// Maps the 4 KiB pages from 2 MiB on.
pub const PAGES: u64 = 0x10_4000;
/// `ud2`: ends a test.
pub const END: [u8; 2] = [0x0f, 0x0b];

/// Makes tests of functions that get what makes a machine: one with the processor that `UMBRA_PROCESSOR` names, and
/// one whose code is interpreted until it is hot, so that more of it becomes one unit.
#[allow(unused_macros, reason = "each test that shares this needs other parts")]
macro_rules! on_each_kind {
    ($($name:ident),* $(,)?) => {
        mod as_named {
            $(#[test]
            fn $name() {
                super::$name(crate::bare::Machine::new);
            })*
        }
        mod when_hot {
            $(#[test]
            fn $name() {
                super::$name(|| crate::bare::Machine::of_kind(umbra_cpu_soft::Processor::Translator));
            })*
        }
    };
}
#[allow(
    unused_imports,
    reason = "each test that shares this needs other parts"
)]
pub(crate) use on_each_kind;

/// Selectors of flat segments.
pub const CODE_0: u16 = 0x08;
pub const DATA_0: u16 = 0x10;
pub const CODE_3: u16 = 0x1b;
pub const DATA_3: u16 = 0x23;

/// The first exception, and the state in which it found nobody.
#[derive(Debug)]
pub struct End {
    pub reason: String,
    pub state: CpuState,
}

impl End {
    /// Vector and error code of the first exception, as in `13(0x8)`.
    pub fn exception(&self) -> &str {
        let first = self.reason.trim_start_matches("triple fault: ");
        let first = first.split(", then").next().unwrap_or(first);
        first.trim_start_matches("vector ")
    }
}

pub struct Machine {
    processor: Processor,
    cpuid: Table,
}

impl Machine {
    pub fn new() -> Self {
        Self::with_model(model::x86_64_v2(0, 1))
    }

    pub fn with_model(cpuid: Table) -> Self {
        Self::in_time(cpuid, Clock::start())
    }

    /// One for which it is as late as `clock` says.
    pub fn in_time(cpuid: Table, clock: Clock) -> Self {
        Self::around(Processor::in_time(cpuid.clone(), clock), cpuid)
    }

    /// One that executes as `processor` says, whatever `UMBRA_PROCESSOR` does.
    pub fn of_kind(processor: umbra_cpu_soft::Processor) -> Self {
        let cpuid = model::x86_64_v2(0, 1);
        let processor = Processor::of_kind(cpuid.clone(), Clock::start(), processor);
        Self::around(processor, cpuid)
    }

    /// The same, and somebody looks where its time goes if there is a meter.
    pub fn measured(
        processor: umbra_cpu_soft::Processor,
        meter: Option<Arc<umbra_cpu_soft::Meter>>,
    ) -> Self {
        let cpuid = model::x86_64_v2(0, 1);
        let processor = Processor::measured(cpuid.clone(), Clock::start(), processor, meter);
        Self::around(processor, cpuid)
    }

    fn around(processor: Processor, cpuid: Table) -> Self {
        let machine = Self { processor, cpuid };
        for (selector, descriptor) in [
            (CODE_0, 0x00cf_9b00_0000_ffff),
            (DATA_0, 0x00cf_9300_0000_ffff),
            (CODE_3, 0x00cf_fb00_0000_ffff),
            (DATA_3, 0x00cf_f300_0000_ffff),
        ] {
            machine.descriptor(selector, descriptor);
        }
        machine
    }

    /// A machine that was never run, with the same memory and time.
    pub fn copy(&self) -> Self {
        self.copy_in_time(self.clock())
    }

    /// The same, for which it is as late as `clock` says.
    pub fn copy_in_time(&self, clock: Clock) -> Self {
        let processor = Processor::in_time(self.cpuid.clone(), clock);
        processor.write(0, &self.memory());
        let cpuid = self.cpuid.clone();
        Self { processor, cpuid }
    }

    pub fn clock(&self) -> Clock {
        self.processor.clock
    }

    pub fn vcpu(&mut self) -> &mut SoftVcpu {
        &mut self.processor.vcpu
    }

    pub fn space(&self) -> Arc<AddressSpace> {
        self.processor.space.clone()
    }

    /// What others reach a processor by that runs: its APIC, and where decoded code is.
    pub fn around_it(&self) -> (Arc<LocalApic>, Arc<CodePages>) {
        (self.processor.apic.clone(), self.processor.code.clone())
    }

    pub fn apic(&self) -> &LocalApic {
        &self.processor.apic
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.processor.write(at, bytes);
    }

    /// All of it.
    pub fn memory(&self) -> Vec<u8> {
        self.processor.memory()
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.processor.read(at, &mut bytes);
        bytes
    }

    pub fn read_u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }

    pub fn read_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    /// Writes an entry of the global table.
    pub fn descriptor(&self, selector: u16, descriptor: u64) {
        self.write(GDT + u64::from(selector & !7), &descriptor.to_le_bytes());
    }

    /// Writes a gate of the interrupt table.
    pub fn gate(&self, vector: u8, gate: u64) {
        self.write(IDT + 8 * u64::from(vector), &gate.to_le_bytes());
    }

    /// Runs until an exception finds no handler.
    pub fn run(&mut self, state: &CpuState) -> End {
        self.run_with(state, &Nothing)
    }

    /// The same, with devices.
    pub fn run_with(&mut self, state: &CpuState, io: &dyn Io) -> End {
        self.processor.vcpu.set_state(state).expect("valid state");
        self.go_on(io).expect("nobody kicks")
    }

    /// Runs until there is something to say, whatever that is.
    pub fn run_once(&mut self, state: &CpuState) -> Exit {
        self.processor.vcpu.set_state(state).expect("valid state");
        self.processor
            .vcpu
            .run(&Nothing)
            .expect("the host allows it")
    }

    /// Goes on until an exception finds no handler; `None` when kicked.
    pub fn go_on(&mut self, io: &dyn Io) -> Option<End> {
        match self.processor.vcpu.run(io).expect("the host allows it") {
            Exit::Shutdown(crash) => Some(End {
                reason: crash.reason,
                state: self.processor.vcpu.state(),
            }),
            Exit::Kicked => None,
            other => panic!("{other:?}"),
        }
    }
}

/// 32-bit protected mode at level 0, flat, without paging; no interrupt table.
pub fn protected() -> CpuState {
    let mut state = CpuState {
        gpr: [0; 16],
        cr0: cr0::PE | cr0::NE,
        rip: CODE,
        rflags: rflags::FIXED,
        seg: [
            flat(DATA_0),
            flat(CODE_0),
            flat(DATA_0),
            flat(DATA_0),
            flat(DATA_0),
            flat(DATA_0),
        ],
        gdtr: DescriptorTable {
            base: GDT,
            limit: 0xfff,
        },
        idtr: DescriptorTable {
            base: IDT,
            limit: 0,
        },
        ..CpuState::default()
    };
    state.gpr[4] = STACK;
    state
}

/// 64-bit mode at level 0 with the first 2 MiB mapped one to one, writable for everybody, and a
/// table of 4 KiB pages at [`PAGES`] for the next 2 MiB.
pub fn long(machine: &Machine) -> CpuState {
    let entry = |at: u64, value: u64| machine.write(at, &value.to_le_bytes());
    entry(PML4, 0x10_2007);
    entry(0x10_2000, 0x10_3007);
    entry(0x10_3000, 0x87);
    entry(0x10_3008, PAGES | 7);
    let mut state = protected();
    state.seg[1].attr = 0xb | Segment::S | Segment::P | Segment::L | Segment::G;
    state.cr0 |= cr0::PG | cr0::WP;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.cr3 = PML4;
    state
}

/// Flat 64-bit code of the privilege level that `selector` requests.
pub fn long_code(selector: u16) -> Segment {
    let flat = flat(if selector & 3 == 0 { CODE_0 } else { CODE_3 });
    Segment {
        selector,
        attr: flat.attr & !Segment::DB | Segment::L,
        ..flat
    }
}

/// A flat segment; code where the selector is one of code.
pub fn flat(selector: u16) -> Segment {
    let code = matches!(selector, CODE_0 | CODE_3);
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr: if code { 0xb } else { 3 }
            | Segment::S
            | Segment::P
            | Segment::DB
            | Segment::G
            | (selector & 3) << 5,
    }
}

/// A system or small segment descriptor.
pub const fn system(base: u64, limit: u64, kind: u64, dpl: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | (kind | dpl << 5 | 0x80) << 40 | (base >> 24) << 56
}

/// A gate.
pub const fn gate(selector: u16, offset: u64, kind: u64, dpl: u64) -> u64 {
    offset & 0xffff
        | (selector as u64) << 16
        | (kind | dpl << 5 | 0x80) << 40
        | (offset >> 16) << 48
}
