//! CLI, STI, CLD, STD, STAC, CLAC, PUSHF and divisions: what is made rather than copied, because more can
//! happen than the instruction's own work. What else can happen is left to the interpreter.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind};
use umbra_x86::rflags;

use super::asm::{Alu, Reg, at, cc};
use super::emit::Emitter;
use super::flags::Place;
use super::glue::SUPERVISORS;
use super::layout::{AX, Home, S0, S1, frame, home, is_high_byte, slot};
use super::memory::is_plain;
use super::pins::Target;
use crate::cpu::{CTX, Cpu};
use crate::op::Op;
use crate::tlb::Class;

const DX: Reg = Reg(2);

impl Emitter<'_> {
    /// Emits one of them; `false` for anything else.
    pub(super) fn system(&mut self, insn: &Instruction, op: &Op) -> bool {
        match insn.code() {
            Code::Cli => self.cli(op),
            Code::Sti => self.sti(op),
            Code::Stac => self.set_ac(op, true),
            Code::Clac => self.set_ac(op, false),
            Code::Cld => self.set_direction(false),
            Code::Std => self.set_direction(true),
            Code::Pushfq => self.pushf(op),
            Code::Div_rm32 => return self.divide(insn, op, 4, false),
            Code::Div_rm64 => return self.divide(insn, op, 8, false),
            Code::Idiv_rm32 => return self.divide(insn, op, 4, true),
            Code::Idiv_rm64 => return self.divide(insn, op, 8, true),
            _ => return false,
        }
        true
    }

    /// The processor into `S1`; goes to `failed` above level 0, where IOPL decides.
    pub(super) fn check_level(&mut self, failed: super::asm::Label) {
        self.asm.load(S1, frame(slot::CPU));
        self.asm
            .cmp_byte_imm(at(S1, offset_of!(Cpu, cpl) as i32), 0);
        self.asm.jcc(cc::NE, failed);
    }

    fn cli(&mut self, op: &Op) {
        let resume = self.asm.label();
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_level(failed);
        let sys = at(S1, offset_of!(Cpu, sys) as i32);
        self.asm.alu_mem_imm(Alu::And, sys, !(rflags::IF as u32));
        self.place.disturbed();
        self.go_on(resume);
    }

    /// Only where nothing waits for it: else the interpreter has the next instruction executed first.
    fn sti(&mut self, op: &Op) {
        let resume = self.asm.label();
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_level(failed);
        self.asm
            .cmp_byte_imm(at(S1, offset_of!(Cpu, blocked) as i32), 0);
        self.asm.jcc(cc::NE, failed);
        self.look(failed);
        let sys = at(S1, offset_of!(Cpu, sys) as i32);
        self.asm.alu_mem_imm(Alu::Or, sys, rflags::IF as u32);
        self.place.disturbed();
        self.go_on(resume);
    }

    /// Selects the other context of the kernel, where SMAP distinguishes them and it is known.
    fn set_ac(&mut self, op: &Op, ac: bool) {
        let (index, class) = if ac {
            (1, Class::SupervisorAc)
        } else {
            (0, Class::Supervisor)
        };
        let resume = self.asm.label();
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_level(failed);
        self.asm.load(S0, at(S1, SUPERVISORS + 8 * index));
        self.asm.test(8, S0);
        self.asm.jcc(cc::E, failed);
        self.asm.store(8, frame(slot::CTX), S0);
        self.asm.store(8, at(S1, CTX as i32), S0);
        let byte = |offset: usize| at(S1, offset as i32);
        let (selected, access) = (offset_of!(Cpu, class), offset_of!(Cpu, access_ac));
        self.asm.store_byte_imm(byte(selected), class as u8);
        self.asm.store_byte_imm(byte(access), u8::from(ac));
        let sys = at(S1, offset_of!(Cpu, sys) as i32);
        let bit = rflags::AC as u32;
        if ac {
            self.asm.alu_mem_imm(Alu::Or, sys, bit);
        } else {
            self.asm.alu_mem_imm(Alu::And, sys, !bit);
        }
        self.place.disturbed();
        // They were checked with the other rights.
        self.making.pins.clear();
        if !ac {
            self.asm.call(self.glue.forget);
        }
        self.go_on(resume);
    }

    /// CLD or STD.
    fn set_direction(&mut self, down: bool) {
        self.place.secure(&mut self.asm);
        self.asm.load(S1, frame(slot::CPU));
        let (sys, bit) = (at(S1, offset_of!(Cpu, sys) as i32), rflags::DF as u32);
        if down {
            self.asm.alu_mem_imm(Alu::Or, sys, bit);
        } else {
            self.asm.alu_mem_imm(Alu::And, sys, !bit);
        }
        self.place.disturbed();
    }

    fn pushf(&mut self, op: &Op) {
        let resume = self.asm.label();
        let way = self.way_to_push();
        self.about_to_write(4);
        self.place.save(&mut self.asm);
        self.asm.load16(S0, frame(slot::FLAGS));
        self.asm.mov(S1, S0);
        self.asm.alu_imm(Alu::And, 4, S1, 1);
        self.asm.shl(S1, 11);
        self.asm.shr(S0, 8);
        self.asm.alu(Alu::Or, 8, S0, S1);
        self.asm.load(S1, frame(slot::CPU));
        self.asm
            .alu_mem(Alu::Or, S0, at(S1, offset_of!(Cpu, sys) as i32));
        let hidden = (rflags::RF | rflags::VM) as i32;
        self.asm.alu_imm(Alu::And, 8, S0, !hidden);
        self.push_scratch(way, op, resume);
        self.go_on(resume);
    }

    /// Divisions that cannot fail: the unsigned ones whose quotient fits, and the signed ones of a
    /// sign-extended number by neither 0 nor -1.
    fn divide(&mut self, insn: &Instruction, op: &Op, size: usize, signed: bool) -> bool {
        let memory = insn.op0_kind() == OpKind::Memory;
        if memory && !is_plain(insn) || !memory && is_high_byte(insn.op0_register()) {
            return false;
        }
        let resume = self.asm.label();
        let target = Target::Operand(insn);
        let way = memory.then(|| self.way(target, size, false));
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        if let Some(way) = way {
            let from = self.reach(way, target, (size, false), op, Some(resume));
            self.asm.load_sized(size, S1, at(S0, from));
        } else {
            self.fetch(S1, insn.op0_register().full_register().number() as u8);
        }
        if signed {
            self.asm.lea(size, S0, at(S1, 1));
            self.asm.alu_imm(Alu::Cmp, size, S0, 1);
            self.asm.jcc(cc::BE, failed);
            self.asm.mov(S0, AX);
            self.asm.sar(size, S0, (size * 8 - 1) as u8);
            self.asm.alu(Alu::Cmp, size, S0, DX);
            self.asm.jcc(cc::NE, failed);
        } else {
            self.asm.alu(Alu::Cmp, size, DX, S1);
            self.asm.jcc(cc::AE, failed);
        }
        self.asm.mov(S0, AX);
        self.asm.div(size, signed, S1);
        self.asm.mov(AX, S0);
        self.go_on(resume);
        self.place = Place::HOST;
        debug_assert_eq!(home(2), Home::Host(DX));
        true
    }
}
