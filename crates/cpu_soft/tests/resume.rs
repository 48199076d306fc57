//! A processor that is stopped, saved and restored elsewhere goes on as if nothing had been.
#![cfg(target_arch = "x86_64")]

mod bare;
mod random;
mod states;
mod worker;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bare::{CODE, CODE_0, DATA_0, END, End, Machine, STACK, gate, protected};
use random::Random;
use states::differences;
use umbra_clock::Clock;
use umbra_cpu::{Io, Kick, Served, Vcpu};
use umbra_slots::Gpa;
use umbra_x86::rflags::IF;
use umbra_x86::state::CpuState;
use umbra_x86::vcpu::{Activity, HeldException, HeldInterrupt, Shadow, Stage, VcpuState};
use umbra_x86::{cr0, cr4, msr};

const HANDLER: u64 = 0x1_8000;
/// The current count of the timer.
const CURRENT: u32 = 0x39;

/// No memory, no device: but who reads is kicked, as often as it is asked for.
struct Kicking {
    kick: Arc<dyn Kick>,
    armed: AtomicBool,
}

impl Kicking {
    fn new(machine: &mut Machine) -> Self {
        Self {
            kick: machine.vcpu().kick_handle(),
            armed: AtomicBool::new(true),
        }
    }

    fn read(&self, data: &mut [u8]) {
        if self.armed.swap(false, Ordering::Relaxed) {
            self.kick.kick();
        }
        data.fill(0);
        // A good stack segment, for who loads one.
        data[0] = DATA_0 as u8;
    }
}

impl Io for Kicking {
    fn mmio_read(&self, _: Gpa, data: &mut [u8]) -> Served {
        self.read(data);
        Served::Done
    }
    fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
        Served::Done
    }
    fn port_read(&self, _: u16, data: &mut [u8]) {
        self.read(data);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
}

fn save(machine: &mut Machine) -> VcpuState {
    machine.vcpu().save().expect("the host allows it")
}

fn restore(machine: &mut Machine, state: &VcpuState) {
    machine
        .vcpu()
        .restore(state)
        .expect("a state of such a processor");
}

/// A machine that was never run goes on where this one stands; the state goes there as text.
fn elsewhere(machine: &mut Machine) -> (Machine, VcpuState) {
    let state = save(machine);
    let text = serde_json::to_string(&state).expect("a state is text");
    let mut other = machine.copy();
    let read: VcpuState = serde_json::from_str(&text).expect("it was written so");
    restore(&mut other, &read);
    (other, state)
}

/// Runs until the first read of a port or of memory that is none, goes on elsewhere from there, and
/// tells the state in between.
fn interrupted(mut machine: Machine, state: &CpuState) -> (Machine, VcpuState, End) {
    let io = Kicking::new(&mut machine);
    machine.vcpu().set_state(state).expect("valid state");
    assert!(machine.go_on(&io).is_none(), "kicked");
    let (mut other, between) = elsewhere(&mut machine);
    let end = other.go_on(&io).expect("nobody kicks this one");
    (other, between, end)
}

/// Kicks after some of the reads, and from another thread.
struct Restless {
    kick: Arc<dyn Kick>,
    random: Mutex<Random>,
}

impl Io for Restless {
    fn mmio_read(&self, _: Gpa, _: &mut [u8]) -> Served {
        Served::Done
    }
    fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
        Served::Done
    }
    fn port_read(&self, _: u16, _: &mut [u8]) {
        let mut random = self.random.lock().expect("nobody panicked with it");
        if random.once_in(40) {
            self.kick.kick();
        }
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
}

/// Runs for at most about `time`.
fn run_for(machine: &mut Machine, time: Duration, io: &dyn Io) -> Option<End> {
    let kick = machine.vcpu().kick_handle();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let start = Instant::now();
            while start.elapsed() < time {
                std::thread::yield_now();
            }
            kick.kick();
        });
        machine.go_on(io)
    })
}

/// Memory and state of a guest that has ended, but for what depends on time.
fn left(machine: &mut Machine) -> (Vec<u8>, VcpuState) {
    let mut memory = machine.memory();
    memory[worker::SCRATCH].fill(0);
    let mut state = save(machine);
    state.lapic.set_register(CURRENT, 0);
    state.time.clock_ns = 0;
    state.time.tsc = 0;
    (memory, state)
}

