//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE.

use umbra_mmu::AccessKind::{Read, Write};
use umbra_x86::state::gpr::{RBP, RSP};
use umbra_x86::state::seg;

use super::{by_size, ok};
use crate::cpu::{Cpu, Trap, mode};
use crate::op::{Handler, Leave, Op, next};

impl Cpu {
    /// Mask of the stack pointer.
    #[inline(always)]
    fn stack_mask(&self) -> u64 {
        if self.long_code() {
            u64::MAX
        } else if self.mode & mode::STACK32 != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Sets the stack pointer, in its width.
    #[inline(always)]
    pub fn set_stack(&mut self, value: u64) {
        if self.long_code() {
            self.regs.set_r(RSP, value);
        } else {
            let mask = self.stack_mask();
            let kept = self.regs.r(RSP) & !mask;
            self.regs
                .set_r(RSP, if mask == 0xffff { kept } else { 0 } | value & mask);
        }
    }

    #[inline(always)]
    fn stack_address(
        &mut self,
        pointer: u64,
        len: usize,
        kind: umbra_mmu::AccessKind,
    ) -> Result<u64, Trap> {
        if self.long_code() {
            return Ok(pointer);
        }
        let offset = pointer & self.stack_mask();
        self.linear(seg::SS as u8, offset, len, kind)
    }

    /// Stores `N` bytes below the stack pointer, then moves it.
    #[inline(always)]
    pub fn push<const N: usize>(&mut self, value: u64) -> Result<(), Trap> {
        let pointer = self.regs.r(RSP).wrapping_sub(N as u64);
        let la = self.stack_address(pointer, N, Write)?;
        self.store::<N>(la, value)
            .map_err(|t| self.stack_trap::<N>(la, t))?;
        self.set_stack(pointer);
        Ok(())
    }

    /// Loads `N` bytes at `distance` above the stack pointer.
    #[inline(always)]
    pub fn peek<const N: usize>(&mut self, distance: u64) -> Result<u64, Trap> {
        let pointer = self.regs.r(RSP).wrapping_add(distance);
        let la = self.stack_address(pointer, N, Read)?;
        self.load::<N>(la).map_err(|t| self.stack_trap::<N>(la, t))
    }

    /// Pushes in 64-bit and flat code when the stack's page is cached; tells whether it did.
    #[inline(always)]
    pub fn quick_push<const N: usize>(&mut self, value: u64) -> bool {
        let pointer = self.regs.r(RSP).wrapping_sub(N as u64) & self.linear_mask;
        let done = self.quick_stack && self.quick_store_at::<N>(pointer, value);
        if done {
            self.regs.set_r(RSP, pointer);
        }
        done
    }

    /// Reads the top of the stack in 64-bit and flat code when its page is cached.
    #[inline(always)]
    pub fn quick_top<const N: usize>(&mut self) -> Option<u64> {
        if self.quick_stack {
            self.quick_load_at::<N>(self.regs.r(RSP) & self.linear_mask)
        } else {
            None
        }
    }

    /// Moves the stack pointer up after [`quick_top`](Self::quick_top).
    #[inline(always)]
    pub fn quick_release(&mut self, bytes: u64) {
        let pointer = self.regs.r(RSP).wrapping_add(bytes) & self.linear_mask;
        self.regs.set_r(RSP, pointer);
    }

    /// Moves the stack pointer up.
    #[inline(always)]
    pub fn release(&mut self, bytes: u64) {
        let pointer = self.regs.r(RSP).wrapping_add(bytes);
        self.set_stack(pointer);
    }

    /// A stack address of which any byte is not canonical raises #SS, not #GP.
    #[cold]
    fn stack_trap<const N: usize>(&mut self, la: u64, trap: Trap) -> Trap {
        let last = la.wrapping_add(N as u64 - 1);
        if !self.canonical(la) || !self.canonical(last) {
            use umbra_x86::{Exception, vector};
            return self.raise(Exception::with_error(vector::SS, 0));
        }
        trap
    }
}

fn push_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.regs.get::<N>(op.a);
    if !cpu.quick_push::<N>(v) {
        return push_r_slow::<N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn push_r_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, cpu.push::<N>(v));
    next(cpu, op)
}

fn push_i<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.quick_push::<N>(op.imm) {
        return push_i_slow::<N>(cpu, op);
    }
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn push_i_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.push::<N>(op.imm));
    next(cpu, op)
}

fn push_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let v = ok!(cpu, op, cpu.load::<N>(la));
    ok!(cpu, op, cpu.push::<N>(v));
    next(cpu, op)
}

