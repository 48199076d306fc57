//! From the polling guest's boot code to Rust: a larger stack, vector registers, the command line.
#![allow(unsafe_code)]

use core::arch::global_asm;

global_asm!(include_str!("../../poll/start.S"), options(att_syntax));

global_asm!(
    r#"
    .section .text
    .globl kernel_main
kernel_main:
    mov rax, cr4
    or eax, 0x600                   // OSFXSR, OSXMMEXCPT
    mov cr4, rax
    lea rsp, [rip + large_stack_top]
    call rust_main
    ud2

    .section .bss
    .balign 16
    .skip 0x10000
large_stack_top:
    .section .text
    "#
);

/// Xen's `public/arch-x86/hvm/start_info.h`, as far as it matters here.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
}

const MAGIC: u32 = 0x336e_c578;

/// Where the assembler code arrives.
///
/// # Safety
///
/// 1. `info` points to the start info that this kernel was entered with, and memory is mapped one to
///    one.
#[unsafe(no_mangle)]
unsafe extern "C" fn rust_main(info: *const StartInfo) -> ! {
    // SAFETY: 1.
    let info = unsafe { &*info };
    assert_eq!(info.magic, MAGIC, "there is no start info");
    // SAFETY: 1; the protocol says that a text is there, which nobody changes.
    let text = unsafe { text_at(info.command_line as *const u8) };
    crate::main(text)
}

/// Returns the text at an address, up to a zero; nothing at 0, or if it is not UTF-8.
///
/// # Safety
///
/// 1. It ends with a zero, and nobody changes it.
unsafe fn text_at<'a>(start: *const u8) -> &'a str {
    if start.is_null() {
        return "";
    }
    // Not `CStr::from_ptr`, which calls C's `strlen`.
    let mut len = 0;
    // SAFETY: 1; volatile, or the compiler makes it a call of the same.
    while unsafe { start.add(len).read_volatile() } != 0 {
        len += 1;
    }
    // SAFETY: 1.
    let bytes = unsafe { core::slice::from_raw_parts(start, len) };
    core::str::from_utf8(bytes).unwrap_or_default()
}
