//! A guest that computes with everything that a processor keeps, sleeps until its timer wakes it in
//! each of the timer's modes, and is interrupted in between; what it leaves does not depend on when.
//!
//! ```text
//!   round  reads a port · integers and flags · x87 · SSE · a copy forwards or backwards · time goes on
//!          every eighth: sleeps for one count, every other eighth: until a deadline
//!          every fourth to third: interrupted by a periodic timer meanwhile
//! ```
//! Its handler has a stack of its own ([`SCRATCH`]), the one place that depends on time.

use std::arch::global_asm;

use umbra_x86::rflags;
use umbra_x86::state::{CpuState, Segment};
use umbra_x86::{cr0, cr4};

use crate::bare::{self, CODE, CODE_0, IDT, Machine};

/// Where the handler's stack is: a page that depends on time.
pub const SCRATCH: std::ops::Range<usize> = 0x6000..0x7000;
/// How many times the guest saw time go wrong.
pub const ERRORS: u64 = 0x3_8000;
/// How many times it slept.
pub const SLEEPS: u64 = 0x3_8008;
/// How many rounds it makes.
pub const ROUNDS: u64 = 800;

const TASK: u64 = 0x3000;
const VECTOR: u8 = 0x40;

global_asm!(
    ".pushsection .rodata",
    ".globl umbra_worker",
    "umbra_worker:",
    // The local APIC: x2APIC mode, enabled, counts of one nanosecond.
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "xor edx, edx",
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "wrmsr",
    "mov ecx, 0x83e",
    "mov eax, 0xb",
    "wrmsr",
    "fninit",
    "fld1",
    "fldpi",
    "mov r12d, 12345",
    "mov r15, rdi",
    "2:",
    // Somebody may stop it here.
    "in al, 0x80",
    // Integers and flags.
    "mov ebx, 150",
    "3:",
    "imul r12, r12, 0x5851f42d",
    "add r12, 0x14057b7f",
    "pushfq",
    "pop rax",
    "xor r13, rax",
    "rcl r13, 7",
    "adc r13, r12",
    "shld r8, r12, 5",
    "sbb r9, r8",
    "bswap r9",
    "dec ebx",
    "jnz 3b",
    // x87: two registers stay on its stack.
    "mov [0x38100], r12d",
    "fiadd dword ptr [0x38100]",
    "fabs",
    "fsqrt",
    "fxch st(1)",
    "fadd st(0), st(1)",
    "fsqrt",
    // SSE: every register takes part.
    "movaps xmm15, xmm14",
    "movaps xmm14, xmm13",
    "movaps xmm13, xmm12",
    "movaps xmm12, xmm11",
    "movaps xmm11, xmm10",
    "movaps xmm10, xmm9",
    "movaps xmm9, xmm8",
    "movaps xmm8, xmm7",
    "movaps xmm7, xmm6",
    "movaps xmm6, xmm5",
    "movaps xmm5, xmm4",
    "movaps xmm4, xmm3",
    "cvtsi2sd xmm1, r12d",
    "addpd xmm0, xmm1",
    "mulsd xmm1, xmm0",
    "paddq xmm2, xmm1",
    "pshufd xmm3, xmm2, 0x39",
    "pxor xmm3, xmm15",
    // A copy, forwards or backwards.
    "mov eax, r12d",
    "and eax, 0xff8",
    "mov [rax + 0x30000], r13",
    "mov ecx, 4000",
    "mov esi, 0x30010",
    "mov edi, 0x32020",
    "test r15d, 1",
    "jz 4f",
    "mov esi, 0x30faf",
    "mov edi, 0x32fbf",
    "std",
    "4:",
    "rep movsb",
    "cld",
    // Time goes on.
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "cmp rax, r14",
    "jae 5f",
    "inc qword ptr [0x38000]",
    "5:",
    "mov r14, rax",
    "mov eax, r15d",
    "and eax, 15",
    "jz 6f",
    "cmp eax, 8",
    "je 7f",
    "and eax, 7",
    "cmp eax, 4",
    "je 8f",
    "cmp eax, 3",
    "je 9f",
    "jmp 20f",
    // Sleeps for one count.
    "6:",
    "lea r11, [r14 + 30000]",
    "mov ecx, 0x832",
    "mov eax, 0x40",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0x838",
    "mov eax, 30000",
    "wrmsr",
    "jmp 10f",
    // Sleeps until a deadline.
    "7:",
    "mov ecx, 0x832",
    "mov eax, 0x40040",
    "xor edx, edx",
    "wrmsr",
    "lea r11, [r14 + 30000]",
    "mov ecx, 0x6e0",
    "mov eax, r11d",
    "mov rdx, r11",
    "shr rdx, 32",
    "wrmsr",
    "10:",
    "inc qword ptr [0x38008]",
    "sti",
    "hlt",
    "cli",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "cmp rax, r11",
    "jae 20f",
    "inc qword ptr [0x38000]",
    "jmp 20f",
    // Is interrupted from here …
    "8:",
    "mov ecx, 0x832",
    "mov eax, 0x20040",
    "xor edx, edx",
    "wrmsr",
    "mov ecx, 0x838",
    "mov eax, 25000",
    "wrmsr",
    "sti",
    "jmp 20f",
    // … to here, and takes what waits.
    "9:",
    "cli",
    "mov ecx, 0x832",
    "mov eax, 0x10040",
    "xor edx, edx",
    "wrmsr",
    "sti",
    "nop",
    "nop",
    "cli",
    "20:",
    "dec r15",
    "jnz 2b",
    // What depends on time goes.
    "xor eax, eax",
    "xor edx, edx",
    "xor r11d, r11d",
    "xor r14d, r14d",
    "ud2",
    ".globl umbra_worker_handler",
    "umbra_worker_handler:",
    "push rax",
    "push rcx",
    "push rdx",
    "mov ecx, 0x80b",
    "xor eax, eax",
    "xor edx, edx",
    "wrmsr",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
    ".globl umbra_worker_end",
    "umbra_worker_end:",
    ".popsection",
);

unsafe extern "C" {
    static umbra_worker: u8;
    static umbra_worker_handler: u8;
    static umbra_worker_end: u8;
}

/// Puts the guest into memory and returns the state in which it starts.
pub fn load(machine: &Machine) -> CpuState {
    let start = &raw const umbra_worker;
    let distance = |to: *const u8| to as usize - start as usize;
    let len = distance(&raw const umbra_worker_end);
    let handler = CODE + distance(&raw const umbra_worker_handler) as u64;
    // SAFETY: start and end are symbols of the read-only section above, `len` bytes apart.
    let code = unsafe { std::slice::from_raw_parts(start, len) };
    machine.write(CODE, code);
    let low = bare::gate(CODE_0, handler, 0xe, 0) | 1 << 32; // stack 1 of the task state
    machine.write(IDT + 16 * u64::from(VECTOR), &low.to_le_bytes());
    machine.write(TASK + 0x24, &(SCRATCH.end as u64).to_le_bytes());
    machine.descriptor(CODE_0, 0x00af_9b00_0000_ffff);
    let mut state = bare::long(machine);
    state.rflags = rflags::FIXED;
    state.cr0 |= cr0::MP;
    state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.idtr.limit = 16 * (u16::from(VECTOR) + 1) - 1;
    state.tr = Segment {
        selector: 0x28,
        base: TASK,
        limit: 0x67,
        attr: 0xb | Segment::P,
    };
    state.gpr[7] = ROUNDS;
    state
}
