//! A machine with two processors, one of which is inside at a time, and what each has cached.

use std::sync::Arc;

use umbra_mmu::{Config, Flush, Kind, Mmu, PagingRegs, RamPage, VcpuMmu};
use umbra_slots::{AddressSpace, Generation, Gfn, Gpa, Options, Target};

use crate::entries::{Format, first_entries, table};
use crate::map;

/// A translation that a processor has cached.
pub struct Cached {
    pub gva: u64,
    pub gfn: Gfn,
    pub page: RamPage,
}

/// A processor: its end of the MMU, its registers, and what stands for its TLB.
pub struct Cpu {
    pub vcpu: VcpuMmu,
    pub regs: PagingRegs,
    pub format: Format,
    pub cached: Vec<Cached>,
}

impl Cpu {
    pub fn new(mmu: &Arc<Mmu>) -> Self {
        Self {
            vcpu: mmu.attach(Box::new(|| {})),
            regs: PagingRegs::default(),
            format: Format::Off,
            cached: Vec::new(),
        }
    }

    /// Drops what must be dropped, as a processor does between instructions.
    pub fn poll(&mut self) {
        if !self.vcpu.pending() {
            return;
        }
        let cached = &mut self.cached;
        self.vcpu.take_flushes(|flush| match flush {
            Flush::All => cached.clear(),
            Flush::Writers(gfn) => cached.retain(|c| c.gfn != gfn || !c.page.write),
        });
    }
}

/// The machine.
pub struct Guest {
    pub space: Arc<AddressSpace>,
    pub mmu: Arc<Mmu>,
    pub cpus: [Cpu; 2],
    /// Which processor is inside.
    pub now: usize,
}

impl Guest {
    pub fn new(config: Config, first: u64) -> Self {
        let space = AddressSpace::new(Options {
            first_generation: Generation(first),
            ..Options::default()
        });
        let mmu = Mmu::new(space.clone(), config);
        map::first(&space);
        for (at, value) in first_entries() {
            let map = space.load();
            map.write(Gpa(at), &value.to_le_bytes())
                .expect("tables are in RAM at first");
        }
        let cpus = [Cpu::new(&mmu), Cpu::new(&mmu)];
        let mut guest = Self {
            space,
            mmu,
            cpus,
            now: 0,
        };
        for cpu in &mut guest.cpus {
            cpu.regs.cr3 = table(0);
        }
        guest.cpus[0].vcpu.enter();
        guest
    }

    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpus[self.now]
    }

    /// Lets the other processor in.
    pub fn switch(&mut self) {
        self.cpu().vcpu.leave();
        self.now ^= 1;
        self.cpu().vcpu.enter();
        self.cpu().poll();
    }

    /// Checks an answer against the map: nothing has changed since it was given.
    pub fn agree(&self, gpa: Gpa, kind: &Kind) {
        let map = self.space.load();
        let target = map.resolve(gpa);
        let right = match (kind, &target) {
            (Kind::Ram(page), Target::Ram(ram)) => {
                let offset = gpa.page_offset() as usize;
                let write = !page.write || !ram.read_only;
                write && page.page.as_ptr().wrapping_add(offset) == ram.host.as_ptr()
            }
            (Kind::Tracked, Target::Ram(ram)) => !ram.read_only,
            (Kind::ReadOnly, Target::Ram(ram)) => ram.read_only,
            (Kind::Mmio { generation }, Target::Io { .. } | Target::Nothing) => {
                *generation == map.generation()
            }
            _ => false,
        };
        assert!(right, "{gpa}: {kind:?}, but the map has {target:?}");
    }

    /// Audits, with everything that was posted taken.
    pub fn finish(mut self) {
        for _ in 0..2 {
            self.cpu().poll();
            if let Err(faults) = self.mmu.audit() {
                panic!("{}", faults.join("\n"));
            }
            self.switch();
        }
    }
}
