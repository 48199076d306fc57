//! Debug exceptions (SDM vol. 3, chapter 17) and shadows (vol. 3, 6.8.3), in 32-bit protected mode.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, CODE_0, END, End, IDT, Machine, STACK, gate, protected};
use umbra_x86::rflags::{RF, TF};
use umbra_x86::state::CpuState;

/// Where the handler of #DB is: it reads DR6 into EBX and ends.
const HANDLER: u64 = 0x1_8000;
const DATA: u32 = 0x3_0000;

/// Runs `code` with a handler for #DB.
fn run(state: &CpuState, code: &[u8]) -> (Machine, End) {
    let mut machine = Machine::new();
    machine.gate(1, gate(CODE_0, HANDLER, 0xe, 0));
    machine.write(HANDLER, &[&[0x0f, 0x21, 0xf3][..], &END].concat());
    machine.write(CODE, &[code, &END].concat());
    let mut state = state.clone();
    state.idtr.limit = 2 * 8 - 1;
    state.idtr.base = IDT;
    let end = machine.run(&state);
    (machine, end)
}

/// `mov eax, value; mov drN, eax`.
fn set_dr(number: u8, value: u32) -> Vec<u8> {
    [
        &[0xb8][..],
        &value.to_le_bytes(),
        &[0x0f, 0x23, 0xc0 | number << 3],
    ]
    .concat()
}

/// Enables breakpoint 0 with the kind and size that DR7 has in bits 16 to 19.
fn breakpoint(address: u32, kind: u32) -> Vec<u8> {
    [set_dr(0, address), set_dr(7, 2 | kind << 16)].concat()
}

/// The instruction pointer that the handler found on its stack, and its DR6.
fn trapped(machine: &Machine, end: &End) -> (u64, u32) {
    assert_eq!(
        (end.exception(), end.state.rip),
        ("6", HANDLER + 3),
        "{end:?}"
    );
    let frame = STACK - 12;
    (machine.read_u32(frame).into(), end.state.gpr[3] as u32)
}

/// DR6 with nothing in it.
const NONE: u32 = 0xffff_0ff0;

#[test]
fn an_instruction_breakpoint_comes_before_its_instruction() {
    let set = breakpoint(CODE as u32 + 16 + 1, 0);
    assert_eq!(set.len(), 16);
    let (machine, end) = run(&protected(), &[&set[..], &[0x90, 0x41, 0x41]].concat());
    assert_eq!(trapped(&machine, &end), (CODE + 17, NONE | 1));
    assert_eq!(end.state.gpr[1], 0);
    // RF is left to the handler (17.3.1.1).
    assert_eq!(u64::from(machine.read_u32(STACK - 4)) & RF, 0);
}

#[test]
fn a_data_breakpoint_comes_behind_its_instruction_and_knows_its_kind() {
    let address = DATA.to_le_bytes();
    let write = [&[0xa3][..], &address].concat(); // mov [DATA], eax
    let read = [&[0xa1][..], &address].concat();
    // Kind and size as in DR7: writes (1), accesses (3), of four bytes (3 << 2).
    for (kind, access, hits) in [(0xd, &write, true), (0xd, &read, false), (0xf, &read, true)] {
        let code = [&breakpoint(DATA, kind)[..], access, &[0xcc]].concat();
        let (machine, end) = run(&protected(), &code);
        if hits {
            assert_eq!(trapped(&machine, &end), (CODE + 21, NONE | 1));
        } else {
            assert_eq!(end.state.gpr[3], 0, "kind {kind:#x}");
        }
    }
}

#[test]
fn a_breakpoint_covers_its_bytes_and_no_other() {
    for (offset, hits) in [(0, true), (3, true), (4, false), (-1, false)] {
        let address = DATA.wrapping_add_signed(offset).to_le_bytes();
        let store = [&[0xc6, 0x05][..], &address, &[7]].concat(); // mov byte [..], 7
        let code = [&breakpoint(DATA, 0xd)[..], &store].concat();
        let (_, end) = run(&protected(), &code);
        assert_eq!(end.state.gpr[3] & 1 != 0, hits, "offset {offset}");
    }
}

#[test]
fn a_breakpoint_takes_the_place_of_earlier_ones_in_dr6_and_keeps_the_rest() {
    let store = [&[0xa3][..], &DATA.to_le_bytes()].concat(); // mov [DATA], eax
    let earlier = set_dr(6, 2 | 1 << 13);
    let (_, end) = run(
        &protected(),
        &[earlier, breakpoint(DATA, 0xd), store].concat(),
    );
    assert_eq!(end.state.gpr[3] as u32, NONE | 1 | 1 << 13);
}

#[test]
fn a_single_step_comes_behind_each_instruction() {
    let mut state = protected();
    state.rflags |= TF;
    let (machine, end) = run(&state, &[0x41, 0x41]);
    assert_eq!(trapped(&machine, &end), (CODE + 1, NONE | 1 << 14));
    assert_eq!(end.state.gpr[1], 1);
    assert_eq!(end.state.rflags & TF, 0, "the handler does not step");
    assert_eq!(u64::from(machine.read_u32(STACK - 4)) & TF, TF);
}

#[test]
fn popf_that_sets_tf_steps_the_next_instruction() {
    let code = [0x68, 2, 1, 0, 0, 0x9d, 0x41, 0x41]; // push 0x102; popf; inc ecx
    let (machine, end) = run(&protected(), &code);
    assert_eq!(trapped(&machine, &end), (CODE + 7, NONE | 1 << 14));
    assert_eq!(end.state.gpr[1], 1);
}

