//! MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, BSWAP, XLAT, sign extensions.

use umbra_mmu::AccessKind::{Read, Write};

use super::{by_condition, by_size, ok};
use crate::cpu::Cpu;
use crate::flags::Condition;
use crate::op::{Handler, Leave, Op, addr, next};
use crate::width::sext;

/// MOV register, register.
pub fn rr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.regs.get::<N>(op.b);
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

/// MOV register, immediate.
pub fn ri<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.regs.set::<N>(op.a, op.imm);
    next(cpu, op)
}

/// MOV register, memory.
pub fn rm<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(v) = cpu.quick_load::<N>(op) else {
        return rm_slow::<N>(cpu, op);
    };
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn rm_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let v = ok!(cpu, op, cpu.load::<N>(la));
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

/// MOV memory, register.
pub fn mr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.regs.get::<N>(op.a);
    if !cpu.quick_store::<N>(op, v) {
        return mr_slow::<N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn mr_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let v = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, cpu.store::<N>(la, v));
    next(cpu, op)
}

/// MOV memory, immediate.
pub fn mi<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.quick_store::<N>(op, op.imm) {
        return mi_slow::<N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn mi_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    ok!(cpu, op, cpu.store::<N>(la, op.imm));
    next(cpu, op)
}

/// MOVZX, and MOVSX where `SIGNED`, from `M` bytes to `N`.
fn extend_r<const SIGNED: bool, const M: usize, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.regs.get::<M>(op.b);
    cpu.regs
        .set::<N>(op.a, if SIGNED { sext::<M>(v) } else { v });
    next(cpu, op)
}

fn extend_m<const SIGNED: bool, const M: usize, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(v) = cpu.quick_load::<M>(op) else {
        return extend_m_slow::<SIGNED, M, N>(cpu, op);
    };
    cpu.regs
        .set::<N>(op.a, if SIGNED { sext::<M>(v) } else { v });
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn extend_m_slow<const SIGNED: bool, const M: usize, const N: usize>(
    cpu: &mut Cpu,
    op: &Op,
) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<M>(op, Read));
    let v = ok!(cpu, op, cpu.load::<M>(la));
    cpu.regs
        .set::<N>(op.a, if SIGNED { sext::<M>(v) } else { v });
    next(cpu, op)
}

/// Handler of MOVZX, MOVSX and MOVSXD.
pub fn extend(signed: bool, memory: bool, from: usize, to: usize) -> Handler {
    macro_rules! pick {
        ($s:literal, $f:ident) => {
            match (from, to) {
                (1, 2) => $f::<$s, 1, 2> as Handler,
                (1, 4) => $f::<$s, 1, 4>,
                (1, _) => $f::<$s, 1, 8>,
                (2, 2) => $f::<$s, 2, 2>,
                (2, 4) => $f::<$s, 2, 4>,
                (2, _) => $f::<$s, 2, 8>,
                (_, 2) => $f::<$s, 4, 2>,
                (_, 4) => $f::<$s, 4, 4>,
                _ => $f::<$s, 4, 8>,
            }
        };
    }
    match (signed, memory) {
        (false, false) => pick!(false, extend_r),
        (false, true) => pick!(false, extend_m),
        (true, false) => pick!(true, extend_r),
        (true, true) => pick!(true, extend_m),
    }
}

/// LEA.
pub fn lea<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = if op.addr & cpu.slow & addr::OFFSET == 0 {
        cpu.flat_offset(op)
    } else {
        cpu.offset(op)
    };
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

/// XCHG register, register.
pub fn xchg_rr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (a, b) = (cpu.regs.get::<N>(op.a), cpu.regs.get::<N>(op.b));
    cpu.regs.set::<N>(op.a, b);
    cpu.regs.set::<N>(op.b, a);
    next(cpu, op)
}

/// XCHG memory, register: always locked (SDM vol. 3, 8.1.2.1).
pub fn xchg_mr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let new = cpu.regs.get::<N>(op.a);
    let seen = std::cell::Cell::new(0);
    let swap = |_: &mut _, old: u64| {
        seen.set(old);
        new
    };
    ok!(cpu, op, cpu.rmw_locked::<N>(la, swap));
    cpu.regs.set::<N>(op.a, seen.get());
    next(cpu, op)
}

fn cmov_rr<C: Condition, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let source = if C::holds(&cpu.flags) { op.b } else { op.a };
    let v = cpu.regs.get::<N>(source);
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

fn cmov_rm<C: Condition, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let loaded = ok!(cpu, op, cpu.load::<N>(la));
    let v = if C::holds(&cpu.flags) {
        loaded
    } else {
        cpu.regs.get::<N>(op.a)
    };
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

