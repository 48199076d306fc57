//! What the kernel does with segments when it changes tasks: selectors are read, the bases of FS and GS are read and
//! written, and exchanged.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, Register};
use umbra_x86::cr4;
use umbra_x86::state::{Segment, seg};

use super::asm::{Alu, Label, Mem, at, cc};
use super::emit::Emitter;
use super::layout::{Home, S0, S1, frame, slot};
use crate::cpu::{Cpu, Msrs};
use crate::op::Op;

/// Where the base of a segment is that accesses use, from the processor in `S1`.
fn base(segment: usize) -> Mem {
    at(S1, (offset_of!(Cpu, seg_base) + 8 * segment) as i32)
}

/// A field of the segment's register.
fn hidden(segment: usize, field: usize) -> Mem {
    let register = offset_of!(Cpu, seg) + segment * size_of::<Segment>();
    at(S1, (register + field) as i32)
}

impl Emitter<'_> {
    /// Emits one of them; `false` for anything else.
    pub(super) fn segments(&mut self, insn: &Instruction, op: &Op) -> bool {
        match insn.code() {
            Code::Swapgs => self.swapgs(op),
            Code::Rdfsbase_r64 => self.read_base(insn, op, seg::FS),
            Code::Rdgsbase_r64 => self.read_base(insn, op, seg::GS),
            Code::Wrfsbase_r64 => self.write_base(insn, op, seg::FS),
            Code::Wrgsbase_r64 => self.write_base(insn, op, seg::GS),
            Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
                return self.read_selector(insn);
            }
            _ => return false,
        }
        true
    }

    fn swapgs(&mut self, op: &Op) {
        let resume = self.asm.label();
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_level(failed);
        let other = offset_of!(Cpu, msrs) + offset_of!(Msrs, kernel_gs_base);
        let other = at(S1, other as i32);
        self.asm.load(S0, base(seg::GS));
        self.asm.store(8, frame(slot::TEMP), S0);
        self.asm.load(S0, other);
        self.set_base(seg::GS);
        self.asm.load(S0, frame(slot::TEMP));
        self.asm.store(8, other, S0);
        self.place.disturbed();
        self.go_on(resume);
    }

    /// `S0` becomes the base of a segment of the processor in `S1`.
    fn set_base(&mut self, segment: usize) {
        self.asm.store(8, base(segment), S0);
        self.asm
            .store(8, hidden(segment, offset_of!(Segment, base)), S0);
    }

    /// The processor into `S1`; goes to `failed` where programs may not read and write bases.
    fn check_bases(&mut self, failed: Label) {
        self.asm.load(S1, frame(slot::CPU));
        self.asm.load(S0, at(S1, offset_of!(Cpu, cr4) as i32));
        self.asm.alu_imm(Alu::And, 4, S0, cr4::FSGSBASE as i32);
        self.asm.jcc(cc::E, failed);
        self.place.disturbed();
    }

    fn read_base(&mut self, insn: &Instruction, op: &Op, segment: usize) {
        let resume = self.asm.label();
        let number = insn.op0_register().full_register().number() as u8;
        self.about_to_write(number);
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_bases(failed);
        self.asm
            .load(S0, hidden(segment, offset_of!(Segment, base)));
        self.put(number, S0);
        self.go_on(resume);
    }

    /// Addresses of 57 bits are left to the interpreter.
    fn write_base(&mut self, insn: &Instruction, op: &Op, segment: usize) {
        let resume = self.asm.label();
        let number = insn.op0_register().full_register().number() as u8;
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_bases(failed);
        self.fetch(S0, number);
        self.asm.shl(S0, 16);
        self.asm.sar(8, S0, 16);
        match self.home(number) {
            Home::Host(reg) => self.asm.alu(Alu::Cmp, 8, S0, reg),
            Home::Frame(mem) => self.asm.alu_mem(Alu::Cmp, S0, mem),
        }
        self.asm.jcc(cc::NE, failed);
        self.fetch(S0, number);
        self.set_base(segment);
        self.go_on(resume);
    }

    fn read_selector(&mut self, insn: &Instruction) -> bool {
        let to = insn.op0_register();
        let segment = match insn.op1_register() {
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            Register::DS => seg::DS,
            Register::FS => seg::FS,
            Register::GS => seg::GS,
            _ => return false,
        };
        if !to.is_gpr() {
            return false;
        }
        let number = to.full_register().number() as u8;
        self.about_to_write(number);
        self.asm.load(S1, frame(slot::CPU));
        self.asm
            .load16(S0, hidden(segment, offset_of!(Segment, selector)));
        match self.home(number) {
            Home::Host(reg) if to.size() == 2 => self.asm.mov16(reg, S0),
            Home::Frame(mem) if to.size() == 2 => {
                self.forget_held(number);
                self.asm.store(2, mem, S0);
            }
            _ => self.put(number, S0),
        }
        true
    }
}
