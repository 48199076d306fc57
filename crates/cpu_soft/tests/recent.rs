//! The stack, and loops that walk through memory: translated code remembers the page that they are on, and has to
//! notice when they are on another one, when it is another frame, and when they may not do what they do. With
//! `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, End, Machine, PAGES, long, on_each_kind};
use umbra_x86::cr0;
use umbra_x86::state::{CpuState, gpr};

const PAGE: u64 = 0x20_0000;
const NEXT: u64 = PAGE + 0x1000;
const FRAME_1: u64 = 0x30_0000;
const FRAME_2: u64 = 0x28_0000;
const WRITABLE: u64 = 7;
const READABLE: u64 = 5;

/// Where the entry of `page` is.
fn entry(page: u64) -> u64 {
    PAGES + 8 * (page >> 12 & 0x1ff)
}

fn map(machine: &Machine, page: u64, to: u64) {
    machine.write(entry(page), &to.to_le_bytes());
}

/// Code on two pages' frames, the first of which has bytes that count up and the second such that count down.
fn machine(machine: Machine, code: &[u8]) -> (Machine, CpuState) {
    let mut state = long(&machine);
    state.cr0 |= cr0::WP;
    let up: Vec<u8> = (0..0x1000).map(|n| ((n * 7) >> 2) as u8).collect();
    let down: Vec<u8> = up.iter().map(|byte| !byte).collect();
    machine.write(FRAME_1, &up);
    machine.write(FRAME_2, &down);
    machine.write(CODE, &[code, &END].concat());
    (machine, state)
}

fn ended(end: &End, at: usize) {
    assert_eq!(end.state.rip, CODE + at as u64, "{end:?}");
}

/// The eight bytes at `at` of what [`machine`] has on both frames, one behind the other.
fn word(at: u64) -> u64 {
    let byte = |at: u64| {
        let up = (((at & 0xfff) * 7) >> 2) as u8;
        if at < 0x1000 { up } else { !up }
    };
    u64::from_le_bytes(std::array::from_fn(|i| byte(at + i as u64)))
}

fn a_walk_goes_over_the_border(new: fn() -> Machine) {
    // add rax, [rdi]; inc rdi; dec ecx; jnz
    let code = [0x48, 0x03, 0x07, 0x48, 0xff, 0xc7, 0xff, 0xc9, 0x75, 0xf6];
    let (mut machine, mut state) = machine(new(), &code);
    map(&machine, PAGE, FRAME_1 | WRITABLE);
    map(&machine, NEXT, FRAME_2 | WRITABLE);
    (
        state.gpr[gpr::RDI],
        state.gpr[gpr::RCX],
        state.gpr[gpr::RAX],
    ) = (PAGE, 0x1ff8, 0);
    let end = machine.run(&state);
    ended(&end, code.len());
    let sum = (0..0x1ff8).fold(0u64, |sum, at| sum.wrapping_add(word(at)));
    assert_eq!(end.state.gpr[gpr::RAX], sum);
}

fn a_walk_ends_where_memory_does(new: fn() -> Machine) {
    // movzx ebx, byte [rdi+rcx]; add eax, ebx; inc rcx; jmp
    let code = [
        0x0f, 0xb6, 0x1c, 0x0f, 0x01, 0xd8, 0x48, 0xff, 0xc1, 0xeb, 0xf5,
    ];
    for size in [0x1000, 0x800] {
        let (mut machine, mut state) = machine(new(), &code);
        map(&machine, PAGE, FRAME_1 | WRITABLE);
        let from = NEXT - size;
        (
            state.gpr[gpr::RDI],
            state.gpr[gpr::RCX],
            state.gpr[gpr::RAX],
        ) = (from, 0, 0);
        let end = machine.run(&state);
        ended(&end, 0);
        assert!(end.reason.contains("#PF(0x0) at 0x201000"), "{end:?}");
        let sum: u64 = (0x1000 - size..0x1000).map(|at| word(at) & 0xff).sum();
        assert_eq!(
            (end.state.gpr[gpr::RAX], end.state.gpr[gpr::RCX]),
            (sum, size)
        );
    }
}

