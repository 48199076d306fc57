//! Status flags, computed when somebody asks.
//!
//! An arithmetic instruction stores its sign-extended result and the vector of carries that left
//! each bit position; every flag is a few operations away from these two words, and no flag needs
//! to know which instruction set it.
//!
//! ```text
//! res   sign-extended result: ZF = (res == 0), SF = sign, PF = parity of the low byte
//! aux   bit 31 carry out of the top bit (CF)      bit 30 carry into it (OF = 31 xor 30)
//!       bit 3  carry out of bit 3 (AF)
//!       bit 0  inverts SF                         bits 8-15 are xored into the byte for PF
//! ```
//! The inverters exist so that any combination can be loaded (POPF, IRET, SAHF): a result that is
//! zero and negative at once has no other representation.

use umbra_x86::rflags::{AF, CF, OF, PF, SF, ZF};

use crate::width::{BITS, sext};

/// The six status flags, lazily.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Flags {
    res: u64,
    aux: u64,
}

const CARRY: u64 = 1 << 31;
const INTO_TOP: u64 = 1 << 30;

/// Moves the carries of the two top bits of an `N`-byte operation to bits 31 and 30.
#[inline(always)]
fn pack<const N: usize>(carries: u64) -> u64 {
    (carries & 8) | ((carries << (64 - BITS::<N>())) >> 32 & (CARRY | INTO_TOP))
}

impl Flags {
    /// After an addition `r = a + b (+ carry)`.
    #[inline(always)]
    pub fn add<const N: usize>(&mut self, a: u64, b: u64, r: u64) {
        self.res = sext::<N>(r);
        self.aux = pack::<N>((a & b) | ((a | b) & !r));
    }

    /// After a subtraction `r = a - b (- borrow)`.
    #[inline(always)]
    pub fn sub<const N: usize>(&mut self, a: u64, b: u64, r: u64) {
        self.res = sext::<N>(r);
        self.aux = pack::<N>((!a & b) | (!(a ^ b) & r));
    }

    /// After a bitwise operation: CF, OF and AF are clear.
    #[inline(always)]
    pub fn logic<const N: usize>(&mut self, r: u64) {
        self.res = sext::<N>(r);
        self.aux = 0;
    }

    /// After INC (`r = a + 1`): like an addition, but CF is kept.
    #[inline(always)]
    pub fn inc<const N: usize>(&mut self, a: u64, r: u64) {
        let old = self.aux;
        self.add::<N>(a, 1, r);
        self.keep_carry(old);
    }

    /// After DEC (`r = a - 1`): like a subtraction, but CF is kept.
    #[inline(always)]
    pub fn dec<const N: usize>(&mut self, a: u64, r: u64) {
        let old = self.aux;
        self.sub::<N>(a, 1, r);
        self.keep_carry(old);
    }

    /// Takes CF from `old` without disturbing OF, which is the xor of two bits.
    #[inline(always)]
    fn keep_carry(&mut self, old: u64) {
        let change = (self.aux ^ old) & CARRY;
        self.aux ^= change | change >> 1;
    }

    /// After a shift or multiplication: result, carry and overflow; AF is clear.
    #[inline(always)]
    pub fn shift<const N: usize>(&mut self, r: u64, cf: bool, of: bool) {
        self.res = sext::<N>(r);
        self.aux = carry_overflow(cf, of);
    }

    /// Sets CF and OF, leaves the others: rotates.
    #[inline(always)]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !(CARRY | INTO_TOP) | carry_overflow(cf, of);
    }

    /// Sets CF alone.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_cf_of(cf, of);
    }

    /// Sets ZF alone.
    #[inline(always)]
    pub fn set_zf(&mut self, zf: bool) {
        let bits = self.get() & !ZF | if zf { ZF } else { 0 };
        self.set(bits);
    }

    /// Zero.
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.res == 0
    }

    /// Sign.
    #[inline(always)]
    pub fn sf(&self) -> bool {
        (self.res >> 63 ^ self.aux) & 1 != 0
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.aux & CARRY != 0
    }

    /// Overflow.
    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.aux >> 1 ^ self.aux) & INTO_TOP != 0
    }

    /// Auxiliary carry.
    #[inline(always)]
    pub fn af(&self) -> bool {
        self.aux & 8 != 0
    }

    /// Parity of the low byte: set when even.
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.res ^ self.aux >> 8) as u8).count_ones() & 1 == 0
    }

    /// Returns the six flags as RFLAGS has them.
    #[inline]
    pub fn get(&self) -> u64 {
        let bit = |set: bool, mask: u64| if set { mask } else { 0 };
        bit(self.cf(), CF)
            | bit(self.pf(), PF)
            | bit(self.af(), AF)
            | bit(self.zf(), ZF)
            | bit(self.sf(), SF)
            | bit(self.of(), OF)
    }

    /// Loads the six flags from an RFLAGS value.
    #[inline]
    pub fn set(&mut self, rflags: u64) {
        let has = |mask| rflags & mask != 0;
        self.res = if has(ZF) { 0 } else { 0x100 };
        self.aux = carry_overflow(has(CF), has(OF))
            | u64::from(has(AF)) << 3
            | u64::from(!has(PF)) << 8
            | u64::from(has(SF));
    }
}

#[inline(always)]
fn carry_overflow(cf: bool, of: bool) -> u64 {
    u64::from(cf) << 31 | u64::from(cf ^ of) << 30
}

/// One of the sixteen conditions (SDM vol. 1, appendix B).
pub trait Condition: 'static {
    /// Evaluates it.
    fn holds(flags: &Flags) -> bool;
}

macro_rules! conditions {
    ($($name:ident $not:ident = |$f:ident| $e:expr;)*) => { $(
        #[doc = concat!("Condition ", stringify!($name), ".")]
        pub enum $name {}
        impl Condition for $name {
            #[inline(always)]
            fn holds($f: &Flags) -> bool { $e }
        }
        #[doc = concat!("Condition ", stringify!($not), ".")]
        pub enum $not {}
        impl Condition for $not {
            #[inline(always)]
            fn holds($f: &Flags) -> bool { !($e) }
        }
    )* };
}

conditions! {
    O No = |f| f.of();
    B Ae = |f| f.cf();
    E Ne = |f| f.zf();
    Be A = |f| f.cf() | f.zf();
    S Ns = |f| f.sf();
    P Np = |f| f.pf();
    L Ge = |f| f.sf() != f.of();
    Le G = |f| f.zf() | (f.sf() != f.of());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_flags_survives_a_load() {
        let masks = [CF, PF, AF, ZF, SF, OF];
        for pick in 0..64u32 {
            let value = masks
                .iter()
                .enumerate()
                .filter(|(i, _)| pick >> i & 1 != 0)
                .map(|(_, m)| m)
                .sum();
            let mut flags = Flags::default();
            flags.set(value);
            assert_eq!(flags.get(), value);
            flags.set_cf(value & CF == 0);
            assert_eq!(flags.get(), value ^ CF, "only CF changes");
        }
    }

    #[test]
    fn inc_keeps_carry_and_reports_overflow() {
        let mut flags = Flags::default();
        flags.set(CF);
        flags.inc::<1>(0x7f, 0x80);
        assert_eq!(flags.get(), CF | OF | SF | AF);
    }

    #[test]
    fn a_borrow_through_the_whole_word_sets_carry() {
        let mut flags = Flags::default();
        flags.sub::<8>(0, 1, u64::MAX);
        assert_eq!(flags.get(), CF | PF | AF | SF);
    }
}
