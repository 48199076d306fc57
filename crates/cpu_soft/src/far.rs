//! Far transfers: JMP, CALL, RET and IRET between segments, INT n, SYSCALL, SYSENTER and back
//! (SDM vol. 3, 5.8; vol. 2 under each instruction).

use umbra_mmu::AccessKind::Read;
use umbra_x86::rflags::{AC, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VIF, VIP, VM};
use umbra_x86::state::gpr::{RCX, RDX, RSP};
use umbra_x86::state::{Segment, seg};
use umbra_x86::{Exception, cr0, efer, vector};

use crate::cpu::{Cpu, Trap};
use crate::interrupt::Origin;
use crate::op::{Leave, Op};
use crate::ops::ok;
use crate::segment::{Descriptor, null_stack};
use crate::task::Way;

/// The bits that IRET to an outer level restores.
const IRET_FLAGS: u64 = STATUS | TF | DF | NT | RF | AC | ID;

impl Cpu {
    fn np(&mut self, selector: u16) -> Trap {
        self.raise(Exception::with_error(vector::NP, u32::from(selector & !3)))
    }

    /// Checks that `offset` lies in code segment `target`.
    fn check_entry(&mut self, target: &Descriptor, offset: u64) -> Result<(), Trap> {
        let long = self.long_mode() && target.is_long();
        let good = if long {
            self.canonical(offset)
        } else {
            offset <= u64::from(target.segment(0).limit)
        };
        if good { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Checks a code segment as target of a direct far JMP or CALL.
    fn direct_target(&mut self, selector: u16, target: &Descriptor) -> Result<(), Trap> {
        let error = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        let allowed = if target.is_conforming() {
            target.dpl() <= self.cpl
        } else {
            rpl <= self.cpl && target.dpl() == self.cpl
        };
        if !allowed || self.long_mode() && target.is_long() && target.is_big() {
            return Err(self.gp(error));
        }
        if !target.is_present() {
            return Err(self.np(selector));
        }
        Ok(())
    }

    /// `back` is where a task that is left goes on.
    fn far_jump(&mut self, selector: u16, offset: u64, back: u64) -> Result<(), Trap> {
        if !self.protected() {
            self.set_real_code(selector);
            self.rip = offset;
            return Ok(());
        }
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let target = self.descriptor(selector, vector::GP)?;
        if target.is_code() {
            self.direct_target(selector, &target)?;
            self.check_entry(&target, offset)?;
            self.enter_code(selector, target, self.cpl)?;
            self.rip = offset;
            return Ok(());
        }
        match target.kind() {
            4 | 0xc => self.gate_jump(selector),
            1 | 3 | 5 | 9 | 0xb => {
                self.rip = back;
                self.task_by_selector(selector, target, Way::Jump)
            }
            _ => Err(self.gp(u32::from(selector & !3))),
        }
    }

    /// Reads a call gate and the code segment behind it: target, its selector, the entry point,
    /// the number of parameters, and whether the gate is 32 (or 64) bits wide.
    fn call_gate(&mut self, selector: u16) -> Result<(Descriptor, u16, u64, u64, bool), Trap> {
        let error = u32::from(selector & !3);
        let gate = self.system_descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        if gate.dpl() < self.cpl.max(rpl) || self.long_mode() && gate.kind() != 0xc {
            return Err(self.gp(error));
        }
        if !gate.is_present() {
            return Err(self.np(selector));
        }
        let code = (gate.raw >> 16) as u16;
        if code & !3 == 0 {
            return Err(self.gp(0));
        }
        let wide = gate.kind() == 0xc;
        let mut entry = gate.raw & 0xffff | gate.raw >> 32 & 0xffff_0000;
        if !wide {
            entry &= 0xffff;
        } else if self.long_mode() {
            entry |= u64::from(gate.high) << 32;
        }
        let target = self.descriptor(code, vector::GP)?;
        if !target.is_code() || target.dpl() > self.cpl || self.long_mode() && !target.is_long() {
            return Err(self.gp(u32::from(code & !3)));
        }
        if !target.is_present() {
            return Err(self.np(code));
        }
        Ok((target, code, entry, gate.raw >> 32 & 0x1f, wide))
    }

    fn gate_jump(&mut self, selector: u16) -> Result<(), Trap> {
        let (target, code, entry, _, _) = self.call_gate(selector)?;
        if !target.is_conforming() && target.dpl() != self.cpl {
            return Err(self.gp(u32::from(code & !3)));
        }
        self.check_entry(&target, entry)?;
        self.enter_code(code, target, self.cpl)?;
        self.rip = entry;
        Ok(())
    }

    fn far_call<const N: usize>(
        &mut self,
        selector: u16,
        offset: u64,
        back: u64,
    ) -> Result<(), Trap> {
        let before = self.regs.r(RSP);
        let result = self.far_call_inner::<N>(selector, offset, back);
        if result.is_err() {
            self.restore_stack(before);
        }
        result
    }

    fn far_call_inner<const N: usize>(
        &mut self,
        selector: u16,
        offset: u64,
        back: u64,
    ) -> Result<(), Trap> {
        let old = self.seg[seg::CS].selector;
        if !self.protected() {
            self.push::<N>(old.into())?;
            self.push::<N>(back)?;
            self.set_real_code(selector);
            self.rip = offset;
            return Ok(());
        }
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let target = self.descriptor(selector, vector::GP)?;
        if target.is_code() {
            self.direct_target(selector, &target)?;
            self.check_entry(&target, offset)?;
            self.push::<N>(old.into())?;
            self.push::<N>(back)?;
            self.enter_code(selector, target, self.cpl)?;
            self.rip = offset;
            return Ok(());
        }
        match target.kind() {
            4 | 0xc => self.gate_call(selector, back),
            1 | 3 | 5 | 9 | 0xb => {
                self.rip = back;
                self.task_by_selector(selector, target, Way::Call)
            }
            _ => Err(self.gp(u32::from(selector & !3))),
        }
    }

    fn gate_call(&mut self, selector: u16, back: u64) -> Result<(), Trap> {
        let (mut target, code, entry, count, wide) = self.call_gate(selector)?;
        self.check_entry(&target, entry)?;
        let old_code = u64::from(self.seg[seg::CS].selector);
        let inner = !target.is_conforming() && target.dpl() < self.cpl;
        if self.long_mode() {
            return self.gate_call_long(code, target, entry, inner, [old_code, back]);
        }
        if !inner {
            if wide {
                self.push::<4>(old_code)?;
                self.push::<4>(back)?;
            } else {
                self.push::<2>(old_code)?;
                self.push::<2>(back)?;
            }
            self.enter_code(code, target, self.cpl)?;
            self.rip = entry;
            return Ok(());
        }
        let cpl = target.dpl();
        self.mark_accessed(&mut target)?;
        let (ss, esp) = self.task_stack(cpl)?;
        let segment = self.stack_segment(ss, cpl, vector::TS)?;
        let mut words = vec![self.seg[seg::SS].selector.into(), self.regs.r(RSP)];
        for i in (0..count).rev() {
            words.push(if wide {
                self.peek::<4>(i * 4)?
            } else {
                self.peek::<2>(i * 2)?
            });
        }
        words.extend([old_code, back]);
        let pointer = self.push_words((segment, esp), cpl, &words, wide, Origin::Software)?;
        self.set_seg(seg::SS, segment);
        self.enter_code(code, target, cpl)?;
        self.set_stack(pointer);
        self.rip = entry;
        Ok(())
    }

    fn gate_call_long(
        &mut self,
        code: u16,
        mut target: Descriptor,
        entry: u64,
        inner: bool,
        [old_code, back]: [u64; 2],
    ) -> Result<(), Trap> {
        self.mark_accessed(&mut target)?;
        let cpl = if inner { target.dpl() } else { self.cpl };
        let mut bytes = Vec::with_capacity(32);
        let mut top = self.regs.r(RSP);
        for word in [back, old_code] {
            bytes.extend(word.to_le_bytes());
        }
        if inner {
            bytes.extend(self.regs.r(RSP).to_le_bytes());
            bytes.extend(u64::from(self.seg[seg::SS].selector).to_le_bytes());
            top = self.task_pointer(4 + 8 * u64::from(cpl))?;
        }
        let bottom = top.wrapping_sub(bytes.len() as u64);
        if inner {
            self.system(|cpu| cpu.write(bottom, &bytes))?;
            self.set_seg(seg::SS, null_stack(u16::from(cpl), cpl));
        } else {
            self.write(bottom, &bytes)?;
        }
        self.enter_code(code, target, cpl)?;
        self.regs.set_r(RSP, bottom);
        self.rip = entry;
        Ok(())
    }

    /// Checks the code segment that RET or IRET goes back to; returns it with the new privilege.
    fn return_target(&mut self, selector: u16) -> Result<(Descriptor, u8), Trap> {
        let error = u32::from(selector & !3);
        if selector & !3 == 0 {
            return Err(self.gp(0));
        }
        let target = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        let level = if target.is_conforming() {
            target.dpl() <= rpl
        } else {
            target.dpl() == rpl
        };
        if !target.is_code() || rpl < self.cpl || !level {
            return Err(self.gp(error));
        }
        if !target.is_present() {
            return Err(self.np(selector));
        }
        Ok((target, rpl))
    }

    /// SS for a return to level `cpl`; a null one is allowed to 64-bit code below level 3.
    fn return_stack(
        &mut self,
        selector: u16,
        cpl: u8,
        target: &Descriptor,
    ) -> Result<Segment, Trap> {
        if selector & !3 == 0 {
            let long = self.long_mode() && target.is_long();
            if long && cpl < 3 && (selector & 3) as u8 == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(self.gp(0));
        }
        self.stack_segment(selector, cpl, vector::GP)
    }

    fn far_return<const N: usize>(&mut self, release: u64) -> Result<(), Trap> {
        let offset = self.peek::<N>(0)?;
        let selector = self.peek::<N>(N as u64)? as u16;
        if !self.protected() {
            self.release(2 * N as u64 + release);
            self.set_real_code(selector);
            self.rip = offset;
            return Ok(());
        }
        let (mut target, cpl) = self.return_target(selector)?;
        self.check_entry(&target, offset)?;
        self.mark_accessed(&mut target)?;
        if cpl == self.cpl {
            self.release(2 * N as u64 + release);
            self.enter_code(selector, target, cpl)?;
            self.rip = offset;
            return Ok(());
        }
        let stack = self.peek::<N>(2 * N as u64 + release)?;
        let ss = self.peek::<N>(3 * N as u64 + release)? as u16;
        let segment = self.return_stack(ss, cpl, &target)?;
        self.set_seg(seg::SS, segment);
        self.enter_code(selector, target, cpl)?;
        self.set_stack(stack.wrapping_add(release));
        self.rip = offset;
        self.drop_inner_segments();
        Ok(())
    }

    fn iret<const N: usize>(&mut self, back: u64) -> Result<(), Trap> {
        if self.v86() && self.iopl() < 3 {
            return Err(self.gp(0));
        }
        if self.protected() && self.sys & NT != 0 {
            if self.long_mode() {
                return Err(self.gp(0));
            }
            self.rip = back;
            return self.task_return();
        }
        let offset = self.peek::<N>(0)?;
        let selector = self.peek::<N>(N as u64)? as u16;
        let flags = self.peek::<N>(2 * N as u64)?;
        if !self.protected() {
            self.release(3 * N as u64);
            let may = if self.v86() {
                !(IOPL | VM | VIF | VIP)
            } else {
                !(VM | VIF | VIP)
            };
            let may = may & if N == 2 { 0xffff } else { u64::MAX };
            let value = self.rflags() & !may | flags & may;
            self.set_real_code(selector);
            self.rip = offset;
            self.set_rflags(value);
            return Ok(());
        }
        if N == 4 && flags & VM != 0 && self.cpl == 0 && !self.long_mode() {
            return self.iret_to_v86(offset, selector, flags);
        }
        let (mut target, cpl) = self.return_target(selector)?;
        self.check_entry(&target, offset)?;
        self.mark_accessed(&mut target)?;
        let value = self.iret_flags::<N>(flags);
        let outer = cpl != self.cpl;
        if outer || self.long_mode() && self.long_code() {
            let stack = self.peek::<N>(3 * N as u64)?;
            let ss = self.peek::<N>(4 * N as u64)? as u16;
            let segment = self.return_stack(ss, cpl, &target)?;
            self.set_seg(seg::SS, segment);
            self.enter_code(selector, target, cpl)?;
            self.set_stack(stack);
        } else {
            self.release(3 * N as u64);
            self.enter_code(selector, target, cpl)?;
        }
        self.rip = offset;
        self.set_rflags(value);
        if outer {
            self.drop_inner_segments();
        }
        Ok(())
    }

    /// RFLAGS after IRET, by the privilege before it.
    pub fn iret_flags<const N: usize>(&self, flags: u64) -> u64 {
        let mut may = IRET_FLAGS;
        if self.cpl <= self.iopl() {
            may |= IF;
        }
        if self.cpl == 0 {
            may |= IOPL | VIF | VIP;
        }
        if N == 2 {
            may &= 0xffff;
        }
        self.rflags() & !may | flags & may
    }

    fn iret_to_v86(&mut self, offset: u64, selector: u16, flags: u64) -> Result<(), Trap> {
        let esp = self.peek::<4>(12)?;
        let mut selectors = [0; 5];
        for (i, s) in selectors.iter_mut().enumerate() {
            *s = self.peek::<4>(16 + 4 * i as u64)? as u16;
        }
        self.set_rflags(flags | VM);
        let order = [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS];
        for (index, selector) in order.into_iter().zip(selectors) {
            self.load_segment(index, selector)?;
        }
        self.set_v86_code(selector);
        self.regs.set_r(RSP, esp);
        self.rip = offset & 0xffff;
        Ok(())
    }

    /// CS as SYSCALL and its kin load it: of `cpl`, flat, of 64 bits or 32 (SDM vol. 2, SYSCALL).
    pub fn flat_code(&self, selector: u16, cpl: u8, long: bool) -> Segment {
        let size = if long { Segment::L } else { Segment::DB };
        let attr = 0xb | Segment::S | Segment::P | Segment::G | size | u16::from(cpl) << 5;
        Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            attr,
        }
    }

    /// SS as they load it.
    pub fn flat_stack(&self, selector: u16, cpl: u8) -> Segment {
        Segment {
            selector,
            ..null_stack(0, cpl)
        }
    }
}

/// JMP ptr16:16/32: selector in `disp`, offset in `imm`.
pub fn jmp_ptr(cpu: &mut Cpu, op: &Op) -> Leave {
    let back = cpu.rip_after(op);
    ok!(cpu, op, cpu.far_jump(op.disp as u16, op.imm, back));
    Leave::Done
}

/// JMP m16:16/32/64.
pub fn jmp_mem<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (selector, offset) = ok!(cpu, op, cpu.far_pointer::<N>(op));
    let back = cpu.rip_after(op);
    ok!(cpu, op, cpu.far_jump(selector, offset, back));
    Leave::Done
}