fn what_is_walked_over_and_may_not_be_written_is_not(new: fn() -> Machine) {
    // mov eax, [rdi]; mov [rdi], eax; add rdi, 4; jmp
    let code = [0x8b, 0x07, 0x89, 0x07, 0x48, 0x83, 0xc7, 4, 0xeb, 0xf6];
    let (mut machine, mut state) = machine(new(), &code);
    map(&machine, PAGE, FRAME_1 | WRITABLE);
    map(&machine, NEXT, FRAME_2 | READABLE);
    state.gpr[gpr::RDI] = PAGE;
    let end = machine.run(&state);
    ended(&end, 2);
    assert!(end.reason.contains("#PF(0x3) at 0x201000"), "{end:?}");
    assert_eq!(end.state.gpr[gpr::RAX], word(0x1000) & 0xffff_ffff);
}

/// RAX after 300 rounds of `code`, which makes the page another frame in each: RDX has it, R8 its entry, R12 what to
/// put there and R13 what is there. RSP is in its middle. RBP is on the next page.
fn total(new: Machine, code: &[u8]) -> u64 {
    let (mut machine, mut state) = machine(new, code);
    map(&machine, PAGE, FRAME_1 | WRITABLE);
    map(&machine, NEXT, FRAME_2 | WRITABLE);
    state.gpr[gpr::RAX] = 0;
    (state.gpr[gpr::RDX], state.gpr[gpr::RSI]) = (PAGE, 300);
    state.gpr[gpr::RBP] = NEXT + 0x10;
    state.gpr[gpr::RSP] = PAGE + 0x800;
    state.gpr[8] = entry(PAGE);
    (state.gpr[12], state.gpr[13]) = (FRAME_2 | WRITABLE, FRAME_1 | WRITABLE);
    let end = machine.run(&state);
    ended(&end, code.len());
    end.state.gpr[gpr::RAX]
}

fn a_walk_sees_the_frame_of_the_moment(new: fn() -> Machine) {
    // mov rdi, rdx; mov ecx, 100; add rax, [rdi]; add rdi, 8; dec ecx; jnz;
    // mov [r8], r12; invlpg [rdx]; xchg r12, r13; dec esi; jnz the start
    let code = [
        0x48, 0x89, 0xd7, 0xb9, 100, 0, 0, 0, 0x48, 0x03, 0x07, 0x48, 0x83, 0xc7, 8, 0xff, 0xc9,
        0x75, 0xf5, 0x4d, 0x89, 0x20, 0x0f, 0x01, 0x3a, 0x4d, 0x87, 0xec, 0xff, 0xce, 0x75, 0xe0,
    ];
    let sum = |from: u64| (0..100).fold(0u64, |sum, n| sum.wrapping_add(word(from + 8 * n)));
    let both = sum(0).wrapping_add(sum(0x1000));
    assert_eq!(total(new(), &code), both.wrapping_mul(150));
}

fn the_stack_is_the_frame_of_the_moment(new: fn() -> Machine) {
    // pop rbx; add rax, rbx; lea rsp, [rsp-8]; mov [r8], r12; invlpg [rdx]; xchg r12, r13; dec esi; jnz
    let code = [
        0x5b, 0x48, 0x01, 0xd8, 0x48, 0x8d, 0x64, 0x24, 0xf8, 0x4d, 0x89, 0x20, 0x0f, 0x01, 0x3a,
        0x4d, 0x87, 0xec, 0xff, 0xce, 0x75, 0xea,
    ];
    let both = word(0x800).wrapping_add(word(0x1800));
    assert_eq!(total(new(), &code), both.wrapping_mul(150));
}

fn one_of_two_stacks_is_the_frame_of_the_moment(new: fn() -> Machine) {
    // Twice for each, RBP first and then RDX, for the first time is left to the interpreter:
    // mov rsp, rbp; pop rbx; push rbx; add rax, rbx; mov rsp, rbp; pop rbx; add rax, rbx.
    // mov [r8], r12; invlpg [rdx]; xchg r12, r13; dec esi; jnz
    let code = [
        0x48, 0x89, 0xec, 0x5b, 0x53, 0x48, 0x01, 0xd8, 0x48, 0x89, 0xec, 0x5b, 0x48, 0x01, 0xd8,
        0x48, 0x89, 0xd4, 0x5b, 0x53, 0x48, 0x01, 0xd8, 0x48, 0x89, 0xd4, 0x5b, 0x48, 0x01, 0xd8,
        0x4d, 0x89, 0x20, 0x0f, 0x01, 0x3a, 0x4d, 0x87, 0xec, 0xff, 0xce, 0x75, 0xd5,
    ];
    let sum = word(0).wrapping_add(word(0x1000));
    let sum = sum.wrapping_add(word(0x1010).wrapping_mul(2));
    assert_eq!(total(new(), &code), sum.wrapping_mul(300));
}

