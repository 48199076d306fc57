//! Instructions that lie on two pages: either page may become another one, lose its rights, or be written, and what
//! executes has to be what the pages hold. With `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, End, Machine, PAGES, STACK, long, on_each_kind};
use umbra_x86::state::{CpuState, gpr};

const PAGE: u64 = 0x20_0000;
const NEXT: u64 = PAGE + 0x1000;
/// The two pages once more, for who writes.
const ALIAS: u64 = PAGE + 0x2000;
/// Neither is behind the other.
const FIRST: u64 = 0x30_0000;
const SECOND: u64 = 0x28_0000;
/// A second page for the same first one.
const OTHER: u64 = 0x29_0000;
const ROUNDS: u64 = 300;

fn map(machine: &Machine, page: u64, to: u64) {
    machine.write(entry(page), &to.to_le_bytes());
}

fn entry(page: u64) -> u64 {
    PAGES + 8 * (page >> 12 & 0x1ff)
}

/// Puts `code` where `before` bytes of it are on the first page, and `body`, whose last instruction goes back to its
/// begin while ESI is not zero, where it begins. The body may call by R8 what crosses.
fn machine(machine: Machine, (code, before): (&[u8], usize), body: &[u8]) -> (Machine, CpuState) {
    let mut state = long(&machine);
    map(&machine, PAGE, FIRST | 7);
    map(&machine, NEXT, SECOND | 7);
    map(&machine, ALIAS, FIRST | 7);
    map(&machine, ALIAS + 0x1000, SECOND | 7);
    let (first, second) = code.split_at(before);
    machine.write(FIRST + 0x1000 - before as u64, first);
    machine.write(SECOND, second);
    let mut loops = [body, &[0xff, 0xce, 0x75]].concat();
    loops.push((loops.len() as u8 + 1).wrapping_neg());
    machine.write(CODE, &[&loops[..], &END].concat());
    state.gpr = [0; 16];
    state.gpr[8] = NEXT - before as u64;
    (state.gpr[gpr::RSI], state.gpr[gpr::RSP]) = (ROUNDS, STACK);
    (machine, state)
}

fn ended(end: &End, body: usize) {
    assert_eq!(end.state.rip, CODE + body as u64 + 4, "{end:?}");
    assert_eq!(end.state.gpr[gpr::RSP], STACK);
}

/// mov eax, 0x04030201; add rbx, rax; ret
const MOVE: [u8; 9] = [0xb8, 1, 2, 3, 4, 0x48, 0x01, 0xc3, 0xc3];
const MOVED: u64 = 0x0403_0201;
/// call r8
const CALL: [u8; 3] = [0x41, 0xff, 0xd0];

fn one_is_executed_wherever_it_is_cut(new: fn() -> Machine) {
    for before in 1..5 {
        let (mut machine, state) = machine(new(), (&MOVE, before), &CALL);
        let end = machine.run(&state);
        ended(&end, 3);
        assert_eq!(end.state.gpr[gpr::RBX], ROUNDS * MOVED);
    }
}

fn the_second_page_is_that_of_the_moment(new: fn() -> Machine) {
    // call r8; mov [r9], r12; invlpg [rdi]; xchg r12, r13
    let body = [
        0x41, 0xff, 0xd0, 0x4d, 0x89, 0x21, 0x0f, 0x01, 0x3f, 0x4d, 0x87, 0xec,
    ];
    let (mut machine, mut state) = machine(new(), (&MOVE, 3), &body);
    machine.write(OTHER, &[7, 8, 0x48, 0x01, 0xc3, 0xc3]);
    (state.gpr[9], state.gpr[gpr::RDI]) = (entry(NEXT), NEXT);
    (state.gpr[12], state.gpr[13]) = (OTHER | 7, SECOND | 7);
    let end = machine.run(&state);
    ended(&end, body.len());
    let both = MOVED + (MOVED & 0xffff | 0x0807_0000);
    assert_eq!(end.state.gpr[gpr::RBX], ROUNDS / 2 * both);
}

