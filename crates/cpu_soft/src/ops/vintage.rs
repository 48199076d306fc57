//! Instructions that only 16- and 32-bit code has: decimal adjustments, BOUND, ARPL, SALC.

use umbra_mmu::AccessKind::{Read, Write};
use umbra_x86::rflags::{AF, CF};
use umbra_x86::{Exception, vector};

use super::ok;
use crate::cpu::Cpu;
use crate::op::{Leave, Op, next};
use crate::width::sext;

const AL: u8 = 0;
const AH: u8 = 1;

fn set_result(cpu: &mut Cpu, al: u64, flags: u64) {
    cpu.regs.set::<1>(AL, al);
    cpu.flags.logic::<1>(al);
    let rest = cpu.flags.get() & !(AF | CF);
    cpu.flags.set(rest | flags);
}

fn decimal(cpu: &mut Cpu, subtract: bool) {
    let al = cpu.regs.get::<1>(AL);
    let (af, cf) = (cpu.flags.af(), cpu.flags.cf());
    let step = |v: u64, by: u64| {
        if subtract {
            v.wrapping_sub(by)
        } else {
            v.wrapping_add(by)
        }
    };
    let mut result = al;
    let mut flags = 0;
    let mut carry = false;
    if al & 0xf > 9 || af {
        let wide = step(al, 6);
        carry = cf || wide > 0xff;
        result = wide & 0xff;
        flags |= AF;
    }
    if al > 0x99 || cf {
        result = step(result, 0x60) & 0xff;
        carry = true;
    } else if !subtract {
        carry = false;
    }
    if carry {
        flags |= CF;
    }
    set_result(cpu, result, flags);
}

/// DAA.
pub fn daa(cpu: &mut Cpu, op: &Op) -> Leave {
    decimal(cpu, false);
    next(cpu, op)
}

/// DAS.
pub fn das(cpu: &mut Cpu, op: &Op) -> Leave {
    decimal(cpu, true);
    next(cpu, op)
}

fn ascii(cpu: &mut Cpu, subtract: bool) {
    let adjust = cpu.regs.get::<1>(AL) & 0xf > 9 || cpu.flags.af();
    if adjust {
        let ax = cpu.regs.get::<2>(AL);
        let ax = if subtract {
            ax.wrapping_sub(0x106)
        } else {
            ax.wrapping_add(0x106)
        };
        cpu.regs.set::<2>(AL, ax);
    }
    let al = cpu.regs.get::<1>(AL) & 0xf;
    set_result(cpu, al, if adjust { AF | CF } else { 0 });
}

/// AAA.
pub fn aaa(cpu: &mut Cpu, op: &Op) -> Leave {
    ascii(cpu, false);
    next(cpu, op)
}

/// AAS.
pub fn aas(cpu: &mut Cpu, op: &Op) -> Leave {
    ascii(cpu, true);
    next(cpu, op)
}

/// AAM.
pub fn aam(cpu: &mut Cpu, op: &Op) -> Leave {
    let base = op.imm & 0xff;
    let al = cpu.regs.get::<1>(AL);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        cpu.raise(Exception::plain(vector::DE));
        return cpu.fault(op);
    };
    cpu.regs.set::<1>(AH, high);
    set_result(cpu, low, 0);
    next(cpu, op)
}

/// AAD.
pub fn aad(cpu: &mut Cpu, op: &Op) -> Leave {
    let al = (cpu.regs.get::<1>(AH) * (op.imm & 0xff) + cpu.regs.get::<1>(AL)) & 0xff;
    cpu.regs.set::<1>(AH, 0);
    set_result(cpu, al, 0);
    next(cpu, op)
}

/// SALC: AL becomes the carry flag, repeated.
pub fn salc(cpu: &mut Cpu, op: &Op) -> Leave {
    let al = if cpu.flags.cf() { 0xff } else { 0 };
    cpu.regs.set::<1>(AL, al);
    next(cpu, op)
}

/// BOUND.
pub fn bound<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let low = sext::<N>(ok!(cpu, op, cpu.load::<N>(la))) as i64;
    let behind = cpu.offset(op).wrapping_add(N as u64);
    let la = ok!(cpu, op, cpu.linear(op.seg, behind, N, Read));
    let high = sext::<N>(ok!(cpu, op, cpu.load::<N>(la))) as i64;
    let index = sext::<N>(cpu.regs.get::<N>(op.a)) as i64;
    if index < low || index > high {
        cpu.raise(Exception::plain(vector::BR));
        return cpu.fault(op);
    }
    next(cpu, op)
}

fn arpl(cpu: &mut Cpu, dest: u64, source: u64) -> u64 {
    let lower = dest & 3 < source & 3;
    cpu.flags.set_zf(lower);
    if lower { dest & !3 | source & 3 } else { dest }
}

/// ARPL register.
pub fn arpl_r(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.protected() {
        return super::system::undefined(cpu, op);
    }
    let (dest, source) = (cpu.regs.get::<2>(op.a), cpu.regs.get::<2>(op.b));
    let value = arpl(cpu, dest, source);
    cpu.regs.set::<2>(op.a, value);
    next(cpu, op)
}

/// ARPL memory.
pub fn arpl_m(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.protected() {
        return super::system::undefined(cpu, op);
    }
    let la = ok!(cpu, op, cpu.ea::<2>(op, Read));
    let dest = ok!(cpu, op, cpu.load::<2>(la));
    let source = cpu.regs.get::<2>(op.a);
    if dest & 3 < source & 3 {
        // Only a change needs the right to write.
        let la = ok!(cpu, op, cpu.ea::<2>(op, Write));
        ok!(cpu, op, cpu.store::<2>(la, dest & !3 | source & 3));
    }
    arpl(cpu, dest, source);
    next(cpu, op)
}
