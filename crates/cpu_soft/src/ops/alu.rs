//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST; INC, DEC, NEG, NOT; XADD, CMPXCHG.

use umbra_mmu::AccessKind::{Read, Write};

use super::{by_size, ok};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::op::{Handler, Leave, Op, next};
use crate::width::zext;

/// An operation on two operands.
pub trait Binary: 'static {
    /// Computes result and flags.
    fn apply<const N: usize>(flags: &mut Flags, a: u64, b: u64) -> u64;
}

/// An operation on one operand.
pub trait Unary: 'static {
    /// Computes result and flags.
    fn apply<const N: usize>(flags: &mut Flags, a: u64) -> u64;
}

macro_rules! binary {
    ($($name:ident = |$n:ident, $f:ident, $a:ident, $b:ident| $e:block)*) => { $(
        #[doc = concat!(stringify!($name), ".")]
        pub enum $name {}
        impl Binary for $name {
            #[inline(always)]
            fn apply<const $n: usize>($f: &mut Flags, $a: u64, $b: u64) -> u64 $e
        }
    )* };
}

macro_rules! unary {
    ($($name:ident = |$n:ident, $f:ident, $a:ident| $e:block)*) => { $(
        #[doc = concat!(stringify!($name), ".")]
        pub enum $name {}
        impl Unary for $name {
            #[inline(always)]
            fn apply<const $n: usize>($f: &mut Flags, $a: u64) -> u64 $e
        }
    )* };
}

binary! {
    Add = |N, f, a, b| { let r = a.wrapping_add(b); f.add::<N>(a, b, r); r }
    Adc = |N, f, a, b| {
        let r = a.wrapping_add(b).wrapping_add(f.cf().into());
        f.add::<N>(a, b, r);
        r
    }
    Sub = |N, f, a, b| { let r = a.wrapping_sub(b); f.sub::<N>(a, b, r); r }
    Sbb = |N, f, a, b| {
        let r = a.wrapping_sub(b).wrapping_sub(f.cf().into());
        f.sub::<N>(a, b, r);
        r
    }
    And = |N, f, a, b| { let r = a & b; f.logic::<N>(r); r }
    Or = |N, f, a, b| { let r = a | b; f.logic::<N>(r); r }
    Xor = |N, f, a, b| { let r = a ^ b; f.logic::<N>(r); r }
}

unary! {
    Inc = |N, f, a| { let r = a.wrapping_add(1); f.inc::<N>(a, r); r }
    Dec = |N, f, a| { let r = a.wrapping_sub(1); f.dec::<N>(a, r); r }
    Neg = |N, f, a| { let r = 0u64.wrapping_sub(a); f.sub::<N>(0, a, r); r }
    Not = |N, _f, a| { !a }
}

/// The operand forms of a two-operand instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Register, register.
    RegReg,
    /// Register, memory.
    RegMem,
    /// Memory, register.
    MemReg,
    /// Register, immediate.
    RegImm,
    /// Memory, immediate.
    MemImm,
    /// Memory, register, with LOCK.
    LockedReg,
    /// Memory, immediate, with LOCK.
    LockedImm,
}

fn rr<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (a, b) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
    let r = O::apply::<N>(&mut cpu.flags, a, b);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn ri<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let a = cpu.regs.get::<N>(op.a);
    let r = O::apply::<N>(&mut cpu.flags, a, op.imm);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn rm<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(b) = cpu.quick_load::<N>(op) else {
        return rm_slow::<O, N>(cpu, op);
    };
    let a = cpu.regs.get::<N>(op.a);
    let r = O::apply::<N>(&mut cpu.flags, a, b);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn rm_slow<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let b = ok!(cpu, op, cpu.load::<N>(la));
    let a = cpu.regs.get::<N>(op.a);
    let r = O::apply::<N>(&mut cpu.flags, a, b);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn mr<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let b = cpu.regs.get::<N>(op.a);
    if !cpu.quick_rmw::<N>(op, |f, a| O::apply::<N>(f, a, b)) {
        return mr_slow::<O, N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn mr_slow<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let b = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, cpu.rmw::<N>(la, |f, a| O::apply::<N>(f, a, b)));
    next(cpu, op)
}