/// CALL ptr16:16/32.
pub fn call_ptr<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let back = cpu.rip_after(op);
    ok!(cpu, op, cpu.far_call::<N>(op.disp as u16, op.imm, back));
    Leave::Done
}

/// CALL m16:16/32/64.
pub fn call_mem<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (selector, offset) = ok!(cpu, op, cpu.far_pointer::<N>(op));
    let back = cpu.rip_after(op);
    ok!(cpu, op, cpu.far_call::<N>(selector, offset, back));
    Leave::Done
}

/// RETF, releasing `imm` bytes.
pub fn retf<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.far_return::<N>(op.imm));
    Leave::Done
}

/// IRET.
pub fn iret<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let back = cpu.rip_after(op);
    ok!(cpu, op, cpu.iret::<N>(back));
    cpu.nmi_unblock();
    Leave::Done
}

/// In [`Op::extra`]: INT1, an exception in all but name, whose gate's privilege is not checked
/// (SDM vol. 2, INT n).
pub const PRIVILEGED: u8 = 1;

/// In [`Op::extra`]: INT n, which needs IOPL 3 in virtual-8086 mode; INT3 and INTO do not
/// (SDM vol. 3, 20.2.8).
pub const SENSITIVE: u8 = 2;

/// INT n, INT3, INT1, INTO (when OF is set): vector in `imm`.
pub fn int(cpu: &mut Cpu, op: &Op) -> Leave {
    if op.extra == SENSITIVE && cpu.v86() && cpu.iopl() < 3 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let (start, after) = (cpu.rip_of(op), cpu.rip_after(op));
    let origin = if op.extra == PRIVILEGED {
        // A debug trap that waits is part of this one.
        if cpu.watch_hits != 0 {
            cpu.dr[6] = cpu.dr[6] & !0xf | std::mem::take(&mut cpu.watch_hits);
        }
        Origin::External
    } else {
        Origin::Software
    };
    cpu.rip = after;
    match cpu.deliver(op.imm as u8, None, origin) {
        Ok(()) => {
            cpu.called = true;
            Leave::Done
        }
        Err(Trap) => {
            if !std::mem::take(&mut cpu.switched) {
                cpu.rip = start;
            }
            Leave::Fault
        }
    }
}

