//! From decoded instructions to host code: one at a time, with what surrounds it.
//!
//! ```text
//!   copied    the guest's own instruction, its registers renamed, its memory operand replaced by the
//!             host address that a check found                                    (`copy`, `memory`)
//!   made      stack instructions and near branches                               (`stack`, `branch`)
//!   single    everything else: the interpreter executes it                       (`Emitter::single`)
//! ```
//! Whenever a check fails, the interpreter executes that one instruction and the code goes on behind it:
//! what is slow or unusual (a miss, a device, a fault, a page with code) has one implementation.

use iced_x86::{Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic};

use super::asm::{Asm, Label, Mem, Reg, at, cc};
use super::cache::{Cache, Link};
use super::flags::{Effect, Place, effect};
use super::glue::{Glue, Single};
use super::layout::{Home, S0, S1, frame, home, slot};
use super::sse::Loaded;
use crate::op::{Leave, Op};

/// A run of instructions, each with the operation that the interpreter would execute.
pub struct Piece {
    /// Linear address of the first one.
    pub rip: u64,
    /// The instructions.
    pub insns: Vec<Instruction>,
    /// The operations.
    pub ops: Vec<Op>,
    /// The interpreter leaves behind the last one.
    pub ended: bool,
}

impl Piece {
    /// Leaves all but the first `count` instructions away.
    pub fn cut(&mut self, count: usize) {
        if count < self.insns.len() {
            self.insns.truncate(count);
            self.ops.truncate(count);
            self.ended = false;
        }
    }

    /// Linear address behind the last instruction.
    pub fn end(&self) -> u64 {
        self.insns.last().map_or(self.rip, Instruction::next_ip)
    }
}

/// What happens out of line.
enum Cold {
    /// The interpreter executes an instruction; the code goes on at the label, if at all, with this
    /// loaded.
    Single(usize, Option<Label>, Loaded),
    /// The interpreter executes an instruction, and the code is left behind it.
    Refused(usize),
    /// The code is left before the instruction at this address.
    Attention(u64),
}

/// The far end of a branch, made when the pieces are done.
pub(super) struct Tail {
    pub label: Label,
    pub place: Place,
    /// Where the branch is, and where it goes.
    pub from: u64,
    pub target: u64,
    /// Its piece has looked whether somebody wants attention.
    pub polled: bool,
}

/// Makes the code of one unit.
pub struct Emitter<'a> {
    pub(super) asm: Asm,
    pub(super) encoder: Encoder,
    pub(super) info: InstructionInfoFactory,
    pub(super) place: Place,
    pub(super) cache: &'a mut Cache,
    /// The guest has BMI1.
    pub(super) bmi1: bool,
    glue: Glue,
    /// Address of the image of the SSE state.
    pub(super) fx: u64,
    /// What of it is loaded.
    pub(super) sse: Loaded,
    colds: Vec<(Label, Place, Cold)>,
    pub(super) tails: Vec<Tail>,
    pub(super) singles: Vec<Single>,
    /// Linear and guest-physical address of the page.
    pub(super) page: (u64, u64),
    /// Where the pieces that can be gone to inside start, and their labels.
    pub(super) heads: Vec<(u64, Label)>,
    /// The piece behind the current one, which needs no jump.
    pub(super) following: Option<u64>,
    /// The current piece has looked whether somebody wants attention.
    pub(super) polled: bool,
    /// Links, the code that asks for each, and the linear address where it should lead.
    pub(super) links: Vec<(Link, Label, u64)>,
    /// The unit is compared with the interpreter: it is the first piece up to what is not translated, and
    /// every way out of it leaves.
    pub(super) alone: bool,
    /// Instructions that were made of it.
    made: usize,
}

/// What is made of pieces.
pub struct Made {
    pub asm: Asm,
    pub singles: Vec<Single>,
    pub links: Vec<(Link, Label, u64)>,
    /// How many instructions of the piece, where it is one that is alone.
    pub alone: usize,
}

impl<'a> Emitter<'a> {
    /// For at most `count` instructions of the page with these linear and guest-physical addresses.
    pub fn new(
        cache: &'a mut Cache,
        glue: Glue,
        page: (u64, u64),
        count: usize,
        bmi1: bool,
        fx: u64,
    ) -> Self {
        Self {
            asm: Asm::default(),
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            place: Place::SAVED,
            cache,
            bmi1,
            glue,
            fx,
            sse: Loaded::default(),
            colds: Vec::new(),
            tails: Vec::new(),
            // One that may be refused, and one whose check may fail.
            singles: Vec::with_capacity(2 * count),
            page,
            heads: Vec::new(),
            following: None,
            polled: false,
            links: Vec::new(),
            alone: false,
            made: 0,
        }
    }