fn mi<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let b = op.imm;
    if !cpu.quick_rmw::<N>(op, |f, a| O::apply::<N>(f, a, b)) {
        return mi_slow::<O, N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn mi_slow<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let b = op.imm;
    ok!(cpu, op, cpu.rmw::<N>(la, |f, a| O::apply::<N>(f, a, b)));
    next(cpu, op)
}

fn lock_mr<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let b = cpu.regs.get::<N>(op.a);
    ok!(
        cpu,
        op,
        cpu.rmw_locked::<N>(la, |f, a| O::apply::<N>(f, a, b))
    );
    next(cpu, op)
}

fn lock_mi<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let b = op.imm;
    ok!(
        cpu,
        op,
        cpu.rmw_locked::<N>(la, |f, a| O::apply::<N>(f, a, b))
    );
    next(cpu, op)
}

/// Handler of a two-operand instruction that stores its result.
pub fn binary<O: Binary>(form: Form, size: usize) -> Handler {
    match form {
        Form::RegReg => by_size!(size, rr, O),
        Form::RegMem => by_size!(size, rm, O),
        Form::MemReg => by_size!(size, mr, O),
        Form::RegImm => by_size!(size, ri, O),
        Form::MemImm => by_size!(size, mi, O),
        Form::LockedReg => by_size!(size, lock_mr, O),
        Form::LockedImm => by_size!(size, lock_mi, O),
    }
}

fn cmp_rr<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (a, b) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
    O::apply::<N>(&mut cpu.flags, a, b);
    next(cpu, op)
}

fn cmp_ri<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let a = cpu.regs.get::<N>(op.a);
    O::apply::<N>(&mut cpu.flags, a, op.imm);
    next(cpu, op)
}

fn cmp_rm<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(b) = cpu.quick_load::<N>(op) else {
        return cmp_rm_slow::<O, N>(cpu, op);
    };
    let a = cpu.regs.get::<N>(op.a);
    O::apply::<N>(&mut cpu.flags, a, b);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn cmp_rm_slow<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let b = ok!(cpu, op, cpu.load::<N>(la));
    let a = cpu.regs.get::<N>(op.a);
    O::apply::<N>(&mut cpu.flags, a, b);
    next(cpu, op)
}

fn cmp_mr<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(a) = cpu.quick_load::<N>(op) else {
        return cmp_mr_slow::<O, N>(cpu, op);
    };
    let b = cpu.regs.get::<N>(op.a);
    O::apply::<N>(&mut cpu.flags, a, b);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn cmp_mr_slow<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let a = ok!(cpu, op, cpu.load::<N>(la));
    let b = cpu.regs.get::<N>(op.a);
    O::apply::<N>(&mut cpu.flags, a, b);
    next(cpu, op)
}

fn cmp_mi<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(a) = cpu.quick_load::<N>(op) else {
        return cmp_mi_slow::<O, N>(cpu, op);
    };
    O::apply::<N>(&mut cpu.flags, a, op.imm);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn cmp_mi_slow<O: Binary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let a = ok!(cpu, op, cpu.load::<N>(la));
    O::apply::<N>(&mut cpu.flags, a, op.imm);
    next(cpu, op)
}

/// Handler of CMP (`O` is [`Sub`]) or TEST ([`And`]), which store nothing.
pub fn compare<O: Binary>(form: Form, size: usize) -> Option<Handler> {
    Some(match form {
        Form::RegReg => by_size!(size, cmp_rr, O),
        Form::RegMem => by_size!(size, cmp_rm, O),
        Form::MemReg => by_size!(size, cmp_mr, O),
        Form::RegImm => by_size!(size, cmp_ri, O),
        Form::MemImm => by_size!(size, cmp_mi, O),
        Form::LockedReg | Form::LockedImm => return None,
    })
}

fn unary_r<O: Unary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let a = cpu.regs.get::<N>(op.a);
    let r = O::apply::<N>(&mut cpu.flags, a);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn unary_m<O: Unary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.quick_rmw::<N>(op, |f, a| O::apply::<N>(f, a)) {
        return unary_m_slow::<O, N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn unary_m_slow<O: Unary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    ok!(cpu, op, cpu.rmw::<N>(la, |f, a| O::apply::<N>(f, a)));
    next(cpu, op)
}

