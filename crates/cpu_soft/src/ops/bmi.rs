//! BMI1, BMI2 and ADX, and the instructions that answer with something the guest cannot know:
//! RDRAND, RDSEED, RDPID.
//!
//! The VEX-encoded ones have three operands: a destination, one that may be memory, and another.
//! Whatever order the encoding has them in, here they are `a`, the memory operand or the register
//! in `extra`, and `b`.

use umbra_mmu::AccessKind::Read;
use umbra_x86::rflags::{CF, OF};

use super::ok;
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::op::{Handler, Leave, Op, next};
use crate::width::{BITS, mask, zext};

/// One instruction: `rm` may have been memory.
pub trait Three: 'static {
    /// Computes the result.
    fn apply<const N: usize>(flags: &mut Flags, rm: u64, other: u64) -> u64;
}

/// Sets SF and ZF by `r`, CF as told; clears OF.
fn result<const N: usize>(flags: &mut Flags, r: u64, carry: bool) -> u64 {
    let r = zext::<N>(r);
    flags.logic::<N>(r);
    flags.set_cf(carry);
    r
}

macro_rules! three {
    ($($name:ident = |$n:ident, $f:ident, $rm:ident, $other:ident| $e:expr;)*) => { $(
        #[doc = concat!(stringify!($name), ".")]
        pub enum $name {}
        impl Three for $name {
            #[inline(always)]
            fn apply<const $n: usize>($f: &mut Flags, $rm: u64, $other: u64) -> u64 { $e }
        }
    )* };
}

three! {
    Andn = |N, f, rm, other| result::<N>(f, !other & rm, false);
    Bextr = |N, f, rm, control| {
        let (start, len) = ((control & 0xff) as u32, (control >> 8 & 0xff) as u32);
        result::<N>(f, low_bits(rm.checked_shr(start).unwrap_or(0), len), false)
    };
    Bzhi = |N, f, rm, index| {
        let index = (index & 0xff) as u32;
        result::<N>(f, low_bits(rm, index), index > BITS::<N>() - 1)
    };
    Blsi = |N, f, rm, _other| result::<N>(f, rm & rm.wrapping_neg(), rm != 0);
    Blsmsk = |N, f, rm, _other| result::<N>(f, rm ^ rm.wrapping_sub(1), rm == 0);
    Blsr = |N, f, rm, _other| result::<N>(f, rm & rm.wrapping_sub(1), rm == 0);
    Shlx = |N, _f, rm, count| zext::<N>(rm << (count & u64::from(BITS::<N>() - 1)));
    Shrx = |N, _f, rm, count| rm >> (count & u64::from(BITS::<N>() - 1));
    Sarx = |N, _f, rm, count| {
        let signed = crate::width::sext::<N>(rm) as i64;
        zext::<N>((signed >> (count & u64::from(BITS::<N>() - 1))) as u64)
    };
    Rorx = |N, _f, rm, count| {
        let count = count & u64::from(BITS::<N>() - 1);
        match count {
            0 => rm,
            _ => zext::<N>(rm >> count | rm << (u64::from(BITS::<N>()) - count)),
        }
    };
    Pdep = |N, _f, selected, source| deposit(source, selected & mask::<N>());
    Pext = |N, _f, selected, source| extract(source, selected & mask::<N>());
    Adcx = |N, f, rm, other| {
        let (r, carry) = add_carry::<N>(rm, other, f.cf());
        f.set_cf(carry);
        r
    };
    Adox = |N, f, rm, other| {
        let (r, carry) = add_carry::<N>(rm, other, f.of());
        let rest = f.get() & !OF;
        f.set(rest | if carry { OF } else { 0 });
        r
    };
}

/// The low `len` bits.
fn low_bits(value: u64, len: u32) -> u64 {
    match len {
        0..=63 => value & ((1 << len) - 1),
        _ => value,
    }
}

fn add_carry<const N: usize>(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let sum = u128::from(a) + u128::from(b) + u128::from(carry);
    (zext::<N>(sum as u64), sum >> BITS::<N>() != 0)
}

/// Puts the low bits of `source` where `selected` has ones.
fn deposit(source: u64, mut selected: u64) -> u64 {
    let (mut result, mut bit) = (0, 0);
    while selected != 0 {
        let lowest = selected & selected.wrapping_neg();
        if source >> bit & 1 != 0 {
            result |= lowest;
        }
        selected ^= lowest;
        bit += 1;
    }
    result
}

