//! Debug exceptions (SDM vol. 3, chapter 17).
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{Check, claims};
use crate::cpu;
use crate::trap::{Frame, attempt, handle, vector};
use crate::{needs, same};

const RF: u64 = 1 << 16;
/// DR6 with nothing to report.
const DR6: u64 = 0xffff_0ff0;
const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static SEEN: [[AtomicU64; 2]; 8] = [const { [AtomicU64::new(0), AtomicU64::new(0)] }; 8];

/// Notes where the exception came and what DR6 says; goes on.
fn note(frame: &mut Frame) {
    let n = COUNT.fetch_add(1, Ordering::SeqCst);
    if let Some([rip, dr6]) = SEEN.get(n) {
        rip.store(frame.rip, Ordering::SeqCst);
        dr6.store(cpu::dr6(), Ordering::SeqCst);
    }
    cpu::set_dr6(DR6);
    // An instruction breakpoint must not come again at once.
    frame.rflags |= RF;
}

/// Runs `body` with the notes taken; returns how many, and the first three with addresses from `base`.
fn noted(base: u64, body: impl FnOnce()) -> (usize, [(u64, u64); 3]) {
    COUNT.store(0, Ordering::SeqCst);
    cpu::set_dr6(DR6);
    handle(vector::DB, Some(note));
    body();
    cpu::set_dr7(0x400);
    handle(vector::DB, None);
    let seen = core::array::from_fn(|n| {
        let [rip, dr6] = &SEEN[n];
        (
            rip.load(Ordering::SeqCst).wrapping_sub(base),
            dr6.load(Ordering::SeqCst) & !DR6,
        )
    });
    (COUNT.load(Ordering::SeqCst), seen)
}

global_asm!(
    ".globl step_code, step_first, step_sti, watch_code, watch_after, stop_code",
    "step_code: pushfq; orq $0x100, (%rsp); popfq",
    "step_first: nop; pushfq; andq $~0x100, (%rsp); popfq; ret",
    "step_sti: pushfq; orq $0x100, (%rsp); movl %ss, %eax; popfq; movl %eax, %ss; nop; pushfq",
    "andq $~0x100, (%rsp); popfq; ret",
    "watch_code: movb $1, (%rdi)",
    "watch_after: nop; ret",
    "stop_code: nop; ret",
    options(att_syntax)
);

unsafe extern "C" {
    fn step_code();
    fn step_first();
    fn step_sti();
    fn watch_code(at: *mut u8);
    fn watch_after();
    fn stop_code();
}

fn single_steps_come_after_each_instruction() -> Check {
    let base = step_first as *const () as u64;
    let (count, seen) = noted(base, || unsafe { step_code() });
    same!(count, 4, "nop, pushfq, andq, popfq");
    same!(seen, [(1, BS), (2, BS), (10, BS)], "behind each");
    Ok(())
}

fn mov_ss_holds_a_single_step_back() -> Check {
    let (count, _) = noted(0, || unsafe { step_sti() });
    // Without MOV SS: mov, nop, pushfq, andq, popfq.
    same!(count, 4, "none between MOV SS and the next instruction");
    Ok(())
}

fn instruction_breakpoints_come_before_the_instruction() -> Check {
    let base = stop_code as *const () as u64;
    cpu::set_dr0(base);
    let (count, seen) = noted(base, || {
        cpu::set_dr7(0x402);
        unsafe { stop_code() }
    });
    same!((count, seen[0]), (1, (0, 1)), "once, because of RF");
    Ok(())
}

fn data_breakpoints_come_behind_the_access() -> Check {
    let mut byte = 0u8;
    let at = &raw mut byte;
    cpu::set_dr0(at as u64);
    let base = watch_after as *const () as u64;
    let write_only = 0x402 | 1 << 16;
    let (count, seen) = noted(base, || {
        cpu::set_dr7(write_only);
        unsafe {
            let _ = at.read_volatile();
            watch_code(at);
        }
    });
    same!((count, seen[0]), (1, (0, 1)), "the write and not the read");
    let any = 0x402 | 3 << 16;
    let (count, _) = noted(base, || {
        cpu::set_dr7(any);
        unsafe {
            let _ = at.read_volatile();
            watch_code(at);
        }
    });
    same!(count, 2, "both");
    Ok(())
}

fn general_detect_protects_the_debug_registers() -> Check {
    needs!(!cpu::is_tcg(), "TCG has no general detect");
    cpu::set_dr6(DR6);
    let found = attempt(|| {
        cpu::set_dr7(0x400 | 1 << 13);
        let _ = cpu::dr6();
    });
    let dr6 = cpu::dr6() & !DR6;
    cpu::set_dr7(0x400);
    cpu::set_dr6(DR6);
    same!(
        (found.map(|f| f.vector), dr6),
        (Some(vector::DB), BD),
        "a read of DR6 with DR7.GD"
    );
    Ok(())
}

fn dr4_and_dr5_are_other_names_unless_cr4_de() -> Check {
    let read = || attempt(|| unsafe { asm!(".byte 0x0f, 0x21, 0xe0", out("rax") _) });
    let cr4 = cpu::cr4();
    cpu::set_cr4(cr4 & !cpu::cr4::DE);
    let alias = read();
    cpu::set_cr4(cr4 | cpu::cr4::DE);
    let gone = read();
    cpu::set_cr4(cr4);
    same!(alias.map(|f| f.vector), None, "without DE");
    same!(gone.map(|f| f.vector), Some(vector::UD), "with DE");
    Ok(())
}

fn int1_is_a_trap_that_sets_nothing() -> Check {
    needs!(!cpu::is_tcg(), "TCG leaves INT1 to its own debugger");
    let (count, seen) = noted(0, || unsafe { asm!(".byte 0xf1") });
    same!((count, seen[0].1), (1, 0), "INT1");
    Ok(())
}

fn debug_registers_have_32_bits() -> Check {
    for write in [cpu::set_dr6 as fn(u64), cpu::set_dr7] {
        let found = attempt(|| write(1 << 32 | 0x400));
        same!(
            found.map(|f| (f.vector, f.error)),
            Some((vector::GP, 0)),
            "bit 32"
        );
    }
    Ok(())
}

claims! {
    single_steps_come_after_each_instruction: "SDM vol. 3, 17.3.1.4",
    mov_ss_holds_a_single_step_back: "SDM vol. 3, 6.8.3",
    instruction_breakpoints_come_before_the_instruction: "SDM vol. 3, 17.3.1.1",
    data_breakpoints_come_behind_the_access: "SDM vol. 3, 17.3.1.2",
    general_detect_protects_the_debug_registers: "SDM vol. 3, 17.3.1.3",
    dr4_and_dr5_are_other_names_unless_cr4_de: "SDM vol. 3, 17.2.2",
    int1_is_a_trap_that_sets_nothing: "SDM vol. 3, 6.15, #DB",
    debug_registers_have_32_bits: "SDM vol. 3, 17.2.6",
}
