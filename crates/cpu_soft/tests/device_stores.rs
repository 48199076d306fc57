//! A device that stores to guest memory by itself ([`umbra_slots::DmaMemory`]): the processor sees it
//! in its page tables and in code that it has decoded already.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

mod bare;

use std::sync::Arc;

use bare::{CODE, END, long};
use umbra_clock::Clock;
use umbra_cpu::{Backend, Exit, Io, Served, Vcpu};
use umbra_cpu_soft::{Audit, MmuConfig, SoftBackend, SoftConfig, model};
use umbra_slots::{AddressSpace, DmaSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use umbra_x86::state::CpuState;
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 0x40_0000;
/// A register of the device: a write makes it store.
const DEVICE: u64 = 0x50_0000;
/// A page of its own for a function.
const FUNCTION: u64 = 0x3_0000;

/// Stores some bytes whenever it is written.
struct Device {
    dma: DmaSpace,
    at: u64,
    bytes: Vec<u8>,
}

impl Io for Device {
    fn mmio_read(&self, _: Gpa, _: &mut [u8]) -> Served {
        Served::Done
    }
    fn mmio_write(&self, gpa: Gpa, _: &[u8]) -> Served {
        assert_eq!(gpa, Gpa(DEVICE));
        let memory = self.dma.memory();
        // On a thread of its own, as devices work.
        std::thread::scope(|scope| {
            let store = || memory.write_slice(&self.bytes, GuestAddress(self.at));
            scope.spawn(store).join().unwrap().unwrap();
        });
        Served::Done
    }
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
}

struct Machine {
    space: Arc<AddressSpace>,
    dma: DmaSpace,
    vcpu: Box<dyn Vcpu>,
}

impl Machine {
    fn new() -> Self {
        let space = AddressSpace::new(Options::default());
        let ram = RamRegion::new(RamOptions {
            len: RAM,
            huge: HugePages::No,
            prefault: false,
        });
        let added = space.update("test", |map| {
            map.add_ram(Gpa(0), ram.unwrap(), 0, RAM, Flags::default())
        });
        added.unwrap().wait();
        let config = SoftConfig {
            cpus: 1,
            cpuid: vec![model::x86_64_v2(0, 1)],
            mmu: MmuConfig {
                audit: Audit::EveryFault(1),
                ..MmuConfig::default()
            },
            processor: umbra_cpu_soft::Processor::default(),
            measure: false,
        };
        let backend = SoftBackend::new(space.clone(), Clock::start(), config);
        Self {
            dma: DmaSpace::new(space.clone(), backend.dma()),
            vcpu: backend.vcpu(0).unwrap(),
            space,
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.space.load().write(Gpa(at), bytes).unwrap();
    }

    /// Runs 64-bit code; the device stores `bytes` at `at`. Returns RAX and RBX at the end.
    fn run(mut self, code: &[u8], at: u64, bytes: &[u8]) -> (u64, u64) {
        self.write(CODE, &[code, &END].concat());
        let state = self.long();
        self.vcpu.set_state(&state).unwrap();
        let device = Device {
            dma: self.dma.clone(),
            at,
            bytes: bytes.to_vec(),
        };
        let exit = self.vcpu.run(&device).unwrap();
        assert!(
            matches!(&exit, Exit::Shutdown(crash) if crash.reason.contains("vector 6")),
            "{exit:?}"
        );
        let state = self.vcpu.state();
        (state.gpr[0], state.gpr[3])
    }

    /// As [`long`] has it: the device is the page behind what is mapped at 2 MiB.
    fn long(&self) -> CpuState {
        let table = bare::Machine::new();
        let state = long(&table);
        for at in (bare::PML4 & !0xfff..bare::PAGES).step_by(0x1000) {
            self.write(at, &table.read::<0x1000>(at));
        }
        self.write(bare::GDT, &table.read::<0x1000>(bare::GDT));
        let page = |n: u64, to: u64| self.write(bare::PAGES + 8 * n, &(to | 0x63).to_le_bytes());
        page(0, DEVICE);
        page(1, 0x3f_0000);
        self.write(0x3f_0000, &1u32.to_le_bytes());
        self.write(0x3f_1000, &2u32.to_le_bytes());
        state
    }
}

/// `mov [0x200000], ecx`: the device stores.
const STORE: [u8; 7] = [0x89, 0x0c, 0x25, 0, 0, 0x20, 0];

#[test]
fn a_store_into_decoded_code_is_executed() {
    let machine = Machine::new();
    machine.write(FUNCTION, &[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax, 1; ret
    let call = |from: u64| {
        let mut code = vec![0xe8];
        code.extend(((FUNCTION - (CODE + from + 5)) as u32).to_le_bytes());
        code
    };
    let code = [
        call(0),
        vec![0x89, 0xc3], // mov ebx, eax
        STORE.to_vec(),
        call(14),
    ]
    .concat();
    assert_eq!(machine.run(&code, FUNCTION + 1, &[2]), (2, 1));
}

#[test]
fn a_store_into_a_page_table_counts_from_the_next_flush_on() {
    let read: [u8; 7] = [0x8b, 0x04, 0x25, 0, 0x10, 0x20, 0]; // mov eax, [0x201000]
    // The guest flushes, as it has to; its tables are protected, so that reads none of them again.
    let flush = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]; // mov rax, cr3; mov cr3, rax
    let code = [&read[..], &[0x89, 0xc3], &STORE, &flush, &read].concat();
    let entry = (0x3f_1000u64 | 0x63).to_le_bytes();
    let ended = Machine::new().run(&code, bare::PAGES + 8, &entry);
    assert_eq!(ended, (2, 1));
}