    /// Emits all pieces. The first is the entry; the others are gone to from inside.
    pub fn run(mut self, pieces: &[Piece]) -> Made {
        for piece in pieces.iter().skip(1) {
            let label = self.asm.label();
            self.heads.push((piece.rip, label));
        }
        for (i, piece) in pieces.iter().enumerate() {
            self.place = Place::SAVED;
            if i > 0 {
                let label = self.heads[i - 1].1;
                self.asm.bind(label);
                self.place = Place::HOST;
            }
            self.following = pieces.get(i + 1).map(|next| next.rip);
            self.piece(piece);
        }
        self.following = None;
        for tail in std::mem::take(&mut self.tails) {
            self.asm.bind(tail.label);
            (self.place, self.polled) = (tail.place, tail.polled);
            self.edge(tail.target, tail.from);
        }
        self.colds();
        Made {
            asm: self.asm,
            singles: self.singles,
            links: self.links,
            alone: self.made,
        }
    }

    fn piece(&mut self, piece: &Piece) {
        self.polled = false;
        self.sse = Loaded::default();
        let poll = poll_place(piece);
        let (mut open, mut end) = (true, piece.end());
        for (i, (insn, op)) in piece.insns.iter().zip(&piece.ops).enumerate() {
            if poll == Some(i) {
                self.poll(insn.ip());
                self.polled = true;
            }
            // What ends a block without being a branch is refused by the interpreter, or halts.
            let ends = piece.ended && i + 1 == piece.insns.len();
            let refused = ends && insn.flow_control() == FlowControl::Next;
            let made = if refused {
                None
            } else {
                self.instruction(insn, op)
            };
            if made.is_none() && self.alone {
                (open, end) = (true, insn.ip());
                break;
            }
            self.made += 1;
            open = made.unwrap_or_else(|| self.single(op));
        }
        if open {
            self.edge(end, end.wrapping_sub(1));
        }
    }

    /// Emits one instruction; tells whether the next one follows it. `None` where it is not translated:
    /// then nothing was emitted.
    fn instruction(&mut self, insn: &Instruction, op: &Op) -> Option<bool> {
        if is_nothing(insn) {
            return Some(true);
        }
        if let Some(open) = self.branch(insn, op) {
            return Some(open);
        }
        let made = self.stack(insn, op) || self.system(insn, op) || self.copy(insn, op);
        made.then_some(true)
    }

    /// Has the interpreter execute `op`; the next instruction follows it.
    pub(super) fn single(&mut self, op: &Op) -> bool {
        self.place.save(&mut self.asm);
        let single = self.add_single(op);
        self.call(single);
        self.place = Place::BOTH;
        self.sse = Loaded::default();
        true
    }

    fn add_single(&mut self, op: &Op) -> usize {
        assert!(
            self.singles.len() < self.singles.capacity(),
            "they must not move"
        );
        self.singles.push(Single::new(op.clone(), self.page.0));
        self.singles.len() - 1
    }

    fn call(&mut self, single: usize) {
        let address = self.singles.as_ptr().wrapping_add(single) as u64;
        self.asm.imm(S0, address);
        self.asm.call(self.glue.call);
    }

    /// A label for what happens when the check of `op` fails; `resume` is behind the instruction, if the
    /// interpreter ever comes back from it.
    pub(super) fn failed(&mut self, op: &Op, resume: Option<Label>) -> Label {
        let single = self.add_single(op);
        let label = self.asm.label();
        let cold = Cold::Single(single, resume, self.sse);
        self.colds.push((label, self.place, cold));
        label
    }

    /// A label for what happens when `op` may raise what translated code does not expect.
    pub(super) fn refused(&mut self, op: &Op) -> Label {
        let single = self.add_single(op);
        let label = self.asm.label();
        self.colds.push((label, self.place, Cold::Refused(single)));
        label
    }

    /// Leaves when somebody wants attention, before the instruction at `rip`. The host's flags are lost.
    pub(super) fn poll(&mut self, rip: u64) {
        if self.alone {
            return;
        }
        self.place.secure(&mut self.asm);
        self.asm.load(S0, frame(slot::WAKE));
        self.asm.cmp_mem_imm(at(S0, 0), 0);
        let label = self.asm.label();
        self.asm.jcc(cc::NE, label);
        self.colds.push((label, self.place, Cold::Attention(rip)));
        self.place.disturbed();
    }

