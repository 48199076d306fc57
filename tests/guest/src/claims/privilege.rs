//! What level 3 may and may not do, and how it gets in and out.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Check, claims};
use crate::cpu::{self, msr};
use crate::descriptors::selector;
use crate::trap::{Fault, vector};
use crate::user::{self, *};
use crate::{ensure, needs, same};

fn code(fault: Option<Fault>) -> Option<(u64, u64)> {
    fault.map(|f| (f.vector, f.error))
}

fn privileged_instructions_fault_at_level_3() -> Check {
    let pieces: [(&str, unsafe extern "C" fn()); 8] = [
        ("hlt", user_hlt),
        ("cli", user_cli),
        ("in", user_in),
        ("lidt", user_lidt),
        ("rdmsr", user_rdmsr),
        ("mov from cr0", user_mov_cr),
        ("invlpg", user_invlpg),
        ("clts", user_clts),
    ];
    for (name, piece) in pieces {
        let at = user::alias(&raw const SCRATCH);
        same!(code(user::run(piece, at, 0)), Some((vector::GP, 0)), name);
    }
    same!(
        code(user::run(user_swapgs, 0, 0)),
        Some((vector::GP, 0)),
        "swapgs"
    );
    Ok(())
}

static SCRATCH: AtomicU64 = AtomicU64::new(0);

fn gates_are_closed_to_level_3_unless_they_say_so() -> Check {
    needs!(!cpu::is_tcg(), "TCG shifts the vector by one bit more");
    same!(
        code(user::run(user_int_32, 0, 0)),
        Some((vector::GP, 32 << 3 | 2)),
        "int 32"
    );
    let at = user::alias(&raw const SCRATCH);
    same!(
        code(user::run(user_read, at, 0)),
        Some((vector::DONE, 0)),
        "int 0x80"
    );
    Ok(())
}

fn a_return_cannot_raise_the_privilege() -> Check {
    let found = user::run(user_kernel_cs, 0x20_0000, 0);
    same!(
        code(found),
        Some((vector::GP, u64::from(selector::CODE))),
        "lretq to level 0"
    );
    Ok(())
}

fn popf_leaves_if_and_iopl_alone_at_level_3() -> Check {
    let found = user::run(user_popf, 0, 0);
    same!(
        found.map(|f| (f.vector, f.rax & 0x3200)),
        Some((vector::DONE, 0)),
        "IF and IOPL"
    );
    Ok(())
}

fn iopl_3_opens_ports_and_cli() -> Check {
    let iopl = 3 << 12;
    same!(
        code(user::run(user_in, 0, iopl)),
        Some((vector::DONE, 0)),
        "in"
    );
    same!(
        code(user::run(user_cli, 0, iopl)),
        Some((vector::DONE, 0)),
        "cli"
    );
    same!(
        code(user::run(user_hlt, 0, iopl)),
        Some((vector::GP, 0)),
        "hlt stays closed"
    );
    Ok(())
}

fn misaligned_data_raise_ac_at_level_3_only_when_asked() -> Check {
    let at = user::alias(&raw const SCRATCH);
    let cr0 = cpu::cr0();
    cpu::set_cr0(cr0 | 1 << 18);
    let odd = user::run(user_read_wide, at + 1, user::AC);
    let even = user::run(user_read_wide, at, user::AC);
    let unasked = user::run(user_read_wide, at + 1, 0);
    cpu::set_cr0(cr0);
    let masked = user::run(user_read_wide, at + 1, user::AC);
    needs!(!cpu::is_tcg(), "TCG checks no alignment");
    same!(code(odd), Some((vector::AC, 0)), "odd, AM and AC");
    for (found, name) in [
        (even, "even"),
        (unasked, "without AC"),
        (masked, "without AM"),
    ] {
        same!(code(found), Some((vector::DONE, 0)), name);
    }
    Ok(())
}

