//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with REP.
//!
//! MOVS and STOS with REP go a page at a time through host instructions when the direction is up
//! and both pages are ordinary memory; otherwise element by element. After each element or page
//! the registers are as the manual has them, so a fault in the middle restarts where it stopped.
//! A long repetition looks for interrupts every now and then, as processors do.

use umbra_mmu::AccessKind::{Read, Write};
use umbra_x86::rflags::DF;
use umbra_x86::state::{gpr, seg};

use super::by_size;
use crate::cpu::{Cpu, Trap};
use crate::ea::truncate;
use crate::op::{Handler, Leave, Op, addr, next};
use crate::raw;

/// No prefix.
const ONCE: u8 = 0;
/// REP or REPE.
pub const REP: u8 = 1;
/// REPNE.
pub const REPNE: u8 = 2;

/// Elements between two looks at pending requests.
const SLICE: u64 = 1 << 16;

/// Address-size view of one of RSI, RDI, RCX.
fn get(cpu: &Cpu, op: &Op, register: usize) -> u64 {
    truncate(cpu.regs.r(register), op.addr)
}

fn set(cpu: &mut Cpu, op: &Op, register: usize, value: u64) {
    let offset = crate::regs::offset(register as u8);
    if op.addr & addr::A16 != 0 {
        cpu.regs.set::<2>(offset, value);
    } else if op.addr & addr::A32 != 0 {
        cpu.regs.set::<4>(offset, value);
    } else {
        cpu.regs.set::<8>(offset, value);
    }
}

/// Signed distance from one element to the next.
fn step<const N: usize>(cpu: &Cpu) -> u64 {
    if cpu.sys & DF != 0 {
        (N as u64).wrapping_neg()
    } else {
        N as u64
    }
}

fn advance<const N: usize>(cpu: &mut Cpu, op: &Op, register: usize, elements: u64) {
    let distance = step::<N>(cpu).wrapping_mul(elements);
    let value = get(cpu, op, register).wrapping_add(distance);
    set(cpu, op, register, value);
}

fn source<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    let offset = get(cpu, op, gpr::RSI);
    let la = cpu.linear(op.seg, offset, N, Read)?;
    cpu.load::<N>(la)
}

/// The destination is always ES:RDI.
fn target<const N: usize>(
    cpu: &mut Cpu,
    op: &Op,
    kind: umbra_mmu::AccessKind,
) -> Result<u64, Trap> {
    let offset = get(cpu, op, gpr::RDI);
    let segment = if cpu.long_code() { 6 } else { seg::ES as u8 };
    cpu.linear(segment, offset, N, kind)
}

/// Linear address of the destination where nothing has to be checked.
fn flat_target(cpu: &Cpu) -> u64 {
    let base = if cpu.long_code() {
        0
    } else {
        cpu.seg_base[seg::ES]
    };
    cpu.regs.r(gpr::RDI).wrapping_add(base) & cpu.linear_mask
}

/// One string instruction.
trait Action: 'static {
    /// Whether REPE/REPNE also look at ZF.
    const COMPARES: bool = false;
    /// Whether it needs the right to a port, also where it does nothing.
    const PORTS: bool = false;
    /// Does one element, including the pointers.
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap>;
    /// Does up to `count` elements at once; returns how many, 0 where it cannot.
    fn many<const N: usize>(_cpu: &mut Cpu, _op: &Op, _count: u64) -> Result<u64, Trap> {
        Ok(0)
    }
}

/// MOVS.
enum Movs {}
impl Action for Movs {
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let v = source::<N>(cpu, op)?;
        let la = target::<N>(cpu, op, Write)?;
        cpu.store::<N>(la, v)?;
        advance::<N>(cpu, op, gpr::RSI, 1);
        advance::<N>(cpu, op, gpr::RDI, 1);
        Ok(())
    }

    fn many<const N: usize>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64, Trap> {
        if op.addr & cpu.slow != 0 || cpu.sys & DF != 0 {
            return Ok(0);
        }
        let from = cpu
            .regs
            .r(gpr::RSI)
            .wrapping_add(cpu.seg_base[(op.seg & 7) as usize])
            & cpu.linear_mask;
        let to = flat_target(cpu);
        let Some((_, left)) = cpu.read_span::<N>(from)? else {
            return Ok(0);
        };
        let Some((to_host, room)) = cpu.write_span::<N>(to)? else {
            return Ok(0);
        };
        // The second question may have taken the first answer away.
        let entry = cpu.ctx().entry(from);
        if entry.read != from & !0xfff {
            return Ok(0);
        }
        let from_host = entry.at(from);
        let elements = count.min(left / N as u64).min(room / N as u64);
        // SAFETY: 1. and 2. both spans are inside pages whose cached translations stand now.
        unsafe { raw::movs::<N>(to_host, from_host, elements) };
        advance::<N>(cpu, op, gpr::RSI, elements);
        advance::<N>(cpu, op, gpr::RDI, elements);
        Ok(elements)
    }
}