fn unary_lock<O: Unary, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    ok!(cpu, op, cpu.rmw_locked::<N>(la, |f, a| O::apply::<N>(f, a)));
    next(cpu, op)
}

/// Where the one operand of INC, DEC, NEG, NOT is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A register.
    Reg,
    /// Memory.
    Mem,
    /// Memory, with LOCK.
    Locked,
}

/// Handler of a one-operand instruction.
pub fn unary<O: Unary>(place: Place, size: usize) -> Handler {
    match place {
        Place::Reg => by_size!(size, unary_r, O),
        Place::Mem => by_size!(size, unary_m, O),
        Place::Locked => by_size!(size, unary_lock, O),
    }
}

fn xadd_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (a, b) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
    let r = Add::apply::<N>(&mut cpu.flags, a, b);
    cpu.regs.set::<N>(op.b, a);
    cpu.regs.set::<N>(op.a, r);
    next(cpu, op)
}

fn xadd_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let b = cpu.regs.get::<N>(op.a);
    let seen = std::cell::Cell::new(0);
    let add = |f: &mut Flags, a: u64| {
        seen.set(a);
        Add::apply::<N>(f, a, b)
    };
    ok!(cpu, op, cpu.rmw_locked::<N>(la, add));
    cpu.regs.set::<N>(op.a, seen.get());
    next(cpu, op)
}

/// Handler of XADD; the memory form is always atomic, which nobody can tell from not atomic.
pub fn xadd(place: Place, size: usize) -> Handler {
    match place {
        Place::Reg => by_size!(size, xadd_r),
        _ => by_size!(size, xadd_m),
    }
}

fn cmpxchg_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (dest, acc) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(0));
    Sub::apply::<N>(&mut cpu.flags, acc, dest);
    if acc == dest {
        let source = cpu.regs.get::<N>(op.b);
        cpu.regs.set::<N>(op.a, source);
    } else {
        cpu.regs.set::<N>(0, dest);
    }
    next(cpu, op)
}

fn cmpxchg_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let (acc, source) = (cpu.regs.get::<N>(0), cpu.regs.get::<N>(op.a));
    let seen = std::cell::Cell::new(0);
    let swap = |f: &mut Flags, dest: u64| {
        seen.set(dest);
        Sub::apply::<N>(f, acc, dest);
        if acc == zext::<N>(dest) { source } else { dest }
    };
    ok!(cpu, op, cpu.rmw_locked::<N>(la, swap));
    if seen.get() != acc {
        cpu.regs.set::<N>(0, seen.get());
    }
    next(cpu, op)
}

/// Handler of CMPXCHG.
pub fn cmpxchg(place: Place, size: usize) -> Handler {
    match place {
        Place::Reg => by_size!(size, cmpxchg_r),
        _ => by_size!(size, cmpxchg_m),
    }
}

/// CMPXCHG8B (`N` is 4) and CMPXCHG16B (8).
pub fn cmpxchg_pair<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea_sized(op, 2 * N, Write));
    let half = 8 * N as u32;
    let pair = |cpu: &Cpu, low: u8, high: u8| {
        u128::from(cpu.regs.get::<N>(low)) | u128::from(cpu.regs.get::<N>(high)) << half
    };
    let (old, new) = (pair(cpu, 0, 16), pair(cpu, 24, 8));
    let seen = if N == 8 {
        if la & 15 != 0 {
            cpu.gp(0);
            return cpu.fault(op);
        }
        ok!(cpu, op, cpu.cmpxchg16(la, old, new))
    } else {
        let seen = std::cell::Cell::new(0);
        let swap = |_: &mut Flags, dest: u64| {
            seen.set(dest);
            if u128::from(dest) == old {
                new as u64
            } else {
                dest
            }
        };
        ok!(cpu, op, cpu.rmw_locked::<8>(la, swap));
        u128::from(seen.get())
    };
    cpu.flags.set_zf(seen == old);
    if seen != old {
        cpu.regs.set::<N>(0, seen as u64);
        cpu.regs.set::<N>(16, (seen >> half) as u64);
    }
    next(cpu, op)
}