/// Two pages that are accessed in turn, one of them at its very end, and a third one now and then.
fn stacks_take_turns(new: fn() -> Machine) {
    const THIRD: u64 = NEXT + 0x1000;
    // mov rsp, rdx; pop rbx; add rax, rbx; push rbx; mov rsp, rbp; pop rbx; add rax, rbx; pop rbx; push rbx;
    // add rax, rbx; test esi, 31; jne over; mov rsp, rdi; pop rbx; add rax, rbx; over: dec esi; jnz
    let code = [
        0x48, 0x89, 0xd4, 0x5b, 0x48, 0x01, 0xd8, 0x53, 0x48, 0x89, 0xec, 0x5b, 0x48, 0x01, 0xd8,
        0x5b, 0x53, 0x48, 0x01, 0xd8, 0xf7, 0xc6, 31, 0, 0, 0, 0x75, 7, 0x48, 0x89, 0xfc, 0x5b,
        0x48, 0x01, 0xd8, 0xff, 0xce, 0x75, 0xd9,
    ];
    let (mut machine, mut state) = machine(new(), &code);
    map(&machine, PAGE, FRAME_1 | WRITABLE);
    map(&machine, NEXT, FRAME_2 | WRITABLE);
    map(&machine, THIRD, FRAME_1 | READABLE);
    (state.gpr[gpr::RAX], state.gpr[gpr::RSI]) = (0, 320);
    (state.gpr[gpr::RDX], state.gpr[gpr::RBP]) = (PAGE + 0x800, NEXT + 0xff0);
    state.gpr[gpr::RDI] = THIRD + 0x300;
    let end = machine.run(&state);
    ended(&end, code.len());
    let two = word(0x800)
        .wrapping_add(word(0x1ff0))
        .wrapping_add(word(0x1ff8));
    let third = word(0x300).wrapping_mul(10);
    assert_eq!(
        end.state.gpr[gpr::RAX],
        two.wrapping_mul(320).wrapping_add(third)
    );
}

/// The stack is a page that becomes a page table in the last round, by the access behind the first push; what the
/// second one writes there has to be noticed.
fn a_stack_that_becomes_a_page_table_is_seen_to_change(new: fn() -> Machine) {
    const REGION: u64 = 0x40_0000;
    const DIRECTORY: u64 = 0x10_3000;
    const FRAME_3: u64 = 0x29_0000;
    // cmp esi, 1; cmove rdx, rbp; mov rsp, rdi; push r12; add rax, [rdx]; mov rsp, rdi; push r13; invlpg [rdx];
    // add rax, [rdx]; dec esi; jnz
    let code = [
        0x83, 0xfe, 1, 0x48, 0x0f, 0x44, 0xd5, 0x48, 0x89, 0xfc, 0x41, 0x54, 0x48, 0x03, 0x02,
        0x48, 0x89, 0xfc, 0x41, 0x55, 0x0f, 0x01, 0x3a, 0x48, 0x03, 0x02, 0xff, 0xce, 0x75, 0xe2,
    ];
    let (mut machine, mut state) = machine(new(), &code);
    map(&machine, PAGE, FRAME_1 | WRITABLE);
    map(&machine, NEXT, FRAME_2 | WRITABLE);
    machine.write(DIRECTORY + 8 * 2, &(FRAME_1 | WRITABLE).to_le_bytes());
    machine.write(FRAME_3, &5u64.to_le_bytes());
    (state.gpr[gpr::RAX], state.gpr[gpr::RSI]) = (0, 300);
    (state.gpr[gpr::RDX], state.gpr[gpr::RBP]) = (NEXT, REGION);
    state.gpr[gpr::RDI] = PAGE + 8;
    (state.gpr[12], state.gpr[13]) = (FRAME_2 | WRITABLE, FRAME_3 | WRITABLE);
    let end = machine.run(&state);
    ended(&end, code.len());
    let before = word(0x1000).wrapping_mul(2 * 299 + 1);
    assert_eq!(end.state.gpr[gpr::RAX], before.wrapping_add(5));
}

