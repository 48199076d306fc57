//! Loops that use registers which translated code has no host registers for: those change places with others, and
//! are back wherever the loop is left. With `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, Machine, PAGES, STACK, long, on_each_kind};
use umbra_x86::cr4;
use umbra_x86::rflags::{AF, CF, OF, PF, SF, ZF};
use umbra_x86::state::{CpuState, gpr};

/// Two pages of [`PAGES`] that the loop writes, and the one behind them, which is not there.
const DATA: u64 = 0x20_0000;
const NOWHERE: u64 = DATA + 0x2000;
/// Another page with code.
const FAR: u64 = CODE + 0x1000;
const ROUNDS: u64 = 300;
const TURNS: u64 = 3;
/// Turns with which the loop comes to the end of what may be written.
const TOO_MANY: u64 = 41;

/// add r9, rcx; lea r10, [r9+r11]; xor r11, r10; mov [rdi], r11; lea rdi, [rdi+8]; dec ecx; jnz
const LOOP: [u8; 21] = [
    0x49, 0x01, 0xc9, 0x4f, 0x8d, 0x14, 0x19, 0x4d, 0x31, 0xd3, 0x4c, 0x89, 0x1f, 0x48, 0x8d, 0x7f,
    0x08, 0xff, 0xc9, 0x75, 0xeb,
];

/// What the loop does.
fn model(gpr: &mut [u64; 16]) {
    while gpr[gpr::RCX] != 0 {
        gpr[9] = gpr[9].wrapping_add(gpr[gpr::RCX]);
        gpr[10] = gpr[9].wrapping_add(gpr[11]);
        gpr[11] ^= gpr[10];
        if gpr[gpr::RDI] >= NOWHERE {
            return;
        }
        gpr[gpr::RDI] += 8;
        gpr[gpr::RCX] -= 1;
    }
}

fn machine(machine: Machine) -> (Machine, CpuState) {
    let mut state = long(&machine);
    state.cr4 |= cr4::OSFXSR;
    for (page, frame) in [(DATA, 0x30_0000u64), (DATA + 0x1000, 0x28_0000)] {
        machine.write(PAGES + 8 * (page >> 12 & 0x1ff), &(frame | 7).to_le_bytes());
    }
    for (number, value) in state.gpr.iter_mut().enumerate() {
        if number != gpr::RSP {
            *value = 0x0123_4567_89ab_cdef_u64.wrapping_mul(number as u64 + 3);
        }
    }
    state.gpr[gpr::RDI] = DATA;
    state.gpr[gpr::RDX] = ROUNDS;
    (machine, state)
}

/// mov ecx, `turns`; call the subroutine behind; dec edx; jnz; end. The subroutine is the loop and what `leaves` it.
fn ends_alike(new: fn() -> Machine, leaves: &[u8], turns: u64) {
    let (mut machine, state) = machine(new());
    let count = (turns as u32).to_le_bytes();
    let caller = [
        &[0xb9][..],
        &count,
        &[0xe8, 6, 0, 0, 0, 0xff, 0xca, 0x75, 0xf2],
        &END,
    ];
    let caller = caller.concat();
    assert_eq!(caller.len(), 16);
    machine.write(CODE, &[&caller, &LOOP[..], leaves].concat());
    // ret
    machine.write(FAR, &[0xc3]);
    let end = machine.run(&state).state;

    let mut gpr = state.gpr;
    while gpr[gpr::RDX] != 0 && gpr[gpr::RDI] < NOWHERE {
        gpr[gpr::RCX] = turns;
        model(&mut gpr);
        if gpr[gpr::RCX] == 0 {
            gpr[gpr::RDX] -= 1;
        }
    }
    let faults = gpr[gpr::RDX] != 0;
    if faults {
        gpr[gpr::RSP] -= 8;
        assert_eq!(end.rip, CODE + 16 + 10, "{leaves:x?}");
    } else {
        assert_eq!(end.rip, CODE + 14, "{leaves:x?}");
    }
    assert_eq!(end.gpr, gpr, "{leaves:x?}");
}

