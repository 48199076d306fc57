/* From the PVH entry to 64-bit mode. The page tables are part of the image: an interpreter would need
   some milliseconds for the loop that fills them. */

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                  /* a name of 4 bytes, a value of 8, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad start32

    .section .data
    .balign 4096
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad pd + 3, pd + 0x1003, pd + 0x2003, pd + 0x3003
    .fill 508, 8, 0
pd:                                 /* 4 GiB one to one, in pages of 2 MiB */
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0x83
    .set page, page + 1
    .endr

    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff     /* code, 64 bits */
gdt_descriptor:
    .word 15
    .long gdt
empty_idt:                          /* whatever faults ends as a triple fault */
    .word 0
    .long 0

    .section .text
    .code32
    .globl start32
start32:
    cli
    cld
    movl $stack_top, %esp
    lgdt gdt_descriptor
    lidt empty_idt
    movl $0x20, %eax                /* PAE */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          /* EFER: LME */
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80000033, %eax          /* PG, NE, ET, MP, PE */
    movl %eax, %cr0
    ljmpl $0x08, $start64

    .code64
start64:
    movl %ebx, %edi                 /* the start info */
    call kernel_main
    ud2

/* void execute_sse(void): the one instruction that the rest of the guest does without. */
    .globl execute_sse
    .type execute_sse, @function
execute_sse:
    movq %cr4, %rax
    orq $0x600, %rax                /* OSFXSR, OSXMMEXCPT */
    movq %rax, %cr4
    .byte 0x0f, 0x57, 0xc0          /* xorps %xmm0, %xmm0 */
    ret
    .size execute_sse, . - execute_sse

    .section .bss
    .balign 16
    .skip 0x2000
stack_top:

    .section .note.GNU-stack, "", @progbits
