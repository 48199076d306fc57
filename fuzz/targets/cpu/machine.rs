//! A processor, guest memory with a pattern on both sides, and devices that answer constants.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use umbra_cpu::{Io, Kick, Served};
use umbra_cpu_soft::{CodePages, Processor, SoftVcpu, SoftVcpuParts};
use umbra_fuzz::{GUARD, Guard};
use umbra_mmu::{Config, Mmu};
use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use umbra_x86::cpuid::Table;

/// Guest memory, from address 0.
pub const RAM: u64 = 4 << 20;
/// Where the code begins; exception handlers are in its middle.
pub const CODE: u64 = 0x1_0000;
/// Where the first exception handler begins.
pub const HANDLER: u64 = CODE + 0x100;
/// The initial stack.
pub const STACK: u64 = 0x2_0000;
/// Longest code.
const CODE_MAX: usize = 0x2000;
/// `out dx, al`.
const OUT: u8 = 0xee;
/// Accesses to devices after which a run is ended.
const ACCESSES: u32 = 200;

/// The machine.
pub struct Machine {
    space: Arc<AddressSpace>,
    mmu: Arc<Mmu>,
    guard: Guard,
    pub vcpu: SoftVcpu,
    /// Where code is written.
    pub code_at: u64,
    // Last: the guard looks at it.
    _region: Arc<RamRegion>,
}

impl Machine {
    pub fn new(config: Config, cpuid: Table, processor: Processor) -> Self {
        let guard = GUARD as u64;
        let region = RamRegion::new(RamOptions {
            len: RAM + 2 * guard,
            huge: HugePages::No,
            prefault: false,
        })
        .expect("the host has memory");
        // SAFETY: 1. the region is one mapping of that length, and lives as long as the machine;
        // 2. guest memory is never under a Rust reference.
        let watched = unsafe { Guard::new(region.host_addr(0).as_ptr(), RAM as usize) };
        let space = AddressSpace::new(Options::default());
        let mmu = Mmu::new(space.clone(), config);
        let ram = region.clone();
        space
            .update("memory", |edit| {
                edit.add_ram(Gpa(0), ram, guard, RAM, Flags::default())
            })
            .expect("an empty map has room")
            .wait();
        let clock = umbra_clock::Clock::start();
        let vcpu = SoftVcpu::new(SoftVcpuParts {
            id: 0,
            boot: true,
            space: space.clone(),
            mmu: mmu.clone(),
            apic: umbra_irqchip::Apics::new(1, clock).apic(0),
            clock,
            cpuid,
            code: Arc::new(CodePages::new()),
            processor,
            alarm: umbra_cpu_soft::Alarm::new(clock),
            meter: None,
        })
        .expect("the host allows executable memory");
        Self {
            space,
            mmu,
            guard: watched,
            vcpu,
            code_at: CODE,
            _region: region,
        }
    }

    /// Writes memory before the processor runs; bytes outside are dropped.
    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let _ = self.space.load().write(Gpa(at), bytes);
    }

    /// Writes eight bytes.
    pub fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    /// Writes the code, and behind it what ends a run soon.
    pub fn code(&mut self, bytes: &[u8]) {
        let mut code = bytes.to_vec();
        code.resize(CODE_MAX, OUT);
        self.write(self.code_at, &code);
    }

    /// Checks what must be true after a run.
    pub fn check(&self) {
        self.guard.check();
        if let Err(faults) = self.mmu.audit() {
            panic!("{}", faults.join("\n"));
        }
    }
}

/// Devices everywhere, which answer what was asked in their own way.
pub struct Outside {
    kick: Arc<dyn Kick>,
    accesses: AtomicU32,
}

impl Outside {
    pub fn new(kick: Arc<dyn Kick>) -> Self {
        Self {
            kick,
            accesses: AtomicU32::new(0),
        }
    }

    fn count(&self, len: usize, lengths: &[usize]) {
        assert!(lengths.contains(&len), "an access of {len} bytes");
        if self.accesses.fetch_add(1, Ordering::Relaxed) > ACCESSES {
            self.kick.kick();
        }
    }
}

impl Io for Outside {
    fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> Served {
        self.count(data.len(), &[1, 2, 4, 8]);
        data.fill(gpa.0 as u8);
        Served::Done
    }

    fn mmio_write(&self, _: Gpa, data: &[u8]) -> Served {
        self.count(data.len(), &[1, 2, 4, 8]);
        Served::Done
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.count(data.len(), &[1, 2, 4]);
        data.fill(port as u8);
    }

    fn port_write(&self, _: u16, data: &[u8]) {
        self.count(data.len(), &[1, 2, 4]);
    }
}
