//! Single instructions. All of them are allowed at privilege level 0, where everything here runs;
//! those that may fault are meant to, inside [`crate::trap::attempt`].
#![allow(unsafe_code)]

use core::arch::asm;

/// Ends in a halt.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: stops the processor; nothing is left to do.
        unsafe { asm!("cli", "hlt") }
    }
}

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        pub fn $name($($argument: $type),*) $(-> $result)? {
            // SAFETY: see the head of the file; nothing but registers and the machine is touched.
            unsafe { $body }
        }
    };
}

instruction!(
    /// IN, one byte.
    in8(port: u16) -> u8 {
        let value;
        asm!("in al, dx", in("dx") port, out("al") value);
        value
    }
);
instruction!(
    /// OUT, one byte.
    out8(port: u16, value: u8) { asm!("out dx, al", in("dx") port, in("al") value) }
);
instruction!(
    /// RDMSR.
    rdmsr(number: u32) -> u64 {
        let (low, high): (u32, u32);
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high);
        u64::from(high) << 32 | u64::from(low)
    }
);
instruction!(
    /// WRMSR.
    wrmsr(number: u32, value: u64) {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32);
    }
);
instruction!(
    /// RDTSC, in order.
    rdtsc() -> u64 {
        let (low, high): (u32, u32);
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high);
        u64::from(high) << 32 | u64::from(low)
    }
);
instruction!(
    /// MOV from CR0.
    cr0() -> u64 { let v; asm!("mov {}, cr0", out(reg) v); v }
);
instruction!(
    /// MOV to CR0.
    set_cr0(v: u64) { asm!("mov cr0, {}", in(reg) v) }
);
instruction!(
    /// MOV from CR2.
    cr2() -> u64 { let v; asm!("mov {}, cr2", out(reg) v); v }
);
instruction!(
    /// MOV from CR3.
    cr3() -> u64 { let v; asm!("mov {}, cr3", out(reg) v); v }
);
instruction!(
    /// MOV to CR3.
    set_cr3(v: u64) { asm!("mov cr3, {}", in(reg) v) }
);
instruction!(
    /// MOV from CR4.
    cr4() -> u64 { let v; asm!("mov {}, cr4", out(reg) v); v }
);
instruction!(
    /// MOV to CR4.
    set_cr4(v: u64) { asm!("mov cr4, {}", in(reg) v) }
);
instruction!(
    /// MOV from CR8.
    cr8() -> u64 { let v; asm!("mov {}, cr8", out(reg) v); v }
);
instruction!(
    /// MOV to CR8.
    set_cr8(v: u64) { asm!("mov cr8, {}", in(reg) v) }
);
instruction!(
    /// MOV from DR6.
    dr6() -> u64 { let v; asm!("mov {}, dr6", out(reg) v); v }
);
instruction!(
    /// MOV to DR6.
    set_dr6(v: u64) { asm!("mov dr6, {}", in(reg) v) }
);
instruction!(
    /// MOV to DR7.
    set_dr7(v: u64) { asm!("mov dr7, {}", in(reg) v) }
);
instruction!(
    /// MOV to DR0.
    set_dr0(v: u64) { asm!("mov dr0, {}", in(reg) v) }
);
instruction!(
    /// INVLPG.
    invlpg(address: u64) { asm!("invlpg [{}]", in(reg) address) }
);
instruction!(
    /// STI and one instruction after it, so that what waits comes now.
    enable_interrupts() { asm!("sti", "nop") }
);
instruction!(
    /// CLI.
    disable_interrupts() { asm!("cli") }
);
instruction!(
    /// STI, HLT, CLI: waits for one interrupt.
    wait_for_interrupt() { asm!("sti", "hlt", "cli") }
);
instruction!(
    /// PAUSE.
    pause() { asm!("pause") }
);

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, index: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, index);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Tells whether a bit of a CPUID register is set: leaf, register (0 is EAX), bit.
pub fn has(leaf: u32, register: usize, bit: u32) -> bool {
    let base = leaf & 0x8000_0000;
    cpuid(base, 0)[0] >= leaf && cpuid(leaf, 0)[register] >> bit & 1 != 0
}

/// Tells whether this is QEMU without an accelerator, which takes some liberties: where the manual
/// agrees with us, what it does differently is left out there.
pub fn is_tcg() -> bool {
    has(1, 2, 31) && cpuid(0x4000_0000, 0)[1] == u32::from_le_bytes(*b"TCGT")
}

/// Model-specific registers.
pub mod msr {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const PAT: u32 = 0x277;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// Bits of CR4.
pub mod cr4 {
    pub const DE: u64 = 1 << 3;
    pub const UMIP: u64 = 1 << 11;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// CR0.WP.
pub const CR0_WP: u64 = 1 << 16;
/// EFER.NXE.
pub const EFER_NXE: u64 = 1 << 11;
