//! From the PVH entry to 64-bit mode, and the same for the other processors.
//!
//! Memory is mapped three times: the lowest 4 GiB one to one for the kernel, the lowest GiB once more
//! at [`USER`](crate::user::ALIAS) for privilege level 3, and nothing at the address where claims about
//! paging put what they need.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::ffi::{CStr, c_char};

global_asm!(
    r#"
    .section .note.pvh, "a"
    .balign 4
    .long 4, 8, 18                  // a name of 4 bytes, a value of 8, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad start32

    .section .data
    .balign 4096
    .globl pml4
pml4:
    .quad pdpt_low + 3, pdpt_user + 7, 0
    .fill 509, 8, 0
pdpt_low:
    .quad pd_low + 3, pd_low + 0x1003, pd_low + 0x2003, pd_low + 0x3003
    .fill 508, 8, 0
pdpt_user:
    .quad pd_user + 7
    .fill 511, 8, 0
pd_low:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0x83
    .set page, page + 1
    .endr
pd_user:
    .set page, 0
    .rept 512
    .quad (page << 21) + 0x87
    .set page, page + 1
    .endr

    .balign 8
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
boot_gdt_end:
boot_gdt_descriptor:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

    .section .text
    .code32
    .globl start32
start32:
    cli
    movl $boot_stack_top, %esp
    lgdt boot_gdt_descriptor
    call enter_long_mode
    ljmpl $0x08, $start64

enter_long_mode:
    movl $0x620, %eax               // PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x901, %eax               // SCE, LME, NXE
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax          // PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ret

    .code64
start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leaq boot_stack_top(%rip), %rsp
    movl %ebx, %edi                 // PVH's start information
    call kernel_main
    ud2

    // The other processors begin in real mode, at the page that the start-up message names.
    .section .rodata
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl trampoline_gdt - trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $ap_start32
    .balign 4
trampoline_gdt:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
trampoline_end:

    .section .text
    .code32
ap_start32:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $0x1000, %eax
    lock xaddl %eax, ap_stack_next
    leal ap_stacks + 0x1000(%eax), %esp
    call enter_long_mode
    ljmpl $0x08, $ap_start64
    .code64
ap_start64:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %esp, %esp
    call ap_main
    ud2

    .section .data
ap_stack_next:
    .long 0

    .section .bss
    .balign 16
    .skip 0x8000
boot_stack_top:
    .skip 0
ap_stacks:
    .skip 0x1000 * 8

    .section .text                  // where other files' code goes on
    "#,
    options(att_syntax)
);

/// Where PVH's start information has the address of the command line.
const COMMAND_LINE: u64 = 24;

/// The command line that the start information names; empty if there is none.
pub fn command_line(start_info: u64) -> &'static str {
    // SAFETY: whoever starts the guest puts both below 4 GiB, where nothing else is and all is mapped.
    unsafe {
        let at = ((start_info + COMMAND_LINE) as *const u64).read();
        if at == 0 {
            return "";
        }
        CStr::from_ptr(at as *const c_char).to_str().unwrap_or("")
    }
}

unsafe extern "C" {
    /// The top page table.
    pub static mut pml4: [u64; 512];
    /// Where the other processors begin; copied below 1 MiB.
    pub static trampoline: u8;
    /// Its end.
    pub static trampoline_end: u8;
}
