//! PUSH, POP, LEAVE.

use iced_x86::{Code, Instruction, OpKind};

use super::asm::{Reg, at};
use super::emit::Emitter;
use super::layout::{Home, S0, S1, SP, frame, home, slot};
use super::memory::is_plain;
use crate::op::Op;

const BP: Reg = Reg(5);

impl Emitter<'_> {
    /// Emits stack instructions of 64 bits; `false` for anything else.
    pub(super) fn stack(&mut self, insn: &Instruction, op: &Op) -> bool {
        match insn.code() {
            Code::Push_r64 => self.push_register(insn, op),
            Code::Push_rm64 if insn.op0_kind() == OpKind::Register => self.push_register(insn, op),
            Code::Push_rm64 if is_plain(insn) => self.push_memory(insn, op),
            Code::Pushq_imm8 | Code::Pushq_imm32 => self.push_immediate(insn, op),
            Code::Pop_r64 => self.pop(insn, op),
            Code::Leaveq => self.leave_frame(op),
            _ => return false,
        }
        true
    }

    /// Makes the eight bytes below the stack pointer writable at `S0`.
    pub(super) fn check_push(&mut self, failed: super::asm::Label) {
        self.asm.lea(8, S0, at(SP, -8));
        self.check(8, true, failed);
    }

    fn push_register(&mut self, insn: &Instruction, op: &Op) {
        let resume = self.asm.label();
        self.begin_stack_write();
        let failed = self.failed(op, Some(resume));
        self.check_push(failed);
        let number = insn.op0_register().number() as u8;
        let from = match home(number) {
            Home::Host(reg) => reg,
            Home::Frame(mem) => {
                self.asm.load(S1, mem);
                S1
            }
        };
        self.asm.store(8, at(S0, 0), from);
        self.asm.lea(8, SP, at(SP, -8));
        self.asm.bind(resume);
    }

    fn push_immediate(&mut self, insn: &Instruction, op: &Op) {
        let resume = self.asm.label();
        self.begin_stack_write();
        let failed = self.failed(op, Some(resume));
        self.check_push(failed);
        self.asm.store_imm(at(S0, 0), insn.immediate(0) as i32);
        self.asm.lea(8, SP, at(SP, -8));
        self.asm.bind(resume);
    }

    fn push_memory(&mut self, insn: &Instruction, op: &Op) {
        let resume = self.asm.label();
        self.begin_stack_write();
        let failed = self.failed(op, Some(resume));
        self.address(insn);
        self.check(8, false, failed);
        self.asm.load(S0, at(S0, 0));
        self.push_scratch(failed);
        self.asm.bind(resume);
    }

    /// Pushes what is in `S0`.
    pub(super) fn push_scratch(&mut self, failed: super::asm::Label) {
        self.asm.store(8, frame(slot::TEMP), S0);
        self.check_push(failed);
        self.asm.load(S1, frame(slot::TEMP));
        self.asm.store(8, at(S0, 0), S1);
        self.asm.lea(8, SP, at(SP, -8));
    }

    fn pop(&mut self, insn: &Instruction, op: &Op) {
        let number = insn.op0_register().number() as u8;
        let resume = self.asm.label();
        self.begin_stack_write();
        self.about_to_write(number);
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.asm.mov(S0, SP);
        self.check(8, false, failed);
        match home(number) {
            Home::Host(SP) => self.asm.load(SP, at(S0, 0)),
            Home::Host(reg) => {
                self.asm.load(reg, at(S0, 0));
                self.asm.lea(8, SP, at(SP, 8));
            }
            Home::Frame(mem) => {
                self.asm.load(S0, at(S0, 0));
                self.asm.store(8, mem, S0);
                self.asm.lea(8, SP, at(SP, 8));
            }
        }
        self.asm.bind(resume);
    }

    fn leave_frame(&mut self, op: &Op) {
        let resume = self.asm.label();
        self.about_to_write(5);
        self.begin_stack_write();
        let failed = self.failed(op, Some(resume));
        self.asm.mov(S0, BP);
        self.check(8, false, failed);
        self.asm.lea(8, SP, at(BP, 8));
        self.asm.load(BP, at(S0, 0));
        self.asm.bind(resume);
        debug_assert_ne!(S1, BP);
    }

    /// The stack pointer is about to change, after a check.
    fn begin_stack_write(&mut self) {
        self.about_to_write(4);
        self.place.secure(&mut self.asm);
    }
}
