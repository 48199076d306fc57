//! Exceptions and interrupts.
//!
//! A vector with a handler calls it. An exception without one ends the [`attempt`] in progress, which
//! tells about it; outside an attempt it is a failure of the guest itself. Every gate has a stack of
//! its own, so compiled code may use the space below its stack pointer.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::cpu;
use crate::descriptors::selector;

/// The registers at an exception or interrupt.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// What ended an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The exception.
    pub vector: u64,
    /// Its error code; zero where it has none.
    pub error: u64,
    /// The instruction pointer that was pushed.
    pub rip: u64,
    /// CR2.
    pub cr2: u64,
    /// RAX.
    pub rax: u64,
}

/// Vectors.
pub mod vector {
    pub const DE: u64 = 0;
    pub const DB: u64 = 1;
    pub const NMI: u64 = 2;
    pub const BP: u64 = 3;
    pub const UD: u64 = 6;
    pub const NM: u64 = 7;
    pub const DF: u64 = 8;
    pub const NP: u64 = 11;
    pub const SS: u64 = 12;
    pub const GP: u64 = 13;
    pub const PF: u64 = 14;
    pub const MF: u64 = 16;
    pub const AC: u64 = 17;
    pub const XM: u64 = 19;
    /// By which user code says that it is done.
    pub const DONE: u64 = 0x80;
}

/// Called at an interrupt; may change the frame.
pub type Handler = fn(&mut Frame);

static HANDLERS: [AtomicUsize; 256] = [const { AtomicUsize::new(0) }; 256];
static mut LAST: Option<Fault> = None;

/// Sets or takes away the handler of a vector.
pub fn handle(vector: u64, handler: Option<Handler>) {
    let address = handler.map_or(0, |handler| handler as usize);
    HANDLERS[vector as usize].store(address, Ordering::SeqCst);
}

/// Runs `body`; returns the exception that ended it, if one did. Not to be nested.
pub fn attempt<F: FnMut()>(mut body: F) -> Option<Fault> {
    extern "C" fn call<F: FnMut()>(body: *mut F) {
        // SAFETY: `attempt` passes a pointer to its own closure.
        unsafe { (*body)() }
    }
    // SAFETY: whether `body` returns or faults, control comes back here with the stack and the
    // registers that a function keeps as they were. `body` holds nothing that must be dropped.
    unsafe {
        if try_call(call::<F> as *const u8, (&raw mut body).cast()) == 0 {
            return None;
        }
        (&raw mut LAST).replace(None)
    }
}

/// Where the stub of a vector is.
pub fn stub(vector: usize) -> u64 {
    &raw const trap_stubs as u64 + 16 * vector as u64
}

#[unsafe(no_mangle)]
extern "C" fn trap(frame: &mut Frame) {
    let handler = HANDLERS[frame.vector as usize & 0xff].load(Ordering::SeqCst);
    if handler != 0 {
        // SAFETY: only `handle` stores here, and it stores handlers.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        return handler(frame);
    }
    // SAFETY: only the first processor attempts anything, and it is here.
    unsafe {
        if try_stack == 0 {
            panic!("unexpected {frame:x?}, cr2 {:x}", cpu::cr2());
        }
        (&raw mut LAST).write(Some(Fault {
            vector: frame.vector,
            error: frame.error,
            rip: frame.rip,
            cr2: cpu::cr2(),
            rax: frame.rax,
        }));
        frame.rip = try_resume as *const () as u64;
        frame.rsp = try_stack;
        try_stack = 0;
    }
    frame.cs = selector::CODE.into();
    frame.ss = selector::DATA.into();
    frame.rflags = 2;
}

unsafe extern "C" {
    static trap_stubs: u8;
    static mut try_stack: u64;
    fn try_call(function: *const u8, argument: *mut u8) -> u64;
    fn try_resume();
}

global_asm!(
    r#"
    .section .text
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set i, 0
    .rept 256
    .balign 16
    .if i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21
    .else
    pushq $0
    .endif
    pushq $i
    jmp trap_common
    .set i, i + 1
    .endr

trap_common:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rbx
    movq %rsp, %rdi
    movq %cr0, %r12
    testl $0xc, %r12d               // EM, TS: SSE would fault here, too
    jz 1f
    movq %r12, %rax
    andq $~0xc, %rax
    movq %rax, %cr0
1:  subq $512, %rsp
    andq $-16, %rsp
    fxsave (%rsp)
    call trap
    fxrstor (%rsp)
    testl $0xc, %r12d
    jz 2f
    movq %r12, %cr0
2:  movq %rbx, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

    .globl try_call, try_resume
try_call:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp
    movq %rsp, try_stack(%rip)
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    movq $0, try_stack(%rip)
    xorl %eax, %eax
    jmp 1f
try_resume:
    movl $1, %eax
1:  addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .section .data
    .balign 8
    .globl try_stack
try_stack:
    .quad 0

    .section .text                  // where other files' code goes on
    "#,
    options(att_syntax)
);