fn a_stack_that_may_only_be_read_is_only_read(new: fn() -> Machine) {
    // cmp esi, 1; cmove rdi, rdx; mov rsp, rdx; pop rbx; add rax, rbx; mov rsp, rdi; push rax; dec esi; jnz
    let code = [
        0x83, 0xfe, 1, 0x48, 0x0f, 0x44, 0xfa, 0x48, 0x89, 0xd4, 0x5b, 0x48, 0x01, 0xd8, 0x48,
        0x89, 0xfc, 0x50, 0xff, 0xce, 0x75, 0xea,
    ];
    let (mut machine, mut state) = machine(new(), &code);
    map(&machine, PAGE, FRAME_1 | READABLE);
    map(&machine, NEXT, FRAME_2 | WRITABLE);
    (state.gpr[gpr::RAX], state.gpr[gpr::RSI]) = (0, 300);
    (state.gpr[gpr::RDX], state.gpr[gpr::RDI]) = (PAGE + 0x800, NEXT + 0x800);
    let end = machine.run(&state);
    ended(&end, 17);
    assert!(end.reason.contains("#PF(0x3) at 0x2007f8"), "{end:?}");
    assert_eq!(end.state.gpr[gpr::RSI], 1);
    assert_eq!(end.state.gpr[gpr::RAX], word(0x800).wrapping_mul(300));
}

/// Calls that go down the stack over a border, and back.
fn a_stack_goes_over_the_border(new: fn() -> Machine) {
    // 0: mov ecx, 300; call 15; dec esi; jnz 0; ud2
    // 15: dec ecx; jz 23; call 15; 22: inc eax; 24: ret
    let code = [
        0xb9, 0x2c, 1, 0, 0, 0xe8, 6, 0, 0, 0, 0xff, 0xce, 0x75, 0xf2, 0x0f, 0x0b, 0xff, 0xc9,
        0x74, 5, 0xe8, 0xf7, 0xff, 0xff, 0xff, 0xff, 0xc0, 0xc3,
    ];
    for (at, frames) in [(0x400, [FRAME_1, FRAME_2]), (0x404, [FRAME_2, FRAME_1])] {
        let (mut machine, mut state) = machine(new(), &code);
        map(&machine, PAGE, frames[0] | WRITABLE);
        map(&machine, NEXT, frames[1] | WRITABLE);
        (state.gpr[gpr::RAX], state.gpr[gpr::RSI]) = (0, 100);
        state.gpr[gpr::RSP] = NEXT + at;
        let end = machine.run(&state);
        ended(&end, 14);
        assert_eq!(end.state.gpr[gpr::RAX], 30_000);
        assert_eq!(end.state.gpr[gpr::RSP], NEXT + at);
    }
}

fn a_stack_that_ends_is_a_fault_at_the_right_call(new: fn() -> Machine) {
    // call itself
    let code = [0xe8, 0xfb, 0xff, 0xff, 0xff];
    let (mut machine, mut state) = machine(new(), &code);
    map(&machine, NEXT, FRAME_1 | WRITABLE);
    state.gpr[gpr::RSP] = NEXT + 0x1000;
    let end = machine.run(&state);
    ended(&end, 0);
    assert!(end.reason.contains("#PF(0x2) at 0x200ff8"), "{end:?}");
    assert_eq!(end.state.gpr[gpr::RSP], NEXT);
    assert_eq!(machine.read::<8>(FRAME_1), (CODE + 5).to_le_bytes());
}

on_each_kind! {
    a_walk_goes_over_the_border,
    a_walk_ends_where_memory_does,
    what_is_walked_over_and_may_not_be_written_is_not,
    a_walk_sees_the_frame_of_the_moment,
    the_stack_is_the_frame_of_the_moment,
    one_of_two_stacks_is_the_frame_of_the_moment,
    stacks_take_turns,
    a_stack_that_becomes_a_page_table_is_seen_to_change,
    a_stack_that_may_only_be_read_is_only_read,
    a_stack_goes_over_the_border,
    a_stack_that_ends_is_a_fault_at_the_right_call,
}
