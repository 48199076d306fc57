//! A small machine with one processor, and a guest that builds page tables by hand.

use std::ptr::NonNull;
use std::sync::Arc;

use umbra_slots::{
    AddressSpace, Flags, Generation, Gfn, Gpa, HugePages, Options, RamOptions, RamRegion, SlotId,
    Target,
};
use umbra_x86::{Gva, cr0, cr4, efer, pte};

use crate::{
    Access, AccessKind, Audit, Config, Flush, Kind, Mmu, PageFault, PagingRegs, RamPage,
    Translation, VcpuMmu,
};

/// RAM of the machine, from address 0.
pub const RAM: u64 = 32 << 20;
/// An address without RAM.
pub const HOLE: Gpa = Gpa(0xfee0_0000);
/// Present, writable, user.
pub const PWU: u64 = pte::P | pte::RW | pte::US;

pub const READ: Access = Access {
    kind: AccessKind::Read,
    user: false,
    ac: false,
};
pub const WRITE: Access = Access {
    kind: AccessKind::Write,
    ..READ
};
pub const FETCH: Access = Access {
    kind: AccessKind::Fetch,
    ..READ
};

pub fn user(access: Access) -> Access {
    Access {
        user: true,
        ..access
    }
}

/// Every answer comes from the shadow or a walk, not from a processor's own record of MMIO.
pub fn plain() -> Config {
    Config {
        last_mmio: false,
        ..Config::default()
    }
}

/// The same; every answer is verified, and everything audited after each slow fault.
pub fn checked() -> Config {
    Config {
        audit: Audit::EveryFault(1),
        ..plain()
    }
}

pub fn ram(len: u64) -> Arc<RamRegion> {
    RamRegion::new(RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    })
    .unwrap()
}

/// Registers of a 64-bit kernel.
pub fn long_mode(cr3: u64) -> PagingRegs {
    PagingRegs {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3,
        cr4: cr4::PAE | cr4::PGE,
        efer: efer::LME | efer::LMA | efer::NXE,
        pkru: 0,
    }
}

pub struct Machine {
    pub space: Arc<AddressSpace>,
    pub mmu: Arc<Mmu>,
    pub vcpu: VcpuMmu,
    pub ram: SlotId,
    pub regs: PagingRegs,
    /// The next free page for tables.
    next: u64,
}

impl Machine {
    pub fn new(config: Config) -> Self {
        Self::at(config, Generation(0))
    }

    /// A machine in 64-bit mode whose first map with RAM has the generation after `first`.
    pub fn at(config: Config, first: Generation) -> Self {
        let space = AddressSpace::new(Options {
            first_generation: first,
            ..Options::default()
        });
        Self::on(space, config)
    }

    /// A machine in 64-bit mode on a map that has no slots yet.
    pub fn on(space: Arc<AddressSpace>, config: Config) -> Self {
        let mmu = Mmu::new(space.clone(), config);
        let vcpu = mmu.attach(Box::new(|| {}));
        let slot = space
            .update("ram", |e| {
                e.add_ram(Gpa(0), ram(RAM), 0, RAM, Flags::default())
            })
            .unwrap()
            .wait();
        let mut machine = Self {
            space,
            mmu,
            vcpu,
            ram: slot,
            regs: long_mode(0),
            next: 1 << 20,
        };
        machine.regs.cr3 = machine.alloc();
        machine.load_regs();
        machine.vcpu.enter();
        machine
    }

    pub fn load_regs(&mut self) {
        self.vcpu.set_regs(&self.regs);
    }

    pub fn alloc(&mut self) -> u64 {
        self.next += 0x1000;
        self.next
    }

    /// Writes guest memory as a guest instruction would, trapped or not.
    pub fn store(&mut self, at: u64, value: u64) {
        let space = self.space.clone();
        self.vcpu
            .tracked(Gpa(at), 8, |_| {
                space.load().write(Gpa(at), &value.to_le_bytes()).unwrap();
            })
            .unwrap();
    }

    pub fn load(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.space.load().read(Gpa(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Where the entry of `level` for an address is, with tables down to there.
    pub fn entry_at(&mut self, gva: u64, level: u32) -> u64 {
        self.entry_under(self.regs.cr3 & pte::FRAME, 4, gva, level)
    }

    pub fn entry_under(&mut self, mut table: u64, top: u32, gva: u64, level: u32) -> u64 {
        for above in (level + 1..=top).rev() {
            let at = table + (gva >> (3 + 9 * above) & 0x1ff) * 8;
            if self.load(at) & pte::P == 0 {
                let made = self.alloc();
                self.store(at, made | PWU);
            }
            table = self.load(at) & pte::FRAME;
        }
        table + (gva >> (3 + 9 * level) & 0x1ff) * 8
    }

    /// Maps a 4 KiB page; gives the place of the entry.
    pub fn map(&mut self, gva: u64, to: u64, flags: u64) -> u64 {
        let at = self.entry_at(gva, 1);
        self.store(at, to | flags);
        at
    }

    pub fn translate(&mut self, gva: u64, access: Access) -> Result<Translation, PageFault> {
        self.vcpu.take_flushes(|_| {});
        self.vcpu.translate(Gva(gva), access)
    }

    pub fn kind(&mut self, gva: u64, access: Access) -> Kind {
        self.translate(gva, access).unwrap().kind
    }

    pub fn page(&mut self, gva: u64, access: Access) -> RamPage {
        match self.kind(gva, access) {
            Kind::Ram(page) => page,
            other => panic!("{gva:#x} is {other:?}, not RAM"),
        }
    }

    /// The error code of the page fault that the access gets.
    pub fn error(&mut self, gva: u64, access: Access) -> u32 {
        self.translate(gva, access).unwrap_err().error.0
    }

    pub fn host(&self, gpa: u64) -> NonNull<u8> {
        match self.space.load().resolve(Gpa(gpa)) {
            Target::Ram(ram) => ram.host,
            other => panic!("{gpa:#x} is {other:?}"),
        }
    }

    pub fn statistic(&self, name: &str) -> u64 {
        let list = self.mmu.statistics();
        list.iter().find(|(n, _)| *n == name).unwrap().1
    }

    pub fn audit(&self) {
        self.mmu.audit().unwrap();
    }

    /// Publishes maps that are all the same.
    pub fn publish(&self, times: u64) {
        for _ in 0..times {
            self.space.update("nothing", |_| Ok(())).unwrap().wait();
        }
    }

    pub fn flushes(&mut self) -> Vec<Flush> {
        let mut taken = Vec::new();
        self.vcpu.take_flushes(|f| taken.push(f));
        taken
    }
}

pub fn frame(gpa: u64) -> Gfn {
    Gpa(gpa).gfn()
}

/// A processor that takes its flushes while its own thread waits for a change of the map.
pub trait WaitFrom {
    fn wait_from(self, vcpu: &mut VcpuMmu);
}

impl<T> WaitFrom for umbra_slots::Updated<T> {
    fn wait_from(self, vcpu: &mut VcpuMmu) {
        self.stale.wait();
        vcpu.take_flushes(|_| {});
    }
}
