//! Arithmetic in all registers, with carries, while interrupts come: in the middle of it the processor sends itself one.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::{expect, mix, overwrite_vectors, wait};
use crate::apic;
use crate::descriptors::CPUS;
use crate::trap::{Frame, handle};

/// As in the assembler text.
const VECTOR: u64 = 0x60;
const REPEATS: u64 = 64;

const GENERAL: usize = 14;
/// The ones that are two halves of a number, and the one that is added to it.
const LOW: usize = 6;
const HIGH: usize = 7;
const ADDEND: usize = 5;

/// RAX, RCX, RDX, RBX, RBP, RSI, R8 to R15, and XMM0 to XMM15. RDI is the address, RSP the stack.
#[repr(C)]
#[derive(Clone)]
struct Registers {
    general: [u64; GENERAL],
    vectors: [[u64; 2]; 16],
    left: u64,
}

static MESSAGES: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];
static SUM: AtomicU64 = AtomicU64::new(0);

pub fn prepare() {
    handle(VECTOR, Some(message));
}

pub fn round(me: usize, round: u64) {
    let number = mix(me, round);
    let mut registers = Registers {
        general: core::array::from_fn(|at| number.rotate_left(at as u32)),
        vectors: core::array::from_fn(|at| [number.rotate_right(at as u32), !number]),
        left: REPEATS,
    };
    let mut model = registers.clone();
    // SAFETY: it computes in the registers that it is given, and keeps those of its caller.
    unsafe { stress_registers(&raw mut registers) }
    for _ in 0..REPEATS {
        model.step();
    }
    for (found, wanted) in registers.general.into_iter().zip(model.general) {
        expect("a general register", wanted..=wanted, found);
    }
    let vectors = registers.vectors.as_flattened().iter();
    for (&found, &wanted) in vectors.zip(model.vectors.as_flattened()) {
        expect("a vector register", wanted..=wanted, found);
    }
    wait(
        "a message to itself",
        || MESSAGES[me].load(SeqCst) == round,
        || (),
    );
    SUM.fetch_add(registers.general[0], SeqCst);
}

impl Registers {
    /// What one repeat does.
    fn step(&mut self) {
        for at in 0..GENERAL {
            if ![ADDEND, LOW, HIGH].contains(&at) {
                self.general[at] = self.general[at].wrapping_add(at as u64 + 1);
            }
        }
        let (low, carry) = self.general[LOW].overflowing_add(self.general[ADDEND]);
        self.general[LOW] = low;
        self.general[HIGH] = self.general[HIGH].wrapping_add(carry.into());
        for at in 0..15 {
            for half in 0..2 {
                let next = self.vectors[at + 1][half];
                self.vectors[at][half] = self.vectors[at][half].wrapping_add(next);
            }
        }
    }
}

fn message(_: &mut Frame) {
    overwrite_vectors();
    MESSAGES[super::this()].fetch_add(1, SeqCst);
    apic::end_of_interrupt();
}

pub fn totals() -> [(&'static str, u64); 2] {
    let messages = MESSAGES.iter().map(|count| count.load(SeqCst)).sum();
    [
        ("own_messages", messages),
        ("registers_sum", SUM.load(SeqCst)),
    ]
}

unsafe extern "C" {
    fn stress_registers(registers: *mut Registers);
}

global_asm!(
    r#"
    .section .text
    // Does `what` with each register that is kept, and its place.
    .macro each_general what
    \what %rax, 0
    \what %rcx, 8
    \what %rdx, 16
    \what %rbx, 24
    \what %rbp, 32
    \what %rsi, 40
    \what %r8, 48
    \what %r9, 56
    \what %r10, 64
    \what %r11, 72
    \what %r12, 80
    \what %r13, 88
    \what %r14, 96
    \what %r15, 104
    .endm
    .macro load register, place
    movq \place(%rdi), \register
    .endm
    .macro store register, place
    movq \register, \place(%rdi)
    .endm

    .globl stress_registers
stress_registers:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    each_general load
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu 112 + 16 * \n(%rdi), %xmm\n
    .endr
1:  addq $1, %rax
    addq $2, %rcx
    addq $3, %rdx
    addq $4, %rbx
    addq $5, %rbp
    addq %rsi, %r8
    paddq %xmm1, %xmm0
    paddq %xmm2, %xmm1
    paddq %xmm3, %xmm2
    paddq %xmm4, %xmm3
    paddq %xmm5, %xmm4
    paddq %xmm6, %xmm5
    paddq %xmm7, %xmm6
    paddq %xmm8, %xmm7
    adcq $0, %r9                    // the carry lived through all of that
    addq $9, %r10
    addq $10, %r11
    addq $11, %r12
    addq $12, %r13
    addq $13, %r14
    addq $14, %r15
    paddq %xmm9, %xmm8
    paddq %xmm10, %xmm9
    paddq %xmm11, %xmm10
    paddq %xmm12, %xmm11
    paddq %xmm13, %xmm12
    paddq %xmm14, %xmm13
    paddq %xmm15, %xmm14
    cmpq $32, 368(%rdi)
    jne 2f
    pushq %rax
    movl $0x44060, %eax             // a fixed vector, 0x60, to itself
    movabsl %eax, 0xfee00300
    popq %rax
2:  decq 368(%rdi)
    jnz 1b
    each_general store
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu %xmm\n, 112 + 16 * \n(%rdi)
    .endr
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .purgem each_general
    .purgem load
    .purgem store
    "#,
    options(att_syntax)
);