fn pop_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let Some(v) = cpu.quick_top::<N>() else {
        return pop_r_slow::<N>(cpu, op);
    };
    cpu.quick_release(N as u64);
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

#[cold]
#[inline(never)]
fn pop_r_slow<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = ok!(cpu, op, cpu.peek::<N>(0));
    cpu.release(N as u64);
    cpu.regs.set::<N>(op.a, v);
    next(cpu, op)
}

/// POP memory: an address that uses RSP uses the value after the pop (SDM vol. 2).
fn pop_m<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = ok!(cpu, op, cpu.peek::<N>(0));
    let before = cpu.regs.r(RSP);
    cpu.release(N as u64);
    let stored = match cpu.ea::<N>(op, Write) {
        Ok(la) => cpu.store::<N>(la, v),
        Err(trap) => Err(trap),
    };
    if stored.is_err() {
        let leave = cpu.fault(op); // decides #GP or #SS by the address as it was used
        cpu.regs.set_r(RSP, before);
        return leave;
    }
    next(cpu, op)
}

/// Where PUSH finds, or POP puts, its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A register.
    Reg,
    /// Memory.
    Mem,
    /// An immediate.
    Imm,
}

/// Handler of PUSH.
pub fn push(source: Source, size: usize) -> Handler {
    match source {
        Source::Reg => by_size!(size, push_r),
        Source::Mem => by_size!(size, push_m),
        Source::Imm => by_size!(size, push_i),
    }
}

/// Handler of POP.
pub fn pop(memory: bool, size: usize) -> Handler {
    if memory {
        by_size!(size, pop_m)
    } else {
        by_size!(size, pop_r)
    }
}

/// PUSH of a segment register, number in `a`.
pub fn push_seg<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let v = cpu.seg[op.a as usize % 6].selector;
    ok!(cpu, op, cpu.push::<N>(v.into()));
    next(cpu, op)
}

/// PUSHA.
pub fn pusha<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let before = cpu.regs.r(RSP);
    for register in 0..8 {
        let v = if register == RSP {
            before
        } else {
            cpu.regs.r(register)
        };
        if cpu.push::<N>(v).is_err() {
            cpu.regs.set_r(RSP, before);
            return cpu.fault(op);
        }
    }
    next(cpu, op)
}

/// POPA; the stack pointer's own slot is skipped.
pub fn popa<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let mut values = [0; 8];
    for (i, v) in values.iter_mut().rev().enumerate() {
        *v = ok!(cpu, op, cpu.peek::<N>((i * N) as u64));
    }
    cpu.release(8 * N as u64);
    for (register, v) in values.into_iter().enumerate().filter(|(r, _)| *r != RSP) {
        cpu.regs.set::<N>(crate::regs::offset(register as u8), v);
    }
    next(cpu, op)
}

/// LEAVE.
pub fn leave<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let before = cpu.regs.r(RSP);
    let frame = cpu.regs.r(RBP);
    cpu.set_stack(frame);
    match cpu.peek::<N>(0) {
        Ok(v) => {
            cpu.release(N as u64);
            cpu.regs.set::<N>(crate::regs::offset(RBP as u8), v);
            next(cpu, op)
        }
        Err(Trap) => {
            cpu.regs.set_r(RSP, before);
            cpu.fault(op)
        }
    }
}

/// ENTER: `imm` is the frame size, `extra` the nesting level.
pub fn enter<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let before = cpu.regs.r(RSP);
    if enter_frame::<N>(cpu, op.imm, op.extra & 31).is_err() {
        cpu.regs.set_r(RSP, before);
        return cpu.fault(op);
    }
    next(cpu, op)
}

fn enter_frame<const N: usize>(cpu: &mut Cpu, size: u64, level: u8) -> Result<(), Trap> {
    let old = cpu.regs.r(RBP);
    cpu.push::<N>(old)?;
    let frame = cpu.regs.r(RSP);
    for i in 1..level {
        let at = old.wrapping_sub(u64::from(i) * N as u64);
        let la = cpu.stack_address(at, N, Read)?;
        let link = cpu.load::<N>(la)?;
        cpu.push::<N>(link)?;
    }
    if level > 0 {
        cpu.push::<N>(frame)?;
    }
    let top = cpu.regs.r(RSP).wrapping_sub(size);
    let la = cpu.stack_address(top, N, Write)?;
    cpu.probe_write(la, N)?;
    cpu.set_stack(top);
    cpu.regs.set::<N>(crate::regs::offset(RBP as u8), frame);
    Ok(())
}
