//! In and out of 64-bit code: SYSCALL, SYSENTER, interrupts with and without a stack of their own,
//! IRET and far RET in all directions (SDM vol. 3, 5.8.7, 5.8.8, 6.14; vol. 2 under each
//! instruction).
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, CODE_0, CODE_3, DATA_0, DATA_3, END, End, IDT, Machine, STACK, gate};
use umbra_x86::rflags::{AC, DF, FIXED, IF, IOPL, NT, RF, TF, VM};
use umbra_x86::state::{CpuState, Segment, seg};
use umbra_x86::{cr0, cr4, efer};

/// Selectors of 64-bit code.
const LONG_0: u16 = 0x28;
const LONG_3: u16 = 0x33;
/// Conforming 64-bit code of level 0.
const CONFORMING: u16 = 0x38;
const TASK: u16 = 0x48;

const TASK_AT: u64 = 0x3000;
const TARGET: u64 = 0x1_8000;
const INNER_STACK: u64 = 0x2_8000;
const OTHER_STACK: u64 = 0x2_9008;
const GP: &str = "13(0x0)";
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

fn machine() -> Machine {
    let machine = Machine::new();
    machine.descriptor(LONG_0, 0x00af_9b00_0000_ffff);
    machine.descriptor(LONG_3, 0x00af_fb00_0000_ffff);
    machine.descriptor(CONFORMING, 0x00af_9f00_0000_ffff);
    machine.write(TASK_AT + 4, &INNER_STACK.to_le_bytes());
    // IST1, not aligned; IST2 beyond what is canonical.
    machine.write(TASK_AT + 0x24, &OTHER_STACK.to_le_bytes());
    machine.write(TASK_AT + 0x2c, &(NOT_CANONICAL + STACK).to_le_bytes());
    machine.write(TARGET, &END);
    machine
}

/// 64-bit code with a task state, at level 0 or 3.
fn long(machine: &Machine, cpl: u16) -> CpuState {
    let mut state = bare::long(machine);
    state.seg[seg::CS] = bare::long_code(LONG_0);
    if cpl == 3 {
        state.seg = [DATA_3; 6].map(bare::flat);
        state.seg[seg::CS] = bare::long_code(LONG_3);
    }
    state.tr = Segment {
        selector: TASK,
        base: TASK_AT,
        limit: 0x67,
        attr: 0xb | Segment::P,
    };
    state.efer |= efer::SCE;
    state
}

fn run(machine: &mut Machine, state: &CpuState, code: &[u8]) -> End {
    machine.write(CODE, &[code, &END].concat());
    machine.run(state)
}

/// A gate of 16 bytes.
fn long_gate(machine: &Machine, vector: u8, gate: u64, ist: u64, upper: u64) {
    let at = IDT + 16 * u64::from(vector);
    machine.write(at, &(gate | ist << 32).to_le_bytes());
    machine.write(at + 8, &upper.to_le_bytes());
}

fn words<const N: usize>(machine: &Machine, at: u64) -> [u64; N] {
    std::array::from_fn(|i| u64::from_le_bytes(machine.read(at + 8 * i as u64)))
}

/// What IRETQ takes, below [`STACK`].
fn push_frame(machine: &Machine, words: [u64; 5]) {
    machine.write(STACK - 40, &words.map(u64::to_le_bytes).concat());
}

fn wrmsr(number: u32, value: u64) -> Vec<u8> {
    let [low, high] = [value as u32, (value >> 32) as u32].map(u32::to_le_bytes);
    let number = number.to_le_bytes();
    [
        &[0xb9],
        &number[..],
        &[0xb8],
        &low,
        &[0xba],
        &high,
        &[0x0f, 0x30],
    ]
    .concat()
}

