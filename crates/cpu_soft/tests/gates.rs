//! Call gates, interrupts between levels, the map of ports, virtual-8086 mode and the limits of
//! code, in 32-bit protected mode (SDM vol. 3, 5.8, 6.12, 20.2; vol. 1, 19.5).
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{
    CODE, CODE_0, CODE_3, DATA_0, DATA_3, END, End, Machine, STACK, gate, protected, system,
};
use umbra_x86::rflags::{FIXED, IOPL, OF, VM};
use umbra_x86::state::{CpuState, Segment, seg};

const TASK: u16 = 0x40;
const TASK_AT: u64 = 0x3000;
const CALL: u16 = 0x48;
const TARGET: u64 = 0x1_8000;
const INNER_STACK: u32 = 0x2_8000;

/// Level 3, with a task state whose stack for level 0 is [`INNER_STACK`].
fn user(machine: &Machine) -> CpuState {
    let mut state = protected();
    state.seg = [DATA_3, CODE_3, DATA_3, DATA_3, DATA_3, DATA_3].map(bare::flat);
    state.tr = Segment {
        selector: TASK,
        base: TASK_AT,
        limit: 0x87,
        attr: 0xb | Segment::P,
    };
    machine.write(TASK_AT + 4, &INNER_STACK.to_le_bytes());
    machine.write(TASK_AT + 8, &DATA_0.to_le_bytes());
    machine.write(TASK_AT + 0x66, &0x68u16.to_le_bytes());
    machine.write(TARGET, &END);
    state
}

fn run(machine: &mut Machine, state: &CpuState, code: &[u8]) -> End {
    machine.write(CODE, &[code, &END].concat());
    machine.run(state)
}

fn call(selector: u16) -> [u8; 7] {
    let [low, high] = selector.to_le_bytes();
    [0x9a, 0, 0, 0, 0, low, high]
}

#[test]
fn a_call_gate_to_an_inner_level_switches_stacks_and_copies_parameters() {
    let mut machine = Machine::new();
    let mut state = user(&machine);
    // Two parameters of 32 bits (SDM vol. 3, 5.8.5).
    machine.descriptor(CALL, gate(CODE_0, TARGET, 0xc, 3) | 2 << 32);
    state.gpr[4] = STACK - 8;
    machine.write(
        STACK - 8,
        &[0x1111_1111u32, 0x2222_2222].map(u32::to_le_bytes).concat(),
    );
    let end = run(&mut machine, &state, &call(CALL | 3));
    assert_eq!((end.exception(), end.state.rip), ("6", TARGET), "{end:?}");
    assert_eq!(end.state.seg[seg::CS].selector, CODE_0);
    assert_eq!(end.state.seg[seg::SS].selector, DATA_0);
    let top = u64::from(INNER_STACK) - 24;
    assert_eq!(end.state.gpr[4], top);
    let frame: [u32; 6] = std::array::from_fn(|i| machine.read_u32(top + 4 * i as u64));
    let expected = [
        CODE as u32 + 7,
        CODE_3.into(),
        0x1111_1111,
        0x2222_2222,
        STACK as u32 - 8,
        DATA_3.into(),
    ];
    assert_eq!(frame, expected);
}

#[test]
fn a_16_bit_call_gate_pushes_words() {
    let mut machine = Machine::new();
    let mut state = user(&machine);
    machine.descriptor(CALL, gate(CODE_0, 0x8000, 4, 3) | 1 << 32);
    machine.write(0x8000, &END);
    state.gpr[4] = STACK - 2;
    machine.write(STACK - 2, &0x3333u16.to_le_bytes());
    let end = run(&mut machine, &state, &call(CALL | 3));
    assert_eq!((end.exception(), end.state.rip), ("6", 0x8000), "{end:?}");
    let top = u64::from(INNER_STACK) - 10;
    let frame: [u16; 5] = std::array::from_fn(|i| machine.read_u16(top + 2 * i as u64));
    assert_eq!(
        frame,
        [CODE as u16 + 7, CODE_3, 0x3333, (STACK - 2) as u16, DATA_3]
    );
}

#[test]
fn what_is_wrong_with_a_call_gate_is_told_by_its_selector() {
    let absent = gate(CODE_0, TARGET, 0xc, 3) & !(0x80 << 40);
    let table = [
        ("of level 0", gate(CODE_0, TARGET, 0xc, 0), "13(0x48)"),
        ("absent", absent, "11(0x48)"),
        ("to nothing", gate(0, TARGET, 0xc, 3), "13(0x0)"),
        ("to data", gate(DATA_0, TARGET, 0xc, 3), "13(0x10)"),
        ("of an unknown type", system(0, 0, 0, 3), "13(0x48)"),
    ];
    for (what, descriptor, expected) in table {
        let mut machine = Machine::new();
        let state = user(&machine);
        machine.descriptor(CALL, descriptor);
        let end = run(&mut machine, &state, &call(CALL | 3));
        assert_eq!((end.exception(), end.state.rip), (expected, CODE), "{what}");
        assert_eq!(end.state.gpr[4], STACK, "{what}");
    }
}

