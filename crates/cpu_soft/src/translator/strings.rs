//! REP MOVS and REP STOS that stay on their pages: one check for each, and the host's own instruction.
//!
//! Whatever else they do (a page is left, the direction flag is set, a page cannot be written at once) the
//! interpreter does, page by page.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, Register};
use umbra_x86::rflags;

use super::asm::{Alu, Label, Mem, Reg, at, cc};
use super::emit::Emitter;
use super::layout::{AX, S0, S1, frame, slot};
use crate::cpu::Cpu;
use crate::op::Op;

const CX: Reg = Reg(1);
const SI: Reg = Reg(6);
const DI: Reg = Reg(7);
const PAGE: i32 = 0x1000;

/// Size of the elements, and whether they are read from memory.
fn kind(code: Code) -> Option<(u8, bool)> {
    Some(match code {
        Code::Stosb_m8_AL => (1, false),
        Code::Stosw_m16_AX => (2, false),
        Code::Stosd_m32_EAX => (4, false),
        Code::Stosq_m64_RAX => (8, false),
        Code::Movsb_m8_m8 => (1, true),
        Code::Movsw_m16_m16 => (2, true),
        Code::Movsd_m32_m32 => (4, true),
        Code::Movsq_m64_m64 => (8, true),
        _ => return None,
    })
}

impl Emitter<'_> {
    /// Emits one of them; `false` for anything else.
    pub(super) fn string(&mut self, insn: &Instruction, op: &Op) -> bool {
        let Some((size, moves)) = kind(insn.code()) else {
            return false;
        };
        let segment = moves && matches!(insn.memory_segment(), Register::FS | Register::GS);
        let narrow = (0..insn.op_count()).any(|i| {
            use iced_x86::OpKind::{MemoryESEDI, MemorySegESI};
            matches!(insn.op_kind(i), MemoryESEDI | MemorySegESI)
        });
        // Comparing would need what was there before, and twice.
        if self.alone || segment || narrow || !insn.has_rep_prefix() {
            return false;
        }
        for register in [CX, SI, DI] {
            if moves || register != SI {
                self.about_to_write(register.0);
            }
        }
        let resume = self.asm.label();
        self.place.secure(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.check_string(size, failed);
        self.check_span(DI, size, true, failed);
        if moves {
            self.asm.store(8, frame(slot::TEMP), S1);
            self.check_span(SI, size, false, failed);
            self.asm.store(8, frame(slot::SAVED), S1);
            self.asm.alu(Alu::Add, 8, SI, S1);
            self.asm.load(S1, frame(slot::TEMP));
        } else {
            self.asm.mov(S0, AX);
        }
        // The second scratch register survives.
        self.asm.alu(Alu::Add, 8, DI, S1);
        self.asm.string(size.into(), moves);
        self.asm.alu(Alu::Sub, 8, DI, S1);
        if moves {
            self.asm.alu_mem(Alu::Sub, SI, frame(slot::SAVED));
        }
        self.go_on(resume);
        true
    }

    /// Upwards, and no more elements than a page has.
    fn check_string(&mut self, size: u8, failed: Label) {
        self.asm.load(S0, frame(slot::CPU));
        self.asm.load(S0, at(S0, offset_of!(Cpu, sys) as i32));
        self.asm.alu_imm(Alu::And, 4, S0, rflags::DF as i32);
        self.asm.jcc(cc::NE, failed);
        self.asm.alu_imm(Alu::Cmp, 8, CX, PAGE / i32::from(size));
        self.asm.jcc(cc::A, failed);
        self.place.disturbed();
    }

    /// All elements from the one that `first` points to are on its page; what makes it a host address, into `S1`.
    fn check_span(&mut self, first: Reg, size: u8, write: bool, failed: Label) {
        self.asm.mov(S0, first);
        self.check_page(write, failed);
        let end = Mem {
            base: Some(S0),
            index: Some((CX, size.trailing_zeros() as u8)),
            disp: 0,
            gs: false,
        };
        self.asm.lea(8, S0, end);
        self.asm.alu_imm(Alu::Cmp, 8, S0, PAGE);
        self.asm.jcc(cc::A, failed);
        self.load_delta();
    }
}
