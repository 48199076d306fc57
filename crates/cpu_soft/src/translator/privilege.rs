//! The common cases of what moves between privilege levels and address spaces, for translated code: it
//! executes in 64-bit mode without breakpoints or single step, so much of what the interpreter's handlers
//! look at is known. Whatever else is the case is theirs.
//!
//! Each leaves the block, and [`transfer`](super::transfer) goes on in the code of the new place.

use iced_x86::{Code, Instruction, Register};
use umbra_x86::rflags::{AC, DEFINED, FIXED, NT, RF, STATUS, TF, VM};
use umbra_x86::state::gpr::{RCX, RSP};
use umbra_x86::state::{Segment, seg};
use umbra_x86::{cr4, efer};

use super::emit::Piece;
use crate::cpu::{Cpu, Trap};
use crate::far;
use crate::op::{Handler, Leave, Op, next};
use crate::ops::{flagops, system};
use crate::segment::{Descriptor, null_stack};
use crate::tlb::Class;

/// R11.
const R11: usize = 11;

/// Gives the instructions of `piece` that have a quick handler that one.
pub fn quicken(piece: &Piece) {
    for (insn, op) in piece.insns.iter().zip(&piece.ops) {
        if let Some(handler) = quick(insn) {
            op.handler.set(handler);
        }
    }
}

fn quick(insn: &Instruction) -> Option<Handler> {
    Some(match insn.code() {
        Code::Syscall => syscall,
        Code::Sysretq => sysretq,
        Code::Iretq => iretq,
        Code::Stac | Code::Clac => set_ac,
        Code::Mov_cr_r64 if insn.op0_register() == Register::CR3 => load_cr3,
        _ => return None,
    })
}

impl Cpu {
    /// Code at `segment` has the limits that jumps were remembered for ([`Cpu::set_code`]).
    fn same_reach(&self, segment: &Segment) -> bool {
        let old = &self.seg[seg::CS];
        old.base == segment.base && old.limit == segment.limit
    }

    /// Enters 64-bit code at level `cpl`, as [`Cpu::set_code`], [`Cpu::set_seg`] and [`Cpu::set_rflags`]
    /// would: `flags` have neither TF nor VM.
    fn enter_level(&mut self, cpl: u8, code: Segment, stack: Segment, flags: u64) {
        self.seg[seg::CS] = code;
        self.seg[seg::SS] = stack;
        self.seg_base[seg::CS] = code.base;
        self.seg_base[seg::SS] = stack.base;
        self.cpl = cpl;
        self.flags.set(flags);
        self.sys = flags & DEFINED & !STATUS | FIXED;
        self.select_class();
    }

    fn quick_syscall(&mut self, op: &Op) -> Option<()> {
        let selector = (self.msrs.star >> 32) as u16 & !3;
        let code = self.flat_code(selector, 0, true);
        if self.efer & efer::SCE == 0 || !self.same_reach(&code) {
            return None;
        }
        let flags = self.rflags() & !RF;
        self.regs.set_r(RCX, self.rip_after(op));
        self.regs.set_r(R11, flags);
        let stack = self.flat_stack(selector.wrapping_add(8), 0);
        self.enter_level(0, code, stack, flags & !self.msrs.fmask);
        self.rip = self.msrs.lstar;
        Some(())
    }

    fn quick_sysret(&mut self) -> Option<()> {
        let (target, flags) = (self.regs.r(RCX), self.regs.r(R11) & !(RF | VM));
        let base = (self.msrs.star >> 48) as u16;
        let code = self.flat_code(base.wrapping_add(16) | 3, 3, true);
        let plain = self.efer & efer::SCE != 0 && self.cpl == 0 && flags & TF == 0;
        if !plain || !self.canonical(target) || !self.same_reach(&code) {
            return None;
        }
        let stack = self.flat_stack(base.wrapping_add(8) | 3, 3);
        self.enter_level(3, code, stack, flags);
        self.rip = target;
        Some(())
    }

