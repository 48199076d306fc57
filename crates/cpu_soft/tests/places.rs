//! Code whose addresses have the same place in the tables of jumps: it is called, left, overwritten, and has to be
//! found, or not, like other code. With `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, Machine, PAGES, STACK, long, on_each_kind};
use umbra_x86::state::gpr;

/// Functions, a mebibyte or more apart: the last one is on the page of the code that calls them.
const FUNCTIONS: [u64; 3] = [0x21_0100, 0x31_0100, CODE + 0x100];
/// What they add to RAX.
const ADDED: [u8; 3] = [1, 2, 3];
/// What the first one adds when it was overwritten.
const NEW: u8 = 50;
/// Where the first two are.
const FRAMES: [u64; 2] = [0x30_0000, 0x28_0000];
/// The first one's page for who overwrites it.
const ALIAS: u64 = 0x20_0000;
const ROUNDS: u64 = 300;

/// Executes `calls`, which call all three, in a loop, and overwrites the first function in round 201.
fn called(new: fn() -> Machine, calls: &[u8]) {
    let mut machine = new();
    let mut state = long(&machine);
    state.gpr = [0; 16];
    let frames = [FRAMES[0] + 0x100, FRAMES[1] + 0x100, FUNCTIONS[2]];
    for (frame, added) in frames.into_iter().zip(ADDED) {
        // add rax, imm; ret
        machine.write(frame, &[0x48, 0x83, 0xc0, added, 0xc3]);
    }
    for (page, frame) in [FUNCTIONS[0], FUNCTIONS[1], ALIAS]
        .into_iter()
        .zip([FRAMES[0], FRAMES[1], FRAMES[0]])
    {
        machine.write(PAGES + 8 * (page >> 12 & 0x1ff), &(frame | 7).to_le_bytes());
    }
    // cmp esi, 100; jne over; mov byte [rdi], NEW; over: dec esi; jnz
    let rest = [0x83, 0xfe, 100, 0x75, 3, 0xc6, 0x07, NEW, 0xff, 0xce, 0x75];
    let mut code = [calls, &rest].concat();
    code.push((code.len() as u8 + 1).wrapping_neg());
    machine.write(CODE, &[&code[..], &END].concat());
    (state.gpr[8], state.gpr[9], state.gpr[12]) = (FUNCTIONS[0], FUNCTIONS[1], FUNCTIONS[2]);
    state.gpr[gpr::RDI] = ALIAS + 0x103;
    (state.gpr[gpr::RSI], state.gpr[gpr::RSP]) = (ROUNDS, STACK);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + code.len() as u64, "{end:?}");
    let sum: u64 = ADDED.iter().map(|added| u64::from(*added) * ROUNDS).sum();
    assert_eq!(
        end.state.gpr[gpr::RAX],
        sum + 99 * u64::from(NEW - ADDED[0])
    );
    assert_eq!(end.state.gpr[gpr::RSP], STACK);
}

fn they_are_called_by_register(new: fn() -> Machine) {
    // call r8; call r9; call r12
    called(new, &[0x41, 0xff, 0xd0, 0x41, 0xff, 0xd1, 0x41, 0xff, 0xd4]);
}

fn they_are_called_by_name(new: fn() -> Machine) {
    let mut calls = Vec::new();
    for function in FUNCTIONS {
        let next = CODE + calls.len() as u64 + 5;
        calls.push(0xe8);
        calls.extend_from_slice(&(function.wrapping_sub(next) as u32).to_le_bytes());
    }
    called(new, &calls);
}

fn they_are_called_in_either_way(new: fn() -> Machine) {
    // call r8; call r9; call the third
    let third = (FUNCTIONS[2] - (CODE + 11)) as u32;
    let mut calls = vec![0x41, 0xff, 0xd0, 0x41, 0xff, 0xd1, 0xe8];
    calls.extend_from_slice(&third.to_le_bytes());
    called(new, &calls);
}

on_each_kind! {
    they_are_called_by_register,
    they_are_called_by_name,
    they_are_called_in_either_way,
}
