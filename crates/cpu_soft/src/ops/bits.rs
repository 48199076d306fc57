//! BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT, CRC32.

use umbra_mmu::AccessKind::{Read, Write};

use super::ok;
use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::{Handler, Leave, Op, next};
use crate::width::{BITS, sext};

/// What a bit test does to the bit.
pub trait BitOp: 'static {
    /// Whether memory is written.
    const WRITES: bool;
    /// The new operand.
    fn change(a: u64, bit: u64) -> u64;
}

macro_rules! bit_op {
    ($($name:ident $writes:literal |$a:ident, $b:ident| $e:expr;)*) => { $(
        #[doc = concat!(stringify!($name), ".")]
        pub enum $name {}
        impl BitOp for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn change($a: u64, $b: u64) -> u64 { $e }
        }
    )* };
}

bit_op! {
    Bt false |a, _bit| a;
    Bts true |a, bit| a | bit;
    Btr true |a, bit| a & !bit;
    Btc true |a, bit| a ^ bit;
}

#[inline(always)]
fn test<O: BitOp, const N: usize>(flags: &mut Flags, a: u64, number: u64) -> u64 {
    let bit = 1 << (number & u64::from(BITS::<N>() - 1));
    flags.set_cf(a & bit != 0);
    O::change(a, bit)
}

fn rr<O: BitOp, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (a, number) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
    let r = test::<O, N>(&mut cpu.flags, a, number);
    if O::WRITES {
        cpu.regs.set::<N>(op.a, r);
    }
    next(cpu, op)
}

fn ri<O: BitOp, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let a = cpu.regs.get::<N>(op.a);
    let r = test::<O, N>(&mut cpu.flags, a, op.imm);
    if O::WRITES {
        cpu.regs.set::<N>(op.a, r);
    }
    next(cpu, op)
}

/// With a register as bit number the operand is a bit string: the number reaches beyond the word.
fn string_address<const N: usize>(cpu: &mut Cpu, op: &Op, write: bool) -> Result<u64, Trap> {
    let number = sext::<N>(cpu.regs.get::<N>(op.a)) as i64;
    let words = number >> BITS::<N>().trailing_zeros();
    let distance = (words * N as i64) as u64;
    let kind = if write { Write } else { Read };
    if op.addr & cpu.slow == 0 {
        return Ok(cpu.flat_ea(op).wrapping_add(distance) & cpu.linear_mask);
    }
    let offset = crate::ea::truncate(cpu.offset(op).wrapping_add(distance), op.addr);
    cpu.linear(op.seg, offset, N, kind)
}

fn touch<O: BitOp, const LOCK: bool, const N: usize>(
    cpu: &mut Cpu,
    la: u64,
    number: u64,
) -> Result<(), Trap> {
    if LOCK {
        cpu.rmw_locked::<N>(la, |f, a| test::<O, N>(f, a, number))
    } else if O::WRITES {
        cpu.rmw::<N>(la, |f, a| test::<O, N>(f, a, number))
    } else {
        let a = cpu.load::<N>(la)?;
        test::<O, N>(&mut cpu.flags, a, number);
        Ok(())
    }
}

fn mr<O: BitOp, const LOCK: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, string_address::<N>(cpu, op, O::WRITES));
    let number = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, touch::<O, LOCK, N>(cpu, la, number));
    next(cpu, op)
}

fn mi<O: BitOp, const LOCK: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(
        cpu,
        op,
        cpu.ea::<N>(op, if O::WRITES { Write } else { Read })
    );
    ok!(cpu, op, touch::<O, LOCK, N>(cpu, la, op.imm));
    next(cpu, op)
}

/// Handler of a bit test.
pub fn bit_test<O: BitOp>(memory: bool, immediate: bool, locked: bool, size: usize) -> Handler {
    macro_rules! sizes {
        ($f:ident, $($g:tt),*) => {
            match size {
                2 => $f::<$($g,)* 2> as Handler,
                4 => $f::<$($g,)* 4>,
                _ => $f::<$($g,)* 8>,
            }
        };
    }
    match (memory, immediate, locked) {
        (false, false, _) => sizes!(rr, O),
        (false, true, _) => sizes!(ri, O),
        (true, false, false) => sizes!(mr, O, false),
        (true, false, true) => sizes!(mr, O, true),
        (true, true, false) => sizes!(mi, O, false),
        (true, true, true) => sizes!(mi, O, true),
    }
}

