//! The software x86-64 processor: executes a guest where there is no usable KVM.
//!
//! ```text
//!   exec ── the loop ──> decode ──> block of ops ──> handlers (ops, far, control, interrupt)
//!                                                        │ guest memory by linear address
//!                        tlb  <── hit ── mem ────────────┘
//!                                         └── miss ──> umbra-mmu: "where does this land?"
//! ```
//! An interpreter, and a translator for what is hot. `iced-x86` decodes into blocks of resolved operations that are cached by
//! physical address, linear address and mode ([`code`]); a handler is one small generic function.
//! x87, MMX and SSE instructions run on the host processor as one-instruction stubs ([`native`]).
//! In front of the shadow MMU stand per-processor translation caches ([`tlb`]), which are the TLB
//! that the guest sees. Guest processors are host threads and guest atomics are host atomics, so
//! the host must be x86-64. A thread that runs a processor loses the base of GS, which programs on Linux have no use for.
//!
//! This crate knows the processor and nothing around it: devices are behind [`umbra_cpu::Io`],
//! interrupts behind the local APIC, time behind the clock. It must never learn what a bus is.
//!
//! Start reading at `exec`, then `mem`, then any file in `ops`. [`translator`] stands beside `exec`: it
//! shares decoder, translation caches and all slow paths.
//!
//! ```
//! use std::sync::Arc;
//! use umbra_clock::Clock;
//! use umbra_cpu::{Backend, Exit, Io, Kick, Served};
//! use umbra_cpu_soft::{MmuConfig, Processor, SoftBackend, SoftConfig, model};
//! use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
//!
//! /// Ends the run at the first write to a port.
//! struct Port(Arc<dyn Kick>);
//!
//! impl Io for Port {
//!     fn mmio_read(&self, _: Gpa, _: &mut [u8]) -> Served {
//!         Served::Done
//!     }
//!     fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
//!         Served::Done
//!     }
//!     fn port_read(&self, _: u16, _: &mut [u8]) {}
//!     fn port_write(&self, port: u16, data: &[u8]) {
//!         assert_eq!((port, data), (0x80, &[0x2a][..]));
//!         self.0.kick();
//!     }
//! }
//!
//! // A page that ends at 4 GiB; a processor begins 16 bytes below that.
//! let space = AddressSpace::new(Options::default());
//! let ram = RamRegion::new(RamOptions { len: 0x1000, huge: HugePages::No, prefault: false })?;
//! let at = Gpa(0xffff_f000);
//! space.update("RAM", |map| map.add_ram(at, ram, 0, 0x1000, Flags::default()))?.wait();
//! // mov al, 0x2a; out 0x80, al; hlt
//! space.load().write(Gpa(0xffff_fff0), &[0xb0, 0x2a, 0xe6, 0x80, 0xf4])?;
//!
//! let config = SoftConfig {
//!     cpus: 1,
//!     cpuid: vec![model::x86_64_v2(0, 1)],
//!     mmu: MmuConfig::default(),
//!     processor: Processor::default(),
//!     measure: false,
//! };
//! let backend = SoftBackend::new(space, Clock::start(), config);
//! let mut vcpu = backend.vcpu(0)?;
//! let exit = vcpu.run(&Port(vcpu.kick_handle()))?;
//! assert_eq!(exit, Exit::Kicked);
//! assert_eq!(vcpu.state().gpr[0], 0x2a);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg(target_arch = "x86_64")]

mod backend;
mod code;
mod control;
mod cpu;
mod decode;
mod dma;
mod ea;
mod exec;
mod far;
mod flags;
mod fpu;
mod gate;
mod halt;
mod interrupt;
mod jumps;
mod mem;
mod meter;
pub mod model;
mod native;
mod op;
mod ops;
mod raw;
mod regs;
mod saved;
mod segment;
mod sets;
mod state;
mod stats;
mod task;
mod tlb;
mod translator;
mod wake;
mod width;

/// What the integration tests stand on is used by tests in here, too.
#[cfg(test)]
extern crate self as umbra_cpu_soft;

use std::sync::Arc;

use umbra_clock::Clock;
use umbra_cpu::{CpuError, Exit, Io, Kick, Statistics, Vcpu};
use umbra_irqchip::LocalApic;
use umbra_mmu::Mmu;
use umbra_slots::AddressSpace;
use umbra_x86::cpuid::Table;
use umbra_x86::state::CpuState;
use umbra_x86::vcpu::VcpuState;

pub use backend::{SoftBackend, SoftConfig};
pub use code::CodePages;
pub use meter::Meter;
pub use translator::{Alarm, perf_map};
pub use umbra_mmu::{Audit, Config as MmuConfig};