#[test]
fn a_software_interrupt_is_not_stepped() {
    let (mut machine, mut state) = (Machine::new(), protected());
    machine.gate(1, gate(CODE_0, HANDLER, 0xe, 0));
    machine.gate(3, gate(CODE_0, HANDLER + 0x100, 0xe, 0));
    machine.write(HANDLER, &END);
    machine.write(HANDLER + 0x100, &[&[0x90, 0x90][..], &END].concat());
    machine.write(CODE, &[0xcc]);
    state.rflags |= TF;
    state.idtr.limit = 4 * 8 - 1;
    let end = machine.run(&state);
    assert_eq!(end.state.rip, HANDLER + 0x102, "{end:?}");
}

#[test]
fn mov_to_ss_holds_a_step_back_for_one_instruction() {
    let mut state = protected();
    state.rflags |= TF;
    state.gpr[0] = bare::DATA_0.into();
    let (machine, end) = run(&state, &[0x8e, 0xd0, 0x41, 0x41]); // mov ss, ax; inc ecx
    assert_eq!(trapped(&machine, &end), (CODE + 3, NONE | 1 << 14));
    assert_eq!(end.state.gpr[1], 1);
}

#[test]
fn rf_ends_with_the_next_instruction_when_no_breakpoint_is_armed_too() {
    let set = breakpoint(CODE as u32 + 16, 0);
    let mut state = protected();
    state.rflags |= RF;
    let (machine, end) = run(&state, &[&set[..], &[0x41]].concat());
    assert_eq!(trapped(&machine, &end), (CODE + 16, NONE | 1));
}

/// Watches DATA, which holds a selector for SS, and loads SS from there.
fn watched_load_of_ss() -> (CpuState, Vec<u8>) {
    let load = [&[0x8e, 0x15][..], &DATA.to_le_bytes()].concat(); // mov ss, [DATA]
    (protected(), [breakpoint(DATA, 0xf), load].concat())
}

/// The same as [`run`] for what [`watched_load_of_ss`] begins, with `last` behind it.
fn run_watched(last: &[u8]) -> (Machine, End) {
    let (mut state, code) = watched_load_of_ss();
    let mut machine = Machine::new();
    machine.gate(1, gate(CODE_0, HANDLER, 0xe, 0));
    machine.gate(3, gate(CODE_0, HANDLER + 0x100, 0xe, 0));
    machine.write(HANDLER, &[&[0x0f, 0x21, 0xf3][..], &END].concat());
    machine.write(HANDLER + 0x100, &[&[0x90, 0x90][..], &END].concat());
    machine.write(DATA.into(), &bare::DATA_0.to_le_bytes());
    machine.write(CODE, &[&code, last, &END].concat());
    state.idtr.limit = 4 * 8 - 1;
    let end = machine.run(&state);
    (machine, end)
}

#[test]
fn a_data_breakpoint_on_a_load_of_ss_waits_for_the_next_instruction() {
    let (machine, end) = run_watched(&[0x41, 0x41]); // inc ecx
    assert_eq!(trapped(&machine, &end), (CODE + 23, NONE | 1));
    assert_eq!(end.state.gpr[1], 1);
}

#[test]
fn a_data_breakpoint_on_a_load_of_ss_survives_a_software_interrupt() {
    let (machine, end) = run_watched(&[0xcc]);
    // The trap comes before the first instruction of INT3's handler, on top of its frame.
    assert_eq!((end.exception(), end.state.rip), ("6", HANDLER + 3));
    assert_eq!(u64::from(machine.read_u32(STACK - 24)), HANDLER + 0x100);
    assert_eq!(u64::from(machine.read_u32(STACK - 12)), CODE + 23);
    assert_eq!(end.state.gpr[3] as u32, NONE | 1);
}

#[test]
fn a_data_breakpoint_on_a_load_of_ss_and_int1_are_one_debug_exception() {
    let (machine, end) = run_watched(&[0xf1]);
    assert_eq!(trapped(&machine, &end), (CODE + 23, NONE | 1));
    assert_eq!(end.state.gpr[4], STACK - 12);
}

#[test]
fn general_detect_catches_the_access_and_lets_the_handler_go_on() {
    let code = [set_dr(7, 1 << 13), vec![0x0f, 0x21, 0xc1]].concat(); // mov ecx, dr0
    let (machine, end) = run(&protected(), &code);
    assert_eq!(trapped(&machine, &end), (CODE + 8, NONE | 1 << 13));
}

#[test]
fn int1_is_a_debug_exception_that_leaves_dr6_alone() {
    let (machine, end) = run(&protected(), &[0xf1]);
    assert_eq!(trapped(&machine, &end), (CODE + 1, NONE));
}

#[test]
fn reserved_bits_of_dr6_and_dr7_read_as_they_must() {
    let code = [
        &set_dr(6, 0)[..],
        &set_dr(7, 0xdc00),
        &[0x0f, 0x21, 0xf1, 0x0f, 0x21, 0xfa], // mov ecx, dr6; mov edx, dr7
    ]
    .concat();
    let (_, end) = run(&protected(), &code);
    assert_eq!(
        (end.state.gpr[1], end.state.gpr[2]),
        (u64::from(NONE), 0x400 | 0x800)
    );
}

#[test]
fn dr4_and_dr5_are_dr6_and_dr7_unless_debugging_extensions_are_on() {
    let read = [0x0f, 0x21, 0xe1]; // mov ecx, dr4
    let (_, end) = run(&protected(), &read);
    assert_eq!(end.state.gpr[1], u64::from(NONE));
    let mut state = protected();
    state.cr4 |= umbra_x86::cr4::DE;
    let (_, end) = run(&state, &read);
    assert_eq!((end.exception(), end.state.rip), ("6", CODE));
}
