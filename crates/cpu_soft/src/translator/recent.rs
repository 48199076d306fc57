//! Pages that were accessed last: a check that needs no look into the translation caches.
//!
//! Pushes, pops, calls and returns stay on a page of the stack, and what a loop walks through step by step stays on
//! a page for many rounds. The frame has *recent pages*, copies of what a check found: a linear page and its host
//! address; how far into it an access may begin is in the [gate](crate::gate). Who comes to one needs five host
//! instructions instead of eight; who does not looks out of line: at the *other* page, the recent one before, and then
//! into the translation caches, which makes its page the recent one. So a stack whose busy end lies across a border
//! costs little more than another. Where the other page is mostly the right one, the two take turns: every sixteenth
//! time.
//!
//! They hold for as long as a check does, and are forgotten wherever that may change: whenever Rust has executed, and
//! by CLAC. STAC only adds rights. Nothing matches a page that was forgotten, whatever its tag, for no distance is
//! below its limits. Where code cannot name the gate, there are no recent pages.

use iced_x86::{Instruction, InstructionInfoFactory, OpKind, Register};
use rustc_hash::FxHashMap;
use umbra_x86::state::gpr;

use super::asm::{Alu, Asm, Label, Mem, at, cc};
use super::emit::{Cold, Emitter, Piece};
use super::heads::loops;
use super::layout::{FRAME, S0, S1, frame, slot};
use super::memory::{Caches, has_memory, is_plain};
use super::pins::Target;
use crate::gate::{Gate, RECENT};
use crate::native::writes;

/// Bytes of one in the frame: tag, host address.
pub const BYTES: i32 = 16;
/// Added to a word of 32 bits whenever another page is found: its carry is the sixteenth time.
const TURN: u32 = 1 << 28;
/// Ways to leave a page as a recent one.
pub const WAYS: usize = 5;

/// Longest single access, and longest stretch ([`pins`](super::pins)).
const SMALL: usize = 16;
const LARGE: usize = 256;
/// Bytes that a loop may advance in a round.
const STEP: i64 = 64;

/// A recent page, and how it is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Recent {
    /// The stack's, by a write. It may be written, too.
    StackWrite = 0,
    /// The stack's, by a read.
    StackRead = 1,
    /// What a loop reads.
    Read = 2,
    /// What else it reads.
    ReadToo = 3,
    /// What it writes.
    Write = 4,
}

impl Recent {
    /// All of them.
    pub const ALL: [Self; WAYS] = [
        Self::StackWrite,
        Self::StackRead,
        Self::Read,
        Self::ReadToo,
        Self::Write,
    ];

    /// Where the tag is in the frame.
    fn tag(self) -> Mem {
        self.of(slot::RECENT)
    }

    /// Where the host address is.
    fn host(self) -> Mem {
        self.tag().plus(8)
    }

    /// Where the tag of the other page is; the host address is behind it.
    fn other(self) -> Mem {
        self.of(slot::OTHERS)
    }

    fn of(self, pages: i32) -> Mem {
        let page = (self as i32).max(1) - 1;
        at(FRAME, pages + BYTES * page)
    }

    /// What the distance of an access of `size` bytes has to be below: where it is in the gate.
    fn limit(self, size: usize) -> u64 {
        Gate::recent((self as usize).max(1) - 1, size > SMALL)
    }