#[test]
fn a_guest_that_moves_all_the_time_does_the_same_as_one_that_stays() {
    let mut still = Machine::new();
    let start = worker::load(&still);
    let end = still.run(&start);
    assert_eq!(end.exception(), "6", "{end:?}");
    let (memory, state) = left(&mut still);
    let word =
        |at: u64| u64::from_le_bytes(memory[at as usize..][..8].try_into().expect("eight bytes"));
    assert_eq!(word(worker::ERRORS), 0);
    assert_eq!(word(worker::SLEEPS), worker::ROUNDS / 8);

    let mut random = Random::new(random::seed());
    let mut moving = Machine::new();
    let start = worker::load(&moving);
    moving.vcpu().set_state(&start).expect("valid state");
    let (mut moves, mut halted, mut interruptible) = (0, 0, 0);
    loop {
        let io = Restless {
            kick: moving.vcpu().kick_handle(),
            random: Mutex::new(Random::new(random.next())),
        };
        let time = Duration::from_nanos(random.below(200_000));
        if run_for(&mut moving, time, &io).is_some() {
            break;
        }
        let (next, between) = elsewhere(&mut moving);
        moving = next;
        moves += 1;
        halted += u32::from(between.activity == Activity::Halted);
        interruptible += u32::from(between.registers.rflags & IF != 0);
    }
    println!("{moves} moves, {halted} of them asleep, {interruptible} with interrupts on");
    assert!(moves > 10);
    let (found, after) = left(&mut moving);
    assert_eq!(differences(&after, &state), "");
    let wrong = (0..memory.len()).find(|at| memory[*at] != found[*at]);
    assert_eq!(wrong.map(|at| (at, found[at], memory[at])), None);
}

/// How the timer is set for an interrupt in 100 ms, with a count or a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Once,
    Again,
    At,
}

const WAIT: u64 = 100_000_000;

/// Sets the timer and returns the counter at which it is due.
fn set_timer(machine: &mut Machine, set: Set) -> u64 {
    let apic = machine.apic();
    let kind = match set {
        Set::Once => 0,
        Set::Again => 1 << 17,
        Set::At => 2 << 17,
    };
    for (register, value) in [(0xf0, 0x1ff), (0x3e0, 0xa), (0x320, kind | 0x44)] {
        apic.mmio_write(register, value);
    }
    let time = save(machine).time;
    match set {
        Set::At => machine
            .apic()
            .write_msr(msr::TSC_DEADLINE, time.tsc + WAIT)
            .expect("it is in that mode"),
        _ => machine.apic().mmio_write(0x380, (WAIT / 128) as u32),
    }
    let due = machine.apic().next_timer().expect("it was started");
    time.tsc.wrapping_sub(time.clock_ns).wrapping_add(due)
}

#[test]
fn a_timer_fires_at_its_time_elsewhere_and_time_away_does_not_count() {
    // rdtsc; ud2
    let handler = [0x0f, 0x31, 0x0f, 0x0b];
    for set in [Set::Once, Set::Again, Set::At] {
        for away in [false, true] {
            let (mut machine, registers) = with_handlers(&[(0x44, &handler)]);
            // sti; hlt; ud2
            machine.write(CODE, &[&[0xfb, 0xf4][..], &END].concat());
            let mut state = save(&mut machine);
            state.registers = registers;
            state.time.tsc = 1 << 50;
            restore(&mut machine, &state);
            let due = set_timer(&mut machine, set);
            let io = Kicking::new(&mut machine);
            let state = loop {
                assert!(run_for(&mut machine, Duration::from_millis(5), &io).is_none());
                let state = save(&mut machine);
                if state.activity == Activity::Halted {
                    break state;
                }
            };
            let clock = machine.clock().save();
            let start = Instant::now();
            let mut other = if away {
                std::thread::sleep(Duration::from_millis(150));
                machine.copy_in_time(Clock::resume(&clock))
            } else {
                machine.copy()
            };
            restore(&mut other, &state);
            let end = other.go_on(&io).expect("nobody kicks");
            let regs = &end.state;
            assert_eq!(regs.rip, HANDLER + 2, "{end:?}");
            let found = regs.gpr[2] << 32 | regs.gpr[0];
            // A count is rounded up to 128 ns. How late it is depends on the host; seconds are a bug.
            let late = found.wrapping_sub(due);
            assert!(
                late < 2_000_000_000,
                "{set:?}, away: {away}: {late} ns late"
            );
            let waited = start.elapsed();
            assert!(!away || waited > Duration::from_millis(150), "{waited:?}");
            assert_eq!(other.apic().next_timer().is_some(), set == Set::Again);
        }
    }
}

