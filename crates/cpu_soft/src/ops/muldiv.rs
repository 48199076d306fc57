//! MUL, IMUL, DIV, IDIV.
//!
//! Flags that the manual leaves undefined after a multiplication (SF, ZF, AF, PF) follow the low
//! half of the product; a division leaves the flags alone.

use umbra_mmu::AccessKind::Read;
use umbra_x86::{Exception, vector};

use super::{by_size, ok};
use crate::cpu::{Cpu, Trap};
use crate::op::{Handler, Leave, Op, next};
use crate::width::{BITS, mask, sext};

const AX: u8 = 0;
const AH: u8 = 1;
const DX: u8 = 16;

fn mul<const SIGNED: bool, const N: usize>(cpu: &mut Cpu, b: u64) {
    let a = cpu.regs.get::<N>(AX);
    let (low, high, over) = product::<SIGNED, N>(a, b);
    if N == 1 {
        cpu.regs.set::<2>(AX, low | high << 8);
    } else {
        cpu.regs.set::<N>(AX, low);
        cpu.regs.set::<N>(DX, high);
    }
    cpu.flags.shift::<N>(low, over, over);
}

/// Low half, high half, and whether the high half is significant.
#[inline(always)]
fn product<const SIGNED: bool, const N: usize>(a: u64, b: u64) -> (u64, u64, bool) {
    if SIGNED {
        let wide = i128::from(sext::<N>(a) as i64) * i128::from(sext::<N>(b) as i64);
        let low = wide as u64 & mask::<N>();
        let high = (wide >> BITS::<N>()) as u64 & mask::<N>();
        (low, high, wide != i128::from(sext::<N>(low) as i64))
    } else {
        let wide = u128::from(a) * u128::from(b);
        let high = (wide >> BITS::<N>()) as u64 & mask::<N>();
        (wide as u64 & mask::<N>(), high, high != 0)
    }
}

fn mul_r<const SIGNED: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let b = cpu.regs.get::<N>(op.a);
    mul::<SIGNED, N>(cpu, b);
    next(cpu, op)
}

fn mul_m<const SIGNED: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let b = ok!(cpu, op, cpu.load::<N>(la));
    mul::<SIGNED, N>(cpu, b);
    next(cpu, op)
}

/// IMUL with two or three operands: `dest = a * b`, truncated.
fn imul<const N: usize>(cpu: &mut Cpu, dest: u8, a: u64, b: u64) {
    let (low, _, over) = product::<true, N>(a, b);
    cpu.regs.set::<N>(dest, low);
    cpu.flags.shift::<N>(low, over, over);
}

/// IMUL register, register.
pub fn imul_rr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (a, b) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
    imul::<N>(cpu, op.a, a, b);
    next(cpu, op)
}

/// IMUL register, memory.
pub fn imul_rm<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let b = ok!(cpu, op, cpu.load::<N>(la));
    let a = cpu.regs.get::<N>(op.a);
    imul::<N>(cpu, op.a, a, b);
    next(cpu, op)
}

/// IMUL register, register, immediate.
pub fn imul_rri<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let b = cpu.regs.get::<N>(op.b);
    imul::<N>(cpu, op.a, b, op.imm & mask::<N>());
    next(cpu, op)
}

/// IMUL register, memory, immediate.
pub fn imul_rmi<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let b = ok!(cpu, op, cpu.load::<N>(la));
    imul::<N>(cpu, op.a, b, op.imm & mask::<N>());
    next(cpu, op)
}

fn div<const SIGNED: bool, const N: usize>(cpu: &mut Cpu, divisor: u64) -> Result<(), Trap> {
    let (low, high) = if N == 1 {
        (cpu.regs.get::<1>(AX), cpu.regs.get::<1>(AH))
    } else {
        (cpu.regs.get::<N>(AX), cpu.regs.get::<N>(DX))
    };
    let dividend = u128::from(low) | u128::from(high) << BITS::<N>();
    let result = if SIGNED {
        idiv::<N>(dividend, divisor)
    } else {
        udiv::<N>(dividend, divisor)
    };
    let Some((quotient, remainder)) = result else {
        return Err(cpu.raise(Exception::plain(vector::DE)));
    };
    if N == 1 {
        cpu.regs.set::<1>(AX, quotient);
        cpu.regs.set::<1>(AH, remainder);
    } else {
        cpu.regs.set::<N>(AX, quotient);
        cpu.regs.set::<N>(DX, remainder);
    }
    Ok(())
}