/// What a processor is made of.
pub struct SoftVcpuParts {
    /// Its number.
    pub id: u32,
    /// Whether it starts at once; the others wait for a start-up message.
    pub boot: bool,
    /// Guest-physical memory.
    pub space: Arc<AddressSpace>,
    /// The machine's MMU.
    pub mmu: Arc<Mmu>,
    /// Its local APIC.
    pub apic: Arc<LocalApic>,
    /// The machine's time.
    pub clock: Clock,
    /// What CPUID shows; [`model`] has one that everything here works for.
    pub cpuid: Table,
    /// The machine's registry of pages with decoded code.
    pub code: Arc<CodePages>,
    /// Whether hot code is translated.
    pub processor: Processor,
    /// What interrupts translated code when a timer is due.
    pub alarm: Arc<Alarm>,
    /// Who looks where its time goes, if somebody does. What no machine should pay for that nobody looks at is counted
    /// then, too.
    pub meter: Option<Arc<Meter>>,
}

/// How guest code executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Processor {
    /// Instruction by instruction.
    Interpreter,
    /// What has executed a number of times runs as host code.
    #[default]
    Translator,
    /// The same, after as few executions as can be: for tests.
    Eager,
    /// Everything runs by the interpreter and as host code, and what comes out is compared.
    Both,
}

/// A software processor.
pub struct SoftVcpu {
    cpu: Box<cpu::Cpu>,
}

impl SoftVcpu {
    /// Makes a processor in its power-up state.
    ///
    /// # Errors
    /// [`CpuError::Unsupported`] where the host allows no executable memory.
    pub fn new(parts: SoftVcpuParts) -> Result<Self, CpuError> {
        let wake = Arc::new(wake::Waker::default());
        let stubs = native::Stubs::new().map_err(|e| CpuError::Unsupported {
            backend: "software",
            reason: format!(
                "{e}; x87 and SSE instructions run as small host functions: allow memfd_create \
                 and PROT_EXEC mappings to this process"
            ),
        })?;
        let poke = |wake: &Arc<wake::Waker>| {
            let wake = wake.clone();
            Box::new(move || wake.poke())
        };
        let vcpu_mmu = parts.mmu.attach(poke(&wake));
        parts.apic.set_wake(poke(&wake));
        let address_bits = parts.cpuid.get(0x8000_0008, 0).eax & 0xff;
        parts.apic.set_physical_bits(address_bits);
        let code_port = parts.code.attach(wake.clone());
        let fx = Box::new(fpu::FxArea::reset());
        let measured = parts.meter.is_some();
        let hot = |threshold| translator::Translator::new(threshold, &fx, &wake, measured);
        let translator = match parts.processor {
            Processor::Interpreter => Ok(translator::Translator::off()),
            Processor::Translator => hot(translator::THRESHOLD),
            Processor::Eager => hot(1),
            Processor::Both => translator::Translator::both(&fx, &wake),
        };
        let translator = translator.map_err(|e| CpuError::Unsupported {
            backend: "software",
            reason: format!(
                "{e}; hot guest code runs as host code: allow memfd_create and PROT_EXEC mappings to \
                 this process, or interpret (--processor interpreter)"
            ),
        })?;
        parts.alarm.attach(parts.id, wake.clone());
        let gauge = Arc::new(meter::Gauge::default());
        if let Some(meter) = &parts.meter {
            meter.attach(gauge.clone());
        }
        let cpu = cpu::Cpu::new(cpu::Parts {
            id: parts.id,
            boot: parts.boot,
            space: parts.space,
            mmu: parts.mmu,
            vcpu_mmu,
            apic: parts.apic,
            clock: parts.clock,
            cpuid: parts.cpuid,
            code: parts.code,
            code_port,
            wake,
            stubs,
            fx,
            translator,
            alarm: parts.alarm,
            meter: parts.meter,
            gauge,
        });
        Ok(Self { cpu: Box::new(cpu) })
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, io: &dyn Io) -> Result<Exit, CpuError> {
        Ok(self.cpu.with_io(io, cpu::Cpu::run))
    }

    fn state(&self) -> CpuState {
        self.cpu.export()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), CpuError> {
        self.cpu.load_state(state);
        self.cpu.activity = cpu::Activity::Running;
        Ok(())
    }

    fn save(&mut self) -> Result<VcpuState, CpuError> {
        Ok(self.cpu.save())
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), CpuError> {
        Ok(self.cpu.restore(state)?)
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.cpu.wake.clone()
    }

    fn statistics(&self) -> Statistics {
        self.cpu.statistics()
    }
}