    /// Emits the subroutine, with the frame eight bytes further up: finds the linear address whose exclusive or with
    /// the recent page's tag is in `S0`. That leaves the distance there, and what has the host address as an entry of
    /// the translation caches has it at `S1`. If the distance is more than a page has, nothing was found, or somebody
    /// wants attention. `gate` is where that is.
    pub fn look(self, asm: &mut Asm, gate: u64) {
        let (this, other) = (self.tag().plus(8), self.other().plus(8));
        let (none, search) = (asm.label(), asm.label());
        let (found, over, out) = (asm.label(), asm.label(), asm.label());
        let limits = [SMALL, LARGE].map(|size| (size, gate + self.limit(size)));
        let write = !matches!(self, Self::Read | Self::ReadToo);

        // Neither is known, or somebody wants attention.
        asm.cmp_outside(limits[0].1, 0);
        asm.jcc(cc::E, none);
        // It may be at the end of the recent page, where the limit is below it.
        let (of_this, of_other) = (asm.label(), asm.label());
        asm.alu_imm(Alu::Cmp, 8, S0, 0xfff);
        asm.jcc(cc::BE, of_this);
        asm.alu_mem(Alu::Xor, S0, this);
        asm.alu_mem(Alu::Xor, S0, other);
        asm.alu_imm(Alu::Cmp, 8, S0, 0xfff);
        asm.jcc(cc::BE, of_other);
        asm.alu_mem(Alu::Xor, S0, other);

        asm.bind(search);
        Caches::Frame.entry(asm, S0, 8);
        asm.alu_mem(Alu::Xor, S0, Caches::Frame.tag(write));
        asm.alu_imm(Alu::Cmp, 8, S0, 0xfff);
        asm.jcc(cc::BE, found);
        if self == Self::StackRead {
            // It may be one that is not writable. Then it does not become the recent one.
            asm.alu_mem(Alu::Xor, S0, Caches::Frame.tag(true));
            asm.alu_mem(Alu::Xor, S0, Caches::Frame.tag(false));
        }
        asm.jmp(over);
        asm.bind(found);
        copy(asm, other, this);
        asm.push_mem(Caches::Frame.tag(write));
        asm.pop_mem(this);
        asm.push_mem(Caches::Frame.host());
        asm.pop_mem(this.plus(8));
        asm.cmp_outside(limits[0].1, 0);
        asm.jcc(cc::NE, over);
        // What was the recent page was forgotten.
        copy(asm, other, this);
        for (size, limit) in limits {
            asm.store_outside(limit, 0x1000 - size as i32 + 1);
        }
        asm.fence();
        asm.bind(over);
        asm.cmp_outside(gate + Gate::ATTENTION, 0);
        asm.jcc(cc::E, out);
        for (_, limit) in limits {
            asm.store_outside(limit, 0);
        }
        asm.alu_imm(Alu::Or, 8, S0, -1);
        asm.bind(out);
        asm.ret();

        asm.bind(none);
        asm.alu_mem(Alu::Xor, S0, this);
        asm.jmp(search);

        let take_turns = asm.label();
        asm.bind(of_other);
        asm.alu_mem_imm(Alu::Add, frame(slot::TURNS + 8), TURN);
        asm.jcc(cc::B, take_turns);
        asm.lea(8, S1, other.plus(8 - Caches::HOST));
        asm.ret();
        asm.bind(take_turns);
        for field in [0, 8] {
            let (this, other) = (this.plus(field), other.plus(field));
            asm.push_mem(this);
            asm.push_mem(other.plus(8));
            asm.pop_mem(this.plus(8));
            asm.pop_mem(other);
        }
        asm.bind(of_this);
        asm.lea(8, S1, this.plus(8 - Caches::HOST));
        asm.ret();
    }
}

/// Makes the page whose tag is at `to` that whose tag is at `from`.
fn copy(asm: &mut Asm, to: Mem, from: Mem) {
    for field in [0, 8] {
        asm.push_mem(from.plus(field));
        asm.pop_mem(to.plus(field));
    }
}

/// Emits what forgets all recent pages.
pub fn forget(asm: &mut Asm, gate: u64) {
    for page in 0..RECENT {
        for long in [false, true] {
            asm.store_outside(gate + Gate::recent(page, long), 0);
        }
    }
}

