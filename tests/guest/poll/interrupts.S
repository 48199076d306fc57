/* Entries of the interrupt descriptor table for vectors 0x20 to 0x5f, and for NMIs: each counts its vector
   and goes back to where it came from. */

    .section .text
    .set vector, 0x20
    .globl interrupt_entries
interrupt_entries:
    .rept 64
    .balign 16
    pushq $vector
    jmp count
    .set vector, vector + 1
    .endr

    .globl nmi_entry
nmi_entry:
    pushq $2
    jmp count

count:
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    movq 72(%rsp), %rdi
    call interrupted
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq

    .section .note.GNU-stack, "", @progbits
