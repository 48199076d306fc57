//! From decoded instructions to host code: one at a time, with what surrounds it.
//!
//! ```text
//!   copied    the guest's own instruction, its registers renamed, its memory operand replaced by the
//!             host address that a check found                                    (`copy`, `memory`)
//!   made      stack instructions, near branches, strings on a page, what the kernel does often
//!                                    (`stack`, `branch`, `strings`, `bits`, `segments`, `system`)
//!   single    everything else: the interpreter executes it                       (`Emitter::single`)
//! ```
//! Whenever a check fails, the interpreter executes that one instruction and the code goes on behind it:
//! what is slow or unusual (a miss, a device, a fault, a page with code) has one implementation.

use iced_x86::{Code, Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic};
use rustc_hash::FxHashMap;

use super::asm::{Asm, Label, Mem, Reg, at, cc};
use super::bases::Bases;
use super::cache::{Cache, Link};
use super::copy::is_copied;
use super::flags::{Effect, Place, effect};
use super::glue::{Glue, Single};
use super::heads::{Head, Poll, are_dead_behind, heads, poll_places};
use super::layout::{Home, S0, S1, frame, home, slot};
use super::memory::Caches;
use super::pins::Making;
use super::recent::{Recent, walks};
use super::sse::is_sse;
use super::swaps::Swaps;
use crate::gate::Gate;
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
    /// Continues with `next`, which the last instruction leads to and nothing else does.
    pub fn add(&mut self, next: Self) {
        self.insns.extend(next.insns);
        self.ops.extend(next.ops);
        self.ended = next.ended;
    }

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
pub(super) enum Cold {
    /// The interpreter executes an instruction; the code goes on at the label, if at all.
    Single(usize, Option<Resume>),
    /// The piece goes on as it is made the second time.
    Plain(Resume),
    /// SSE state is loaded, or the interpreter executes an instruction and the code is left behind it.
    NotLoaded(usize, Label),
    /// The second page of an instruction is looked for; the code goes on at the label if it is the right one.
    Second(usize, Label),
    /// The code is left before the instruction at this address.
    Attention(u64),
    /// A branch looks for the code at the address in `target` in the spare place.
    Spare {
        target: Reg,
        jump: Reg,
        found: Label,
        failed: Label,
    },
    /// An access of `size` bytes that is on another page than the recent one; the code goes on at `hit`.
    Recent {
        recent: Recent,
        size: usize,
        failed: Label,
        hit: Label,
    },
}

/// Where the guest's state is at a place that is left for a cold path.
#[derive(Clone, Copy)]
struct Here {
    place: Place,
    swapped: bool,
}