fn umip_hides_the_descriptor_tables() -> Check {
    same!(
        code(user::run(user_sgdt, 0, 0)),
        Some((vector::DONE, 0)),
        "sgdt without UMIP"
    );
    needs!(cpu::has(7, 2, 2), "no UMIP");
    let cr4 = cpu::cr4();
    cpu::set_cr4(cr4 | cpu::cr4::UMIP);
    let found = user::run(user_sgdt, 0, 0);
    cpu::set_cr4(cr4);
    same!(code(found), Some((vector::GP, 0)), "sgdt with UMIP");
    Ok(())
}

global_asm!(
    ".globl syscall_target",
    "syscall_target: mov [rip + SYSCALL_RCX], rcx",
    "mov [rip + SYSCALL_R11], r11",
    "mov ax, cs",
    "mov [rip + SYSCALL_CS], rax",
    "sysretq",
);

unsafe extern "C" {
    fn syscall_target();
}

#[unsafe(no_mangle)]
static SYSCALL_RCX: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
static SYSCALL_R11: AtomicU64 = AtomicU64::new(0);
#[unsafe(no_mangle)]
static SYSCALL_CS: AtomicU64 = AtomicU64::new(0);

fn syscall_goes_to_level_0_and_sysret_comes_back() -> Check {
    let selectors = u64::from(selector::SYSRET) << 48 | u64::from(selector::CODE) << 32;
    cpu::wrmsr(msr::STAR, selectors);
    cpu::wrmsr(msr::LSTAR, syscall_target as *const () as u64);
    cpu::wrmsr(msr::FMASK, user::AC);
    let found = user::run(user_syscall, 0, user::AC | 1);
    same!(code(found), Some((vector::DONE, 0)), "back at level 3");
    let start = user::ALIAS + user_syscall as *const () as u64;
    same!(SYSCALL_RCX.load(Ordering::SeqCst), start + 2, "RCX");
    same!(SYSCALL_R11.load(Ordering::SeqCst), user::AC | 3, "R11");
    same!(
        SYSCALL_CS.load(Ordering::SeqCst) & 0xffff,
        u64::from(selector::CODE),
        "CS"
    );
    let efer = cpu::rdmsr(msr::EFER);
    cpu::wrmsr(msr::EFER, efer & !1);
    let found = user::run(user_syscall, 0, 0);
    cpu::wrmsr(msr::EFER, efer);
    same!(
        found.map(|f| f.vector),
        Some(vector::UD),
        "without EFER.SCE"
    );
    Ok(())
}

fn an_interrupt_from_level_3_uses_the_task_states_stack() -> Check {
    use crate::descriptors::{Gate, set_gate};
    // Without a stack of its own: RSP0 is used.
    let old = set_gate(0x80, Gate::new(0x80, 3, 0));
    let found = user::run(user_read, user::alias(&raw const SCRATCH), 0);
    set_gate(0x80, old);
    ensure!(code(found) == Some((vector::DONE, 0)), "{found:x?}");
    Ok(())
}

claims! {
    privileged_instructions_fault_at_level_3: "SDM vol. 3, 5.9",
    gates_are_closed_to_level_3_unless_they_say_so: "SDM vol. 3, 6.12.1.1",
    a_return_cannot_raise_the_privilege: "SDM vol. 3, 5.8.6",
    popf_leaves_if_and_iopl_alone_at_level_3: "SDM vol. 3, 2.3",
    iopl_3_opens_ports_and_cli: "SDM vol. 3, 2.3",
    misaligned_data_raise_ac_at_level_3_only_when_asked: "SDM vol. 3, 6.15, #AC",
    umip_hides_the_descriptor_tables: "SDM vol. 3, 2.5, CR4.UMIP",
    syscall_goes_to_level_0_and_sysret_comes_back: "SDM vol. 3, 5.8.8",
    an_interrupt_from_level_3_uses_the_task_states_stack: "SDM vol. 3, 6.14.2",
}
