//! Code at privilege level 3: a few fixed pieces, in the alias of memory that it may use.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};

use crate::descriptors::selector;
use crate::trap::{Fault, attempt};

/// Where privilege level 3 sees the lowest GiB.
pub const ALIAS: u64 = 0x80_0000_0000;
/// RFLAGS.AC.
pub const AC: u64 = 1 << 18;

static mut STACK: [u64; 512] = [0; 512];

/// Runs `piece` at privilege level 3 with RDI as given; returns what ended it: an exception, or
/// [`DONE`](crate::trap::vector::DONE).
pub fn run(piece: unsafe extern "C" fn(), rdi: u64, flags: u64) -> Option<Fault> {
    let stack = ALIAS + &raw const STACK as u64 + 4096;
    let start = ALIAS + piece as *const () as u64;
    // SAFETY: the piece ends by an interrupt, which ends the attempt.
    attempt(|| unsafe {
        asm!(
            "push {ss}", "push {stack}", "push {flags}", "push {cs}", "push {start}", "iretq",
            ss = in(reg) u64::from(selector::USER_DATA), stack = in(reg) stack,
            flags = in(reg) flags | 2, cs = in(reg) u64::from(selector::USER_CODE),
            start = in(reg) start, in("rdi") rdi,
            options(noreturn)
        )
    })
}

/// The address at which privilege level 3 sees something.
pub fn alias<T>(of: *const T) -> u64 {
    ALIAS + of as u64
}

macro_rules! pieces {
    ($($(#[$doc:meta])* $name:ident: $code:literal;)*) => {
        global_asm!(
            $(concat!(".globl ", stringify!($name), "\n", stringify!($name), ": ", $code,
                      "\nint $0x80\nud2\n"),)*
            options(att_syntax)
        );
        unsafe extern "C" { $($(#[$doc])* pub fn $name();)* }
    };
}

pieces! {
    /// Reads a byte at RDI.
    user_read: "movb (%rdi), %al";
    /// Writes a byte at RDI.
    user_write: "movb $0, (%rdi)";
    /// Jumps to RDI.
    user_jump: "jmp *%rdi";
    /// Reads eight bytes at RDI.
    user_read_wide: "movq (%rdi), %rax";
    user_hlt: "hlt";
    user_cli: "cli";
    user_in: "inb $0x80, %al";
    user_lidt: "lidt (%rdi)";
    user_rdmsr: "movl $0x1b, %ecx; rdmsr";
    user_mov_cr: "movq %cr0, %rax";
    user_invlpg: "invlpg (%rdi)";
    user_clts: "clts";
    user_swapgs: "swapgs";
    user_int_32: "int $32";
    user_sgdt: "sgdt -16(%rsp)";
    user_syscall: "syscall";
    user_popf: "pushfq; orq $0x200, (%rsp); popfq; pushfq; popq %rax";
    user_kernel_cs: "pushq $0x08; pushq %rdi; lretq";
}