fn the_second_page_may_go(new: fn() -> Machine) {
    // call r8; cmp esi, 100; jne over; mov [r9], r12; invlpg [rdi]
    let body = [
        0x41, 0xff, 0xd0, 0x83, 0xfe, 100, 0x75, 6, 0x4d, 0x89, 0x21, 0x0f, 0x01, 0x3f,
    ];
    let (mut machine, mut state) = machine(new(), (&MOVE, 3), &body);
    (state.gpr[9], state.gpr[gpr::RDI]) = (entry(NEXT), NEXT);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, NEXT - 3, "{end:?}");
    assert!(end.reason.contains(" at 0x201000"), "{end:?}");
    assert_eq!(end.state.gpr[gpr::RSI], 99);
    assert_eq!(end.state.gpr[gpr::RBX], 201 * MOVED);
}

fn either_page_may_be_written(new: fn() -> Machine) {
    // call r8; cmp esi, 100; jne over; mov byte [rdi], 9
    let body = [0x41, 0xff, 0xd0, 0x83, 0xfe, 100, 0x75, 3, 0xc6, 0x07, 9];
    // The first, the second and the third of four bytes; three bytes of the instruction are on the first page.
    let written = [
        (ALIAS + 0xffe, 0x0403_0209),
        (ALIAS + 0xfff, 0x0403_0901),
        (ALIAS + 0x1000, 0x0409_0201),
    ];
    for (at, after) in written {
        let (mut machine, mut state) = machine(new(), (&MOVE, 3), &body);
        state.gpr[gpr::RDI] = at;
        let end = machine.run(&state);
        ended(&end, body.len());
        let sum = 201 * MOVED + 99 * after;
        assert_eq!(end.state.gpr[gpr::RBX], sum, "{at:#x}");
    }
}

/// The begin of a loop is on the first page, and what goes back to it on both.
fn a_branch_that_is_cut_goes_where_it_says(new: fn() -> Machine) {
    // mov ecx, 50; add rbx, 3; dec ecx; jnz near back; ret
    let code = [
        0xb9, 50, 0, 0, 0, 0x48, 0x83, 0xc3, 3, 0xff, 0xc9, 0x0f, 0x85, 0xf4, 0xff, 0xff, 0xff,
        0xc3,
    ];
    for before in 12..17 {
        let (mut machine, state) = machine(new(), (&code, before), &CALL);
        let end = machine.run(&state);
        ended(&end, 3);
        assert_eq!(end.state.gpr[gpr::RBX], ROUNDS * 50 * 3);
    }
}

fn a_call_that_is_cut_returns_behind_itself(new: fn() -> Machine) {
    // call over the next two; add rbx, 5; ret; over: add rbx, 7; ret
    let code = [
        0xe8, 5, 0, 0, 0, 0x48, 0x83, 0xc3, 5, 0xc3, 0x48, 0x83, 0xc3, 7, 0xc3,
    ];
    for before in 1..5 {
        let (mut machine, state) = machine(new(), (&code, before), &CALL);
        let end = machine.run(&state);
        ended(&end, 3);
        assert_eq!(end.state.gpr[gpr::RBX], ROUNDS * 12);
    }
}

fn an_access_that_fails_is_at_the_instruction_that_is_cut(new: fn() -> Machine) {
    // call r8; cmp esi, 100; jne over; mov [r9], r12; invlpg [rdi]
    let body = [
        0x41, 0xff, 0xd0, 0x83, 0xfe, 100, 0x75, 6, 0x4d, 0x89, 0x21, 0x0f, 0x01, 0x3f,
    ];
    // add rbx, [rdi+0x10]; ret
    let code = [0x48, 0x03, 0x9f, 0x10, 0, 0, 0, 0xc3];
    const DATA: u64 = PAGE + 0x8000;
    const FRAME: u64 = 0x2a_0000;
    let (mut machine, mut state) = machine(new(), (&code, 4), &body);
    map(&machine, DATA, FRAME | 7);
    machine.write(FRAME + 0x10, &3u64.to_le_bytes());
    (state.gpr[9], state.gpr[gpr::RDI]) = (entry(DATA), DATA);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, NEXT - 4, "{end:?}");
    assert!(end.reason.contains("#PF(0x0) at 0x208010"), "{end:?}");
    assert_eq!(end.state.gpr[gpr::RBX], 201 * 3);
}

on_each_kind! {
    one_is_executed_wherever_it_is_cut,
    the_second_page_is_that_of_the_moment,
    the_second_page_may_go,
    either_page_may_be_written,
    a_branch_that_is_cut_goes_where_it_says,
    a_call_that_is_cut_returns_behind_itself,
    an_access_that_fails_is_at_the_instruction_that_is_cut,
}