/// A bit count or search from a source to a register.
pub trait Scan: 'static {
    /// Computes the result, or `None` when the destination keeps its value.
    fn apply<const N: usize>(flags: &mut Flags, source: u64) -> Option<u64>;
}

macro_rules! scan {
    ($($name:ident = |$n:ident, $f:ident, $s:ident| $e:block)*) => { $(
        #[doc = concat!(stringify!($name), ".")]
        pub enum $name {}
        impl Scan for $name {
            #[inline(always)]
            fn apply<const $n: usize>($f: &mut Flags, $s: u64) -> Option<u64> $e
        }
    )* };
}

scan! {
    // A zero source sets ZF and leaves the destination as it was, as all processors do.
    Bsf = |N, f, s| { f.set_zf(s == 0); (s != 0).then(|| s.trailing_zeros().into()) }
    Bsr = |N, f, s| { f.set_zf(s == 0); (s != 0).then(|| (63 - s.leading_zeros()).into()) }
    Tzcnt = |N, f, s| {
        let r = s.trailing_zeros().min(BITS::<N>());
        f.set_cf(s == 0);
        f.set_zf(r == 0);
        Some(r.into())
    }
    Lzcnt = |N, f, s| {
        let r = s.leading_zeros() - (64 - BITS::<N>());
        f.set_cf(s == 0);
        f.set_zf(r == 0);
        Some(r.into())
    }
    Popcnt = |N, f, s| {
        f.set(if s == 0 { umbra_x86::rflags::ZF } else { 0 });
        Some(s.count_ones().into())
    }
}

fn scan_r<O: Scan, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let source = cpu.regs.get::<N>(op.b);
    if let Some(r) = O::apply::<N>(&mut cpu.flags, source) {
        cpu.regs.set::<N>(op.a, r);
    }
    next(cpu, op)
}

fn scan_m<O: Scan, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let source = ok!(cpu, op, cpu.load::<N>(la));
    if let Some(r) = O::apply::<N>(&mut cpu.flags, source) {
        cpu.regs.set::<N>(op.a, r);
    }
    next(cpu, op)
}

/// Handler of a bit search or count.
pub fn scan<O: Scan>(memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 2) => scan_r::<O, 2>,
        (false, 4) => scan_r::<O, 4>,
        (false, _) => scan_r::<O, 8>,
        (true, 2) => scan_m::<O, 2>,
        (true, 4) => scan_m::<O, 4>,
        (true, _) => scan_m::<O, 8>,
    }
}

/// CRC-32C of one byte, bit by bit (polynomial 0x1edc6f41, reflected).
const fn crc_byte(byte: u8) -> u32 {
    let mut crc = byte as u32;
    let mut bit = 0;
    while bit < 8 {
        crc = if crc & 1 != 0 {
            crc >> 1 ^ 0x82f6_3b78
        } else {
            crc >> 1
        };
        bit += 1;
    }
    crc
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = crc_byte(i as u8);
        i += 1;
    }
    table
};

fn crc<const N: usize>(mut crc: u32, source: u64) -> u64 {
    for byte in &source.to_le_bytes()[..N] {
        crc = crc >> 8 ^ CRC_TABLE[(crc as u8 ^ byte) as usize];
    }
    crc.into()
}

fn crc_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let r = crc::<N>(cpu.regs.get::<4>(op.a) as u32, cpu.regs.get::<N>(op.b));
    cpu.regs.set::<8>(op.a, r);
    next(cpu, op)
}

fn crc_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let source = ok!(cpu, op, cpu.load::<N>(la));
    let r = crc::<N>(cpu.regs.get::<4>(op.a) as u32, source);
    cpu.regs.set::<8>(op.a, r);
    next(cpu, op)
}

/// Handler of CRC32 with a source of `size` bytes.
pub fn crc32(memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 1) => crc_r::<1>,
        (false, 2) => crc_r::<2>,
        (false, 4) => crc_r::<4>,
        (false, _) => crc_r::<8>,
        (true, 1) => crc_m::<1>,
        (true, 2) => crc_m::<2>,
        (true, 4) => crc_m::<4>,
        (true, _) => crc_m::<8>,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string_is_known() {
        let sum = b"123456789"
            .iter()
            .fold(u32::MAX, |c, b| crc::<1>(c, (*b).into()) as u32);
        assert_eq!(!sum, 0xe306_9283);
    }
}