    /// Leaves for `rip`. Flags are in the frame.
    pub(super) fn leave(&mut self, rip: u64, why: Leave) {
        self.asm.imm(S1, rip);
        self.leave_there(why);
    }

    /// Leaves for the linear address in `S1`. Flags are in the frame.
    pub(super) fn leave_there(&mut self, why: Leave) {
        self.asm.imm(S0, why as u64);
        self.asm.jmp_to(self.glue.exit);
    }

    fn colds(&mut self) {
        for (label, mut place, cold) in std::mem::take(&mut self.colds) {
            self.asm.bind(label);
            place.host = false;
            place.save(&mut self.asm);
            match cold {
                Cold::Single(single, None, _) => {
                    self.call(single);
                    self.asm.unreachable();
                }
                Cold::Single(single, Some(resume), loaded) => {
                    self.call(single);
                    self.load_sse(loaded);
                    self.asm.jmp(resume);
                }
                Cold::Refused(single) => {
                    self.asm.load(S0, frame(slot::CPU));
                    self.asm.store_byte_imm(at(S0, super::glue::STOP), 1);
                    self.call(single);
                    self.asm.unreachable();
                }
                Cold::Attention(rip) => self.leave(rip, Leave::Look),
            }
        }
    }

    /// Loads guest register `number` into `to`.
    pub(super) fn fetch(&mut self, to: Reg, number: u8) {
        match home(number) {
            Home::Host(reg) => self.asm.mov(to, reg),
            Home::Frame(mem) => self.asm.load(to, mem),
        }
    }

    /// Puts `from` into guest register `number`.
    pub(super) fn put(&mut self, number: u8, from: Reg) {
        match home(number) {
            Home::Host(reg) => self.asm.mov(reg, from),
            Home::Frame(mem) => self.asm.store(8, mem, from),
        }
    }

    /// Keeps the flags obtainable although guest register `number` is about to be written by something
    /// that does not replace them.
    pub(super) fn about_to_write(&mut self, number: u8) {
        if let Home::Host(reg) = home(number) {
            if self.place.needs(reg) {
                self.place.save(&mut self.asm);
            }
            self.place.wrote(reg);
        }
    }

    /// The memory operand of `insn` in host registers. Registers of the frame are loaded into scratch
    /// registers. `None` where there is neither base nor index.
    pub(super) fn operand(&mut self, insn: &Instruction) -> Option<Mem> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let mut mem = Mem {
            base: None,
            index: None,
            disp: insn.memory_displacement64() as i32,
        };
        if base.is_gpr() {
            mem.base = Some(self.in_register(base.full_register().number() as u8, S0));
        }
        if index.is_gpr() {
            let reg = self.in_register(index.full_register().number() as u8, S1);
            let scale = insn.memory_index_scale().trailing_zeros() as u8;
            mem.index = Some((reg, scale));
        }
        (mem.base.is_some() || mem.index.is_some()).then_some(mem)
    }

    fn in_register(&mut self, number: u8, scratch: Reg) -> Reg {
        match home(number) {
            Home::Host(reg) => reg,
            Home::Frame(mem) => {
                self.asm.load(scratch, mem);
                scratch
            }
        }
    }
}

/// Instructions without any effect.
pub fn is_nothing(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Nop | Endbr64
            | Endbr32
            | Lfence
            | Sfence
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchnta
            | Prefetchw
            | Prefetch
            | Clflush
            | Reservednop
            | Rdsspd
            | Rdsspq
    )
}

/// Where in a piece that ends with a branch backwards to look whether somebody wants attention: before the
/// last instruction that replaces all flags and cannot fault, for there they need not survive.
fn poll_place(piece: &Piece) -> Option<usize> {
    let last = piece.insns.last()?;
    let target = match last.mnemonic() {
        Mnemonic::Jmp if last.is_jmp_short_or_near() => last.near_branch_target(),
        _ if last.is_jcc_short_or_near() => last.near_branch_target(),
        _ => return None,
    };
    if target > last.ip() {
        return None;
    }
    let replaces = |insn: &Instruction| {
        effect(insn) == Effect::Replaces
            && super::copy::is_copied(insn)
            && !super::memory::has_memory(insn)
    };
    piece.insns.iter().rposition(replaces)
}
