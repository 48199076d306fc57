//! Processors whose state moves to others, in the middle of what they do: within a backend, and from one
//! to the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use umbra_clock::Clock;
use umbra_cpu::{CpuError, Exit, Io, Part, Served, Vcpu};
use umbra_cpu_kvm::{Host, IrqchipMode, KvmBackend, KvmConfig};
use umbra_cpu_soft::{MmuConfig, SoftBackend, SoftConfig, model};
use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use umbra_x86::msr;
use umbra_x86::state::{CpuState, Segment, gpr, seg};
use umbra_x86::vcpu::{Activity, VcpuState};

use super::*;

const MEMORY: u64 = 1 << 20;
const CODE: u64 = 0x1_0000;
const TABLE: u64 = 0x2_0000;
const DONE: u16 = 0xf4;
const FAILED: u16 = 0xf5;

/// Scrambles a table of 4 KiB in some steps, and looks that the time-stamp counter never goes back.
fn program(rounds: u32) -> Vec<u8> {
    let mut code = vec![0xbe];
    code.extend((TABLE as u32).to_le_bytes()); // mov esi, table
    code.push(0xb9);
    code.extend(rounds.to_le_bytes()); // mov ecx, rounds
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, 1
    let again = code.len();
    code.extend([0x69, 0xff, 0x0d, 0x66, 0x19, 0x00]); // imul edi, edi, 1664525
    code.extend([0x81, 0xc7, 0x5f, 0xf3, 0x6e, 0x3c]); // add edi, 1013904223
    code.extend([0x89, 0xfb]); // mov ebx, edi
    code.extend([0xc1, 0xeb, 0x14]); // shr ebx, 20
    code.extend([0x81, 0xe3, 0xfc, 0x0f, 0x00, 0x00]); // and ebx, 0xffc
    code.extend([0x31, 0x3c, 0x1e]); // xor [esi+ebx], edi
    code.extend([0xc1, 0x04, 0x1e, 0x03]); // rol dword [esi+ebx], 3
    code.extend([0x0f, 0x31]); // rdtsc
    code.extend([0x39, 0xea]); // cmp edx, ebp
    code.extend([0x77, 0x06]); // ja later
    code.extend([0x72, 0x0c]); // jb failed
    code.extend([0x39, 0xe0]); // cmp eax, esp
    code.extend([0x72, 0x08]); // jb failed
    code.extend([0x89, 0xc4]); // later: mov esp, eax
    code.extend([0x89, 0xd5]); // mov ebp, edx
    code.extend([0xeb, 0x02]); // jmp on
    code.extend([0xe6, FAILED as u8]); // failed: out, al
    let back = again as i32 - (code.len() as i32 + 3);
    code.push(0x49); // on: dec ecx
    code.extend([0x75, (back as i8) as u8]); // jnz again
    code.extend([0xe6, DONE as u8, 0xeb, 0xfe]); // out, al; jmp $
    code
}

fn start_state() -> CpuState {
    let flat = |selector, kind| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr: kind | Segment::S | Segment::P | Segment::DB | Segment::G,
    };
    let mut seg = [flat(0x18, 3); 6];
    seg[seg::CS] = flat(0x10, 0xb);
    CpuState {
        gpr: [0; 16],
        seg,
        rip: CODE,
        cr0: 0x11,
        ..CpuState::default()
    }
}

/// One machine with one processor.
struct Place {
    space: Arc<AddressSpace>,
    clock: Clock,
    vcpu: Box<dyn Vcpu>,
    /// What the processor is made of.
    _backend: Arc<dyn umbra_cpu::Backend>,
}

