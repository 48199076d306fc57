//! A virtio device beside the software processor: what it stores by itself, on its own thread, into
//! decoded code and page tables is what the guest executes and translates by.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

use std::sync::Arc;

use umbra_bus::Bus;
use umbra_cpu::{Backend, Exit, Io, Served};
use umbra_cpu_soft::{Audit, MmuConfig, SoftBackend, SoftConfig, model};
use umbra_devices::virtio::{Balloon, BalloonOptions, Rng};
use umbra_slots::{
    AddressSpace, DmaSpace, Flags, Gpa, GpaRange, HugePages, Options, RamOptions, RamRegion,
};
use umbra_virtio::{Device, MmioTransport, Transport};
use umbra_x86::state::{CpuState, DescriptorTable, Segment};
use umbra_x86::{cr0, cr4, efer, rflags};

const RAM: u64 = 0x40_0000;
const CODE: u64 = 0x1_0000;
/// A page of its own for a function that returns a number.
const FUNCTION: u64 = 0x3_0000;
/// Descriptor table, available ring; the used ring is elsewhere.
const RINGS: [u64; 2] = [0x5_0000, 0x5_1000];
const USED: u64 = 0x5_2000;
const PML4: u64 = 0x10_1000;
/// Maps the 4 KiB pages from 2 MiB on: the device, then FIRST.
const PAGES: u64 = 0x10_4000;
const WINDOW: u64 = 0xd000_0000;
/// A page that contains 1.
const FIRST: u64 = 0x3f_0000;
/// A page that contains 2.
const SECOND: u64 = 0x3f_1000;

/// `mov dword [0x200050], 0`: notifies.
const NOTIFY: [u8; 11] = [0xc7, 0x04, 0x25, 0x50, 0, 0x20, 0, 0, 0, 0, 0];
/// `mov eax, [0x201000]`.
const READ: [u8; 7] = [0x8b, 0x04, 0x25, 0, 0x10, 0x20, 0];
/// `mov ebx, eax`.
const KEEP: [u8; 2] = [0x89, 0xc3];
/// `mov rax, cr3; mov cr3, rax`.
const FLUSH: [u8; 6] = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
/// Nobody handles it: the end.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// `cmp word [at], 0; je` back to itself.
fn wait_for(at: u64) -> Vec<u8> {
    let mut code = vec![0x66, 0x83, 0x3c, 0x25];
    code.extend((at as u32).to_le_bytes());
    code.extend([0, 0x74, 0xf5]);
    code
}

/// `call FUNCTION`, at an offset in the code.
fn call(offset: usize) -> Vec<u8> {
    let mut code = vec![0xe8];
    code.extend(((FUNCTION - (CODE + offset as u64 + 5)) as u32).to_le_bytes());
    code
}

struct Machine {
    space: Arc<AddressSpace>,
    bus: Bus,
    backend: Arc<SoftBackend>,
    transport: Arc<MmioTransport>,
}

impl Io for Machine {
    fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> Served {
        self.bus.read(&self.space.load_full(), gpa, data);
        Served::Done
    }
    fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> Served {
        self.bus.write(&self.space.load_full(), gpa, data);
        Served::Done
    }
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
}

impl Machine {
    /// A machine with an entropy device that gives the same bytes again and again.
    fn new(bytes: &'static [u8]) -> Self {
        let rng = Rng::with_source(Arc::new(|to: &mut [u8]| {
            for (to, from) in to.iter_mut().zip(bytes.iter().cycle()) {
                *to = *from;
            }
            Ok(to.len())
        }));
        Self::with(Box::new(rng))
    }

