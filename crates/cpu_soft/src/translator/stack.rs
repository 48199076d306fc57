//! PUSH, POP, LEAVE.
//!
//! Where a pin leads to the stack, nothing looks at RSP, and it is moved once for several pushes or pops: before the
//! first instruction that has a use for it, a way to fail, or a place where others join ([`Emitter::move_stack`]).

use iced_x86::{Code, Instruction, OpKind, Register};

use super::asm::{Label, at};
use super::copy::is_copied;
use super::emit::Emitter;
use super::layout::{BP, Home, S0, S1, SP, frame, slot};
use super::memory::{has_memory, is_plain};
use super::pins::{Target, Way};
use crate::op::Op;

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

    /// How the eight bytes below the stack pointer are reached.
    pub(super) fn way_to_push(&mut self) -> Way {
        self.way(Target::Stack(-8), 8, true)
    }

    /// Makes the eight bytes below the stack pointer writable at `S0` and the distance that is returned.
    pub(super) fn reach_push(&mut self, way: Way, op: &Op, resume: Option<Label>) -> i32 {
        self.reach(way, Target::Stack(-8), (8, true), op, resume)
    }

    fn push_register(&mut self, insn: &Instruction, op: &Op) {
        let resume = self.asm.label();
        let way = self.way_to_push();
        self.begin_stack_write(&[way]);
        let to = self.reach_push(way, op, Some(resume));
        let number = insn.op0_register().number() as u8;
        let from = match self.home(number) {
            Home::Host(reg) => reg,
            Home::Frame(mem) => {
                self.asm.load(S1, mem);
                S1
            }
        };
        self.asm.store(8, at(S0, to), from);
        self.moved(-8, way);
        self.go_on(resume);
    }

    fn push_immediate(&mut self, insn: &Instruction, op: &Op) {
        let resume = self.asm.label();
        let way = self.way_to_push();
        self.begin_stack_write(&[way]);
        let to = self.reach_push(way, op, Some(resume));
        self.asm.store_imm(at(S0, to), insn.immediate(0) as i32);
        self.moved(-8, way);
        self.go_on(resume);
    }

    fn push_memory(&mut self, insn: &Instruction, op: &Op) {
        let resume = self.asm.label();
        let target = Target::Operand(insn);
        let (from, to) = (self.way(target, 8, false), self.way_to_push());
        self.begin_stack_write(&[from, to]);
        let from = self.reach(from, target, (8, false), op, Some(resume));
        self.asm.load(S0, at(S0, from));
        self.push_scratch(to, op, resume);
        self.go_on(resume);
    }

    /// Pushes what is in `S0`.
    pub(super) fn push_scratch(&mut self, way: Way, op: &Op, resume: Label) {
        self.asm.store(8, frame(slot::TEMP), S0);
        let to = self.reach_push(way, op, Some(resume));
        self.asm.load(S1, frame(slot::TEMP));
        self.asm.store(8, at(S0, to), S1);
        self.asm.lea(8, SP, at(SP, -8));
    }

    fn pop(&mut self, insn: &Instruction, op: &Op) {
        let number = insn.op0_register().number() as u8;
        let resume = self.asm.label();
        let target = Target::Stack(0);
        let way = self.way(target, 8, false);
        self.reach_stack(&[way]);
        self.about_to_write(4);
        self.about_to_write(number);
        self.begin_access(&[way]);
        let from = self.reach(way, target, (8, false), op, Some(resume));
        match self.home(number) {
            Home::Host(SP) => self.asm.load(SP, at(S0, from)),
            Home::Host(reg) => {
                self.asm.load(reg, at(S0, from));
                self.moved(8, way);
            }
            Home::Frame(_) => {
                self.asm.load(S0, at(S0, from));
                self.put(number, S0);
                self.moved(8, way);
            }
        }
        self.go_on(resume);
    }

    /// Accesses in these ways follow, and those that are checked need RSP.
    fn reach_stack(&mut self, ways: &[Way]) {
        if !ways.iter().all(Way::is_pinned) {
            self.move_stack();
        }
    }

    /// The stack pointer is so many bytes further, after an access in this way. Only behind one that is checked by
    /// itself code goes on where the interpreter has executed it, with RSP moved.
    fn moved(&mut self, bytes: i32, way: Way) {
        self.stack_moved += bytes;
        if matches!(way, Way::Alone) {
            self.move_stack();
        }
    }

    /// Moves RSP to where pushes and pops have left it.
    pub(super) fn move_stack(&mut self) {
        let bytes = std::mem::take(&mut self.stack_moved);
        if bytes != 0 {
            self.asm.lea(8, SP, at(SP, bytes));
        }
    }

    /// Tells whether `insn` neither needs RSP nor fails; PUSH and POP see to that themselves.
    pub(super) fn leaves_stack_alone(&mut self, insn: &Instruction) -> bool {
        match insn.code() {
            Code::Push_r64 | Code::Pop_r64 => insn.op0_register() != Register::RSP,
            Code::Pushq_imm8 | Code::Pushq_imm32 => true,
            _ => {
                let used = self.info.info(insn).used_registers();
                let uses = |r: Register| r.is_gpr() && r.full_register() == Register::RSP;
                is_copied(insn)
                    && !has_memory(insn)
                    && !used.iter().any(|used| uses(used.register()))
            }
        }
    }

    fn leave_frame(&mut self, op: &Op) {
        let resume = self.asm.label();
        let way = self.way(Target::Base, 8, false);
        self.about_to_write(5);
        self.begin_stack_write(&[way]);
        let from = self.reach(way, Target::Base, (8, false), op, Some(resume));
        self.asm.lea(8, SP, at(BP, 8));
        self.asm.load(BP, at(S0, from));
        self.go_on(resume);
    }

    /// The stack pointer is about to change, after accesses in these ways.
    fn begin_stack_write(&mut self, ways: &[Way]) {
        self.reach_stack(ways);
        self.about_to_write(4);
        self.begin_access(ways);
    }

    /// Before accesses in these ways: flags are safe, if they are disturbed. `S0` is lost.
    pub(super) fn begin_access(&mut self, ways: &[Way]) {
        if !ways.iter().all(Way::is_pinned) {
            self.place.secure(&mut self.asm);
        }
    }
}
