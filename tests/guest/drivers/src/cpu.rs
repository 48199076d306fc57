//! The few instructions that are needed.
#![allow(unsafe_code)]

use core::arch::asm;

/// Ends in a halt.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: stops the processor; nothing is left to do.
        unsafe { asm!("cli", "hlt") }
    }
}

/// IN, one byte.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: no device here that is read through a port changes memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value) }
    value
}

/// OUT, one byte.
pub fn out8(port: u16, value: u8) {
    // SAFETY: no device here that is written through a port changes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}