    fn with(device: Box<dyn Device>) -> Self {
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
        let backend = SoftBackend::new(space.clone(), umbra_clock::Clock::start(), config);
        let dma = DmaSpace::new(space.clone(), backend.dma());
        let line = backend.pin(20).unwrap();
        let transport = MmioTransport::new(device, dma, line);
        let bus = Bus::new(space.clone());
        let window = GpaRange::new(Gpa(WINDOW), MmioTransport::LEN).unwrap();
        bus.insert(window, transport.clone()).unwrap();
        let machine = Self {
            space,
            bus,
            backend,
            transport,
        };
        machine.tables();
        machine
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.space.load().write(Gpa(at), bytes).unwrap();
    }

    fn put_u64(&self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// The first 2 MiB are mapped one to one; then the device, and FIRST.
    fn tables(&self) {
        self.put_u64(PML4, 0x10_2007);
        self.put_u64(0x10_2000, 0x10_3007);
        self.put_u64(0x10_3000, 0x87);
        self.put_u64(0x10_3008, PAGES | 7);
        self.put_u64(PAGES, WINDOW | 0x63);
        self.put_u64(PAGES + 8, FIRST | 0x63);
        self.put_u64(FIRST, 1);
        self.put_u64(SECOND, 2);
    }

    fn register(&self, offset: u64, value: u32) {
        let at = Gpa(WINDOW + offset);
        let _ = self.mmio_write(at, &value.to_le_bytes());
    }

    /// Does a driver's part up to the notification: one buffer, at descriptor 3.
    fn offer(&self, at: u64, len: u32, used: u64) {
        for (offset, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x38, 4)] {
            self.register(offset, value);
        }
        for (offset, at) in [(0x80, RINGS[0]), (0x90, RINGS[1]), (0xa0, used)] {
            self.register(offset, at as u32);
        }
        self.register(0x44, 1);
        self.register(0x70, 15);
        self.put_u64(RINGS[0] + 48, at);
        self.put_u64(RINGS[0] + 56, u64::from(len) | 2 << 32);
        self.put(RINGS[1], &[0, 0, 0, 0, 3, 0]);
    }

    /// Runs code in 64-bit mode up to its UD2; returns RBX and RAX.
    fn run(&self, code: &[u8]) -> (u64, u64) {
        self.put(CODE, &[code, &UD2].concat());
        let mut vcpu = self.backend.vcpu(0).unwrap();
        vcpu.set_state(&long_mode()).unwrap();
        let exit = vcpu.run(self).unwrap();
        let Exit::Shutdown(crash) = &exit else {
            panic!("{exit:?}");
        };
        assert!(crash.reason.contains("vector 6"), "{exit:?}");
        let state = vcpu.state();
        (state.gpr[3], state.gpr[0])
    }
}

/// Makes what is at `RINGS[1] + 4` available, and notifies.
fn make_available() -> Vec<u8> {
    // mov word [RINGS[1] + 2], 1
    let mut code = vec![0x66, 0xc7, 0x04, 0x25];
    code.extend((RINGS[1] as u32 + 2).to_le_bytes());
    code.extend([1, 0]);
    code.extend(NOTIFY);
    code
}

fn long_mode() -> CpuState {
    let flat = |selector: u16, kind: u16| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr: kind | Segment::S | Segment::P | Segment::G,
    };
    let data = flat(0x10, 3 | Segment::DB);
    let mut state = CpuState {
        cr0: cr0::PE | cr0::NE | cr0::PG | cr0::WP,
        cr3: PML4,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        rip: CODE,
        rflags: rflags::FIXED,
        seg: [data; 6],
        idtr: DescriptorTable { base: 0, limit: 0 },
        ..CpuState::default()
    };
    state.seg[1] = flat(0x08, 0xb | Segment::L);
    state.gpr[4] = 0x2_0000;
    state
}

