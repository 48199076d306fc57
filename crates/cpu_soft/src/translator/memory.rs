//! The check in front of each access to guest memory.
//!
//! The address selects an entry of the translation caches, as in the interpreter. The exclusive or of
//! address and tag is the offset in the page, if the page is right; one comparison tells that, and that
//! the access does not leave the page. Then the offset plus the host's address of the page is where to go.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind, Register};
use umbra_x86::state::seg;

use super::asm::{Alu, Asm, Label, Mem, Reg, at, cc};
use super::emit::Emitter;
use super::layout::{S0, S1, frame, slot};
use crate::cpu::Cpu;
use crate::gate::{Gate, LONGEST};
use crate::tlb::{ENTRIES, Entry};

/// Bytes of an entry, as a power of two.
const ENTRY_SHIFT: u8 = size_of::<Entry>().trailing_zeros() as u8;
const _: () = assert!(size_of::<Entry>().is_power_of_two());

/// Tells whether an operand is memory that the instruction addresses in the usual way.
pub fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

impl Emitter<'_> {
    /// The linear address of the memory operand, a plain one, and `more` bytes, into `S0`.
    pub(super) fn address(&mut self, insn: &Instruction, more: i32) {
        match self.operand(insn) {
            Some(mem) => match mem.plus(more) {
                Mem {
                    base: Some(base),
                    index: None,
                    disp: 0,
                } => self.asm.mov(S0, base),
                mem => self.asm.lea(8, S0, mem),
            },
            None => {
                let constant = insn.memory_displacement64();
                self.asm.imm(S0, constant.wrapping_add_signed(more.into()));
            }
        }
        let segment = match insn.memory_segment() {
            Register::FS => seg::FS,
            Register::GS => seg::GS,
            _ => return,
        };
        let base = offset_of!(Cpu, seg_base) + 8 * segment;
        self.asm.load(S1, frame(slot::CPU));
        self.asm.alu_mem(Alu::Add, S0, at(S1, base as i32));
    }

    /// Makes the linear address in `S0` of `size` bytes a host address, or goes to `failed`. `S1` and the
    /// host's flags are lost.
    pub(super) fn check(&mut self, size: usize, write: bool, failed: Label) {
        entry(&mut self.asm, S0, frame(slot::CTX));
        self.asm.alu_mem(Alu::Xor, S0, at(S1, tag(write)));
        self.compare(size, failed);
        self.asm.alu_mem(Alu::Add, S0, host_of(S1));
    }

    /// The same for the linear address `mem`, but what makes it a host address is left in `S1`, to be added by the
    /// access itself: `S1` and `mem`, or where that has an index, `S1` and `S0`. So it knows its address two cycles
    /// earlier, for it does not wait for the comparison, nor for an addition.
    pub(super) fn check_apart(&mut self, mem: Mem, (size, write): (usize, bool), failed: Label) {
        if let Mem {
            base: Some(base),
            index: None,
            disp: 0,
        } = mem
        {
            entry(&mut self.asm, base, frame(slot::CTX));
            self.asm.load(S0, at(S1, tag(write)));
            self.asm.alu(Alu::Xor, 8, S0, base);
        } else {
            self.asm.lea(8, S0, mem);
            entry(&mut self.asm, S0, frame(slot::CTX));
            self.asm.alu_mem(Alu::Xor, S0, at(S1, tag(write)));
        }
        self.compare(size, failed);
        self.load_delta();
        if mem.index.is_some() {
            self.asm.lea(8, S0, mem);
        }
    }

    /// Goes to `failed` unless the linear address in `S0` may be accessed; its offset in the page is there then, and
    /// its entry at `S1`.
    pub(super) fn check_page(&mut self, write: bool, failed: Label) {
        entry(&mut self.asm, S0, frame(slot::CTX));
        self.asm.alu_mem(Alu::Xor, S0, at(S1, tag(write)));
        self.asm.alu_imm(Alu::Cmp, 8, S0, 0xfff);
        self.asm.jcc(cc::A, failed);
        self.place.disturbed();
    }

    /// What makes linear addresses on the page of the entry at `S1` host addresses, into `S1`.
    pub(super) fn load_delta(&mut self) {
        self.asm.load(S1, at(S1, offset_of!(Entry, delta) as i32));
    }

    /// Goes to `failed` unless the exclusive or of address and tag, in `S0`, is an offset from which `size` bytes
    /// are on the page, and the gate is open, if this is the piece's first look and code can name it.
    fn compare(&mut self, size: usize, failed: Label) {
        let look = !self.polled && size <= LONGEST && !self.alone;
        match self.glue.gate.filter(|_| look) {
            Some(gate) => {
                self.asm.alu_outside(Alu::Cmp, S0, gate + Gate::limit(size));
                self.asm.jcc(cc::AE, failed);
                self.polled = true;
            }
            None => {
                self.asm.alu_imm(Alu::Cmp, 8, S0, 0x1000 - size as i32);
                self.asm.jcc(cc::A, failed);
            }
        }
        self.place.disturbed();
    }
}

/// Where the entry for the linear address `la` is, into `S1`; `ctx` has the translation caches.
pub fn entry(asm: &mut Asm, la: Reg, ctx: Mem) {
    let mask = (ENTRIES as i32 - 1) << ENTRY_SHIFT;
    if std::arch::is_x86_feature_detected!("bmi2") {
        asm.rorx(S1, la, 12 - ENTRY_SHIFT);
    } else {
        asm.mov(S1, la);
        asm.shr(S1, 12 - ENTRY_SHIFT);
    }
    asm.alu_imm(Alu::And, 4, S1, mask);
    asm.alu_mem(Alu::Add, S1, ctx);
}

/// The host address of the page of the entry at `entry`.
pub fn host_of(entry: Reg) -> Mem {
    at(entry, offset_of!(Entry, host) as i32)
}

/// Where in an entry the tag is that an access is compared with.
pub fn tag(write: bool) -> i32 {
    let tag = if write {
        offset_of!(Entry, write)
    } else {
        offset_of!(Entry, read)
    };
    tag as i32
}

/// Tells whether the address is made of what [`Emitter::address`] knows: registers of 64 bits, RIP, or a
/// constant that is extended like one.
pub fn is_plain(insn: &Instruction) -> bool {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    match (base, index) {
        (Register::RIP, Register::None) => true,
        (Register::None, Register::None) => insn.memory_displ_size() == 8,
        _ => [base, index]
            .iter()
            .all(|r| *r == Register::None || r.is_gpr64()),
    }
}
