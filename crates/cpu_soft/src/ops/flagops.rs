//! Instructions about RFLAGS: CLC, STC, CMC, CLD, STD, LAHF, SAHF, CLI, STI, STAC, CLAC, PUSHF,
//! POPF.

use umbra_x86::rflags;
use umbra_x86::rflags::{
    AC, AF, CF, DF, ID, IF, IOPL, NT, OF, PF, RF, SF, STATUS, TF, VIF, VIP, VM, ZF,
};

use super::ok;
use crate::cpu::{Cpu, Trap};
use crate::op::{Leave, Op, next};

/// CLC.
pub fn clc(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.flags.set_cf(false);
    next(cpu, op)
}

/// STC.
pub fn stc(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.flags.set_cf(true);
    next(cpu, op)
}

/// CMC.
pub fn cmc(cpu: &mut Cpu, op: &Op) -> Leave {
    let cf = cpu.flags.cf();
    cpu.flags.set_cf(!cf);
    next(cpu, op)
}

/// CLD.
pub fn cld(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.sys &= !DF;
    next(cpu, op)
}

/// STD.
pub fn std(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.sys |= DF;
    next(cpu, op)
}

/// LAHF.
pub fn lahf(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.flags.get() & (SF | ZF | AF | PF | CF) | rflags::FIXED;
    cpu.regs.set::<1>(1, v);
    next(cpu, op)
}

/// SAHF.
pub fn sahf(cpu: &mut Cpu, op: &Op) -> Leave {
    let keep = cpu.flags.get() & OF;
    let v = cpu.regs.get::<1>(1) & (SF | ZF | AF | PF | CF);
    cpu.flags.set(v | keep);
    next(cpu, op)
}

/// The privilege that CLI and STI need (SDM vol. 3, 6.8.1).
fn may_change_if(cpu: &mut Cpu) -> Result<(), Trap> {
    let allowed = !(cpu.protected() || cpu.v86())
        || cpu.cpl <= cpu.iopl() && !cpu.v86()
        || cpu.v86() && cpu.iopl() == 3;
    if allowed { Ok(()) } else { Err(cpu.gp(0)) }
}

/// CLI.
pub fn cli(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, may_change_if(cpu));
    cpu.sys &= !IF;
    next(cpu, op)
}

/// STI: the next instruction still runs before an interrupt, if IF was clear.
pub fn sti(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, may_change_if(cpu));
    if cpu.sys & IF != 0 {
        return next(cpu, op);
    }
    cpu.sys |= IF;
    if !cpu.blocked && !cpu.wake.wanted() {
        // Nothing is waiting: what comes later is delivered at the next border anyway.
        return next(cpu, op);
    }
    cpu.wake.want();
    cpu.shadow = true;
    cpu.rip = cpu.rip_after(op);
    Leave::Look
}

/// STAC and CLAC, by `imm`.
pub fn set_ac(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cpl != 0 || cpu.cpuid.get(7, 0).ebx >> 20 & 1 == 0 {
        cpu.ud();
        return cpu.fault(op);
    }
    cpu.sys = cpu.sys & !AC | op.imm;
    cpu.select_class();
    next(cpu, op)
}

/// PUSHF.
pub fn pushf<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.v86() && cpu.iopl() < 3 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let v = cpu.rflags() & !(RF | VM);
    ok!(cpu, op, cpu.push::<N>(v));
    next(cpu, op)
}

/// POPF (SDM vol. 2, table of effects): who may change IF and IOPL.
pub fn popf<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.v86() && cpu.iopl() < 3 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let new = ok!(cpu, op, cpu.peek::<N>(0));
    cpu.release(N as u64);
    let mut may = STATUS | TF | DF | NT | if N == 2 { 0 } else { AC | ID };
    if cpu.cpl == 0 && !cpu.v86() {
        may |= IOPL;
    }
    if cpu.cpl <= cpu.iopl() || !cpu.protected() && !cpu.v86() {
        may |= IF;
    }
    let old = cpu.rflags();
    let cleared = if cpu.cpl == 0 { RF | VIF | VIP } else { RF };
    let value = old & !(may | cleared) | new & may;
    let quiet = (old ^ value) & (TF | AC | IF) == 0;
    if quiet {
        cpu.flags.set(value);
        cpu.sys = value & !STATUS | rflags::FIXED;
        return next(cpu, op);
    }
    // TF is sampled before the instruction, so no step is taken behind this one.
    cpu.set_rflags(value);
    cpu.rip = cpu.rip_after(op);
    Leave::Look
}