    /// From level 0 to 64-bit code of level 0 or 3, with descriptors that need no change in memory.
    fn quick_iret(&mut self) -> Option<()> {
        if self.cpl != 0 || self.class != Class::Supervisor || self.sys & NT != 0 {
            return None;
        }
        let mut frame = [0; 5];
        let at = self.regs.r(RSP);
        for (word, offset) in frame.iter_mut().zip((0..).step_by(8)) {
            *word = self.quick_load_at::<8>(at.wrapping_add(offset))?;
        }
        let [target, cs, flags, pointer, ss] = frame;
        let (cs, ss) = (cs as u16, ss as u16);
        let cpl = (cs & 3) as u8;
        let code = self.quick_descriptor(cs)?;
        let long = code.is_code() && !code.is_conforming() && code.is_long() && !code.is_big();
        let code_segment = code.segment(cs);
        let stack = if ss == 0 && cpl == 0 {
            null_stack(0, 0)
        } else {
            let stack = self.quick_descriptor(ss)?;
            let writable = stack.is_segment() && !stack.is_code() && stack.kind() & 2 != 0;
            if !writable || u16::from(cpl) != ss & 3 {
                return None;
            }
            stack.segment(ss)
        };
        let flags = self.iret_flags::<8>(flags);
        let plain = long && self.canonical(target) && flags & TF == 0;
        if !plain || !self.same_reach(&code_segment) {
            return None;
        }
        self.enter_level(cpl, code_segment, stack, flags);
        self.regs.set_r(RSP, pointer);
        self.rip = target;
        if cpl != 0 && self.has_inner_segments() {
            self.drop_inner_segments();
        }
        self.nmi_unblock();
        Some(())
    }

    /// The descriptor in the GDT that `selector` names, where it is at hand, of the level that the selector
    /// asks for, present, and marked as accessed.
    fn quick_descriptor(&mut self, selector: u16) -> Option<Descriptor> {
        let offset = selector & !7;
        if selector & 4 != 0 || offset == 0 || offset + 7 > self.gdtr.limit {
            return None;
        }
        let at = self.gdtr.base.wrapping_add(offset.into());
        let raw = self.quick_load_at::<8>(at)?;
        let descriptor = Descriptor { raw, high: 0, at };
        let good = descriptor.is_present() && descriptor.kind() & 1 != 0;
        (good && u16::from(descriptor.dpl()) == selector & 3).then_some(descriptor)
    }

    /// Whether [`Cpu::drop_inner_segments`] may change anything.
    fn has_inner_segments(&self) -> bool {
        [seg::ES, seg::DS, seg::FS, seg::GS]
            .into_iter()
            .any(|index| {
                let segment = &self.seg[index];
                let base = if index >= seg::FS { segment.base } else { 0 };
                let nothing = Segment {
                    base,
                    ..Segment::default()
                };
                *segment != nothing
            })
    }
}

/// SYSCALL (SDM vol. 2).
fn syscall(cpu: &mut Cpu, op: &Op) -> Leave {
    match cpu.quick_syscall(op) {
        Some(()) => Leave::Done,
        None => far::syscall(cpu, op),
    }
}

/// SYSRET to 64-bit code (SDM vol. 2).
fn sysretq(cpu: &mut Cpu, op: &Op) -> Leave {
    match cpu.quick_sysret() {
        Some(()) => Leave::Done,
        None => far::sysret(cpu, op),
    }
}

/// IRETQ (SDM vol. 2, IRET).
fn iretq(cpu: &mut Cpu, op: &Op) -> Leave {
    match cpu.quick_iret() {
        Some(()) => Leave::Done,
        None => far::iret::<8>(cpu, op),
    }
}

/// STAC and CLAC, by `imm` (SDM vol. 2).
fn set_ac(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cpl != 0 || cpu.cr4 & cr4::SMAP == 0 {
        return flagops::set_ac(cpu, op);
    }
    cpu.sys = cpu.sys & !AC | op.imm;
    cpu.select_class();
    next(cpu, op)
}

/// MOV CR3, register: of all control registers the one that asks for nothing but translation.
fn load_cr3(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cpl != 0 {
        return system::mov_to_cr(cpu, op);
    }
    let value = cpu.regs.get::<8>(op.a);
    if let Err(Trap) = cpu.set_cr3(value) {
        return cpu.fault(op);
    }
    cpu.rip = cpu.rip_after(op);
    Leave::Look
}
