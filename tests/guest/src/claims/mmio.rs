//! Memory that is a device: through page tables, at every width, and by read-modify-write.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Check, claims};
use crate::cpu;
use crate::page::{self, AT, bit};
use crate::trap::{attempt, vector};
use crate::user::{self, user_read, user_write};
use crate::{ensure, needs, same};

/// The test device's memory.
const DEVICE: u64 = 0xff00_0000;
/// Where nothing is.
const NOTHING: u64 = 0xf000_0000;

/// Tells whether the test device is there.
fn present() -> bool {
    let at = DEVICE as *mut u32;
    unsafe {
        at.write_volatile(0x600d_cafe);
        at.read_volatile() == 0x600d_cafe
    }
}

fn every_width_reaches_a_device() -> Check {
    needs!(present(), "no test device");
    let at = DEVICE + 0x100;
    unsafe {
        (at as *mut u64).write_volatile(0x8877_6655_4433_2211);
        same!(
            (at as *const u64).read_volatile(),
            0x8877_6655_4433_2211,
            "eight"
        );
        same!(((at + 2) as *const u16).read_volatile(), 0x4433, "two");
        same!(((at + 5) as *const u8).read_volatile(), 0x66, "one");
        same!(
            ((at + 4) as *const u32).read_volatile(),
            0x8877_6655,
            "four"
        );
        ((at + 3) as *mut u8).write_volatile(0xff);
        same!(
            (at as *const u32).read_volatile(),
            0xff33_2211,
            "a byte inside"
        );
    }
    Ok(())
}

fn read_modify_write_works_on_a_device() -> Check {
    needs!(present(), "no test device");
    let at = (DEVICE + 0x200) as *mut u32;
    let (old, swapped): (u32, u32);
    unsafe {
        at.write_volatile(5);
        asm!("add dword ptr [{0}], 3", in(reg) at);
        same!(at.read_volatile(), 8, "add");
        asm!("lock xadd [{0}], {1:e}", in(reg) at, inout(reg) 2u32 => old);
        same!((old, at.read_volatile()), (8, 10), "lock xadd");
        asm!("xchg [{0}], {1:e}", in(reg) at, inout(reg) 77u32 => swapped);
        same!((swapped, at.read_volatile()), (10, 77), "xchg");
        asm!("lock cmpxchg [{0}], {1:e}", in(reg) at, in(reg) 1u32, inout("eax") 77u32 => _);
        same!(at.read_volatile(), 1, "lock cmpxchg");
        asm!("bts dword ptr [{0}], 4", in(reg) at);
        same!(at.read_volatile(), 17, "bts");
    }
    Ok(())
}

fn string_instructions_reach_a_device() -> Check {
    needs!(present(), "no test device");
    let text = *b"abcdefghijklmnop";
    let mut back = [0u8; 16];
    unsafe {
        asm!("rep movsb", inout("rcx") 16u64 => _, inout("rsi") &raw const text => _,
             inout("rdi") DEVICE + 0x300 => _);
        asm!("rep movsd", inout("rcx") 4u64 => _, inout("rsi") DEVICE + 0x300 => _,
             inout("rdi") &raw mut back => _);
    }
    ensure!(back == text, "{back:x?}");
    Ok(())
}

fn a_device_page_obeys_rights_like_any_other() -> Check {
    needs!(present(), "no test device");
    page::prepare();
    let write = || attempt(|| unsafe { asm!("mov byte ptr [{0}], 7", in(reg) AT + 32) });
    let code = |found: Option<crate::trap::Fault>| found.map(|f| (f.vector, f.error));
    for (rights, wanted) in [(bit::P, Some((vector::PF, 3))), (bit::P | bit::RW, None)] {
        page::set(1, DEVICE | rights);
        same!(code(write()), wanted, rights);
        // And again, when it is remembered.
        same!(code(write()), wanted, rights);
        same!(
            code(user::run(user_read, AT, 0)),
            Some((vector::PF, 5)),
            "level 3"
        );
    }
    page::set(1, DEVICE | bit::TABLE);
    same!(
        code(user::run(user_write, AT + 32, 0)),
        Some((vector::DONE, 0)),
        "level 3, allowed"
    );
    page::set(1, DEVICE);
    same!(code(write()), Some((vector::PF, 2)), "absent");
    page::set(1, DEVICE | bit::TABLE | bit::RESERVED);
    let present = u64::from(!cpu::is_tcg());
    same!(code(write()), Some((vector::PF, 0xa | present)), "reserved");
    page::prepare();
    Ok(())
}

fn accessed_and_dirty_bits_are_set_for_devices() -> Check {
    needs!(present(), "no test device");
    page::prepare();
    page::set(1, DEVICE | bit::P | bit::RW);
    let _ = unsafe { (AT as *const u8).read_volatile() };
    same!(page::get(1) & (bit::A | bit::D), bit::A, "a read");
    unsafe { (AT as *mut u8).write_volatile(0) }
    same!(page::get(1) & (bit::A | bit::D), bit::A | bit::D, "a write");
    page::prepare();
    Ok(())
}

fn nothing_reads_as_ones_and_forgets() -> Check {
    needs!(!cpu::is_tcg(), "QEMU reads zeros");
    let at = NOTHING as *mut u32;
    unsafe {
        same!(at.read_volatile(), u32::MAX, "before");
        at.write_volatile(0);
        same!(at.read_volatile(), u32::MAX, "after a write");
    }
    Ok(())
}

fn an_access_half_in_a_device_is_split() -> Check {
    needs!(present(), "no test device");
    let last = (DEVICE + 0xfffe) as *mut u32;
    unsafe {
        ((DEVICE + 0xfffe) as *mut u16).write_volatile(0x1234);
        same!(
            last.read_volatile() & 0xffff,
            0x1234,
            "the half that is there"
        );
        last.write_volatile(0xabcd_5678);
        same!(
            ((DEVICE + 0xfffe) as *const u16).read_volatile(),
            0x5678,
            "written"
        );
    }
    Ok(())
}

claims! {
    every_width_reaches_a_device: "SDM vol. 3, 8.1.1",
    read_modify_write_works_on_a_device: "SDM vol. 3, 8.1.2",
    string_instructions_reach_a_device: "SDM vol. 3, 8.1.1",
    a_device_page_obeys_rights_like_any_other: "SDM vol. 3, 4.6",
    accessed_and_dirty_bits_are_set_for_devices: "SDM vol. 3, 4.8",
    nothing_reads_as_ones_and_forgets: "as a bus that nobody drives",
    an_access_half_in_a_device_is_split: "SDM vol. 3, 8.1.1",
}