/// Level 0 sets `msrs`, and goes on at level 3 with `code`, by IRETQ.
fn with_msrs(msrs: &[(u32, u64)], state: &mut CpuState, machine: &Machine, cs: u16, code: &[u8]) {
    let mut set: Vec<u8> = msrs
        .iter()
        .flat_map(|(n, value)| wrmsr(*n, *value))
        .collect();
    set.extend([0x48, 0xcf]);
    assert!(set.len() < 0x800);
    const USER: u64 = CODE + 0x800;
    machine.write(CODE, &set);
    machine.write(USER, &[code, &END].concat());
    let frame = [USER, cs.into(), FIXED | IF | DF | AC, STACK, DATA_3.into()];
    push_frame(machine, frame);
    state.gpr[4] = STACK - 40;
}

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
/// SYSCALL enters 0x28; SYSRET returns to 0x18 (32 bits), or 16 further.
const STAR_VALUE: u64 = 0x0023_0028 << 32;

#[test]
fn syscall_saves_rip_and_flags_and_masks_them() {
    let mut machine = machine();
    let mut state = long(&machine, 0);
    let msrs = [(STAR, STAR_VALUE), (LSTAR, TARGET), (FMASK, IF | DF)];
    with_msrs(&msrs, &mut state, &machine, LONG_3, &[0x0f, 0x05]);
    let end = machine.run(&state);
    assert_eq!((end.exception(), end.state.rip), ("6", TARGET), "{end:?}");
    assert_eq!(end.state.gpr[1], CODE + 0x802);
    assert_eq!(end.state.gpr[11], FIXED | IF | DF | AC);
    assert_eq!(end.state.rflags, FIXED | AC);
    assert_eq!(end.state.gpr[4], STACK, "the stack is the caller's");
    let [cs, ss] = [seg::CS, seg::SS].map(|s| end.state.seg[s].selector);
    assert_eq!((cs, ss), (0x28, 0x30));
}

#[test]
fn sysret_takes_flags_from_r11_and_refuses_addresses_that_are_not_canonical() {
    let sysretq: &[u8] = &[0x48, 0x0f, 0x07];
    let sysretl: &[u8] = &[0x0f, 0x07];
    // STAR alone decides about selectors: 0x23 + 16 and + 8 for 64 bits, 0x23 and + 8 for 32.
    for (code, rcx, expected, cs) in [
        (sysretq, TARGET, "6", 0x33),
        (sysretq, NOT_CANONICAL, GP, LONG_0),
        (sysretl, TARGET, "6", 0x23),
        (sysretl, TARGET | 1 << 63, "6", 0x23),
    ] {
        let mut machine = machine();
        let mut state = long(&machine, 0);
        state.gpr[11] = IF | AC | NT | IOPL | RF | VM | 1 << 15 | 1 << 3;
        let set = wrmsr(STAR, STAR_VALUE);
        let rcx = [&[0x48, 0xb9][..], &rcx.to_le_bytes()].concat();
        let end = run(&mut machine, &state, &[&set[..], &rcx, code].concat());
        assert_eq!(end.exception(), expected, "{end:?}");
        assert_eq!(end.state.seg[seg::CS].selector, cs);
        if expected == "6" {
            assert_eq!(end.state.rip, TARGET);
            assert_eq!(end.state.seg[seg::SS].selector, 0x2b);
            assert_eq!(end.state.rflags, FIXED | IF | AC | NT | IOPL);
        }
    }
}

#[test]
fn syscall_is_undefined_without_sce_and_outside_64_bit_code() {
    let mut machine = machine();
    let mut state = long(&machine, 3);
    state.efer &= !efer::SCE;
    assert_eq!(run(&mut machine, &state, &[0x0f, 0x05]).state.rip, CODE);
    let mut state = long(&machine, 3);
    state.seg[seg::CS] = bare::flat(CODE_3);
    assert_eq!(run(&mut machine, &state, &[0x0f, 0x05]).state.rip, CODE);
    for code in [[0x0f, 0x05], [0x0f, 0x07]] {
        let end = run(&mut machine, &bare::protected(), &code);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE));
    }
}

