//! An instruction that lies on two pages: a unit of its own.
//!
//! Who may execute a unit's entry may execute all that is on its page. Whether the second page is still the one that the
//! unit was made from nobody has asked, so the unit begins with that: the fetch translations of the context know the
//! page, or the interpreter translates it as a fetch does. Where it is another page, the unit is dropped. Bytes that
//! change on either page drop it, too ([`Unit`](super::unit::Unit)).

use std::mem::offset_of;

use super::LONG;
use super::asm::{Alu, at, cc};
use super::emit::{Cold, Emitter, Piece};
use super::glue::Single;
use super::layout::{S0, S1, frame, slot};
use super::privilege;
use crate::code::granules;
use crate::cpu::Cpu;
use crate::decode::LONGEST;
use crate::op::{Leave, Op};
use crate::raw;
use crate::tlb::{Ctx, Fetch};

/// Linear address of the page behind that of `rip`.
fn second_page(rip: u64) -> u64 {
    (rip & !0xfff).wrapping_add(0x1000)
}

/// What a unit is made of.
pub struct Source {
    /// The block that is its entry, and what that leads to.
    pub pieces: Vec<Piece>,
    /// Granules of its page.
    pub granules: u64,
    /// Guest-physical address of the second page, of an instruction that crosses.
    pub second: Option<u64>,
}

impl Cpu {
    /// Decodes the instruction at `rip`, whose bytes end on the page behind that with these guest-physical and host
    /// addresses.
    pub(super) fn decode_across(&mut self, rip: u64, page: (u64, u64)) -> Option<Source> {
        let (first, next) = (rip & !0xfff, second_page(rip));
        let offset = rip - first;
        let room = (0x1000 - offset) as usize;
        if room >= LONGEST {
            return None;
        }
        let second = self.fetch_address(next).ok()?;
        self.watch_code(second.0, LONGEST);
        // Watching may have waited for others; the mappings are asked for again.
        if self.fetch_address(first).ok()? != page || self.fetch_address(next).ok()? != second {
            return None;
        }
        let mut bytes = [0; 2 * LONGEST];
        let bytes = &mut bytes[..room + LONGEST];
        // SAFETY: 1. `page` was translated just now, and this is up to its end.
        unsafe { raw::read_bytes(page.1 + offset, &mut bytes[..room]) };
        // SAFETY: 1. `second` was translated just now; fifteen bytes from the start of a page.
        unsafe { raw::read_bytes(second.1, &mut bytes[room..]) };
        let mut piece = self.decode_piece(bytes, rip, first, LONG);
        piece.cut(1);
        if piece.end() <= next {
            return None;
        }
        privilege::quicken(&piece);
        Some(Source {
            pieces: vec![piece],
            granules: granules(offset, room as u64),
            second: Some(second.0),
        })
    }
}

impl Emitter<'_> {
    /// Goes on only where the page behind that of the instruction of `op` is `second`. It is the first of the unit:
    /// flags are in the frame.
    pub(super) fn check_second(&mut self, op: &Op, second: u64) {
        let rip = self.page.0.wrapping_add(op.off.into());
        let (missed, known) = (self.asm.label(), self.asm.label());
        let place = Ctx::fetch_offset(second_page(rip));
        let field = |offset: usize| at(S1, (place + offset) as i32);
        self.asm.load(S1, frame(slot::CTX));
        self.asm.imm(S0, second_page(rip));
        self.asm.alu_mem(Alu::Cmp, S0, field(Fetch::PAGE));
        self.asm.jcc(cc::NE, missed);
        self.asm.load(S0, field(offset_of!(Fetch, gpa)));
        self.asm.imm(S1, second);
        self.asm.alu(Alu::Xor, 8, S0, S1);
        // Less what it says of the page.
        self.asm.shr(S0, 12);
        self.asm.jcc(cc::NE, missed);
        self.asm.bind(known);
        let mut ask = Op::new(fetch_second);
        (ask.off, ask.imm) = (op.off, second);
        self.singles.push(Single::new(ask, self.page.0));
        self.cold(missed, Cold::Second(self.singles.len() - 1, known));
    }
}

/// Translates the page behind that of `op` for a fetch, and drops the unit if it is another one.
fn fetch_second(cpu: &mut Cpu, op: &Op) -> Leave {
    let rip = cpu.rip_of(op);
    let Ok((second, _)) = cpu.fetch_address(second_page(rip)) else {
        return cpu.fault(op);
    };
    if second == op.imm {
        return Leave::On;
    }
    let Ok((gpa, _)) = cpu.fetch_address(rip) else {
        return cpu.fault(op);
    };
    cpu.drop_code(gpa & !0xfff, granules(gpa & 0xfff, 1));
    cpu.rip = rip;
    Leave::Done
}