/// Where code goes on out of line.
pub(super) struct Resume {
    label: Label,
    /// The address of the instruction there.
    rip: u64,
    /// SSE state has to be loaded for it.
    load: bool,
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
    pub(super) glue: Glue,
    /// How the unit's code comes to the translation caches.
    pub(super) caches: Caches,
    /// The unit has SSE instructions, and SSE state is loaded where its pieces begin.
    pub(super) uses_sse: bool,
    /// It is loaded here.
    pub(super) sse_loaded: bool,
    /// Addresses of the current instruction, and of the one behind it.
    pub(super) at: u64,
    pub(super) next: u64,
    /// What is known of registers here.
    pub(super) bases: Bases,
    /// Instructions that walk through memory ([`walks`]).
    pub(super) walks: FxHashMap<u64, u8>,
    /// How far RSP has yet to be moved.
    pub(super) stack_moved: i32,
    /// Registers that change places in this unit, and whether they have, here.
    swaps: Swaps,
    pub(super) swapped: bool,
    /// The guest register, one of the frame, that `S1` held last.
    pub(super) held: Option<u8>,
    /// A cold path of the current instruction goes on behind it.
    resumed: bool,
    /// The instructions of the current piece.
    pub(super) ahead: Vec<Instruction>,
    /// How it is being made.
    pub(super) making: Making,
    colds: Vec<(Label, Here, Cold)>,
    pub(super) tails: Vec<Tail>,
    pub(super) singles: Vec<Single>,
    /// Their numbers, by the addresses of their instructions.
    known_singles: FxHashMap<u64, usize>,
    /// Linear and guest-physical address of the page.
    pub(super) page: (u64, u64),
    /// Where the pieces that can be gone to inside start.
    pub(super) heads: Vec<Head>,
    /// The piece behind the current one, which needs no jump.
    pub(super) following: Option<u64>,
    /// The current piece has looked whether somebody wants attention.
    pub(super) polled: bool,
    /// How it looks.
    poll: Option<Poll>,
    /// Nobody looks at the flags behind the current instruction, which has made them impossible to compute.
    dying: bool,
    /// Links, the code that asks for each, and the linear address where it should lead.
    pub(super) links: Vec<(Link, Label, u64)>,
    /// The unit is compared with the interpreter: it is the first piece up to what is not translated, and
    /// every way out of it leaves.
    pub(super) alone: bool,
    /// The second page of the unit's instruction, if that crosses.
    pub(super) second: Option<u64>,
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
    /// For at most `count` instructions of the page with these linear and guest-physical addresses, of level 3 or of a
    /// kernel.
    pub fn new(
        cache: &'a mut Cache,
        glue: Glue,
        page: (u64, u64),
        count: usize,
        user: bool,
        bmi1: bool,
    ) -> Self {
        Self {
            asm: Asm::default(),
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            place: Place::SAVED,
            cache,
            bmi1,
            glue,
            caches: if user { glue.user } else { Caches::Frame },
            uses_sse: false,
            sse_loaded: false,
            at: 0,
            next: 0,
            bases: Bases::new(),
            walks: FxHashMap::default(),
            stack_moved: 0,
            swaps: Swaps::default(),
            swapped: false,
            held: None,
            resumed: false,
            ahead: Vec::new(),
            making: Making::default(),
            colds: Vec::new(),
            tails: Vec::new(),
            singles: Vec::with_capacity(count),
            known_singles: FxHashMap::default(),
            page,
            heads: Vec::new(),
            following: None,
            polled: false,
            poll: None,
            dying: false,
            links: Vec::new(),
            alone: false,
            second: None,
            made: 0,
        }
    }

