//! What is counted, counts: small guests of which each leaves translated code for one cause, most of the time.
#![cfg(target_arch = "x86_64")]

mod bare;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bare::{CODE, END, IDT, Machine, PAGES, gate, long};
use umbra_cpu::{Io, Served, Vcpu};
use umbra_cpu_soft::{Meter, Processor};
use umbra_slots::{Flags, Gpa, HugePages, RamOptions, RamRegion};
use umbra_x86::cr4;
use umbra_x86::state::CpuState;

/// How often a guest does what it is about.
const ROUNDS: u32 = 1000;
/// Addresses behind all memory, and of pages that are mapped here.
const DEVICE: u64 = 0x20_0000;
const PAGE: u64 = 0x20_1000;
const FRAME: u64 = 0x30_0000;

/// A machine that translates whatever `UMBRA_PROCESSOR` says, and 64-bit code for it.
fn machine(meter: Option<Arc<Meter>>) -> (Machine, CpuState) {
    let machine = Machine::measured(Processor::Eager, meter);
    let map = |page: u64, frame: u64| {
        let at = PAGES + 8 * (page >> 12 & 0x1ff);
        machine.write(at, &(frame | 7).to_le_bytes());
    };
    map(DEVICE, 0x50_0000);
    map(PAGE, FRAME);
    map(PAGE + 0x1000, FRAME + 0x1000);
    // ret
    machine.write(FRAME + 0x800, &[0xc3]);
    let mut state = long(&machine);
    state.cr4 |= cr4::OSFXSR;
    state.gpr[3] = PAGE + 0x800;
    state.gpr[6] = DEVICE;
    state.gpr[7] = PAGE;
    (machine, state)
}

/// Loops over `body` with its count in R12.
fn rounds(body: &[u8], rounds: u32) -> Vec<u8> {
    // mov r12d, ROUNDS
    let mut code = vec![0x41, 0xbc];
    code.extend(rounds.to_le_bytes());
    code.extend(body);
    // dec r12d; jnz near to the body
    code.extend([0x41, 0xff, 0xcc, 0x0f, 0x85]);
    code.extend((-(body.len() as i32 + 9)).to_le_bytes());
    code.extend(END);
    code
}

fn count(machine: &mut Machine, name: &str) -> u64 {
    let statistics = machine.vcpu().statistics();
    let known = statistics.iter().find(|(known, _)| *known == name);
    known.unwrap_or_else(|| panic!("no counter {name:?}")).1
}

fn run(body: &[u8]) -> Machine {
    let (mut machine, state) = machine(None);
    machine.write(CODE, &rounds(body, ROUNDS));
    machine.run(&state);
    machine
}

/// The causes of one instruction of the interpreter's.
const CAUSES: [&str; 12] = [
    "interpreter called for faults",
    "interpreter called for devices",
    "interpreter called for page tables",
    "interpreter called for code written",
    "interpreter called for cache misses",
    "interpreter called for other checks",
    "interpreter called for x87 and MMX",
    "interpreter called for strings",
    "interpreter called for system code",
    "interpreter called for SSE",
    "interpreter called for branches",
    "interpreter called for others",
];

/// Of all that the interpreter did for translated code, this was the cause; and each has one.
fn expect(mut machine: Machine, cause: &str) {
    let rounds = u64::from(ROUNDS);
    let counts = CAUSES.map(|name| count(&mut machine, name));
    let all = count(&mut machine, "instructions left to the interpreter");
    assert_eq!(counts.iter().sum::<u64>(), all, "{counts:?}");
    for (name, count) in CAUSES.into_iter().zip(counts) {
        if name == cause {
            assert!(
                count > rounds * 9 / 10 && count < rounds * 3,
                "{name}: {count}"
            );
        } else {
            assert!(count < rounds / 10, "{name}: {count} for {cause}");
        }
    }
}

#[test]
fn each_cause_is_counted_as_what_it_is() {
    let cases: [(&[u8], &str); 8] = [
        // fnop
        (&[0xd9, 0xd0], "interpreter called for x87 and MMX"),
        // scasb; dec rdi
        (&[0xae, 0x48, 0xff, 0xcf], "interpreter called for strings"),
        // cpuid
        (&[0x0f, 0xa2], "interpreter called for system code"),
        // stmxcsr [rdi]
        (&[0x0f, 0xae, 0x1f], "interpreter called for SSE"),
        // cmpxchg8b [rdi]
        (&[0x0f, 0xc7, 0x0f], "interpreter called for others"),
        // mov eax, [rsi]
        (&[0x8b, 0x06], "interpreter called for devices"),
        // out 0x80, al
        (&[0xe6, 0x80], "interpreter called for devices"),
        // mov eax, [rdi + 0xffe]
        (
            &[0x8b, 0x87, 0xfe, 0x0f, 0, 0],
            "interpreter called for cache misses",
        ),
    ];
    for (body, cause) in cases {
        expect(run(body), cause);
    }
}