#[test]
fn the_inner_stack_of_a_call_gate_raises_ts_or_ss() {
    let table = [
        ("null", 0, INNER_STACK, "10(0x0)"),
        ("of level 3", DATA_3, INNER_STACK, "10(0x20)"),
        ("absent", 0x70, INNER_STACK, "12(0x70)"),
        ("too small", 0x78, 4, "12(0x78)"),
    ];
    for (what, selector, pointer, expected) in table {
        let mut machine = Machine::new();
        let state = user(&machine);
        machine.descriptor(CALL, gate(CODE_0, TARGET, 0xc, 3));
        machine.descriptor(0x70, 0x00cf_1300_0000_ffff);
        machine.descriptor(0x78, 0x0040_9300_0000_0fff);
        machine.write(TASK_AT + 4, &pointer.to_le_bytes());
        machine.write(TASK_AT + 8, &selector.to_le_bytes());
        let end = run(&mut machine, &state, &call(CALL | 3));
        assert_eq!((end.exception(), end.state.rip), (expected, CODE), "{what}");
    }
}

#[test]
fn an_interrupt_to_an_inner_level_leaves_five_words_and_iret_takes_them() {
    let mut machine = Machine::new();
    let mut state = user(&machine);
    machine.gate(0x20, gate(CODE_0, TARGET, 0xe, 3));
    machine.write(TARGET, &[0xcf]);
    state.idtr.limit = 0x21 * 8 - 1;
    let end = run(&mut machine, &state, &[0xcd, 0x20]);
    // Back at level 3, the UD2 behind INT finds no gate in the table.
    assert_eq!((end.exception(), end.state.rip), ("6", CODE + 2), "{end:?}");
    assert_eq!(end.state.seg[seg::CS].selector, CODE_3);
    let top = u64::from(INNER_STACK) - 20;
    let frame: [u32; 5] = std::array::from_fn(|i| machine.read_u32(top + 4 * i as u64));
    assert_eq!(frame[..2], [CODE as u32 + 2, CODE_3.into()]);
    assert_eq!(frame[3..], [STACK as u32, DATA_3.into()]);
}

#[test]
fn int_n_needs_the_gates_privilege_and_tells_its_vector() {
    for (dpl, expected) in [(0, "13(0x102)"), (3, "6")] {
        let mut machine = Machine::new();
        let mut state = user(&machine);
        machine.gate(0x20, gate(CODE_0, TARGET, 0xe, dpl));
        state.idtr.limit = 0x21 * 8 - 1;
        assert_eq!(
            run(&mut machine, &state, &[0xcd, 0x20]).exception(),
            expected
        );
    }
}

#[test]
fn the_map_of_ports_has_the_last_word() {
    // in al, dx: port 5; the map begins at 0x68 (SDM vol. 1, 19.5.2).
    for (map, limit, expected) in [
        (0x00u8, 0x87, "6"),
        (0x20, 0x87, "13(0x0)"),
        (0x10, 0x87, "6"),
        // The processor reads two bytes of the map; the second lies beyond the limit.
        (0x00, 0x68, "13(0x0)"),
    ] {
        let mut machine = Machine::new();
        let mut state = user(&machine);
        machine.write(TASK_AT + 0x68, &[map]);
        state.tr.limit = limit;
        state.gpr[2] = 5;
        assert_eq!(
            run(&mut machine, &state, &[0xec]).exception(),
            expected,
            "{map:#x} {limit:#x}"
        );
    }
    // With IOPL 3 nobody asks the map.
    let mut machine = Machine::new();
    let mut state = user(&machine);
    machine.write(TASK_AT + 0x68, &[0xff]);
    state.rflags |= IOPL;
    assert_eq!(run(&mut machine, &state, &[0xec]).exception(), "6");
}

/// Virtual-8086 mode at 0x1000:0, where `code` is.
fn virtual_8086(machine: &Machine, iopl: u64, code: &[u8]) -> CpuState {
    let mut state = user(machine);
    let real = |selector: u16| Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        attr: 0x3 | Segment::S | Segment::P | 3 << 5,
    };
    state.seg = [0x2000, 0x1000, 0x2000, 0x2000, 0x2000, 0x2000].map(real);
    state.seg[1].attr |= 8;
    state.rip = 0;
    state.gpr[4] = 0x100;
    state.rflags = FIXED | VM | iopl << 12;
    machine.write(0x1_0000, &[code, &END].concat());
    state
}

