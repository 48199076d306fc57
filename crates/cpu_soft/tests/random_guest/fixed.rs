//! What every random guest has: handlers, which note what came and where, and go back or on with the next scene.

use std::arch::global_asm;

use super::{FIXED_CODE, HANDLERS, IPI, SYSTEM_CALL};

// Never executed by the host: only copied into guests.
global_asm!(
    r#"
    .pushsection .rodata.random_guest, "a"
    .equ RESUME, 0x4000
    .equ LOG_AT, 0x4010
    .equ FIXES, 0x4018
    .equ STEPS_LEFT, 0x4020
    .equ SUMS, 0x4028
    .equ GOOD, 0x4100
    .equ LOG, 0x80000
    .equ LOG_END, 0xc0000
    .equ KERNEL_STACK, 0x50000
    .equ DATA, 0x200000
    .equ DATA_LEN, 0x8000
random_guest_begin:
    // One of sixteen bytes for each exception.
    .set vector, 0
    .rept 32
    .balign 16
    .if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17)
    nop
    .else
    push 0
    .endif
    push vector
    jmp 2f
    .set vector, vector + 1
    .endr
    .balign 16
    // What the guest sends itself.
    push 0
    push 0x40
    jmp 2f
    .balign 16
    // INT 0x80.
    push 0
    push 0x80
    jmp 2f
    .balign 16
    // SYSCALL.
    add qword ptr [SUMS], rcx
    add qword ptr [SUMS + 8], r11
    mov rsp, KERNEL_STACK
    jmp qword ptr [RESUME]

2:  push rax
    push rcx
    push rdx
    push rbx
    // Vector, error code, RIP, CR2 and a sum of the registers.
    cld
    mov rbx, qword ptr [LOG_AT]
    mov eax, dword ptr [rsp + 32]
    mov dword ptr [rbx], eax
    mov ecx, dword ptr [rsp + 40]
    mov dword ptr [rbx + 4], ecx
    mov rcx, qword ptr [rsp + 48]
    mov qword ptr [rbx + 8], rcx
    mov rcx, cr2
    mov qword ptr [rbx + 16], rcx
    mov rcx, qword ptr [rsp]
    add rcx, rcx
    add rcx, qword ptr [rsp + 8]
    rol rcx, 5
    add rcx, qword ptr [rsp + 16]
    rol rcx, 5
    add rcx, qword ptr [rsp + 24]
    rol rcx, 5
    add rcx, rsi
    rol rcx, 5
    add rcx, rdi
    rol rcx, 5
    add rcx, rbp
    rol rcx, 5
    add rcx, r8
    rol rcx, 5
    add rcx, r9
    rol rcx, 5
    add rcx, r10
    rol rcx, 5
    add rcx, r11
    rol rcx, 5
    add rcx, r12
    rol rcx, 5
    add rcx, r13
    rol rcx, 5
    add rcx, r14
    rol rcx, 5
    add rcx, r15
    mov qword ptr [rbx + 24], rcx
    add rbx, 32
    cmp rbx, LOG_END
    jb 3f
    mov ebx, LOG
3:  mov qword ptr [LOG_AT], rbx
    cmp eax, 0x40
    je 5f
    cmp eax, 1
    je 6f
    cmp eax, 3
    je 4f
    cmp eax, 14
    je 7f
    // On with the next scene.
8:  pop rbx
    pop rdx
    pop rcx
    pop rax
    mov rsp, KERNEL_STACK
    jmp qword ptr [RESUME]
    // The end of the interrupt.
5:  mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    jmp 4f
    // A step: some more, or none.
6:  dec qword ptr [STEPS_LEFT]
    jnz 4f
    and qword ptr [rsp + 64], -257
    // Back.
4:  pop rbx
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq
    // A page of data that is not there, or not like this, some times.
7:  cmp qword ptr [FIXES], 0
    je 8b
    mov rcx, cr2
    mov rdx, rcx
    sub rdx, DATA
    cmp rdx, DATA_LEN
    jae 8b
    dec qword ptr [FIXES]
    shr rdx, 12
    mov rdx, qword ptr [rdx * 8 + GOOD]
    mov rbx, cr3
    and rbx, -4096
    shr rcx, 12
    and ecx, 0x1ff
    mov qword ptr [rbx + rcx * 8 + 0x3000], rdx
    mov rcx, cr2
    invlpg [rcx]
    jmp 4b
random_guest_end:
    .popsection
    "#
);

unsafe extern "C" {
    static random_guest_begin: u8;
    static random_guest_end: u8;
}

/// The code, which belongs to [`FIXED_CODE`].
pub fn code() -> Vec<u8> {
    let (begin, end) = (&raw const random_guest_begin, &raw const random_guest_end);
    let len = end as usize - begin as usize;
    // SAFETY: the symbols enclose the bytes that are assembled above, which nobody writes.
    unsafe { std::slice::from_raw_parts(begin, len) }.to_vec()
}

/// Where the handler of `vector` is, if there is one.
pub fn handler(vector: u8) -> Option<u64> {
    let number = match vector {
        0..32 => vector,
        IPI => 32,
        SYSTEM_CALL => 33,
        _ => return None,
    };
    Some(FIXED_CODE + u64::from(number) * 16)
}

/// Where SYSCALL goes.
pub const SYSCALL_ENTRY: u64 = FIXED_CODE + HANDLERS * 16;