/// Ways to leave the subroutine behind the loop.
fn ways() -> Vec<Vec<u8>> {
    let far = |from: u64| (FAR.wrapping_sub(CODE + 16 + 21 + from) as u32).to_le_bytes();
    vec![
        // ret
        vec![0xc3],
        // xchg rbx, [rsp]; push rbx; mov rbx, [rsp+8]; ret 8
        vec![
            0x48, 0x87, 0x1c, 0x24, 0x53, 0x48, 0x8b, 0x5c, 0x24, 0x08, 0xc2, 8, 0,
        ],
        // jmp to the other page, and ret there
        [&[0xe9][..], &far(5)].concat(),
        // call the other page; ret
        [&[0xe8][..], &far(5), &[0xc3]].concat(),
        // fnop, which the interpreter executes; ret
        vec![0xd9, 0xd0, 0xc3],
        // movaps xmm0, xmm0; ret
        vec![0x0f, 0x28, 0xc0, 0xc3],
        // add rsp, 8; jmp [rsp-8]
        vec![0x48, 0x83, 0xc4, 8, 0xff, 0x64, 0x24, 0xf8],
    ]
}

fn registers_are_back_wherever_a_loop_is_left(new: fn() -> Machine) {
    for leaves in ways() {
        ends_alike(new, &leaves, TURNS);
    }
}

fn registers_are_back_where_a_loop_faults(new: fn() -> Machine) {
    for leaves in ways() {
        ends_alike(new, &leaves, TOO_MANY);
    }
}

fn flags_are_those_of_the_round_before_where_a_loop_faults(new: fn() -> Machine) {
    // mov eax, [rdi]; add rdi, 4; cmp rdi, rsi; jne
    let code = [
        0x8b, 0x07, 0x48, 0x83, 0xc7, 4, 0x48, 0x39, 0xf7, 0x75, 0xf5,
    ];
    // Less, in the upper half only, and more.
    for (last, flags) in [
        (NOWHERE + 0x1000, CF | PF | SF),
        (NOWHERE + (1 << 32), CF | PF | SF),
        (DATA - 0xfff, AF | PF),
    ] {
        let (mut machine, mut state) = machine(new());
        state.gpr[gpr::RSI] = last;
        machine.write(CODE, &[&code[..], &END].concat());
        let end = machine.run(&state).state;
        assert_eq!((end.rip, end.gpr[gpr::RDI]), (CODE, NOWHERE));
        assert_eq!(
            end.rflags & (CF | PF | AF | ZF | SF | OF),
            flags,
            "{last:#x}"
        );
    }
}

fn the_stack_pointer_is_where_it_belongs_whenever_somebody_looks(new: fn() -> Machine) {
    // push rbx; push rbp; push r12; mov rax, rsp; lea rdx, [rsp+8]; pop r12; push rsp; pop rsi; push 5; mov edi, esp;
    // pop rbx; pop rbp; pop r13; add rsp, 0; dec ecx; jnz
    let code = [
        0x53, 0x55, 0x41, 0x54, 0x48, 0x89, 0xe0, 0x48, 0x8d, 0x54, 0x24, 0x08, 0x41, 0x5c, 0x54,
        0x5e, 0x6a, 0x05, 0x89, 0xe7, 0x5b, 0x5d, 0x41, 0x5d, 0x48, 0x83, 0xc4, 0, 0xff, 0xc9,
        0x75, 0xe0,
    ];
    let (mut machine, mut state) = machine(new());
    state.gpr[gpr::RCX] = 100;
    machine.write(CODE, &[&code[..], &END].concat());
    let end = machine.run(&state).state;
    assert_eq!(end.gpr[gpr::RSP], STACK, "{:x?}", end.gpr);
    assert_eq!(end.gpr[gpr::RAX], STACK - 24);
    assert_eq!(end.gpr[gpr::RDX], STACK - 16);
    assert_eq!(end.gpr[gpr::RSI], STACK - 16);
    assert_eq!(end.gpr[gpr::RDI], STACK - 24);
    assert_eq!((end.gpr[gpr::RBX], end.gpr[13]), (5, 5));
    assert_eq!(end.gpr[gpr::RBP], state.gpr[gpr::RBP]);
    assert_eq!(end.gpr[12], state.gpr[12]);
}

on_each_kind! {
    registers_are_back_wherever_a_loop_is_left,
    registers_are_back_where_a_loop_faults,
    flags_are_those_of_the_round_before_where_a_loop_faults,
    the_stack_pointer_is_where_it_belongs_whenever_somebody_looks,
}