/// INTO.
pub fn into(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.flags.of() {
        return int(cpu, op);
    }
    cpu.rip = cpu.rip_after(op);
    Leave::Done
}

/// SYSCALL (SDM vol. 2).
pub fn syscall(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.efer & efer::SCE == 0 || !cpu.long_code() {
        cpu.ud();
        return cpu.fault(op);
    }
    let back = cpu.rip_after(op);
    let flags = cpu.rflags() & !RF;
    cpu.regs.set_r(RCX, back);
    cpu.regs.set_r(11, flags);
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.set_seg(seg::SS, cpu.flat_stack(selector.wrapping_add(8), 0));
    cpu.set_code(cpu.flat_code(selector, 0, true), 0);
    cpu.rip = cpu.msrs.lstar;
    cpu.set_rflags(flags & !cpu.msrs.fmask);
    Leave::Done
}

/// SYSRET; `extra` is 8 for a return to 64-bit code.
pub fn sysret(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.efer & efer::SCE == 0 || !cpu.long_code() {
        cpu.ud();
        return cpu.fault(op);
    }
    let target = cpu.regs.r(RCX);
    if cpu.cpl != 0 || op.extra == 8 && !cpu.canonical(target) {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let long = op.extra == 8;
    let code = base.wrapping_add(if long { 16 } else { 0 }) | 3;
    cpu.set_seg(seg::SS, cpu.flat_stack(base.wrapping_add(8) | 3, 3));
    cpu.set_code(cpu.flat_code(code, 3, long), 3);
    cpu.rip = if long { target } else { target & 0xffff_ffff };
    let flags = cpu.regs.r(11) & !(RF | VM);
    cpu.set_rflags(flags);
    Leave::Done
}

/// SYSENTER.
pub fn sysenter(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr0 & cr0::PE == 0 || cpu.msrs.sysenter_cs & !3 == 0 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let long = cpu.long_mode();
    let flags = cpu.rflags() & !(VM | IF | RF);
    cpu.set_rflags(flags);
    let selector = cpu.msrs.sysenter_cs as u16 & !3;
    cpu.set_seg(seg::SS, cpu.flat_stack(selector.wrapping_add(8), 0));
    cpu.set_code(cpu.flat_code(selector, 0, long), 0);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs.set_r(RSP, cpu.msrs.sysenter_esp & mask);
    cpu.rip = cpu.msrs.sysenter_eip & mask;
    Leave::Done
}

/// SYSEXIT; `extra` is 8 for a return to 64-bit code.
pub fn sysexit(cpu: &mut Cpu, op: &Op) -> Leave {
    let long = op.extra == 8;
    let (rip, rsp) = (cpu.regs.r(RDX), cpu.regs.r(RCX));
    let refused = cpu.cr0 & cr0::PE == 0 || cpu.msrs.sysenter_cs & !3 == 0 || cpu.cpl != 0;
    if refused || long && !(cpu.canonical(rip) && cpu.canonical(rsp)) {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    let code = base.wrapping_add(if long { 32 } else { 16 }) | 3;
    cpu.set_seg(seg::SS, cpu.flat_stack(code.wrapping_add(8), 3));
    cpu.set_code(cpu.flat_code(code, 3, long), 3);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs.set_r(RSP, rsp & mask);
    cpu.rip = rip & mask;
    Leave::Done
}

/// Loads a segment register and a general one from memory (LDS and its kin): segment in `b`.
pub fn load_far<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let (selector, offset) = ok!(cpu, op, cpu.far_pointer::<N>(op));
    ok!(cpu, op, cpu.load_segment(op.b as usize % 6, selector));
    cpu.regs.set::<N>(op.a, offset);
    if op.b as usize == seg::SS {
        return cpu.shadow_after(op);
    }
    crate::op::next(cpu, op)
}

/// MOV segment register from a register or memory: segment in `b`, source in `a`.
pub fn mov_seg_r(cpu: &mut Cpu, op: &Op) -> Leave {
    let selector = cpu.regs.get::<2>(op.a) as u16;
    mov_seg(cpu, op, selector)
}

/// MOV segment register, memory.
pub fn mov_seg_m(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<2>(op, Read));
    let selector = ok!(cpu, op, cpu.load::<2>(la)) as u16;
    mov_seg(cpu, op, selector)
}

fn mov_seg(cpu: &mut Cpu, op: &Op, selector: u16) -> Leave {
    ok!(cpu, op, cpu.load_segment(op.b as usize % 6, selector));
    if op.b as usize == seg::SS {
        return cpu.shadow_after(op);
    }
    crate::op::next(cpu, op)
}

/// POP segment register: segment in `b`.
pub fn pop_seg<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let selector = ok!(cpu, op, cpu.peek::<N>(0)) as u16;
    // SS decides about the width of the stack pointer: release it as it was.
    let before = cpu.regs.r(RSP);
    cpu.release(N as u64);
    let after = cpu.regs.r(RSP);
    cpu.regs.set_r(RSP, before);
    ok!(cpu, op, cpu.load_segment(op.b as usize % 6, selector));
    cpu.regs.set_r(RSP, after);
    if op.b as usize == seg::SS {
        return cpu.shadow_after(op);
    }
    crate::op::next(cpu, op)
}

impl Cpu {
    /// Leaves the block so that the next instruction runs without interrupts or debug traps.
    fn shadow_after(&mut self, op: &Op) -> Leave {
        self.shadow = true;
        self.debug_shadow = true;
        self.rip = self.rip_after(op);
        Leave::Look
    }
}