#[test]
fn sysenter_and_sysexit_take_segments_from_one_register() {
    const CS: u32 = 0x174;
    for (cs, expected) in [(u64::from(LONG_0), "6"), (0, GP), (3, GP)] {
        let mut machine = machine();
        let mut state = long(&machine, 0);
        let msrs = [(CS, cs), (CS + 1, INNER_STACK), (CS + 2, TARGET)];
        with_msrs(&msrs, &mut state, &machine, LONG_3, &[0x0f, 0x34]);
        let end = machine.run(&state);
        assert_eq!(end.exception(), expected, "{cs:#x}");
        if expected == "6" {
            assert_eq!((end.state.rip, end.state.gpr[4]), (TARGET, INNER_STACK));
            assert_eq!(end.state.rflags & (IF | VM | RF), 0);
            let [cs, ss] = [seg::CS, seg::SS].map(|s| end.state.seg[s].selector);
            assert_eq!((cs, ss), (LONG_0, LONG_0 + 8));
        }
    }
    for (wide, rdx, rcx, expected, selectors) in [
        (true, TARGET, STACK, "6", (0x4b, 0x53)),
        (true, NOT_CANONICAL, STACK, GP, (0, 0)),
        (true, TARGET, NOT_CANONICAL, GP, (0, 0)),
        (false, TARGET | 1 << 63, STACK | 1 << 63, "6", (0x3b, 0x43)),
    ] {
        let mut machine = machine();
        let state = long(&machine, 0);
        let code = [
            wrmsr(CS, LONG_0.into()),
            [&[0x48, 0xba][..], &rdx.to_le_bytes()].concat(),
            [&[0x48, 0xb9][..], &rcx.to_le_bytes()].concat(),
            if wide {
                vec![0x48, 0x0f, 0x35]
            } else {
                vec![0x0f, 0x35]
            },
        ];
        let end = run(&mut machine, &state, &code.concat());
        assert_eq!(end.exception(), expected, "{rdx:#x} {rcx:#x}");
        if expected == "6" {
            assert_eq!((end.state.rip, end.state.gpr[4]), (TARGET, STACK));
            let [cs, ss] = [seg::CS, seg::SS].map(|s| end.state.seg[s].selector);
            assert_eq!((cs, ss), selectors);
        }
    }
}