#[test]
fn virtual_8086_mode_lets_iopl_3_do_what_others_may_not() {
    // CLI, STI, PUSHF, POPF, INT n, IRET (SDM vol. 3, 20.2.8).
    let table: [&[u8]; 5] = [&[0xfa], &[0xfb], &[0x9c], &[0x9d], &[0xcf]];
    for code in table {
        let mut machine = Machine::new();
        let state = virtual_8086(&machine, 0, code);
        assert_eq!(machine.run(&state).exception(), "13(0x0)", "{code:x?}");
        let mut machine = Machine::new();
        let state = virtual_8086(&machine, 3, code);
        assert_ne!(machine.run(&state).exception(), "13(0x0)", "{code:x?}");
    }
}

#[test]
fn int3_and_into_are_not_sensitive_to_iopl() {
    // INT 3 in two bytes is (SDM vol. 3, 20.2.8).
    for (code, expected) in [
        (&[0xcc][..], "6"),
        (&[0xce], "6"),
        (&[0xcd, 3], "13(0x0)"),
        (&[0xcd, 4], "13(0x0)"),
    ] {
        let mut machine = Machine::new();
        let mut state = virtual_8086(&machine, 0, code);
        state.rflags |= OF;
        machine.gate(3, gate(CODE_0, TARGET, 0xe, 3));
        machine.gate(4, gate(CODE_0, TARGET, 0xe, 3));
        state.idtr.limit = 5 * 8 - 1;
        assert_eq!(machine.run(&state).exception(), expected, "{code:x?}");
    }
}

#[test]
fn an_interrupt_leaves_virtual_8086_mode_with_all_segments() {
    let mut machine = Machine::new();
    let mut state = virtual_8086(&machine, 3, &[0xcd, 0x20]);
    machine.gate(0x20, gate(CODE_0, TARGET, 0xe, 3));
    state.idtr.limit = 0x21 * 8 - 1;
    let end = machine.run(&state);
    assert_eq!((end.exception(), end.state.rip), ("6", TARGET), "{end:?}");
    assert_eq!(end.state.rflags & VM, 0);
    let top = u64::from(INNER_STACK) - 36;
    let frame: [u32; 9] = std::array::from_fn(|i| machine.read_u32(top + 4 * i as u64));
    assert_eq!((frame[0], frame[1]), (2, 0x1000));
    assert_eq!(frame[2] & VM as u32, VM as u32);
    assert_eq!(frame[3..], [0x100, 0x2000, 0x2000, 0x2000, 0x2000, 0x2000]);
    assert_eq!(end.state.seg[seg::DS].selector, 0);
}

#[test]
fn a_gate_out_of_virtual_8086_mode_leads_to_level_0_or_nowhere() {
    let mut machine = Machine::new();
    let mut state = virtual_8086(&machine, 3, &[0xcd, 0x20]);
    machine.gate(0x20, gate(CODE_3, TARGET, 0xe, 3));
    state.idtr.limit = 0x21 * 8 - 1;
    assert_eq!(machine.run(&state).exception(), "13(0x18)");
}

#[test]
fn code_that_reaches_beyond_the_limit_of_cs_is_gp_and_not_undefined() {
    // A MOV of five bytes: the last one is beyond the limit; then what is behind it.
    for (bytes, at) in [(4, CODE), (5, CODE + 5)] {
        let mut machine = Machine::new();
        let mut state = protected();
        state.seg[1].limit = CODE as u32 + bytes - 1;
        let end = run(&mut machine, &state, &[0xb8, 1, 2, 3, 4]);
        assert_eq!((end.exception(), end.state.rip), ("13(0x0)", at));
    }
}

#[test]
fn a_near_jump_beyond_the_limit_of_cs_raises_at_the_jump() {
    let mut machine = Machine::new();
    let mut state = protected();
    state.seg[1].limit = CODE as u32 + 0xfff;
    let end = run(&mut machine, &state, &[0xe9, 0, 0x10, 0, 0]);
    assert_eq!((end.exception(), end.state.rip), ("13(0x0)", CODE));
}

#[test]
fn a_block_is_decoded_anew_for_a_smaller_code_segment() {
    // mov eax, 1; then far to the same bytes with a limit that ends within the MOV.
    let mut machine = Machine::new();
    machine.descriptor(0x78, 0x0041_9b00_0000_0000 | (CODE + 2) & 0xffff);
    let [low, high] = 0x78u16.to_le_bytes();
    let code = [0xb8, 1, 0, 0, 0, 0xea, 0, 0, 1, 0, low, high];
    let end = run(&mut machine, &protected(), &code);
    assert_eq!((end.exception(), end.state.rip), ("13(0x0)", CODE));
    assert_eq!(end.state.seg[seg::CS].selector, 0x78);
}