/// Handler of CMOVcc; a 32-bit one clears the upper half even when the condition fails.
pub fn cmov(condition: u8, memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 2) => by_condition!(condition, cmov_rr, 2),
        (false, 4) => by_condition!(condition, cmov_rr, 4),
        (false, _) => by_condition!(condition, cmov_rr, 8),
        (true, 2) => by_condition!(condition, cmov_rm, 2),
        (true, 4) => by_condition!(condition, cmov_rm, 4),
        (true, _) => by_condition!(condition, cmov_rm, 8),
    }
}

fn set_r<C: Condition>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = C::holds(&cpu.flags).into();
    cpu.regs.set::<1>(op.a, v);
    next(cpu, op)
}

fn set_m<C: Condition>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<1>(op, Write));
    let v = C::holds(&cpu.flags).into();
    ok!(cpu, op, cpu.store::<1>(la, v));
    next(cpu, op)
}

/// Handler of SETcc.
pub fn setcc(condition: u8, memory: bool) -> Handler {
    if memory {
        by_condition!(condition, set_m)
    } else {
        by_condition!(condition, set_r)
    }
}

/// BSWAP; of 16 bits it is undefined, and clears the register as processors do.
pub fn bswap<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.regs.get::<N>(op.a);
    let v = match N {
        8 => v.swap_bytes(),
        4 => (v as u32).swap_bytes().into(),
        _ => 0,
    };
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

/// MOVBE register, memory.
pub fn movbe_rm<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let v = ok!(cpu, op, cpu.load::<N>(la));
    cpu.regs.set::<N>(op.a, v.swap_bytes() >> (64 - 8 * N));
    next(cpu, op)
}

/// MOVBE memory, register.
pub fn movbe_mr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let v = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, cpu.store::<N>(la, v.swap_bytes() >> (64 - 8 * N)));
    next(cpu, op)
}

/// CBW, CWDE, CDQE: extends the accumulator to `N` bytes.
pub fn widen<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = match N {
        2 => sext::<1>(cpu.regs.get::<1>(0)),
        4 => sext::<2>(cpu.regs.get::<2>(0)),
        _ => sext::<4>(cpu.regs.get::<4>(0)),
    };
    cpu.regs.set::<N>(0, v);
    next(cpu, op)
}

/// CWD, CDQ, CQO: fills the data register with the accumulator's sign.
pub fn sign_to_dx<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = sext::<N>(cpu.regs.get::<N>(0)) as i64 >> 63;
    cpu.regs.set::<N>(16, v as u64);
    next(cpu, op)
}

/// XLAT: the decoder gives RBX as base and AL as index.
pub fn xlat(cpu: &mut Cpu, op: &Op) -> Leave {
    let offset = cpu.regs.r(3).wrapping_add(cpu.regs.get::<1>(0));
    let offset = crate::ea::truncate(offset, op.addr);
    let la = ok!(cpu, op, cpu.linear(op.seg, offset, 1, Read));
    let v = ok!(cpu, op, cpu.load::<1>(la));
    cpu.regs.set::<1>(0, v);
    next(cpu, op)
}

/// NOP, prefetches, PAUSE, fences (guest order is host order), ENDBR, RDSSP without shadow stacks, cache-line flushes.
pub fn nop(cpu: &mut Cpu, op: &Op) -> Leave {
    next(cpu, op)
}

/// MFENCE: orders the guest's earlier stores against its later loads, so it must be real.
pub fn mfence(cpu: &mut Cpu, op: &Op) -> Leave {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    next(cpu, op)
}

/// PAUSE: a guest that spins waits most often for a processor that runs, so the host's own hint does.
/// Who has paused so often for nothing waits for one that does not: the host may have fewer processors
/// free than the guest, and runs it now.
pub fn pause(cpu: &mut Cpu, op: &Op) -> Leave {
    /// Some microseconds of spinning; giving the processor away for nothing costs less than one.
    const PATIENCE: u32 = 256;
    std::hint::spin_loop();
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(PATIENCE) {
        std::thread::yield_now();
    }
    next(cpu, op)
}

/// Register forms by size.
pub fn by_form(form: super::alu::Form, size: usize) -> Handler {
    use super::alu::Form::*;
    match form {
        RegReg => by_size!(size, rr),
        RegMem => by_size!(size, rm),
        MemReg | LockedReg => by_size!(size, mr),
        RegImm => by_size!(size, ri),
        MemImm | LockedImm => by_size!(size, mi),
    }
}