/// A machine and a state with a handler for each of `vectors`, [`HANDLER`] + 256 times its place.
fn with_handlers(vectors: &[(u8, &[u8])]) -> (Machine, CpuState) {
    let machine = Machine::new();
    for (i, (vector, code)) in (0u64..).zip(vectors) {
        let at = HANDLER + 256 * i;
        machine.gate(*vector, gate(CODE_0, at, 0xe, 0));
        machine.write(at, code);
    }
    let mut state = protected();
    state.idtr.limit = 0x7ff;
    (machine, state)
}

/// `mov ebx, dr6; ud2`
const READ_DR6: [u8; 5] = [0x0f, 0x21, 0xf3, 0x0f, 0x0b];

#[test]
fn what_a_load_of_ss_holds_back_moves_along() {
    let (machine, mut state) = with_handlers(&[(1, &READ_DR6)]);
    let device = 0x50_0000u32.to_le_bytes();
    // mov eax, device; mov dr0, eax; mov eax, accesses; mov dr7, eax; mov ss, [device]; inc ecx ×2
    let arm = [
        &[0xb8][..],
        &device,
        &[0x0f, 0x23, 0xc0, 0xb8, 2, 0, 0xf, 0, 0x0f, 0x23, 0xf8],
    ];
    let load = [&[0x8e, 0x15][..], &device, &[0x41, 0x41], &END];
    let code = [arm.concat(), load.concat()].concat();
    machine.write(CODE, &code);
    state.gpr[1] = 0;
    let (machine, between, end) = interrupted(machine, &state);
    assert_eq!(between.events.shadow, Shadow::MovSs);
    let watched = between.events.exception.expect("a data breakpoint was hit");
    assert_eq!(
        (watched.vector, watched.payload, watched.stage),
        (1, Some(1), Stage::Pending)
    );
    assert_eq!(end.state.rip, HANDLER + 3, "{end:?}");
    assert_eq!(
        u64::from(machine.read_u32(STACK - 12)),
        CODE + 23,
        "behind one more"
    );
    assert_eq!(end.state.gpr[3] & 0xf, 1);
}

#[test]
fn what_sti_holds_back_moves_along() {
    let (machine, state) = with_handlers(&[(0x44, &END)]);
    machine.apic().mmio_write(0xf0, 0x1ff);
    machine.apic().mmio_write(0x300, 0x4_4044);
    // mov al, [device]; sti; inc ecx ×2
    let code = [0xa0, 0, 0, 0x50, 0, 0xfb, 0x41, 0x41];
    machine.write(CODE, &[&code[..], &END].concat());
    let (machine, between, end) = interrupted(machine, &state);
    assert_eq!(
        (between.events.shadow, between.registers.rip),
        (Shadow::Sti, CODE + 6)
    );
    assert_eq!((end.state.rip, end.state.gpr[1]), (HANDLER, 1), "{end:?}");
    assert_eq!(u64::from(machine.read_u32(STACK - 12)), CODE + 7);
}

#[test]
fn an_nmi_behind_the_one_that_is_handled_moves_along() {
    // inc ebx; cmp ebx, 1; jne over; mov dword [ICR], NMI to itself; in al, dx; nop ×2; over: iret
    let handler = [
        0x43, 0x83, 0xfb, 1, 0x75, 13, 0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x44, 0, 0, 0xec,
        0x90, 0x90, 0xcf,
    ];
    let (machine, mut state) = with_handlers(&[(2, &handler)]);
    machine.apic().mmio_write(0x300, 0x4400);
    machine.write(CODE, &[&[0x90, 0x90][..], &END].concat());
    state.gpr[3] = 0;
    let (_, between, end) = interrupted(machine, &state);
    assert!(
        between.events.nmi.masked && between.events.nmi.pending == 1,
        "{between:?}"
    );
    assert_eq!((end.state.rip, end.state.gpr[3]), (CODE + 2, 2), "{end:?}");
}