#[test]
fn an_interrupt_pushes_five_words_on_an_aligned_stack_of_its_choice() {
    let table = [
        // Level before, selector of the gate, IST, the stack it uses.
        (0, LONG_0, 0, STACK & !15),
        (0, LONG_0, 1, OTHER_STACK & !15),
        (3, LONG_0, 0, INNER_STACK),
        (3, LONG_0, 1, OTHER_STACK & !15),
        (3, LONG_3, 0, STACK & !15),
        (3, CONFORMING, 0, STACK & !15),
    ];
    for (cpl, selector, ist, top) in table {
        let mut machine = machine();
        let mut state = long(&machine, cpl);
        state.gpr[4] = STACK + 6;
        state.rflags |= IF;
        let kind = if ist == 0 { 0xe } else { 0xf };
        long_gate(&machine, 0x20, gate(selector & !3, TARGET, kind, 3), ist, 0);
        state.idtr.limit = 0x21 * 16 - 1;
        let end = run(&mut machine, &state, &[0xcd, 0x20]);
        let what = format!("{selector:#x} from {cpl} with IST {ist}: {end:?}");
        assert_eq!((end.exception(), end.state.rip), ("6", TARGET), "{what}");
        assert_eq!(end.state.gpr[4], top - 40, "{what}");
        let [cs, ss] = [seg::CS, seg::SS].map(|s| state.seg[s].selector);
        let frame = [CODE + 2, cs.into(), FIXED | IF, STACK + 6, ss.into()];
        assert_eq!(words::<5>(&machine, top - 40), frame, "{what}");
        // An interrupt gate clears IF, a trap gate does not.
        assert_eq!(end.state.rflags & IF != 0, kind == 0xf, "{what}");
        let inner = cpl == 3 && selector == LONG_0;
        assert_eq!(
            end.state.seg[seg::SS].selector,
            if inner { 0 } else { ss },
            "{what}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_long_gate_names_it() {
    let good = gate(LONG_0, TARGET, 0xe, 3);
    let table = [
        (
            "of level 0",
            gate(LONG_0, TARGET, 0xe, 0),
            0,
            0,
            "13(0x202)",
        ),
        ("absent", good & !(0x80 << 40), 0, 0, "11(0x202)"),
        ("of 16 bits", gate(LONG_0, TARGET, 6, 3), 0, 0, "13(0x202)"),
        ("to a task", gate(LONG_0, 0, 5, 3), 0, 0, "13(0x202)"),
        ("to nothing", gate(0, TARGET, 0xe, 3), 0, 0, GP),
        ("to data", gate(DATA_0, TARGET, 0xe, 3), 0, 0, "13(0x10)"),
        (
            "to 32-bit code",
            gate(CODE_0, TARGET, 0xe, 3),
            0,
            0,
            "13(0x8)",
        ),
        ("to an address that is not canonical", good, 0, 0x8000, GP),
        ("with a stack that is not", good, 2, 0, "12(0x0)"),
    ];
    for (what, descriptor, ist, upper, expected) in table {
        let mut machine = machine();
        let mut state = long(&machine, 3);
        long_gate(&machine, 0x40, descriptor, ist, upper);
        state.idtr.limit = 0x41 * 16 - 1;
        let end = run(&mut machine, &state, &[0xcd, 0x40]);
        assert_eq!((end.exception(), end.state.rip), (expected, CODE), "{what}");
        assert_eq!(end.state.gpr[4], STACK, "{what}");
        assert_eq!(end.state.seg[seg::CS].selector, LONG_3, "{what}");
    }
    // Behind the limit of the table.
    let mut machine = machine();
    let mut state = long(&machine, 3);
    long_gate(&machine, 0x40, good, 0, 0);
    state.idtr.limit = 0x40 * 16 + 7;
    assert_eq!(
        run(&mut machine, &state, &[0xcd, 0x40]).exception(),
        "13(0x202)"
    );
}

/// IRETQ or RETFQ at level 0 with these words on the stack.
fn go_back(code: &[u8], frame: [u64; 5]) -> End {
    let mut machine = machine();
    let mut state = long(&machine, 0);
    state.gpr[4] = STACK - 40;
    push_frame(&machine, frame);
    run(&mut machine, &state, code)
}

#[test]
fn iretq_goes_wherever_the_frame_says_and_may() {
    let flags = FIXED | IF | RF | IOPL | AC;
    let table = [
        ("to level 3", LONG_3, DATA_3, TARGET, STACK, "6"),
        (
            "to 32-bit code of level 3",
            CODE_3,
            DATA_3,
            TARGET,
            STACK,
            "6",
        ),
        (
            "to 32-bit code of level 0",
            CODE_0,
            DATA_0,
            TARGET,
            STACK,
            "6",
        ),
        ("to level 0", LONG_0, DATA_0, TARGET, STACK, "6"),
        (
            "to level 0 with no stack segment",
            LONG_0,
            0,
            TARGET,
            STACK,
            "6",
        ),
        ("with none of level 3", LONG_0, 3, TARGET, STACK, GP),
        (
            "to level 3 with no stack segment",
            LONG_3,
            3,
            TARGET,
            STACK,
            GP,
        ),
        ("to 32-bit code with none", CODE_0, 0, TARGET, STACK, GP),
        (
            "with a stack of another level",
            LONG_3,
            DATA_0,
            TARGET,
            STACK,
            "13(0x10)",
        ),
        (
            "with code for a stack",
            LONG_3,
            LONG_3,
            TARGET,
            STACK,
            "13(0x30)",
        ),
        ("to nowhere", 0, DATA_0, TARGET, STACK, GP),
        ("to data", DATA_0, DATA_0, TARGET, STACK, "13(0x10)"),
        (
            "to level 3 by level 0's selector",
            LONG_0 | 3,
            DATA_3,
            TARGET,
            STACK,
            "13(0x28)",
        ),
        (
            "to an address that is not canonical",
            LONG_3,
            DATA_3,
            NOT_CANONICAL,
            STACK,
            GP,
        ),
        (
            "to a stack that is not",
            LONG_3,
            DATA_3,
            TARGET,
            NOT_CANONICAL,
            "6",
        ),
    ];
    for (what, cs, ss, rip, rsp, expected) in table {
        let end = go_back(&[0x48, 0xcf], [rip, cs.into(), flags, rsp, ss.into()]);
        assert_eq!(end.exception(), expected, "{what}: {end:?}");
        let [found_cs, found_ss] = [seg::CS, seg::SS].map(|s| end.state.seg[s].selector);
        if expected == "6" {
            assert_eq!((found_cs, found_ss), (cs, ss), "{what}");
            assert_eq!((end.state.rip, end.state.gpr[4]), (TARGET, rsp), "{what}");
            assert_eq!(end.state.rflags & !RF, flags & !RF, "{what}");
        } else {
            assert_eq!((found_cs, found_ss), (LONG_0, DATA_0), "{what}");
            assert_eq!(
                (end.state.rip, end.state.gpr[4]),
                (CODE, STACK - 40),
                "{what}"
            );
        }
    }
}

#[test]
fn iretq_refuses_nested_tasks() {
    let mut machine = machine();
    let mut state = long(&machine, 0);
    state.rflags |= NT;
    assert_eq!(run(&mut machine, &state, &[0x48, 0xcf]).exception(), GP);
}

#[test]
fn iret_at_level_3_leaves_iopl_and_if_alone() {
    let mut machine = machine();
    let mut state = long(&machine, 3);
    state.gpr[4] = STACK - 40;
    let frame = [
        TARGET,
        LONG_3.into(),
        FIXED | IF | IOPL | AC,
        STACK,
        DATA_3.into(),
    ];
    push_frame(&machine, frame);
    let end = run(&mut machine, &state, &[0x48, 0xcf]);
    assert_eq!((end.exception(), end.state.rflags), ("6", FIXED | AC));
}

#[test]
fn iret_to_an_outer_level_takes_away_what_it_may_not_have() {
    let frame = [TARGET, LONG_3.into(), FIXED, STACK, DATA_3.into()];
    let end = go_back(&[0x48, 0xcf], frame);
    // DATA_0 stood in all of them (SDM vol. 3, 5.8.6).
    for index in [seg::DS, seg::ES, seg::FS, seg::GS] {
        assert_eq!(end.state.seg[index].selector, 0);
        assert_eq!(end.state.seg[index].attr & Segment::P, 0);
    }
}

#[test]
fn iret_to_an_outer_level_takes_the_rpl_of_null_selectors_and_no_base() {
    let mut machine = machine();
    let mut state = long(&machine, 0);
    let null = |base| Segment {
        selector: 3,
        base,
        ..Segment::default()
    };
    state.seg[seg::DS] = null(0);
    state.seg[seg::FS] = null(0x1234_5000);
    state.gpr[4] = STACK - 40;
    let frame = [TARGET, LONG_3.into(), FIXED, STACK, DATA_3.into()];
    push_frame(&machine, frame);
    let end = run(&mut machine, &state, &[0x48, 0xcf]);
    assert_eq!(end.state.seg[seg::DS].selector, 0, "{end:?}");
    assert_eq!(end.state.seg[seg::FS].selector, 0);
    assert_eq!(end.state.seg[seg::FS].base, 0x1234_5000);
}

#[test]
fn retfq_goes_out_and_releases_parameters_on_both_stacks() {
    let outer = [TARGET, LONG_3.into(), 0x1111, STACK - 0x100, DATA_3.into()];
    let end = go_back(&[0x48, 0xca, 8, 0], outer);
    assert_eq!((end.exception(), end.state.rip), ("6", TARGET), "{end:?}");
    assert_eq!(end.state.gpr[4], STACK - 0x100 + 8);
    assert_eq!(end.state.seg[seg::SS].selector, DATA_3);
    let same = [TARGET, LONG_0.into(), 0x1111, 0, 0];
    let end = go_back(&[0x48, 0xca, 8, 0], same);
    assert_eq!((end.exception(), end.state.gpr[4]), ("6", STACK - 40 + 24));
    for (cs, expected) in [(DATA_0, "13(0x10)"), (0, GP), (0x1000, "13(0x1000)")] {
        let end = go_back(&[0x48, 0xcb], [TARGET, cs.into(), 0, 0, 0]);
        assert_eq!((end.exception(), end.state.gpr[4]), (expected, STACK - 40));
    }
}

#[test]
fn a_call_gate_of_64_bits_pushes_four_words_on_the_inner_stack() {
    const CALL: u16 = 0x50;
    let mut machine = machine();
    let mut state = long(&machine, 3);
    machine.descriptor(CALL, gate(LONG_0, TARGET, 0xc, 3));
    machine.descriptor(CALL + 8, 0);
    // call far [rip]: a pointer of 16:32 behind the instruction.
    let code = [0xff, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0x53, 0];
    state.gpr[4] = STACK + 4;
    let end = run(&mut machine, &state, &code);
    assert_eq!((end.exception(), end.state.rip), ("6", TARGET), "{end:?}");
    let frame = [CODE + 6, LONG_3.into(), STACK + 4, DATA_3.into()];
    assert_eq!(words::<4>(&machine, INNER_STACK - 32), frame);
    assert_eq!(end.state.gpr[4], INNER_STACK - 32);
    // A type in the upper half, or code of 32 bits behind it.
    for (gate, upper, expected) in [
        (gate(LONG_0, TARGET, 0xc, 3), 1 << 40, "13(0x50)"),
        (gate(CODE_0, TARGET, 0xc, 3), 0, "13(0x8)"),
        (gate(LONG_0, TARGET, 4, 3), 0, "13(0x50)"),
    ] {
        machine.descriptor(CALL, gate);
        machine.descriptor(CALL + 8, upper);
        let end = run(&mut machine, &state, &code);
        assert_eq!((end.exception(), end.state.rip), (expected, CODE));
    }
}

#[test]
fn a_fault_while_a_descriptor_is_marked_leaves_every_register_as_it_was() {
    // The table stands on a page that is read-only also for level 0.
    const TABLE: u64 = 0x20_0000;
    let mut machine = machine();
    let mut state = long(&machine, 0);
    machine.write(bare::PAGES, &0x6001u64.to_le_bytes());
    assert_ne!(state.cr0 & cr0::WP, 0);
    let descriptor: u64 = 0x00af_fa00_0000_ffff;
    machine.write(0x6000 + 0x30, &descriptor.to_le_bytes());
    machine.write(0x6000 + 0x20, &0x00cf_f300_0000_ffffu64.to_le_bytes());
    state.gdtr.base = TABLE;
    state.gpr[4] = STACK - 40;
    for code in [&[0x48, 0xcf][..], &[0x48, 0xcb]] {
        let frame = match code[1] {
            0xcf => [TARGET, LONG_3.into(), FIXED, STACK, DATA_3.into()],
            _ => [TARGET, LONG_3.into(), STACK, DATA_3.into(), 0],
        };
        push_frame(&machine, frame);
        let end = run(&mut machine, &state, code);
        assert_eq!(end.exception(), "#PF(0x3) at 0x200035", "{code:x?}");
        assert_eq!(end.state.seg, state.seg, "{code:x?}");
        assert_eq!(end.state.gpr, state.gpr, "{code:x?}");
    }
}

#[test]
fn a_step_out_of_a_handler_traps_behind_its_first_instruction() {
    let mut machine = machine();
    let mut state = long(&machine, 0);
    let frame = [TARGET, LONG_0.into(), FIXED | TF, STACK, DATA_0.into()];
    push_frame(&machine, frame);
    machine.write(TARGET, &[0x90, 0x90, 0x90]);
    state.gpr[4] = STACK - 40;
    let end = run(&mut machine, &state, &[0x48, 0xcf]);
    assert_eq!((end.exception(), end.state.rip), ("1", TARGET + 1));
}

#[test]
fn smap_and_ac_hold_for_level_0_and_its_stacks() {
    // The page at 2 MiB belongs to users (SDM vol. 3, 4.6.1); AC lifts it.
    for (flags, expected) in [(FIXED, "#PF(0x1) at 0x200000"), (FIXED | AC, "6")] {
        let mut machine = machine();
        let mut state = long(&machine, 0);
        machine.write(bare::PAGES, &0x6007u64.to_le_bytes());
        // What runs is of level 0, then.
        machine.write(0x10_3000, &0x83u64.to_le_bytes());
        state.cr4 |= cr4::SMAP;
        state.rflags = flags;
        state.gpr[3] = 0x20_0000;
        let end = run(&mut machine, &state, &[0x8b, 0x03]);
        assert_eq!(end.exception(), expected);
    }
}