/// Gathers the bits of `source` where `selected` has ones.
fn extract(source: u64, mut selected: u64) -> u64 {
    let (mut result, mut bit) = (0, 0);
    while selected != 0 {
        let lowest = selected & selected.wrapping_neg();
        if source & lowest != 0 {
            result |= 1 << bit;
        }
        selected ^= lowest;
        bit += 1;
    }
    result
}

fn with_register<O: Three, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (rm, other) = (cpu.regs.get::<N>(op.extra), cpu.regs.get::<N>(op.b));
    let r = O::apply::<N>(&mut cpu.flags, rm, other);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn with_memory<O: Three, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let rm = ok!(cpu, op, cpu.load::<N>(la));
    let other = cpu.regs.get::<N>(op.b);
    let r = O::apply::<N>(&mut cpu.flags, rm, other);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

/// Handler of a three-operand instruction.
pub fn three<O: Three>(memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 4) => with_register::<O, 4>,
        (false, _) => with_register::<O, 8>,
        (true, 4) => with_memory::<O, 4>,
        (true, _) => with_memory::<O, 8>,
    }
}

fn rorx_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let rm = cpu.regs.get::<N>(op.extra);
    let r = Rorx::apply::<N>(&mut cpu.flags, rm, op.imm);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn rorx_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let rm = ok!(cpu, op, cpu.load::<N>(la));
    let r = Rorx::apply::<N>(&mut cpu.flags, rm, op.imm);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

/// Handler of RORX.
pub fn rorx(memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 4) => rorx_r::<4>,
        (false, _) => rorx_r::<8>,
        (true, 4) => rorx_m::<4>,
        (true, _) => rorx_m::<8>,
    }
}

/// The high half goes to `a`, the low half to `b`; where both are one register the high half stays.
fn mulx_by<const N: usize>(cpu: &mut Cpu, op: &Op, rm: u64) -> Leave {
    let product = u128::from(cpu.regs.get::<N>(crate::regs::offset(2))) * u128::from(rm);
    cpu.regs.set::<N>(op.b, product as u64);
    cpu.regs.set::<N>(op.a, (product >> BITS::<N>()) as u64);
    next(cpu, op)
}

fn mulx_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let rm = cpu.regs.get::<N>(op.extra);
    mulx_by::<N>(cpu, op, rm)
}

fn mulx_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let rm = ok!(cpu, op, cpu.load::<N>(la));
    mulx_by::<N>(cpu, op, rm)
}

/// Handler of MULX.
pub fn mulx(memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 4) => mulx_r::<4>,
        (false, _) => mulx_r::<8>,
        (true, 4) => mulx_m::<4>,
        (true, _) => mulx_m::<8>,
    }
}

/// RDRAND and RDSEED: the host's random numbers. CF tells that there was one.
pub fn random<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let there = got == Ok(bytes.len());
    let value = if there { u64::from_le_bytes(bytes) } else { 0 };
    cpu.regs.set::<N>(op.a, value & mask::<N>());
    cpu.flags.set(if there { CF } else { 0 });
    next(cpu, op)
}

/// RDPID.
pub fn rdpid(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.regs.set::<8>(op.a, cpu.msrs.tsc_aux & 0xffff_ffff);
    next(cpu, op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deposit_and_extract_are_inverse_under_the_mask() {
        let selected = 0x00f0_1234_8000_0001;
        let source = 0x3a5;
        let count = u64::count_ones(selected);
        let low = low_bits(source, count);
        assert_eq!(extract(deposit(source, selected), selected), low);
        assert_eq!(deposit(0b101, 0b1101_0000), 0b1001_0000);
    }

    #[test]
    fn the_two_carry_chains_do_not_meet() {
        let mut flags = Flags::default();
        flags.set(CF);
        assert_eq!(Adox::apply::<4>(&mut flags, 0xffff_ffff, 1), 0);
        assert_eq!(flags.get() & (CF | OF), CF | OF);
        assert_eq!(Adcx::apply::<4>(&mut flags, 1, 1), 3);
        assert_eq!(flags.get() & (CF | OF), OF);
    }
}