fn place(backend: Backend, clock: Clock) -> Place {
    let space = AddressSpace::new(Options::default());
    let region = RamRegion::new(RamOptions {
        len: MEMORY,
        huge: HugePages::No,
        prefault: false,
    })
    .unwrap();
    space
        .update("RAM", |e| {
            e.add_ram(Gpa(0), region, 0, MEMORY, Flags::default())
        })
        .unwrap()
        .wait();
    let backend: Arc<dyn umbra_cpu::Backend> = match backend {
        Backend::Kvm => {
            let host = Host::open(umbra_cpu_kvm::DEVICE.as_ref()).unwrap();
            let config = KvmConfig {
                cpus: 1,
                irqchip: IrqchipMode::Auto,
                dirty_ring: None,
                tsc_khz: None,
                template: None,
            };
            KvmBackend::new(host, space.clone(), clock, config).unwrap()
        }
        _ => SoftBackend::new(
            space.clone(),
            clock,
            SoftConfig {
                cpus: 1,
                cpuid: vec![model::x86_64_v2(0, 1)],
                mmu: MmuConfig::default(),
                processor: umbra_cpu_soft::Processor::default(),
                measure: false,
            },
        ),
    };
    Place {
        vcpu: backend.vcpu(0).unwrap(),
        space,
        clock,
        _backend: backend,
    }
}

impl Place {
    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.space.load().read(Gpa(0), &mut bytes).unwrap();
        bytes
    }

    fn fill(&self, bytes: &[u8]) {
        self.space.load().write(Gpa(0), bytes).unwrap();
    }

    /// Saves all of it, and makes another one of the same.
    fn move_to(mut self, backend: Backend, change: impl FnOnce(&mut VcpuState, &Clock)) -> Self {
        let state = self.vcpu.save().unwrap();
        let (clock, memory) = (self.clock.save(), self.memory());
        drop(self);
        let text = serde_json::to_string(&state).unwrap();
        let mut state: VcpuState = serde_json::from_str(&text).unwrap();
        let mut other = place(backend, Clock::resume(&clock));
        other.fill(&memory);
        change(&mut state, &other.clock);
        other.vcpu.restore(&state).unwrap();
        other
    }
}

/// Hears how the guest ends.
#[derive(Default)]
struct Ear {
    done: AtomicBool,
    failed: AtomicU64,
    kick: Mutex<Option<Arc<dyn umbra_cpu::Kick>>>,
}

impl Io for Ear {
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

    fn port_write(&self, port: u16, _: &[u8]) {
        match port {
            DONE => self.done.store(true, Ordering::SeqCst),
            _ => drop(self.failed.fetch_add(1, Ordering::SeqCst)),
        }
        if let Some(kick) = &*self.kick.lock() {
            kick.kick();
        }
    }
}

/// Runs for about `time`, or until the guest has ended.
fn run_for(vcpu: &mut dyn Vcpu, ear: &Ear, time: Duration) {
    let kick = vcpu.kick_handle();
    *ear.kick.lock() = Some(kick.clone());
    let (over, wait) = channel::<()>();
    let kicker = std::thread::spawn(move || {
        // Woken early if the run is over.
        if wait.recv_timeout(time).is_err() {
            kick.kick();
        }
    });
    assert_eq!(vcpu.run(ear).unwrap(), Exit::Kicked);
    drop(over);
    kicker.join().unwrap();
}

/// Runs the program, which moves now and then to the backends in turn; returns the table.
fn compute(
    backends: &[Backend],
    rounds: u32,
    change: fn(&mut VcpuState, &Clock),
) -> (Vec<u8>, u32) {
    let mut here = place(backends[0], Clock::start());
    let code = program(rounds);
    here.space.load().write(Gpa(CODE), &code).unwrap();
    here.vcpu.set_state(&start_state()).unwrap();
    let ear = Ear::default();
    let mut moves = 0;
    loop {
        let step = match backends[moves as usize % backends.len()] {
            Backend::Kvm => Duration::from_millis(20),
            _ => Duration::from_micros(200),
        };
        run_for(&mut *here.vcpu, &ear, step);
        assert_eq!(ear.failed.load(Ordering::SeqCst), 0, "time went back");
        if ear.done.load(Ordering::SeqCst) {
            break;
        }
        moves += 1;
        let next = backends[moves as usize % backends.len()];
        here = here.move_to(next, change);
    }
    let memory = here.memory();
    (memory[TABLE as usize..][..0x1000].to_vec(), moves)
}