fn udiv<const N: usize>(dividend: u128, divisor: u64) -> Option<(u64, u64)> {
    if let Ok(small) = u64::try_from(dividend) {
        let quotient = small.checked_div(divisor)?;
        return (quotient <= mask::<N>()).then(|| (quotient, small % divisor));
    }
    let quotient = dividend.checked_div(divisor.into())?;
    let fits = quotient <= u128::from(mask::<N>());
    fits.then(|| (quotient as u64, (dividend % u128::from(divisor)) as u64))
}

fn idiv<const N: usize>(dividend: u128, divisor: u64) -> Option<(u64, u64)> {
    let unused = 128 - 2 * BITS::<N>();
    let dividend = (dividend << unused) as i128 >> unused;
    let divisor = i128::from(sext::<N>(divisor) as i64);
    let quotient = dividend.checked_div(divisor)?;
    let fits = quotient == i128::from(sext::<N>(quotient as u64) as i64)
        && i64::try_from(quotient).is_ok();
    fits.then(|| (quotient as u64, (dividend % divisor) as u64))
}

fn div_r<const SIGNED: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let b = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, div::<SIGNED, N>(cpu, b));
    next(cpu, op)
}

fn div_m<const SIGNED: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let b = ok!(cpu, op, cpu.load::<N>(la));
    ok!(cpu, op, div::<SIGNED, N>(cpu, b));
    next(cpu, op)
}

macro_rules! signed_by_size {
    ($signed:expr, $size:expr, $f:ident) => {
        match ($signed, $size) {
            (false, 1) => $f::<false, 1> as Handler,
            (false, 2) => $f::<false, 2>,
            (false, 4) => $f::<false, 4>,
            (false, _) => $f::<false, 8>,
            (true, 1) => $f::<true, 1>,
            (true, 2) => $f::<true, 2>,
            (true, 4) => $f::<true, 4>,
            (true, _) => $f::<true, 8>,
        }
    };
}

/// Handler of MUL and one-operand IMUL.
pub fn multiply(signed: bool, memory: bool, size: usize) -> Handler {
    if memory {
        signed_by_size!(signed, size, mul_m)
    } else {
        signed_by_size!(signed, size, mul_r)
    }
}

/// Handler of DIV and IDIV.
pub fn divide(signed: bool, memory: bool, size: usize) -> Handler {
    if memory {
        signed_by_size!(signed, size, div_m)
    } else {
        signed_by_size!(signed, size, div_r)
    }
}

/// Handler of IMUL with two operands.
pub fn imul2(memory: bool, size: usize) -> Handler {
    if memory {
        by_size!(size, imul_rm)
    } else {
        by_size!(size, imul_rr)
    }
}

/// Handler of IMUL with three operands.
pub fn imul3(memory: bool, size: usize) -> Handler {
    if memory {
        by_size!(size, imul_rmi)
    } else {
        by_size!(size, imul_rri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_overflow_and_zero_are_refused() {
        assert_eq!(udiv::<1>(0x100, 1), None);
        assert_eq!(udiv::<8>(5, 0), None);
        assert_eq!(udiv::<8>(1 << 64, 1), None);
        assert_eq!(
            idiv::<4>(0x8000_0000 | 0xffff_ffff << 32, u64::from(u32::MAX)),
            None
        );
        assert_eq!(idiv::<8>(i64::MIN as i128 as u128, u64::MAX), None);
        assert_eq!(
            idiv::<4>(7u64.wrapping_neg() as u128, 2),
            Some((3u64.wrapping_neg(), u64::MAX))
        );
    }
}
