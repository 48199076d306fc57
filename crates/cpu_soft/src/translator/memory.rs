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
                    ..
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
        self.caches.entry(&mut self.asm, S0, 0);
        self.asm.alu_mem(Alu::Xor, S0, self.caches.tag(write));
        self.compare(size, failed);
        self.asm.alu_mem(Alu::Add, S0, self.caches.host());
    }

    /// The same for the linear address `mem`, but what makes it a host address is left in `S1`, to be added by the
    /// access itself: `S1` and `mem`, or where that has an index, `S1` and `S0`. So it knows its address two cycles
    /// earlier, for it does not wait for the comparison, nor for an addition.
    pub(super) fn check_apart(&mut self, mem: Mem, (size, write): (usize, bool), failed: Label) {
        if let Mem {
            base: Some(base),
            index: None,
            disp: 0,
            ..
        } = mem
        {
            self.caches.entry(&mut self.asm, base, 0);
            self.asm.load(S0, self.caches.tag(write));
            self.asm.alu(Alu::Xor, 8, S0, base);
        } else {
            self.asm.lea(8, S0, mem);
            self.caches.entry(&mut self.asm, S0, 0);
            self.asm.alu_mem(Alu::Xor, S0, self.caches.tag(write));
        }
        self.compare(size, failed);
        self.load_delta();
        if mem.index.is_some() {
            self.asm.lea(8, S0, mem);
        }
    }

    /// Goes to `failed` unless the linear address in `S0` may be accessed; its offset in the page is there then, and
    /// `S1` leads to its entry.
    pub(super) fn check_page(&mut self, write: bool, failed: Label) {
        self.caches.entry(&mut self.asm, S0, 0);
        self.asm.alu_mem(Alu::Xor, S0, self.caches.tag(write));
        self.asm.alu_imm(Alu::Cmp, 8, S0, 0xfff);
        self.asm.jcc(cc::A, failed);
        self.place.disturbed();
    }

    /// What makes linear addresses on the page of the entry that `S1` leads to host addresses, into `S1`.
    pub(super) fn load_delta(&mut self) {
        self.asm.load(S1, self.caches.delta());
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

/// How code comes to the entry of the translation caches that an address selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caches {
    /// They are where the base of GS says, which programs of this kind use for nothing else: one host instruction less.
    /// Those of level 3 only, for to say so takes long: the kernel goes to and fro between several.
    Gs,
    /// An instruction adds the address that is in the frame.
    Frame,
}

impl Caches {
    /// Where in an entry the host address of the page is.
    pub const HOST: i32 = offset_of!(Entry, host) as i32;

    /// For code of level 3: by GS where the host lets programs set its base (`HWCAP2_FSGSBASE`: Linux 5.9, and a
    /// processor of 2012).
    pub fn of_user() -> Self {
        const FSGSBASE: usize = 1 << 1;
        if rustix::param::linux_hwcap().1 & FSGSBASE != 0 {
            Self::Gs
        } else {
            Self::Frame
        }
    }

    /// Emits what finds the entry for the linear address `la`, by `S1`; the frame is `above` bytes further up. The
    /// host's flags are lost.
    pub fn entry(self, asm: &mut Asm, la: Reg, above: i32) {
        let mask = (ENTRIES as i32 - 1) << ENTRY_SHIFT;
        if std::arch::is_x86_feature_detected!("bmi2") {
            asm.rorx(S1, la, 12 - ENTRY_SHIFT);
        } else {
            asm.mov(S1, la);
            asm.shr(S1, 12 - ENTRY_SHIFT);
        }
        asm.alu_imm(Alu::And, 4, S1, mask);
        if self == Self::Frame {
            asm.alu_mem(Alu::Add, S1, frame(slot::CTX + above));
        }
    }

    fn field(self, offset: usize) -> Mem {
        let mem = at(S1, offset as i32);
        match self {
            Self::Gs => mem.by_gs(),
            Self::Frame => mem,
        }
    }

    /// The tag that an access is compared with, in the entry that was found.
    pub fn tag(self, write: bool) -> Mem {
        self.field(if write {
            offset_of!(Entry, write)
        } else {
            offset_of!(Entry, read)
        })
    }

    /// The host address of the page, there.
    pub fn host(self) -> Mem {
        self.field(Self::HOST as usize)
    }

    /// What makes linear addresses on the page host addresses, there.
    fn delta(self) -> Mem {
        self.field(offset_of!(Entry, delta))
    }
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