/// The same, computed here.
fn expected(rounds: u32) -> Vec<u8> {
    let (mut table, mut number) = (vec![0u32; 1024], 1u32);
    for _ in 0..rounds {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let cell = &mut table[(number >> 20 & 0xffc) as usize / 4];
        *cell = (*cell ^ number).rotate_left(3);
    }
    table.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn a_guest_that_moves_computes_what_one_that_stays_does(backend: Backend) {
    let rounds = match backend {
        Backend::Kvm => 60_000,
        _ => 2_000_000,
    };
    let (table, moves) = compute(&[backend], rounds, |_, _| {});
    assert!(table == expected(rounds), "after {moves} moves");
    assert!(moves > 3, "it moved {moves} times");
}

/// A moved state is the same state, but for the time that has passed.
fn a_restored_state_is_saved_as_it_was(backend: Backend) {
    let mut here = place(backend, Clock::start());
    here.vcpu.set_state(&start_state()).unwrap();
    let mut state = here.vcpu.save().unwrap();
    for (n, register) in (1..).zip(&mut state.registers.gpr) {
        *register = 0x0101_0101 * n;
    }
    state.registers.rflags |= 0x8d5;
    state.registers.cr2 = 0x1234_5000;
    state.debug.address = [0x1000, 0x2000, 0x3000, 0x4000];
    for (number, value) in [
        (msr::SYSENTER_CS, 0x10),
        (msr::SYSENTER_ESP, 0x8000),
        (msr::SYSENTER_EIP, 0x9000),
        (msr::LSTAR, 0xffff_8000_0000_1000),
        (msr::STAR, 0x0013_0008_0000_0000),
        (msr::KERNEL_GS_BASE, 0x7000),
        (msr::PAT, 0x0007_0406_0007_0406),
    ] {
        state.msrs.set(number, value);
    }
    state.xsave.use_legacy();
    state.xsave.legacy_mut()[160..176].fill(0x5a); // XMM0
    state.lapic.set_register(0x8, 0x20); // the task priority
    state.registers.cr8 = 2;
    state.activity = Activity::Halted;

    let mut other = place(backend, Clock::resume(&here.clock.save()));
    other.vcpu.restore(&state).unwrap();
    let mut saved = other.vcpu.save().unwrap();
    let passed = saved.time.clock_ns - state.time.clock_ns;
    let ticks = saved.time.tsc - state.time.tsc;
    let due = passed as u128 * u128::from(saved.time.tsc_khz) / 1_000_000;
    assert!(
        ticks.abs_diff(due as u64) < u64::from(saved.time.tsc_khz) * 5,
        "{ticks} ticks in {passed} ns, should be {due}"
    );
    saved.time = state.time;
    // Arbitration and processor priority follow from others; a backend may show them.
    for image in [&mut saved.lapic, &mut state.lapic] {
        image.set_register(0x9, 0);
        image.set_register(0xa, 0);
    }
    // What was not changed may be listed, or not.
    for (number, value) in saved.msrs.iter().collect::<Vec<_>>() {
        if state.msrs.get(number).is_none() {
            state.msrs.set(number, value);
        }
    }
    for (number, value) in state.msrs.iter().collect::<Vec<_>>() {
        if saved.msrs.get(number).is_none() {
            saved.msrs.set(number, value);
        }
    }
    // Without the bytes of images, which nobody can read.
    assert_eq!(saved.registers, state.registers);
    assert_eq!(saved.msrs, state.msrs);
    assert!(saved.xsave == state.xsave, "XSAVE");
    let registers = |s: &VcpuState| {
        (0..64)
            .map(|n| (n, s.lapic.register(n)))
            .collect::<Vec<_>>()
    };
    let differ = registers(&saved).into_iter().zip(registers(&state));
    let differ: Vec<_> = differ.filter(|(found, wanted)| found != wanted).collect();
    assert!(differ.is_empty(), "local APIC: {differ:x?}");
    assert!(saved == state);
}

fn a_state_that_cannot_be_is_refused_and_changes_nothing(backend: Backend) {
    let mut here = place(backend, Clock::start());
    here.vcpu.set_state(&start_state()).unwrap();
    let good = here.vcpu.save().unwrap();
    type Spoil = fn(&mut VcpuState);
    let table: [(Spoil, Option<Part>); 5] = [
        (|s| s.time.tsc_khz += 1, Some(Part::Time("tsc_khz"))),
        (
            |s| s.time.clock_ns = u64::MAX / 2,
            Some(Part::Time("clock_ns")),
        ),
        (|s| s.msrs.set(0x1234_5678, 1), Some(Part::Msr(0x1234_5678))),
        // PG without PE.
        (|s| s.registers.cr0 = 0x8000_0010, None),
        (|s| s.xcr0 = 0x8000_0000_0000_0001, None),
    ];
    for (spoil, part) in table {
        let mut bad = good.clone();
        bad.registers.gpr[gpr::RBX] = 0xbad;
        spoil(&mut bad);
        let refused = here.vcpu.restore(&bad).unwrap_err();
        let CpuError::State(error) = refused else {
            panic!("{refused}")
        };
        if let Some(part) = part {
            assert_eq!(error.what, part, "{error}");
        }
        assert_eq!(here.vcpu.state(), good.registers, "{error}");
    }
    here.vcpu.restore(&good).unwrap();
}

on_both_backends! {
    a_guest_that_moves_computes_what_one_that_stays_does,
    a_restored_state_is_saved_as_it_was,
    a_state_that_cannot_be_is_refused_and_changes_nothing,
}

/// From one backend to the other: the counter's frequency is a machine's own, and everything else moves.
mod across {
    mod kvm {
        use crate::tests::has_kvm;
        use crate::tests::state::*;

        #[test]
        fn a_state_of_another_frequency_is_refused_by_name() {
            if !has_kvm() {
                return;
            }
            let mut here = place(Backend::Kvm, Clock::start());
            here.vcpu.set_state(&start_state()).unwrap();
            let state = here.vcpu.save().unwrap();
            let mut soft = place(Backend::Soft, Clock::resume(&here.clock.save()));
            let refused = soft.vcpu.restore(&state).unwrap_err();
            let CpuError::State(error) = &refused else {
                panic!("{refused}")
            };
            assert_eq!(error.what, Part::Time("tsc_khz"), "{refused}");
        }

        #[test]
        fn a_guest_without_time_moves_between_kvm_and_the_software_processor() {
            if !has_kvm() {
                return;
            }
            // The counter begins anew at each place, ahead of where it was.
            fn retime(state: &mut VcpuState, clock: &Clock) {
                let frequency = |khz: u32| if khz == 1_000_000 { None } else { Some(khz) };
                let own = {
                    static KVM: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
                    *KVM.get_or_init(|| {
                        let mut place = place(Backend::Kvm, Clock::start());
                        place.vcpu.save().unwrap().time.tsc_khz
                    })
                };
                state.time.tsc_khz = match frequency(state.time.tsc_khz) {
                    Some(_) => 1_000_000,
                    None => own,
                };
                state.time.clock_ns = state.time.clock_ns.min(clock.now());
            }
            let both = [Backend::Kvm, Backend::Soft];
            let (table, moves) = compute(&both, 300_000, retime);
            assert!(table == expected(300_000), "after {moves} moves");
            assert!(moves > 1, "it moved {moves} times");
        }
    }
}
