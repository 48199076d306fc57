//! Near branches: Jcc, JMP, CALL, RET, LOOP, JCXZ. Far ones are in `far`.
//!
//! Every handler here ends a block. Targets of relative branches are in `imm`, cut to the operand
//! size by the decoder.

use umbra_mmu::AccessKind::Read;
use umbra_x86::state::seg;

use super::{by_condition, ok};
use crate::cpu::{Cpu, Trap};
use crate::flags::Condition;
use crate::op::{Handler, Leave, Op};
use crate::regs::offset;

const RCX: u8 = offset(1);

/// In [`Op::extra`]: target and next instruction can be gone to without checks.
pub const KNOWN: u8 = 1;

/// Goes to `target`, or raises what a jump there raises: in 64-bit code a non-canonical target
/// and elsewhere one beyond the limit of CS is #GP at the jump itself.
#[inline(always)]
fn go(cpu: &mut Cpu, op: &Op, target: u64) -> Leave {
    ok!(cpu, op, check(cpu, target));
    cpu.rip = target;
    Leave::Done
}

#[inline(always)]
fn check(cpu: &mut Cpu, target: u64) -> Result<(), Trap> {
    let good = if cpu.long_code() {
        plausible(target) || cpu.canonical(target)
    } else {
        target <= u64::from(cpu.seg[seg::CS].limit)
    };
    if good { Ok(()) } else { Err(cpu.gp(0)) }
}

/// Canonical with 48-bit addresses, which is canonical with 57 too.
#[inline(always)]
pub fn plausible(target: u64) -> bool {
    (target << 16) as i64 >> 16 == target as i64
}

fn jcc<C: Condition>(cpu: &mut Cpu, op: &Op) -> Leave {
    if op.extra != KNOWN {
        return jcc_slow::<C>(cpu, op);
    }
    let next = cpu.rip_of(op).wrapping_add(op.len.into());
    cpu.rip = if C::holds(&cpu.flags) { op.imm } else { next };
    Leave::Done
}

#[cold]
#[inline(never)]
fn jcc_slow<C: Condition>(cpu: &mut Cpu, op: &Op) -> Leave {
    if C::holds(&cpu.flags) {
        return go(cpu, op, op.imm);
    }
    cpu.rip = cpu.rip_after(op);
    Leave::Done
}

/// Handler of Jcc.
pub fn conditional(condition: u8) -> Handler {
    by_condition!(condition, jcc)
}

/// JMP relative.
pub fn jmp(cpu: &mut Cpu, op: &Op) -> Leave {
    if op.extra != KNOWN {
        return go(cpu, op, op.imm);
    }
    cpu.rip = op.imm;
    Leave::Done
}

/// Ends a block that became too long, or reached the end of its page.
pub fn fall_through(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.rip = op.imm;
    Leave::Done
}

/// JMP register.
pub fn jmp_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let target = cpu.regs.get::<N>(op.a);
    go(cpu, op, target)
}

/// JMP memory.
pub fn jmp_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let target = ok!(cpu, op, cpu.load::<N>(la));
    go(cpu, op, target)
}

#[inline(always)]
fn call<const N: usize>(cpu: &mut Cpu, op: &Op, target: u64) -> Leave {
    ok!(cpu, op, check(cpu, target));
    let back = cpu.rip_after(op);
    ok!(cpu, op, cpu.push::<N>(back));
    cpu.rip = target;
    Leave::Done
}

/// CALL relative.
pub fn call_rel<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if op.extra != KNOWN || !cpu.quick_push::<N>(cpu.rip_of(op).wrapping_add(op.len.into())) {
        return call_rel_slow::<N>(cpu, op);
    }
    cpu.rip = op.imm;
    Leave::Done
}

#[cold]
#[inline(never)]
fn call_rel_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    call::<N>(cpu, op, op.imm)
}

/// CALL register.
pub fn call_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let target = cpu.regs.get::<N>(op.a);
    call::<N>(cpu, op, target)
}

/// CALL memory.
pub fn call_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let target = ok!(cpu, op, cpu.load::<N>(la));
    call::<N>(cpu, op, target)
}

/// RET, releasing `imm` bytes of arguments.
pub fn ret<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(target) = cpu.quick_top::<N>().filter(|t| plausible(*t)) else {
        return ret_slow::<N>(cpu, op);
    };
    cpu.quick_release(N as u64 + op.imm);
    cpu.rip = target;
    Leave::Done
}

#[cold]
#[inline(never)]
fn ret_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let target = ok!(cpu, op, cpu.peek::<N>(0));
    ok!(cpu, op, check(cpu, target));
    cpu.release(N as u64 + op.imm);
    cpu.rip = target;
    Leave::Done
}

/// Counts RCX down in the address size of the instruction; `extra` is that size.
fn count_down(cpu: &mut Cpu, op: &Op) -> u64 {
    macro_rules! down {
        ($n:literal) => {{
            let count = cpu.regs.get::<$n>(RCX).wrapping_sub(1);
            cpu.regs.set::<$n>(RCX, count);
            cpu.regs.get::<$n>(RCX)
        }};
    }
    match op.extra {
        2 => down!(2),
        4 => down!(4),
        _ => down!(8),
    }
}

fn taken(cpu: &mut Cpu, op: &Op, condition: bool) -> Leave {
    if condition {
        return go(cpu, op, op.imm);
    }
    cpu.rip = cpu.rip_after(op);
    Leave::Done
}

/// Counts down and branches while the count is not zero and `condition` holds. A branch that is
/// refused has not counted.
fn counted(cpu: &mut Cpu, op: &Op, condition: impl Fn(&Cpu) -> bool) -> Leave {
    let before = cpu.regs.r(1);
    let more = count_down(cpu, op) != 0 && condition(cpu);
    let leave = taken(cpu, op, more);
    if leave == Leave::Fault {
        cpu.regs.set_r(1, before);
    }
    leave
}

/// LOOP.
pub fn loop_always(cpu: &mut Cpu, op: &Op) -> Leave {
    counted(cpu, op, |_| true)
}

/// LOOPE.
pub fn loop_equal(cpu: &mut Cpu, op: &Op) -> Leave {
    counted(cpu, op, |cpu| cpu.flags.zf())
}

/// LOOPNE.
pub fn loop_not_equal(cpu: &mut Cpu, op: &Op) -> Leave {
    counted(cpu, op, |cpu| !cpu.flags.zf())
}

/// JCXZ, JECXZ, JRCXZ.
pub fn jcxz(cpu: &mut Cpu, op: &Op) -> Leave {
    let count = match op.extra {
        2 => cpu.regs.get::<2>(RCX),
        4 => cpu.regs.get::<4>(RCX),
        _ => cpu.regs.get::<8>(RCX),
    };
    taken(cpu, op, count == 0)
}
