//! Guest memory through host pointers.
//!
//! The only place where guest bytes are touched. Guest processors are host threads and guest RAM
//! is shared with them, with devices and with other processes, so every access is one host
//! instruction (inline assembly): it cannot tear where the guest's would not, the compiler can
//! neither repeat, merge nor invent it, and it is no data race in the sense of the language.
//! x86 memory order of the guest is x86 memory order of the host.
//!
//! `at` is always a host address that a translation cache gave out: mapped, writable where
//! written, and alive until this processor acknowledges the flush that takes it away.

use std::arch::asm;

/// Loads `N` bytes, zero-extended.
///
/// # Safety
/// 1. `at..at + N` is mapped guest RAM.
#[inline(always)]
pub unsafe fn load<const N: usize>(at: u64) -> u64 {
    let v: u64;
    // SAFETY: 1. by the caller; the instructions read memory only, no alignment is needed.
    unsafe {
        match N {
            1 => {
                asm!("movzx {v:e}, byte ptr [{a}]", v = out(reg) v, a = in(reg) at, options(nostack, preserves_flags, readonly))
            }
            2 => {
                asm!("movzx {v:e}, word ptr [{a}]", v = out(reg) v, a = in(reg) at, options(nostack, preserves_flags, readonly))
            }
            4 => {
                asm!("mov {v:e}, dword ptr [{a}]", v = out(reg) v, a = in(reg) at, options(nostack, preserves_flags, readonly))
            }
            _ => {
                asm!("mov {v}, qword ptr [{a}]", v = out(reg) v, a = in(reg) at, options(nostack, preserves_flags, readonly))
            }
        }
    }
    v
}

/// Stores the low `N` bytes of `v`.
///
/// # Safety
/// 1. `at..at + N` is mapped, writable guest RAM.
#[inline(always)]
pub unsafe fn store<const N: usize>(at: u64, v: u64) {
    // SAFETY: 1. by the caller; guest RAM is no Rust object, so no reference can alias it.
    unsafe {
        match N {
            1 => {
                asm!("mov byte ptr [{a}], {v}", v = in(reg_byte) v as u8, a = in(reg) at, options(nostack, preserves_flags))
            }
            2 => {
                asm!("mov word ptr [{a}], {v:x}", v = in(reg) v, a = in(reg) at, options(nostack, preserves_flags))
            }
            4 => {
                asm!("mov dword ptr [{a}], {v:e}", v = in(reg) v, a = in(reg) at, options(nostack, preserves_flags))
            }
            _ => {
                asm!("mov qword ptr [{a}], {v}", v = in(reg) v, a = in(reg) at, options(nostack, preserves_flags))
            }
        }
    }
}

/// Compares and swaps `N` bytes atomically; returns the old value, which equals `old` on success.
///
/// # Safety
/// 1. `at..at + N` is mapped, writable guest RAM.
#[inline(always)]
pub unsafe fn cmpxchg<const N: usize>(at: u64, old: u64, new: u64) -> u64 {
    let mut seen = old;
    // SAFETY: 1. by the caller. LOCK works at any alignment (SDM vol. 3, 8.1.2.2).
    unsafe {
        match N {
            1 => {
                asm!("lock cmpxchg byte ptr [{a}], {n}", n = in(reg_byte) new as u8, a = in(reg) at, inout("rax") seen, options(nostack))
            }
            2 => {
                asm!("lock cmpxchg word ptr [{a}], {n:x}", n = in(reg) new, a = in(reg) at, inout("rax") seen, options(nostack))
            }
            4 => {
                asm!("lock cmpxchg dword ptr [{a}], {n:e}", n = in(reg) new, a = in(reg) at, inout("rax") seen, options(nostack))
            }
            _ => {
                asm!("lock cmpxchg qword ptr [{a}], {n}", n = in(reg) new, a = in(reg) at, inout("rax") seen, options(nostack))
            }
        }
    }
    crate::width::zext::<N>(seen)
}

/// Compares and swaps sixteen bytes atomically; returns the old value.
///
/// # Safety
/// 1. `at..at + 16` is mapped, writable guest RAM.
/// 2. `at` is a multiple of sixteen.
pub unsafe fn cmpxchg16(at: u64, old: u128, new: u128) -> u128 {
    let (mut lo, mut hi) = (old as u64, (old >> 64) as u64);
    // SAFETY: 1. and 2. by the caller. RBX is reserved by the compiler, so it is exchanged in and
    // out around the instruction.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            inout("rsi") new as u64 => _,
            in("rdi") at,
            inout("rax") lo,
            inout("rdx") hi,
            in("rcx") (new >> 64) as u64,
            options(nostack),
        );
    }
    u128::from(lo) | u128::from(hi) << 64
}

/// Copies guest bytes out, byte by byte from the front.
///
/// # Safety
/// 1. `at..at + to.len()` is mapped guest RAM.
pub unsafe fn read_bytes(at: u64, to: &mut [u8]) {
    // SAFETY: 1. by the caller; `to` is a Rust object and guest RAM is not, so they do not overlap.
    unsafe {
        asm!("rep movsb", inout("rsi") at => _, inout("rdi") to.as_mut_ptr() => _,
             inout("rcx") to.len() => _, options(nostack, preserves_flags));
    }
}

/// Copies bytes into guest memory, byte by byte from the front.
///
/// # Safety
/// 1. `at..at + from.len()` is mapped, writable guest RAM.
pub unsafe fn write_bytes(at: u64, from: &[u8]) {
    // SAFETY: as in `read_bytes`.
    unsafe {
        asm!("rep movsb", inout("rsi") from.as_ptr() => _, inout("rdi") at => _,
             inout("rcx") from.len() => _, options(nostack, preserves_flags));
    }
}

/// Copies between two pieces of guest memory upwards, `N` bytes at a time, as REP MOVS does when
/// they overlap.
///
/// # Safety
/// 1. `from..from + count * N` is mapped guest RAM.
/// 2. `to..to + count * N` is mapped, writable guest RAM.
pub unsafe fn movs<const N: usize>(to: u64, from: u64, count: u64) {
    // SAFETY: 1. and 2. by the caller; the direction flag is clear by the ABI.
    unsafe {
        match N {
            1 => {
                asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
            2 => {
                asm!("rep movsw", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
            4 => {
                asm!("rep movsd", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
            _ => {
                asm!("rep movsq", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
        }
    }
}

/// Fills guest memory upwards with `count` copies of the low `N` bytes of `v`.
///
/// # Safety
/// 1. `to..to + count * N` is mapped, writable guest RAM.
pub unsafe fn stos<const N: usize>(to: u64, v: u64, count: u64) {
    // SAFETY: 1. by the caller; the direction flag is clear by the ABI.
    unsafe {
        match N {
            1 => {
                asm!("rep stosb", in("rax") v, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
            2 => {
                asm!("rep stosw", in("rax") v, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
            4 => {
                asm!("rep stosd", in("rax") v, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
            _ => {
                asm!("rep stosq", in("rax") v, inout("rdi") to => _, inout("rcx") count => _, options(nostack, preserves_flags))
            }
        }
    }
}
