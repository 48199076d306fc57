//! Numbers of model-specific registers (SDM vol. 4), and of KVM's paravirtual ones.

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Local APIC base.
pub const APIC_BASE: u32 = 0x1b;
/// Time-stamp counter adjustment.
pub const TSC_ADJUST: u32 = 0x3b;
/// Speculation control.
pub const SPEC_CTRL: u32 = 0x48;
/// Microcode revision.
pub const BIOS_SIGN_ID: u32 = 0x8b;
/// Speculation and side-channel facts.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// SYSENTER code segment.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER instruction pointer.
pub const SYSENTER_EIP: u32 = 0x176;
/// Machine-check global capabilities.
pub const MCG_CAP: u32 = 0x179;
/// Machine-check global status.
pub const MCG_STATUS: u32 = 0x17a;
/// Miscellaneous enables.
pub const MISC_ENABLE: u32 = 0x1a0;
/// Page attribute table.
pub const PAT: u32 = 0x277;
/// Deadline of the local APIC timer.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First x2APIC register; they reach to 0x8ff.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC register.
pub const X2APIC_LAST: u32 = 0x8ff;
/// Extended features.
pub const EFER: u32 = 0xc000_0080;
/// SYSCALL segment selectors.
pub const STAR: u32 = 0xc000_0081;
/// SYSCALL target, 64-bit mode.
pub const LSTAR: u32 = 0xc000_0082;
/// SYSCALL target, compatibility mode.
pub const CSTAR: u32 = 0xc000_0083;
/// Flags that SYSCALL clears.
pub const FMASK: u32 = 0xc000_0084;
/// Base of FS.
pub const FS_BASE: u32 = 0xc000_0100;
/// Base of GS.
pub const GS_BASE: u32 = 0xc000_0101;
/// What SWAPGS exchanges with the base of GS.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// What RDTSCP returns in ECX.
pub const TSC_AUX: u32 = 0xc000_0103;
/// KVM wall clock, old number.
pub const KVM_WALL_CLOCK: u32 = 0x11;
/// KVM system time, old number.
pub const KVM_SYSTEM_TIME: u32 = 0x12;
/// KVM wall clock.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// KVM system time.
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// Where the host of a KVM says that a page is away or back (`KVM_FEATURE_ASYNC_PF`).
pub const KVM_ASYNC_PF_EN: u32 = 0x4b56_4d02;