/// PAE paging whose page-directory pointer is changed in memory while a port is read: what the guest
/// reads through it before and after it loads CR3 again.
fn through_a_lost_pointer(moves: bool) -> (VcpuState, [u64; 2]) {
    const TABLE: u64 = 0x10_0000;
    const FIRST: u64 = 0x10_1000;
    const OTHER: u64 = 0x10_2000;
    let mut machine = Machine::new();
    let entry = |machine: &Machine, at: u64, value: u64| machine.write(at, &value.to_le_bytes());
    entry(&machine, TABLE, FIRST | 1);
    entry(&machine, FIRST, 0x83);
    entry(&machine, FIRST + 8, 0x20_0083);
    // The other directory maps the first 2 MiB twice.
    entry(&machine, OTHER, 0x83);
    entry(&machine, OTHER + 8, 0x83);
    machine.write(0x3_0000, &[0x11]);
    machine.write(0x23_0000, &[0x22]);
    // in al, dx; mov bl, [0x230000]; mov eax, cr3; mov cr3, eax; mov cl, [0x230000]
    let code = [
        0xec, 0x8a, 0x1d, 0, 0, 0x23, 0, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x8a, 0x0d, 0, 0,
        0x23, 0,
    ];
    machine.write(CODE, &[&code[..], &END].concat());
    let io = Kicking::new(&mut machine);
    let mut state = save(&mut machine);
    state.registers = protected();
    state.registers.cr0 |= cr0::PG;
    state.registers.cr3 = TABLE;
    state.registers.cr4 = cr4::PAE;
    // Nothing is said of the pointers: they come from memory.
    restore(&mut machine, &state);
    assert!(machine.go_on(&io).is_none());
    entry(&machine, TABLE, OTHER | 1);
    let (mut other, between) = elsewhere(&mut machine);
    let machine = if moves { &mut other } else { &mut machine };
    let end = machine.go_on(&io).expect("nobody kicks any more");
    assert_eq!(
        (end.exception(), end.state.rip),
        ("6", CODE + 19),
        "{end:?}"
    );
    (between, [end.state.gpr[3] & 0xff, end.state.gpr[1] & 0xff])
}

#[test]
fn page_directory_pointers_that_memory_has_lost_move_along() {
    for moves in [false, true] {
        let (between, read) = through_a_lost_pointer(moves);
        assert_eq!(between.pdptes, Some([0x10_1001, 0, 0, 0]));
        assert_eq!(read, [0x22, 0x11], "moves: {moves}");
    }
}

/// What a guest finds that is given `change` while it stands before `inc ecx; ud2`.
fn given(change: impl Fn(&mut VcpuState), vectors: &[(u8, &[u8])]) -> (Machine, End) {
    let (mut machine, state) = with_handlers(vectors);
    machine.write(CODE, &[&[0x41][..], &END].concat());
    machine.vcpu().set_state(&state).expect("valid state");
    let mut whole = save(&mut machine);
    change(&mut whole);
    restore(&mut machine, &whole);
    let io = Kicking::new(&mut machine);
    let end = machine.go_on(&io).expect("nobody kicks");
    (machine, end)
}

fn exception(vector: u8, error: Option<u32>, payload: Option<u64>) -> HeldException {
    HeldException {
        vector,
        error,
        payload,
        stage: if payload.is_some() {
            Stage::Pending
        } else {
            Stage::Injected
        },
    }
}

