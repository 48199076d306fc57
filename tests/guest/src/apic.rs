//! The local APIC through its page, and the IOAPIC (SDM vol. 3, chapter 11; 82093AA).
#![allow(unsafe_code)]

use core::ptr;

use crate::cpu::{self, msr};

const PAGE: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;

/// Offsets in the page.
pub mod reg {
    pub const ID: u64 = 0x20;
    pub const VERSION: u64 = 0x30;
    pub const TPR: u64 = 0x80;
    pub const PPR: u64 = 0xa0;
    pub const EOI: u64 = 0xb0;
    pub const LDR: u64 = 0xd0;
    pub const DFR: u64 = 0xe0;
    pub const SVR: u64 = 0xf0;
    pub const ISR: u64 = 0x100;
    pub const TMR: u64 = 0x180;
    pub const IRR: u64 = 0x200;
    pub const ESR: u64 = 0x280;
    pub const ICR: u64 = 0x300;
    pub const ICR_HIGH: u64 = 0x310;
    pub const LVT_TIMER: u64 = 0x320;
    pub const LVT_LINT0: u64 = 0x350;
    pub const INITIAL: u64 = 0x380;
    pub const CURRENT: u64 = 0x390;
    pub const DIVIDE: u64 = 0x3e0;
}

/// Delivery modes and shorthands of the ICR.
pub mod icr {
    pub const NMI: u32 = 4 << 8;
    pub const INIT: u32 = 5 << 8;
    pub const START_UP: u32 = 6 << 8;
    pub const ASSERT: u32 = 1 << 14;
    pub const LOGICAL: u32 = 1 << 11;
    pub const TO_SELF: u32 = 1 << 18;
    pub const TO_ALL: u32 = 2 << 18;
    pub const TO_OTHERS: u32 = 3 << 18;
}

/// Reads a register.
pub fn read(register: u64) -> u32 {
    // SAFETY: the page is mapped and a device.
    unsafe { ptr::read_volatile((PAGE + register) as *const u32) }
}

/// Writes a register.
pub fn write(register: u64, value: u32) {
    // SAFETY: the page is mapped and a device.
    unsafe { ptr::write_volatile((PAGE + register) as *mut u32, value) }
}

/// Turns the chip on, in xAPIC mode and with nothing masked by priority.
pub fn enable() {
    let base = cpu::rdmsr(msr::APIC_BASE);
    if base & 1 << 10 != 0 {
        cpu::wrmsr(msr::APIC_BASE, base & !(3 << 10));
    }
    cpu::wrmsr(msr::APIC_BASE, base & !(1 << 10) | 1 << 11);
    write(reg::SVR, 0x1ff);
    write(reg::TPR, 0);
    // The 8259 pair stays quiet until somebody asks for it.
    write(reg::LVT_LINT0, 1 << 16);
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
}

/// Ends the interrupt in service.
pub fn end_of_interrupt() {
    write(reg::EOI, 0);
}

/// Sends what `command` says to `destination`.
pub fn send(destination: u32, command: u32) {
    while read(reg::ICR) & 1 << 12 != 0 {}
    write(reg::ICR_HIGH, destination << 24);
    write(reg::ICR, command);
}

/// Tells whether a bit of one of the 256-bit registers is set.
pub fn bit(register: u64, vector: u32) -> bool {
    read(register + u64::from(vector / 32 * 16)) >> (vector % 32) & 1 != 0
}

/// Returns this processor's id.
pub fn id() -> u32 {
    read(reg::ID) >> 24
}

/// Reads a register of the IOAPIC.
pub fn io_read(register: u32) -> u32 {
    // SAFETY: the window is mapped and a device.
    unsafe {
        ptr::write_volatile(IOAPIC as *mut u32, register);
        ptr::read_volatile((IOAPIC + 0x10) as *const u32)
    }
}

/// Writes a register of the IOAPIC.
pub fn io_write(register: u32, value: u32) {
    // SAFETY: the window is mapped and a device.
    unsafe {
        ptr::write_volatile(IOAPIC as *mut u32, register);
        ptr::write_volatile((IOAPIC + 0x10) as *mut u32, value);
    }
}

/// Bits of a redirection entry.
pub mod entry {
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
}

/// Sets a pin's redirection entry to this processor.
pub fn route(pin: u32, low: u32) {
    io_write(0x11 + 2 * pin, id() << 24);
    io_write(0x10 + 2 * pin, low);
}

/// Drives a line of the test device.
pub fn set_line(line: u16, high: bool) {
    cpu::out8(0x2000 + line, high.into());
}
