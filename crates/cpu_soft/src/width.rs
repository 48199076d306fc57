//! Operand widths: `N` is 1, 2, 4 or 8 bytes throughout; values travel zero-extended in a `u64`.

/// Bits of an `N`-byte operand.
#[allow(non_snake_case)]
#[inline(always)]
pub const fn BITS<const N: usize>() -> u32 {
    8 * N as u32
}

/// Mask of an `N`-byte operand.
#[inline(always)]
pub const fn mask<const N: usize>() -> u64 {
    u64::MAX >> (64 - BITS::<N>())
}

/// Zero-extends.
#[inline(always)]
pub const fn zext<const N: usize>(v: u64) -> u64 {
    v & mask::<N>()
}

/// Sign-extends to 64 bits.
#[inline(always)]
pub const fn sext<const N: usize>(v: u64) -> u64 {
    match N {
        1 => v as i8 as u64,
        2 => v as i16 as u64,
        4 => v as i32 as u64,
        _ => v,
    }
}

/// Returns the top bit.
#[inline(always)]
pub const fn sign<const N: usize>(v: u64) -> bool {
    v >> (BITS::<N>() - 1) & 1 != 0
}