/// What drops the translation, or the jump, is an instruction of the system's.
#[test]
fn misses_and_branches_are_counted_beside_what_causes_them() {
    let cases: [(&[u8], &str); 2] = [
        // invlpg [rdi]; mov eax, [rdi]
        (
            &[0x0f, 0x01, 0x3f, 0x8b, 0x07],
            "interpreter called for cache misses",
        ),
        // invlpg [rbx]; call rbx
        (
            &[0x0f, 0x01, 0x3b, 0xff, 0xd3],
            "interpreter called for branches",
        ),
    ];
    for (body, cause) in cases {
        let mut machine = run(body);
        for name in [cause, "interpreter called for system code"] {
            let (count, rounds) = (count(&mut machine, name), u64::from(ROUNDS));
            assert!(
                count > rounds * 9 / 10 && count < rounds * 3,
                "{name}: {count}"
            );
        }
    }
}

#[test]
fn faults_are_counted() {
    let (mut machine, mut state) = machine(None);
    let handler = CODE + 0x800;
    machine.descriptor(0x28, 0x00af_9b00_0000_ffff);
    state.seg[1].selector = 0x28;
    let entry = gate(0x28, handler, 0xe, 0).to_le_bytes();
    machine.write(IDT + 16 * 13, &[entry, [0; 8]].concat());
    state.idtr.limit = 16 * 14 - 1;
    // add qword [rsp + 8], 2; add rsp, 8; iretq
    let code = [
        0x48, 0x83, 0x44, 0x24, 8, 2, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf,
    ];
    machine.write(handler, &code);
    // mov rax, 1 << 63; then, again and again: mov al, [rax], of two bytes
    let mut code = vec![0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80];
    code.extend(rounds(&[0x8a, 0x00], ROUNDS));
    code.truncate(code.len() - END.len());
    // lidt [rdi], which says that there is no table
    code.extend([0x0f, 0x01, 0x1f]);
    code.extend(END);
    machine.write(CODE, &code);
    machine.run(&state);
    let faults = count(&mut machine, "interpreter called for faults");
    let rounds = u64::from(ROUNDS);
    assert!(faults > rounds * 9 / 10 && faults <= rounds + 1, "{faults}");
}

#[test]
fn writes_to_code_drop_units() {
    // mov [rip + 1], eax: the immediate of mov ecx, IMM behind it
    let mut machine = run(&[0xff, 0xc0, 0x89, 0x05, 1, 0, 0, 0, 0xb9, 0, 0, 0, 0]);
    assert!(count(&mut machine, "interpreter called for code written") > 0);
    assert!(count(&mut machine, "units dropped") > 0);
    assert!(count(&mut machine, "writes to code pages") > 0);
}

#[test]
fn writes_to_page_tables_are_counted() {
    let (mut machine, mut state) = machine(None);
    // The directory: tables of the lowest level may be written until they are used again.
    machine.write(
        PAGES + 8 * (0x20_2000 >> 12 & 0x1ff),
        &(0x10_3000u64 | 7).to_le_bytes(),
    );
    state.gpr[3] = 0x20_2000;
    // mov al, [rdi]; mov [rbx + 0xff8], r8
    machine.write(
        CODE,
        &rounds(&[0x8a, 0x07, 0x4c, 0x89, 0x83, 0xf8, 0x0f, 0, 0], ROUNDS),
    );
    machine.run(&state);
    let writes = count(&mut machine, "interpreter called for page tables");
    assert!(writes > u64::from(ROUNDS) * 9 / 10, "{writes}");
}

#[test]
fn an_instruction_on_two_pages_is_translated_like_others() {
    let (mut machine, state) = machine(None);
    // mov eax, 1; ret
    machine.write(FRAME + 0xffd, &[0xb8, 1, 0, 0, 0, 0xc3]);
    // lea rdx, [rdi+0xffd]; call rdx
    let body = [0x48, 0x8d, 0x97, 0xfd, 0x0f, 0, 0, 0xff, 0xd2];
    machine.write(CODE, &rounds(&body, ROUNDS));
    machine.run(&state);
    for name in [
        "branches not linked yet",
        "entries to translated code",
        "instructions left to the interpreter",
    ] {
        let count = count(&mut machine, name);
        assert!(count < 100, "{name}: {count}");
    }
}

#[test]
fn a_branch_that_is_not_found_leaves_and_one_that_is_linked_does_not() {
    // call +0; pop rax: nowhere else.
    let mut machine = run(&[0xe8, 0, 0, 0, 0, 0x58]);
    assert!(count(&mut machine, "units translated") > 0);
    let entries = count(&mut machine, "entries to translated code");
    assert!(entries < u64::from(ROUNDS) / 10, "{entries}");
    let exits = count(&mut machine, "branches not linked yet")
        + count(&mut machine, "interpreter calls back to the loop");
    assert!(exits > 0 && exits <= entries);
}