    /// Emits all pieces. The first is the entry; the others are gone to from inside.
    pub fn run(mut self, pieces: &[Piece]) -> Made {
        let insns = || pieces.iter().flat_map(|piece| &piece.insns);
        self.uses_sse = insns().any(is_sse);
        if !self.alone {
            self.swaps = Swaps::of(pieces, &mut self.info);
            self.walks = walks(pieces, &mut self.info);
        }
        let polls = poll_places(pieces, self.glue.gate.is_some());
        let swaps = self.swaps.clone();
        self.heads = heads(
            pieces,
            &polls,
            |number| swaps.home(number),
            || self.asm.label(),
        );
        let mut again = Vec::new();
        for (i, piece) in pieces.iter().enumerate() {
            self.place = Place::SAVED;
            if i == 0 {
                if let Some(second) = self.second {
                    self.check_second(&piece.ops[0], second);
                }
                self.swap(S0);
                self.enter_sse(&piece.ops[0]);
            } else {
                let head = self.heads[i - 1];
                self.asm.bind(head.label);
                self.place = head.flags.place();
            }
            self.following = pieces.get(i + 1).map(|next| next.rip);
            self.making = Making::first(piece.insns.len());
            self.piece(piece, polls[i], None);
            again.push(std::mem::take(&mut self.making));
        }
        self.following = None;
        for ((piece, poll), first) in pieces.iter().zip(&polls).zip(&again) {
            if let Some(needed) = first.needed() {
                self.piece(piece, *poll, Some(needed));
            }
        }
        for tail in std::mem::take(&mut self.tails) {
            self.asm.bind(tail.label);
            (self.place, self.polled) = (tail.place, tail.polled);
            self.swapped = !self.swaps.is_empty();
            self.sse_loaded = self.uses_sse;
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

    /// Emits a piece, which looks whether somebody wants attention as `poll` says: whole, or the second time, from
    /// the first of the instructions that have a label.
    fn piece(&mut self, piece: &Piece, poll: Option<Poll>, again: Option<&[Option<Label>]>) {
        self.sse_loaded = self.uses_sse;
        self.swapped = !self.swaps.is_empty();
        (self.bases, self.ahead) = (Bases::new(), piece.insns.clone());
        self.poll = poll;
        let first = again.and_then(|labels| labels.iter().position(Option::is_some));
        let first = first.unwrap_or(0);
        // Who comes from the first making has looked there.
        self.polled = poll.is_some_and(|poll| poll.index() < first);
        let (mut open, mut end) = (true, piece.end());
        let ops = piece.insns.iter().zip(&piece.ops);
        for (i, (insn, op)) in ops.enumerate().skip(first) {
            self.making.index = i;
            (self.at, self.next) = (insn.ip(), insn.next_ip());
            let label = again.and_then(|labels| labels[i]);
            let polls = poll == Some(Poll::Before(i));
            if label.is_some() || polls || !self.leaves_stack_alone(insn) {
                self.move_stack();
            }
            if let Some(label) = label {
                self.bind_plain(label, i > first);
            }
            if polls {
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
            self.made += usize::from(again.is_none());
            open = made.unwrap_or_else(|| self.single(op));
            if std::mem::take(&mut self.dying) && made.is_some() {
                self.place = Place::HOST;
            }
            debug_assert!(self.polled || self.alone || poll != Some(Poll::By(i)));
            self.bases.step(insn, &mut self.info);
        }
        self.move_stack();
        self.at = end;
        if let Some(label) = again.and_then(|labels| labels[piece.insns.len()]) {
            self.bind_plain(label, open && first < piece.insns.len());
            open = true;
        }
        if open {
            self.edge(end, end.wrapping_sub(1));
        }
    }

    /// Where the first making comes to the second: flags are in the frame, SSE state is loaded if the unit needs
    /// it. The same goes for who comes from above, if anybody does.
    fn bind_plain(&mut self, label: Label, from_above: bool) {
        if from_above {
            self.require_sse();
            self.place.save(&mut self.asm);
        }
        self.asm.bind(label);
        self.place = Place::SAVED;
        self.sse_loaded = self.uses_sse;
    }

    /// Emits one instruction; tells whether the next one follows it. `None` where it is not translated:
    /// then nothing was emitted.
    fn instruction(&mut self, insn: &Instruction, op: &Op) -> Option<bool> {
        if is_nothing(insn) {
            return Some(true);
        }
        // Where the piece continues, if that is not where it ends.
        let inside = self.ahead.get(self.making.index + 1).map(Instruction::ip);
        if let Some(open) = self.branch(insn, op, inside) {
            return Some(open);
        }
        let made = self.stack(insn, op)
            || self.system(insn, op)
            || self.segments(insn, op)
            || self.string(insn, op)
            || self.bit_string(insn, op)
            || self.copy(insn, op);
        made.then_some(true)
    }

    /// Has the interpreter execute `op`; the next instruction follows it.
    pub(super) fn single(&mut self, op: &Op) -> bool {
        self.move_stack();
        self.place.save(&mut self.asm);
        let single = self.add_single(op);
        self.singles[single].whole = true;
        self.call(single);
        if !self.swaps.is_empty() {
            self.swap(S0);
        }
        self.place = Place::BOTH;
        // The interpreter looks.
        self.polled = true;
        self.sse_loaded = false;
        self.making.pins.clear();
        self.bases = Bases::new();
        true
    }

    fn add_single(&mut self, op: &Op) -> usize {
        let single = Single::new(op.clone(), self.page.0);
        let count = self.singles.len();
        let number = *self.known_singles.entry(single.rip()).or_insert(count);
        if number == count {
            self.singles.push(single);
        }
        number
    }

    /// Calls the interpreter. Registers are in their usual places behind it.
    fn call(&mut self, single: usize) {
        self.settle(S0);
        self.asm.imm_later(S0, single);
        self.asm.call(self.glue.call);
    }

    /// A label for what happens when the check of `op` fails; `resume` is behind the instruction, if the
    /// interpreter ever comes back from it.
    pub(super) fn failed(&mut self, op: &Op, resume: Option<Label>) -> Label {
        let single = self.add_single(op);
        let label = self.asm.label();
        self.resumed |= resume.is_some();
        let resume = resume.map(|resume| {
            let label = self.behind(resume);
            Resume {
                label,
                rip: self.next,
                load: self.sse_loaded || self.uses_sse && label != resume,
            }
        });
        let cold = Cold::Single(single, resume);
        self.cold(label, cold);
        label
    }

    /// Cold paths of the current instruction go on here, if there are any.
    pub(super) fn go_on(&mut self, resume: Label) {
        if std::mem::take(&mut self.resumed) {
            self.asm.bind(resume);
        }
    }

    /// A label for what happens when the check of a stretch fails: the current instruction, `op`, and what
    /// follows are executed as they were made the second time.
    pub(super) fn plainly(&mut self, op: &Op) -> Label {
        let Some(plain) = self.plain_at(self.making.index) else {
            return self.failed(op, None);
        };
        let label = self.asm.label();
        let resume = Resume {
            label: plain,
            rip: self.at,
            load: self.uses_sse && !self.sse_loaded,
        };
        self.cold(label, Cold::Plain(resume));
        label
    }

    /// A label for what happens when SSE state is not loaded; `first` is the unit's first operation.
    pub(super) fn not_loaded(&mut self, first: &Op, resume: Label) -> Label {
        let single = self.add_single(first);
        let label = self.asm.label();
        let cold = Cold::NotLoaded(single, resume);
        self.cold(label, cold);
        label
    }

    /// Leaves when somebody wants attention, before the instruction at `rip`. The host's flags are lost.
    pub(super) fn poll(&mut self, rip: u64) {
        if self.alone {
            return;
        }
        self.place.secure(&mut self.asm);
        let label = self.asm.label();
        self.look(label);
        self.cold(label, Cold::Attention(rip));
        self.place.disturbed();
    }

    /// Goes to `wanted` if somebody wants attention.
    pub(super) fn look(&mut self, wanted: Label) {
        if let Some(gate) = self.glue.gate {
            self.asm.cmp_outside(gate + Gate::ATTENTION, 0);
        } else {
            self.asm.load(S0, frame(slot::WAKE));
            self.asm.cmp_mem_imm(at(S0, 0), 0);
        }
        self.asm.jcc(cc::NE, wanted);
    }

    /// What happens at `label`, out of line, with the state as it is here.
    pub(super) fn cold(&mut self, label: Label, cold: Cold) {
        self.colds.push((label, self.here(), cold));
    }

    /// Where the guest's state is.
    fn here(&self) -> Here {
        Here {
            place: self.place,
            swapped: self.swapped,
        }
    }

    /// Registers change places, or do so back. `scratch` is lost.
    fn swap(&mut self, scratch: Reg) {
        self.swaps.emit(&mut self.asm, scratch);
        self.swapped = !self.swapped && !self.swaps.is_empty();
        self.held = None;
    }

    /// Registers go to their usual places, for the unit is left. Flags are in the frame; `scratch` is lost.
    pub(super) fn settle(&mut self, scratch: Reg) {
        if self.swapped {
            self.swap(scratch);
        }
    }

    /// Where guest register `number` is.
    pub(super) fn home(&self, number: u8) -> Home {
        if self.swapped {
            self.swaps.home(number)
        } else {
            home(number)
        }
    }

    /// Leaves for `rip`. Flags are in the frame.
    pub(super) fn leave(&mut self, rip: u64, why: Leave) {
        if self.swapped {
            self.swaps.emit(&mut self.asm, S0);
        }
        self.asm.imm(S1, rip);
        self.leave_there(why);
    }

    /// Leaves for the linear address in `S1`. Flags are in the frame.
    pub(super) fn leave_there(&mut self, why: Leave) {
        self.asm.imm(S0, why as u64);
        self.asm.jmp_to(self.glue.exit);
    }

    fn colds(&mut self) {
        for (label, here, cold) in std::mem::take(&mut self.colds) {
            self.asm.bind(label);
            match cold {
                Cold::Recent {
                    recent,
                    size,
                    failed,
                    hit,
                } => {
                    self.look_recent(recent, size, failed, hit);
                    continue;
                }
                Cold::Spare {
                    target,
                    jump,
                    found,
                    failed,
                } => {
                    self.find_spare((target, jump), found, failed);
                    continue;
                }
                _ => {}
            }
            let Here { mut place, swapped } = here;
            self.swapped = swapped;
            place.host = false;
            place.save(&mut self.asm);
            match cold {
                Cold::Single(single, None) => {
                    self.call(single);
                    self.asm.unreachable();
                }
                Cold::Single(single, Some(resume)) => {
                    self.call(single);
                    if swapped {
                        self.swap(S0);
                    }
                    if resume.load {
                        self.load_or_leave(resume.rip);
                        super::flags::restore(&mut self.asm);
                    }
                    self.asm.jmp(resume.label);
                }
                Cold::Plain(resume) => {
                    if resume.load {
                        self.load_or_leave(resume.rip);
                    }
                    self.asm.jmp(resume.label);
                }
                Cold::NotLoaded(single, resume) => {
                    let refused = self.asm.label();
                    self.asm.load(S1, frame(slot::CPU));
                    self.asm.cmp_byte_imm(at(S1, super::glue::READY), 0);
                    self.asm.jcc(cc::E, refused);
                    self.asm.call(self.glue.load);
                    self.asm.jmp(resume);
                    self.asm.bind(refused);
                    self.asm.store_byte_imm(at(S1, super::glue::STOP), 1);
                    self.call(single);
                    self.asm.unreachable();
                }
                Cold::Second(single, known) => {
                    self.call(single);
                    self.asm.jmp(known);
                }
                Cold::Attention(rip) => self.leave(rip, Leave::Look),
                Cold::Recent { .. } | Cold::Spare { .. } => {}
            }
        }
    }

    /// Loads guest register `number` into `to`.
    pub(super) fn fetch(&mut self, to: Reg, number: u8) {
        match self.home(number) {
            Home::Host(reg) => self.asm.mov(to, reg),
            Home::Frame(mem) => self.asm.load(to, mem),
        }
    }

    /// `S1` holds guest register `number`, one of the frame, until something is put there.
    pub(super) fn hold(&mut self, number: u8) {
        self.held = Some(number);
        self.asm.keep(S1);
    }

    /// Tells whether it still does.
    pub(super) fn holds(&self, number: u8) -> bool {
        self.held == Some(number) && self.asm.kept(S1)
    }

    /// Puts `from` into guest register `number`.
    pub(super) fn put(&mut self, number: u8, from: Reg) {
        self.forget_held(number);
        match self.home(number) {
            Home::Host(reg) => self.asm.mov(reg, from),
            Home::Frame(mem) => self.asm.store(8, mem, from),
        }
    }

    /// Guest register `number` is written.
    pub(super) fn forget_held(&mut self, number: u8) {
        if self.held == Some(number) {
            self.held = None;
        }
    }

    /// Keeps the flags obtainable although guest register `number` is about to be written by something
    /// that does not replace them.
    pub(super) fn about_to_write(&mut self, number: u8) {
        let reg = self.home(number);
        if self.place.depends_on(reg) && self.flags_end_here() {
            // If the instruction fails, it has written nothing.
            self.dying = true;
            return;
        }
        if self.place.needs(reg) {
            self.place.save(&mut self.asm);
        }
        self.place.wrote(reg);
    }

    /// Tells whether nobody looks at the flags behind the current instruction, which leaves them alone, and writes
    /// registers only when it cannot fail any more.
    fn flags_end_here(&self) -> bool {
        let at = self.making.index;
        let simple = |insn: &Instruction| {
            let kind = is_copied(insn)
                || matches!(
                    insn.code(),
                    Code::Lea_r64_m | Code::Lea_r32_m | Code::Pop_r64
                );
            kind && effect(insn) == Effect::None
        };
        self.ahead.get(at).is_some_and(simple) && are_dead_behind(&self.ahead, at, self.poll)
    }

    /// The memory operand of `insn` in host registers. Registers of the frame are loaded into scratch
    /// registers. `None` where there is neither base nor index.
    pub(super) fn operand(&mut self, insn: &Instruction) -> Option<Mem> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let mut mem = Mem {
            base: None,
            index: None,
            disp: insn.memory_displacement64() as i32,
            gs: false,
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
        match self.home(number) {
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
