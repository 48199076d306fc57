//! Shifts and rotates (SDM vol. 2, SAL/SAR/SHL/SHR, RCL/RCR/ROL/ROR, SHLD, SHRD).
//!
//! A masked count of zero changes neither operand nor flags. Overflow is defined for a count of
//! one; for others it is what current processors compute, so that differential tests agree.

use umbra_mmu::AccessKind::Write;

use super::alu::Place;
use super::{by_size, ok};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::op::{Handler, Leave, Op, next};
use crate::regs::offset;
use crate::width::{BITS, mask, sext, sign, zext};

/// A shift or rotate by a non-zero count below 64 (below 32 for operands up to 32 bits).
pub trait Shift: 'static {
    /// Computes result and flags.
    fn apply<const N: usize>(flags: &mut Flags, a: u64, count: u32) -> u64;
}

macro_rules! shift {
    ($($name:ident = |$n:ident, $f:ident, $a:ident, $c:ident| $e:block)*) => { $(
        #[doc = concat!(stringify!($name), ".")]
        pub enum $name {}
        impl Shift for $name {
            #[inline(always)]
            fn apply<const $n: usize>($f: &mut Flags, $a: u64, $c: u32) -> u64 $e
        }
    )* };
}

shift! {
    Shl = |N, f, a, c| {
        let wide = u128::from(a) << c;
        let r = wide as u64 & mask::<N>();
        let cf = wide >> BITS::<N>() & 1 != 0;
        f.shift::<N>(r, cf, sign::<N>(r) ^ cf);
        r
    }
    Shr = |N, f, a, c| {
        let r = a >> c;
        let cf = a >> (c - 1) & 1 != 0;
        // The two top bits of the result: equal to the old sign for a count of one, 0 for others.
        let of = sign::<N>(r) ^ (r >> (BITS::<N>() - 2) & 1 != 0);
        f.shift::<N>(r, cf, of);
        r
    }
    Sar = |N, f, a, c| {
        let a = sext::<N>(a) as i64;
        let r = (a >> c) as u64;
        f.shift::<N>(r, a >> (c - 1) & 1 != 0, false);
        r
    }
    Rol = |N, f, a, c| {
        let c = c % BITS::<N>();
        let r = if c == 0 { a } else { zext::<N>(a << c | a >> (BITS::<N>() - c)) };
        let cf = r & 1 != 0;
        f.set_cf_of(cf, sign::<N>(r) ^ cf);
        r
    }
    Ror = |N, f, a, c| {
        let c = c % BITS::<N>();
        let r = if c == 0 { a } else { zext::<N>(a >> c | a << (BITS::<N>() - c)) };
        let cf = sign::<N>(r);
        f.set_cf_of(cf, cf ^ (r >> (BITS::<N>() - 2) & 1 != 0));
        r
    }
    Rcl = |N, f, a, c| {
        let width = BITS::<N>() + 1;
        let c = c % width;
        let wide = u128::from(a) | u128::from(f.cf()) << BITS::<N>();
        let turned = if c == 0 { wide } else { wide << c | wide >> (width - c) };
        let r = turned as u64 & mask::<N>();
        let cf = turned >> BITS::<N>() & 1 != 0;
        f.set_cf_of(cf, sign::<N>(r) ^ cf);
        r
    }
    Rcr = |N, f, a, c| {
        let width = BITS::<N>() + 1;
        let c = c % width;
        let wide = u128::from(a) | u128::from(f.cf()) << BITS::<N>();
        let turned = if c == 0 { wide } else { wide >> c | wide << (width - c) };
        let r = turned as u64 & mask::<N>();
        let cf = turned >> BITS::<N>() & 1 != 0;
        f.set_cf_of(cf, sign::<N>(r) ^ (r >> (BITS::<N>() - 2) & 1 != 0));
        r
    }
}

/// The count is masked to five bits, or six for 64-bit operands.
#[inline(always)]
fn masked<const N: usize>(count: u64) -> u32 {
    count as u32 & if N == 8 { 63 } else { 31 }
}

#[inline(always)]
fn apply<O: Shift, const N: usize>(flags: &mut Flags, a: u64, count: u32) -> u64 {
    if count == 0 {
        a
    } else {
        O::apply::<N>(flags, a, count)
    }
}