#[test]
fn a_buffer_that_is_decoded_code_is_executed_as_the_device_left_it() {
    let machine = Machine::new(&[2]);
    machine.put(FUNCTION, &[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax, 1; ret
    machine.offer(FUNCTION + 1, 1, USED);
    let mut code = call(0);
    code.extend(KEEP);
    code.extend(make_available());
    code.extend(wait_for(USED + 2));
    code.extend(call(code.len()));
    assert_eq!(machine.run(&code), (1, 2));
}

#[test]
fn a_buffer_that_is_a_page_table_is_translated_by() {
    // SECOND, as an entry of a table.
    let machine = Machine::new(&[0x63, 0x10, 0x3f, 0, 0, 0, 0, 0]);
    machine.offer(PAGES + 8, 8, USED);
    let mut code = READ.to_vec();
    code.extend(KEEP);
    code.extend(make_available());
    code.extend(wait_for(USED + 2));
    code.extend(FLUSH);
    code.extend(READ);
    assert_eq!(machine.run(&code), (1, 2));
}

#[test]
fn a_used_ring_in_a_page_table_is_translated_by() {
    let machine = Machine::new(&[0]);
    // The first element becomes the entry of the second page: descriptor 3 is "present, writable", and
    // no byte used is frame 0. The index is in an entry that nobody uses.
    let used = PAGES + 8 + 512 - 4;
    machine.put_u64(PAGES + 8 + 512, FIRST | 0x63);
    machine.put_u64(0, 7);
    machine.offer(FIRST, 0, used);
    let mut read = READ.to_vec();
    read[3..].copy_from_slice(&(0x20_1000u32 + 64 * 0x1000).to_le_bytes());
    let mut code = read.clone();
    code.extend(KEEP);
    code.extend(make_available());
    code.extend(wait_for(used + 2));
    code.extend(FLUSH);
    code.extend(&read);
    assert_eq!(machine.run(&code), (1, 7));
    machine.transport.shut_down();
}

/// A machine with a balloon whose driver lends the page at `at` when it notifies.
fn lender(at: u64) -> Machine {
    let options = BalloonOptions {
        free_page_hinting: false,
        polling: None,
        name: "balloon".into(),
        target: 0,
        deflate_on_oom: false,
        free_page_reporting: false,
    };
    let (balloon, _) = Balloon::new(options).unwrap();
    let machine = Machine::with(Box::new(balloon));
    let number = 0x6_0000;
    machine.put_u64(number, at >> 12);
    machine.offer(number, 4, USED);
    // The device reads it.
    machine.put_u64(RINGS[0] + 56, 4);
    machine
}

#[test]
fn code_in_a_page_that_is_lent_is_executed_no_more() {
    let machine = lender(FUNCTION);
    machine.put(FUNCTION, &[0xb8, 1, 0, 0, 0, 0xc3]); // mov eax, 1; ret
    // Zeros are `add [rax], al` up to here.
    machine.put(FUNCTION + 0x1000, &[0xb8, 2, 0, 0, 0, 0xc3]); // mov eax, 2; ret
    let mut code = call(0);
    code.extend(KEEP);
    code.extend(make_available());
    code.extend(wait_for(USED + 2));
    code.extend(call(code.len()));
    assert_eq!(machine.run(&code), (1, 2));
}

#[test]
fn a_page_table_that_is_lent_translates_no_more() {
    let machine = lender(PAGES);
    let mut code = READ.to_vec();
    code.extend(KEEP);
    code.extend(make_available());
    // Where nothing needs that table.
    code.extend(wait_for(USED + 2));
    code.extend(FLUSH);
    code.extend(READ);
    machine.put(CODE, &[&code[..], &UD2].concat());
    let mut vcpu = machine.backend.vcpu(0).unwrap();
    vcpu.set_state(&long_mode()).unwrap();
    let exit = vcpu.run(&machine).unwrap();
    let Exit::Shutdown(crash) = &exit else {
        panic!("{exit:?}");
    };
    // The last read has no page, and there is nobody who would handle that.
    assert!(crash.reason.contains("#PF(0x0) at 0x201000"), "{exit:?}");
    assert_eq!(vcpu.state().gpr[3], 1);
}