/// STOS.
enum Stos {}
impl Action for Stos {
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let la = target::<N>(cpu, op, Write)?;
        let v = cpu.regs.get::<N>(0);
        cpu.store::<N>(la, v)?;
        advance::<N>(cpu, op, gpr::RDI, 1);
        Ok(())
    }

    fn many<const N: usize>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64, Trap> {
        if op.addr & cpu.slow != 0 || cpu.sys & DF != 0 {
            return Ok(0);
        }
        let to = flat_target(cpu);
        let Some((host, room)) = cpu.write_span::<N>(to)? else {
            return Ok(0);
        };
        let elements = count.min(room / N as u64);
        // SAFETY: 1. the span is inside a page whose cached translation stands now.
        unsafe { raw::stos::<N>(host, cpu.regs.r(gpr::RAX), elements) };
        advance::<N>(cpu, op, gpr::RDI, elements);
        Ok(elements)
    }
}

/// LODS.
enum Lods {}
impl Action for Lods {
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let v = source::<N>(cpu, op)?;
        cpu.regs.set::<N>(0, v);
        advance::<N>(cpu, op, gpr::RSI, 1);
        Ok(())
    }
}

/// SCAS.
enum Scas {}
impl Action for Scas {
    const COMPARES: bool = true;
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let la = target::<N>(cpu, op, Read)?;
        let b = cpu.load::<N>(la)?;
        let a = cpu.regs.get::<N>(0);
        cpu.flags.sub::<N>(a, b, a.wrapping_sub(b));
        advance::<N>(cpu, op, gpr::RDI, 1);
        Ok(())
    }
}

/// CMPS.
enum Cmps {}
impl Action for Cmps {
    const COMPARES: bool = true;
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        // The destination first, as processors do; the manual leaves it open.
        let la = target::<N>(cpu, op, Read)?;
        let b = cpu.load::<N>(la)?;
        let a = source::<N>(cpu, op)?;
        cpu.flags.sub::<N>(a, b, a.wrapping_sub(b));
        advance::<N>(cpu, op, gpr::RSI, 1);
        advance::<N>(cpu, op, gpr::RDI, 1);
        Ok(())
    }
}

/// INS.
enum Ins {}
impl Action for Ins {
    const PORTS: bool = true;
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let port = cpu.regs.get::<2>(16) as u16;
        cpu.check_port(port, N)?;
        let la = target::<N>(cpu, op, Write)?;
        // The port is read only when the memory can take it: a read may have effects.
        cpu.probe_write(la, N)?;
        let v = cpu.port_in::<N>(port);
        cpu.store::<N>(la, v)?;
        advance::<N>(cpu, op, gpr::RDI, 1);
        Ok(())
    }
}

/// OUTS.
enum Outs {}
impl Action for Outs {
    const PORTS: bool = true;
    fn one<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let port = cpu.regs.get::<2>(16) as u16;
        cpu.check_port(port, N)?;
        let v = source::<N>(cpu, op)?;
        cpu.port_out::<N>(port, v);
        advance::<N>(cpu, op, gpr::RSI, 1);
        Ok(())
    }
}

fn run<A: Action, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if op.extra == ONCE {
        return match A::one::<N>(cpu, op) {
            Ok(()) => next(cpu, op),
            Err(Trap) => cpu.fault(op),
        };
    }
    match repeat::<A, N>(cpu, op) {
        Ok(true) => next(cpu, op),
        Ok(false) => {
            cpu.rip = cpu.rip_of(op);
            Leave::Look
        }
        Err(Trap) => cpu.fault(op),
    }
}

/// Returns whether the repetition is complete.
fn repeat<A: Action, const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<bool, Trap> {
    let mut budget = SLICE;
    if A::PORTS {
        let port = cpu.regs.get::<2>(16) as u16;
        cpu.check_port(port, N)?;
    }
    loop {
        let count = get(cpu, op, gpr::RCX);
        if count == 0 {
            return Ok(true);
        }
        if budget == 0 || (budget < SLICE && cpu.wake.wanted()) {
            return Ok(false);
        }
        let mut done = if A::COMPARES {
            0
        } else {
            A::many::<N>(cpu, op, count.min(budget))?
        };
        if done == 0 {
            A::one::<N>(cpu, op)?;
            done = 1;
        }
        set(cpu, op, gpr::RCX, count - done);
        budget -= done;
        if A::COMPARES && cpu.flags.zf() != (op.extra == REP) {
            return Ok(true);
        }
        if cpu.stepping() {
            return Ok(count == done);
        }
    }
}

/// Which string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory to memory.
    Movs,
    /// Accumulator to memory.
    Stos,
    /// Memory to accumulator.
    Lods,
    /// Compares memory with the accumulator.
    Scas,
    /// Compares memory with memory.
    Cmps,
    /// Port to memory.
    Ins,
    /// Memory to port.
    Outs,
}

/// Handler of a string instruction; the prefix is in `extra`.
pub fn string(kind: Kind, size: usize) -> Handler {
    match kind {
        Kind::Movs => by_size!(size, run, Movs),
        Kind::Stos => by_size!(size, run, Stos),
        Kind::Lods => by_size!(size, run, Lods),
        Kind::Scas => by_size!(size, run, Scas),
        Kind::Cmps => by_size!(size, run, Cmps),
        Kind::Ins => by_size!(size, run, Ins),
        Kind::Outs => by_size!(size, run, Outs),
    }
}
