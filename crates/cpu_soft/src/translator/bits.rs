//! BT, BTS, BTR and BTC of a bit in memory whose number is in a register: it may be far from where the operand
//! points to.

use iced_x86::{Code, Instruction};

use super::asm::{Alu, Mem, cc};
use super::emit::Emitter;
use super::flags::Place;
use super::layout::{S0, S1, frame, slot};
use super::memory::{has_memory, is_plain};
use crate::op::Op;

/// The second byte of the opcode, the operand's size, and whether it is written.
fn kind(code: Code) -> Option<(u8, usize, bool)> {
    Some(match code {
        Code::Bt_rm32_r32 => (0xa3, 4, false),
        Code::Bt_rm64_r64 => (0xa3, 8, false),
        Code::Bts_rm32_r32 => (0xab, 4, true),
        Code::Bts_rm64_r64 => (0xab, 8, true),
        Code::Btr_rm32_r32 => (0xb3, 4, true),
        Code::Btr_rm64_r64 => (0xb3, 8, true),
        Code::Btc_rm32_r32 => (0xbb, 4, true),
        Code::Btc_rm64_r64 => (0xbb, 8, true),
        _ => return None,
    })
}

impl Emitter<'_> {
    /// Emits one of them; `false` for anything else.
    pub(super) fn bit_string(&mut self, insn: &Instruction, op: &Op) -> bool {
        let Some((opcode, size, write)) = kind(insn.code()) else {
            return false;
        };
        if !has_memory(insn) || !is_plain(insn) {
            return false;
        }
        let number = insn.op1_register().full_register().number() as u8;
        let bits = size as i32 * 8;
        let resume = self.asm.label();
        // All but CF stay what they are.
        self.place.save(&mut self.asm);
        let failed = self.failed(op, Some(resume));
        self.address(insn, 0);
        self.fetch(S1, number);
        // Which operand, counted from the one that is pointed to; down, too.
        self.asm.sign_extend(size, S1);
        self.asm.sar(8, S1, bits.trailing_zeros() as u8);
        let operand = Mem {
            base: Some(S0),
            index: Some((S1, size.trailing_zeros() as u8)),
            disp: 0,
            gs: false,
        };
        self.asm.lea(8, S0, operand);
        self.check(size, write, failed);
        self.fetch(S1, number);
        self.asm.alu_imm(Alu::And, 4, S1, bits - 1);
        self.asm.bit(insn.has_lock_prefix(), size, opcode, S0, S1);
        self.asm.set(cc::B, S1);
        // CF is the lowest bit of the second byte.
        let flags = frame(slot::FLAGS + 1);
        self.asm.and_byte_imm(flags, !1);
        self.asm.or_byte(flags, S1);
        self.place = Place::SAVED;
        self.go_on(resume);
        true
    }
}