/// No device; whoever reads a port waits.
struct Slow;

impl Io for Slow {
    fn mmio_read(&self, _: Gpa, _: &mut [u8]) -> Served {
        Served::Done
    }
    fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
        Served::Done
    }
    fn port_read(&self, _: u16, _: &mut [u8]) {
        thread::sleep(Duration::from_millis(20));
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
}

/// Two units that jump to each other, over the border of a page.
fn to_and_fro(machine: &Machine, rounds: u32) {
    let near = |from: u64, to: u64| (to.wrapping_sub(from + 5) as u32).to_le_bytes();
    let there = CODE + 0x1000;
    // mov r12d, ROUNDS; jmp there | dec r12d; jnz -11, the jump; ud2
    let mut code = vec![0x41, 0xbc];
    code.extend(rounds.to_le_bytes());
    code.push(0xe9);
    code.extend(near(CODE + 6, there));
    code.extend([0x41, 0xff, 0xcc, 0x75, 0xf6]);
    code.extend(END);
    machine.write(CODE, &code);
    let back = CODE + 11;
    machine.write(there, &[&[0xe9][..], &near(there, back)].concat());
}

#[test]
fn transfers_from_unit_to_unit_are_counted_for_who_measures() {
    let (mut machine, state) = machine(Some(Meter::start()));
    to_and_fro(&machine, 100_000);
    machine.run(&state);
    let transfers = count(&mut machine, "transfers between units");
    assert!((150_000..450_000).contains(&transfers), "{transfers}");
    let chained = count(&mut machine, "chained of 10000 transfers");
    assert!((9900..10_000).contains(&chained), "{chained}");
    let listed = run(&[0x90]).vcpu().statistics();
    assert!(
        !listed
            .iter()
            .any(|(name, _)| name.contains("transfers b") || name.contains("sampled"))
    );
}

#[test]
fn time_is_of_what_the_processor_does() {
    let (mut machine, state) = machine(Some(Meter::start()));
    // in al, 0x80, ten times; then some seconds of counting down, ended from outside
    let code = [&[
        0xb9, 10, 0, 0, 0, 0xe4, 0x80, 0xff, 0xc9, 0x75, 0xfa, 0xff, 0xc8, 0xeb, 0xfc,
    ][..]];
    machine.write(CODE, &code.concat());
    machine.vcpu().set_state(&state).expect("valid state");
    let kick = machine.vcpu().kick_handle();
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(600));
        kick.kick();
    });
    assert!(machine.go_on(&Slow).is_none());
    kicker.join().expect("nothing in it panics");
    let devices = count(&mut machine, "sampled ms in devices");
    let code = count(&mut machine, "sampled ms in translated code");
    assert!(devices >= 150, "{devices}");
    assert!(code >= 100, "{code}");
    assert!(devices + code < 5000);
    assert_eq!(count(&mut machine, "attention for the machine"), 1);
}

#[test]
fn who_wants_attention_is_counted() {
    let (mut machine, state) = machine(None);
    let (kick, space) = (machine.vcpu().kick_handle(), machine.space());
    let (apic, code) = machine.around_it();
    let options = RamOptions {
        len: 0x1000,
        huge: HugePages::No,
        prefault: false,
    };
    let ram = RamRegion::new(options).expect("guest memory");
    let flags = Flags::default();
    let added = space.update("test", |map| {
        map.add_ram(Gpa(0x50_0000), ram, 0, 0x1000, flags)
    });
    let slot = added.expect("there is nothing yet").wait();
    // mov ecx, [rsi], which is that memory; inc rax; jmp to that
    machine.write(CODE, &[0x8b, 0x0e, 0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    machine.vcpu().set_state(&state).expect("valid state");
    let other = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        let removed = space.update("test", |map| map.remove(slot));
        removed.expect("it is there").wait();
        thread::sleep(Duration::from_millis(100));
        code.written_by_device(CODE, 8);
        thread::sleep(Duration::from_millis(100));
        // Enabled; vector 0x44 for itself, which waits for RFLAGS.IF.
        apic.mmio_write(0xf0, 0x1ff);
        apic.mmio_write(0x300, 0x4_0044);
        thread::sleep(Duration::from_millis(100));
        kick.kick();
    });
    assert!(machine.go_on(&Slow).is_none());
    other.join().expect("nothing in it panics");
    let flushes = count(&mut machine, "attention for a flush by the MMU");
    assert!(flushes > 0);
    for who in [
        "attention for code written elsewhere",
        "attention for an interrupt",
        "attention for the machine",
    ] {
        assert_eq!(count(&mut machine, who), 1, "{who}");
    }
}