fn r_imm<O: Shift, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let a = cpu.regs.get::<N>(op.a);
    let r = apply::<O, N>(&mut cpu.flags, a, masked::<N>(op.imm));
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn r_cl<O: Shift, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let count = masked::<N>(cpu.regs.get::<1>(offset(1)));
    let a = cpu.regs.get::<N>(op.a);
    let r = apply::<O, N>(&mut cpu.flags, a, count);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn m_imm<O: Shift, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let count = masked::<N>(op.imm);
    ok!(cpu, op, cpu.rmw::<N>(la, |f, a| apply::<O, N>(f, a, count)));
    next(cpu, op)
}

fn m_cl<O: Shift, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let count = masked::<N>(cpu.regs.get::<1>(offset(1)));
    ok!(cpu, op, cpu.rmw::<N>(la, |f, a| apply::<O, N>(f, a, count)));
    next(cpu, op)
}

/// Handler of a shift by CL (`by_cl`) or an immediate.
pub fn shift<O: Shift>(place: Place, by_cl: bool, size: usize) -> Handler {
    match (place, by_cl) {
        (Place::Reg, false) => by_size!(size, r_imm, O),
        (Place::Reg, true) => by_size!(size, r_cl, O),
        (_, false) => by_size!(size, m_imm, O),
        (_, true) => by_size!(size, m_cl, O),
    }
}

/// SHLD and SHRD.
#[inline(always)]
fn double<const LEFT: bool, const N: usize>(f: &mut Flags, a: u64, b: u64, c: u32) -> u64 {
    if c == 0 {
        return a;
    }
    let bits = BITS::<N>();
    // A count beyond 16 is undefined for 16-bit operands: the pair goes on with the destination,
    // as if the three words a, b, a were shifted.
    let (a128, b128) = (u128::from(a), u128::from(b));
    let (r, cf) = if LEFT {
        let words = a128 << bits | b128;
        let (words, width) = if N == 2 {
            (words << bits | a128, 3 * bits)
        } else {
            (words, 2 * bits)
        };
        let r = words >> (width - bits - c);
        (r as u64 & mask::<N>(), words >> (width - c) & 1 != 0)
    } else {
        let words = b128 << bits | a128;
        let words = if N == 2 {
            words | a128 << (2 * bits)
        } else {
            words
        };
        ((words >> c) as u64 & mask::<N>(), words >> (c - 1) & 1 != 0)
    };
    f.shift::<N>(r, cf, sign::<N>(r) != sign::<N>(a));
    r
}

fn double_op<const LEFT: bool, const CL: bool, const MEM: bool, const N: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Leave {
    let count = if CL {
        cpu.regs.get::<1>(offset(1))
    } else {
        op.imm
    };
    let count = masked::<N>(count);
    if MEM {
        let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
        let b = cpu.regs.get::<N>(op.a);
        ok!(
            cpu,
            op,
            cpu.rmw::<N>(la, |f, a| double::<LEFT, N>(f, a, b, count))
        );
    } else {
        let (a, b) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
        let r = double::<LEFT, N>(&mut cpu.flags, a, b, count);
        cpu.regs.set::<N>(op.a, r);
    }
    next(cpu, op)
}

/// Handler of SHLD (`left`) or SHRD.
pub fn double_shift(left: bool, by_cl: bool, memory: bool, size: usize) -> Handler {
    macro_rules! pick {
        ($l:literal, $c:literal, $m:literal) => {
            match size {
                2 => double_op::<$l, $c, $m, 2> as Handler,
                4 => double_op::<$l, $c, $m, 4>,
                _ => double_op::<$l, $c, $m, 8>,
            }
        };
    }
    match (left, by_cl, memory) {
        (true, true, true) => pick!(true, true, true),
        (true, true, false) => pick!(true, true, false),
        (true, false, true) => pick!(true, false, true),
        (true, false, false) => pick!(true, false, false),
        (false, true, true) => pick!(false, true, true),
        (false, true, false) => pick!(false, true, false),
        (false, false, true) => pick!(false, false, true),
        (false, false, false) => pick!(false, false, false),
    }
}