impl Emitter<'_> {
    /// Makes the linear address of `size` bytes in `S0` a host address as [`check`](Self::check) does, by a recent
    /// page.
    pub(super) fn check_recent(
        &mut self,
        (recent, gate): (Recent, u64),
        size: usize,
        failed: Label,
    ) {
        let (other, hit) = (self.asm.label(), self.asm.label());
        self.asm.alu_mem(Alu::Xor, S0, recent.tag());
        self.asm
            .alu_outside(Alu::Cmp, S0, gate + recent.limit(size));
        self.asm.jcc(cc::AE, other);
        self.place.disturbed();
        self.polled = true;
        self.asm.alu_mem(Alu::Add, S0, recent.host());
        self.asm.bind(hit);
        self.cold(
            other,
            Cold::Recent {
                recent,
                size,
                failed,
                hit,
            },
        );
    }

    /// Out of line: the access is on another page than the recent one.
    pub(super) fn look_recent(&mut self, recent: Recent, size: usize, failed: Label, hit: Label) {
        self.asm.call(self.glue.recent[recent as usize]);
        self.asm.alu_imm(Alu::Cmp, 8, S0, 0x1000 - size as i32);
        self.asm.jcc(cc::A, failed);
        self.asm.alu_mem(Alu::Add, S0, Caches::Frame.host());
        self.asm.jmp(hit);
    }

    /// The recent page that `target` is likely to be on, and the gate.
    pub(super) fn recent(&self, target: Target, size: usize, write: bool) -> Option<(Recent, u64)> {
        let recent = self.recent_page(target, write);
        recent.filter(|_| size <= LARGE).zip(self.glue.gate)
    }

    fn recent_page(&self, target: Target, write: bool) -> Option<Recent> {
        let stack = if write {
            Recent::StackWrite
        } else {
            Recent::StackRead
        };
        let insn = match target {
            Target::Operand(insn) => insn,
            Target::Stack(_) | Target::Base => return Some(stack),
        };
        let segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
        if !segment && insn.memory_base() == Register::RSP && insn.memory_index() == Register::None
        {
            return Some(stack);
        }
        let walk = self.walks.get(&insn.ip())?;
        match (walk, write) {
            (0, true) => Some(Recent::Write),
            (0, false) => Some(Recent::Read),
            (1, false) => Some(Recent::ReadToo),
            _ => None,
        }
    }
}

/// Which instructions of loops walk through memory step by step, and which walk of the loop's it is, by address.
pub fn walks(pieces: &[Piece], info: &mut InstructionInfoFactory) -> FxHashMap<u64, u8> {
    let mut walks = FxHashMap::default();
    let mut loops = loops(pieces);
    // The innermost loop decides.
    loops.sort_by_key(|body| body.len());
    let mut seen: Vec<u64> = Vec::new();
    for body in loops {
        let steps = steps(&body, info);
        let mut known: Vec<(bool, Register, Register)> = Vec::new();
        for insn in &body {
            if !has_memory(insn) || seen.contains(&insn.ip()) {
                continue;
            }
            seen.push(insn.ip());
            if is_walk(insn, &steps) {
                let write = info
                    .info(insn)
                    .used_memory()
                    .iter()
                    .any(|m| writes(m.access()));
                let walk = (write, insn.memory_base(), insn.memory_index());
                let number = known.iter().position(|known| *known == walk);
                let number = number.unwrap_or_else(|| {
                    known.push(walk);
                    known.len() - 1
                });
                let of_its_kind = known[..number].iter().filter(|k| k.0 == write).count();
                walks.insert(insn.ip(), of_its_kind as u8);
            }
        }
    }
    walks
}

/// How far each register advances in a round at most; `None` where that is not known.
fn steps(body: &[&Instruction], info: &mut InstructionInfoFactory) -> [Option<i64>; 16] {
    let mut steps = [Some(0i64); 16];
    for insn in body {
        let step = step_of(insn);
        for used in info.info(insn).used_registers() {
            let register = used.register();
            if !register.is_gpr() || !writes(used.access()) {
                continue;
            }
            let number = register.full_register().number() & 15;
            steps[number] = steps[number].zip(step).map(|(sum, step)| sum + step.abs());
        }
    }
    steps[gpr::RSP] = None;
    steps
}

/// What `insn` adds to its first operand, a register.
fn step_of(insn: &Instruction) -> Option<i64> {
    use iced_x86::Mnemonic::*;
    let register = insn.op_count() > 0 && insn.op0_kind() == OpKind::Register;
    let constant = || {
        let kind = insn.op1_kind();
        (kind != OpKind::Register && kind != OpKind::Memory).then(|| insn.immediate(1) as i64)
    };
    match insn.mnemonic() {
        _ if !register => None,
        Add | Sub => constant(),
        Inc | Dec => Some(1),
        Lea if insn.memory_base() == insn.op0_register()
            && insn.memory_index() == Register::None =>
        {
            Some(insn.memory_displacement64() as i64)
        }
        _ => None,
    }
}

fn is_walk(insn: &Instruction, steps: &[Option<i64>; 16]) -> bool {
    let step = |register: Register, scale: u32| {
        if register == Register::None {
            return Some(0);
        }
        let step = register
            .is_gpr()
            .then(|| steps[register.full_register().number() & 15])?;
        step?.checked_mul(scale.into())
    };
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let steps = step(base, 1).zip(step(index, insn.memory_index_scale()));
    is_plain(insn) && steps.is_some_and(|(base, index)| (1..=STEP).contains(&(base + index)))
}