#[test]
fn an_exception_that_was_held_is_delivered_first_and_noted_where_it_must_be() {
    // mov ebx, cr2; ud2
    let read_cr2 = [&[0x0f, 0x20, 0xd3][..], &END].concat();
    for (payload, cr2) in [(Some(0x1234), 0x1234), (None, 0x77)] {
        let held = exception(14, Some(2), payload);
        let (machine, end) = given(
            |state| {
                state.registers.cr2 = 0x77;
                state.events.exception = Some(held);
            },
            &[(14, &read_cr2)],
        );
        assert_eq!(
            (end.state.rip, end.state.gpr[1]),
            (HANDLER + 3, 0),
            "{end:?}"
        );
        assert_eq!(end.state.gpr[3], cr2);
        assert_eq!(
            (machine.read_u32(STACK - 16), machine.read_u32(STACK - 12)),
            (2, CODE as u32)
        );
    }
    let (_, end) = given(
        |state| {
            state.debug.dr6 |= 2;
            // General detect is off in the handler.
            state.debug.dr7 |= 1 << 13;
            state.events.exception = Some(exception(1, None, Some(1 << 14)));
        },
        &[(1, &READ_DR6)],
    );
    assert_eq!(
        (end.state.rip, end.state.gpr[3]),
        (HANDLER + 3, 0xffff_4ff0),
        "{end:?}"
    );
}

#[test]
fn an_interrupt_that_was_accepted_is_delivered_though_interrupts_are_off_by_now() {
    for (nmi, vector) in [(false, 0x61), (true, 2)] {
        let (mut machine, end) = given(
            |state| {
                state.activity = Activity::Halted;
                state.events.nmi.injected = nmi;
                let interrupt = HeldInterrupt {
                    vector,
                    soft: false,
                };
                state.events.interrupt = Some(interrupt).filter(|_| !nmi);
            },
            &[(vector, &END)],
        );
        assert_eq!((end.state.rip, end.state.gpr[1]), (HANDLER, 0), "{end:?}");
        assert_eq!(save(&mut machine).events.nmi.masked, nmi);
    }
}

#[test]
fn a_pending_exception_comes_behind_an_interrupt_whose_delivery_has_begun() {
    let (machine, end) = given(
        |state| {
            state.events.interrupt = Some(HeldInterrupt {
                vector: 0x61,
                soft: false,
            });
            state.events.exception = Some(exception(1, None, Some(1)));
        },
        &[(1, &END), (0x61, &END)],
    );
    // So its handler runs first, on top of the other's frame.
    assert_eq!(end.state.rip, HANDLER, "{end:?}");
    assert_eq!(u64::from(machine.read_u32(STACK - 24)), HANDLER + 256);
}

#[test]
fn a_processor_that_was_shut_down_says_so_again() {
    let (mut machine, end) = given(|_| {}, &[]);
    assert_eq!(end.state.gpr[1], 1);
    let (mut other, between) = elsewhere(&mut machine);
    assert!(between.events.triple_fault);
    let io = Kicking::new(&mut other);
    let end = other.go_on(&io).expect("nobody kicks");
    assert_eq!(
        (end.reason.as_str(), end.state.rip),
        ("triple fault, before the state was saved", CODE + 1)
    );
}

#[test]
fn a_paravirtual_clock_is_written_anew_where_it_would_be_wrong() {
    const RECORD: u64 = 0x3_0000;
    let mut machine = Machine::new();
    // mov ecx, 4b564d01h; mov eax, RECORD + 1; xor edx, edx; wrmsr
    let code = [
        0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8, 1, 0, 3, 0, 0x31, 0xd2, 0x0f, 0x30,
    ];
    machine.write(CODE, &[&code[..], &END].concat());
    machine.run(&protected());
    let written: [u8; 32] = machine.read(RECORD);
    let mut state = save(&mut machine);
    state.events.triple_fault = false;
    assert_eq!(state.msrs.get(msr::KVM_SYSTEM_TIME_NEW), Some(RECORD | 1));
    restore(&mut machine, &state);
    assert_eq!(machine.read(RECORD), written, "nothing has changed");
    // Another counter at the same time.
    state.time.tsc += 1000;
    restore(&mut machine, &state);
    let again: [u8; 32] = machine.read(RECORD);
    assert_eq!((written[0], again[0]), (2, 4), "the version");
    assert_eq!(again[8..16], 1000u64.to_le_bytes());
    assert_eq!(again[16..], written[16..]);
}
