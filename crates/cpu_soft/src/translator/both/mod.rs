//! Both: the interpreter and translated code execute each block, and what comes out is compared.
//!
//! ```text
//!   registers ──┬─ rehearse: the interpreter's handlers; loads are noted, stores go to the notes only
//!               │      └ a fault, a device, a page with code or of page tables: nothing has happened,
//!               │        and the interpreter executes the block; not compared, and counted by reason
//!               └─ run_code: the translated code, for real, its misses and all
//!                      └ registers, flags, SSE, each byte of the notes: the same ── compared
//!                                                                       other ── replay
//!   replay: the translated code once more, on copies of the pages that hold what the notes say was loaded
//!        ├─ now the same: somebody else wrote memory between rehearsal and run; raced
//!        └─ still other:  a difference; the machine ends with a report
//! ```
//! A unit is made of one piece, from any address that is gone to at its first execution: no threshold, so
//! that nothing is executed that is not compared. It is cut before the first instruction that is not
//! translated ([`reach`](open::reach)); such a one is a block of its own. Every way out of the unit leaves
//! translated code, so links between units, jumps from one to another, and looks at who wants attention
//! are not in it: other tests are about those.
//!
//! The rehearsal finds pages as the translated code will: in the context, else by asking the MMU. The MMU
//! sets accessed and dirty bits then, of pages that the block is about to access in the same way: when it
//! runs for real, right after, or when the interpreter executes what could not be rehearsed. Nothing is put
//! into the context, so the translated code misses where it would have missed, and its cold ways are
//! compared as well.
//!
//! Why a difference is replayed, and the notes not just compared with memory: a lock that another processor
//! takes is both loaded and stored by the block, so memory afterwards does not tell what the code saw.

mod open;
mod report;
mod stage;
#[cfg(test)]
mod tests;

use iced_x86::Instruction;
use rustc_hash::FxHashMap;
use umbra_cpu::{Crash, Statistics};
use umbra_x86::rflags;

use super::emit::Piece;
use crate::cpu::{Cpu, Trap, mode};
use crate::flags::Flags;
use crate::fpu::FxArea;
use crate::jumps::{Jump, jump_tag};
use crate::op::{Leave, Op};
use crate::ops::branch;
use crate::regs::Regs;

pub use open::reach;
use stage::Stage;
#[cfg(test)]
pub use tests::plant;

/// Why a block was not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It raises an exception.
    Fault,
    /// It accesses what is no memory, or writes what may only be read.
    Device,
    /// It writes a page of the guest's page tables.
    Table,
    /// It writes a page with code.
    Code,
    /// A translation was dropped meanwhile, so the pages that were noted may be gone.
    Flushed,
    /// The translated code was left early, for attention or because code was overwritten.
    Left,
    /// It does something that cannot be rehearsed.
    Other,
}

/// What each of them is called, in order.
const REASONS: [(Reason, &str); 7] = [
    (Reason::Fault, "blocks not compared: exception"),
    (Reason::Device, "blocks not compared: device"),
    (Reason::Table, "blocks not compared: page table"),
    (Reason::Code, "blocks not compared: page with code"),
    (Reason::Flushed, "blocks not compared: flush"),
    (Reason::Left, "blocks not compared: left early"),
    (Reason::Other, "blocks not compared: other"),
];

/// Counters.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Blocks compared, and found to be the same.
    pub blocks: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Blocks that were not compared, by [`Reason`].
    pub not_compared: [u64; REASONS.len()],
    /// Blocks that came out otherwise because somebody else wrote memory.
    pub raced: u64,
    /// Blocks that came out otherwise.
    pub differences: u64,
}

impl Counts {
    /// All of them, with their names.
    pub fn statistics(&self) -> Statistics {
        let mut counts = vec![
            ("blocks compared", self.blocks),
            ("instructions compared", self.instructions),
            ("blocks that raced with others", self.raced),
            ("blocks that differ", self.differences),
        ];
        let names = REASONS.iter().map(|(_, name)| *name);
        counts.extend(names.zip(self.not_compared));
        counts
    }
}

/// What the mode `both` keeps.
pub struct Both {
    units: FxHashMap<u64, Box<Twin>>,
    /// Those that died while they may be executing.
    #[expect(clippy::vec_box, reason = "one that may be executing must not move")]
    dead: Vec<Box<Twin>>,
    stage: Stage,
    /// Counters.
    pub counts: Counts,
    difference: Option<Box<Crash>>,
}

impl Both {
    /// With nothing to compare yet.
    pub fn new() -> Box<Self> {
        Box::new(Self {
            units: FxHashMap::default(),
            dead: Vec::new(),
            stage: Stage::new(),
            counts: Counts::default(),
            difference: None,
        })
    }

    /// Notes what the translated code at `entry` was made from.
    pub fn add(&mut self, entry: u64, twin: Twin) {
        self.units.insert(entry, Box::new(twin));
    }

    /// The code at `entry` has died.
    pub fn forget(&mut self, entry: u64) {
        self.dead.extend(self.units.remove(&entry));
    }

    /// Frees what died. Only while none is executing.
    pub fn bury(&mut self) {
        self.dead.clear();
    }

    /// Forgets everything. Only while none is executing.
    pub fn clear(&mut self) {
        self.units.clear();
        self.dead.clear();
    }

    /// The difference that ends the machine.
    pub fn take_difference(&mut self) -> Option<Box<Crash>> {
        self.difference.take()
    }

    fn skip(&mut self, reason: Reason) {
        self.counts.not_compared[reason as usize] += 1;
    }
}

/// What the interpreter executes beside a unit.
pub struct Twin {
    insns: Vec<Instruction>,
    /// The operations, and one that leaves behind them.
    ops: Box<[Op]>,
    /// What their distances are counted from.
    base: u64,
    /// Guest-physical address of the first instruction.
    gpa: u64,
    /// Status flags that the manual leaves undefined at the end.
    open: u64,
    /// Where the translated code is, and its length.
    code: (u64, usize),
}

impl Twin {
    /// Of `piece`, which is all in the unit whose `code` is there.
    pub fn new(piece: Piece, base: u64, gpa: u64, code: (u64, usize)) -> Self {
        let end = piece.end();
        let mut ops = piece.ops;
        let mut last = Op::new(branch::fall_through);
        last.imm = end;
        ops.push(last);
        Self {
            open: open::after(&piece.insns),
            insns: piece.insns,
            ops: ops.into_boxed_slice(),
            base,
            gpa,
            code,
        }
    }
}

/// A difference, for people.
struct Difference {
    /// What differs.
    what: String,
    /// Everything that is known about it.
    report: String,
}

/// What a block can change, beside memory.
#[derive(Clone)]
struct Registers {
    regs: Regs,
    flags: Flags,
    rip: u64,
    sys: u64,
    fx: FxArea,
}

impl Registers {
    fn of(cpu: &Cpu) -> Self {
        Self {
            regs: cpu.regs.clone(),
            flags: cpu.flags,
            rip: cpu.rip,
            sys: cpu.sys,
            fx: FxArea::clone(&cpu.fx),
        }
    }

    fn restore(&self, cpu: &mut Cpu) {
        cpu.regs.clone_from(&self.regs);
        cpu.flags = self.flags;
        cpu.rip = self.rip;
        cpu.sys = self.sys;
        FxArea::clone_from(&mut cpu.fx, &self.fx);
    }

    fn rflags(&self) -> u64 {
        self.sys & !rflags::STATUS | self.flags.get()
    }

    /// Tells whether `other` is the same but for the flags `open`.
    fn is(&self, other: &Self, open: u64) -> bool {
        (0..16).all(|i| self.regs.r(i) == other.regs.r(i))
            && self.rip == other.rip
            && (self.rflags() ^ other.rflags()) & !open == 0
            && self.fx.bytes() == other.fx.bytes()
    }
}

impl Cpu {
    /// Executes the code that `jump` leads to, and compares.
    pub fn execute_both(&mut self, jump: Jump) -> Leave {
        let code = jump.packed;
        let known = self.translator.both.as_ref();
        let Some(twin) = known.and_then(|both| Some(&raw const **both.units.get(&code)?)) else {
            return self.interpret();
        };
        // SAFETY: the box stays where it is until it is buried or cleared, both between blocks.
        let twin = unsafe { &*twin };
        let before = Registers::of(self);
        let flushes = self.stats.flushes;
        if let Err(reason) = self.rehearse(twin) {
            before.restore(self);
            self.skip(reason);
            return self.interpret();
        }
        let expected = Registers::of(self);
        before.restore(self);
        let leave = self.run_code(code);
        if leave == Leave::Look || self.stats.flushes != flushes {
            self.skip(if leave == Leave::Look {
                Reason::Left
            } else {
                Reason::Flushed
            });
            return leave;
        }
        let found = Registers::of(self);
        let Some(both) = self.translator.both.as_mut() else {
            return leave;
        };
        if leave == Leave::Done && expected.is(&found, twin.open) && both.stage.is_stored() {
            both.counts.blocks += 1;
            both.counts.instructions += twin.insns.len() as u64;
            return leave;
        }
        let pending = self.pending.take();
        before.restore(self);
        if let Some(difference) = self.replay(twin, &before, &expected) {
            before.restore(self);
            self.differs(difference);
            return Leave::Look;
        }
        found.restore(self);
        self.pending = pending;
        self.count(|counts| counts.raced += 1);
        leave
    }

    /// Executes the block at the instruction pointer with the interpreter alone.
    fn interpret(&mut self) -> Leave {
        let mode = self.mode;
        match self.block(mode) {
            // SAFETY: owned by `self.blocks`, and executed at once; see `enter_block`.
            Ok(block) => self.enter_block(Jump::to(unsafe { &*block }, jump_tag(self.rip, mode))),
            Err(Trap) => Leave::Fault,
        }
    }

    /// The interpreter executes `twin` without storing anything.
    fn rehearse(&mut self, twin: &Twin) -> Result<(), Reason> {
        let leave = self.on_stage(Stage::rehearsal, |cpu| {
            cpu.regs.set_block_rip(twin.base);
            let first = &twin.ops[0];
            (first.handler.get())(cpu, first)
        });
        let faulted = self.pending.take().is_some();
        (self.wild, self.switched) = (false, false);
        let Some(both) = &mut self.translator.both else {
            return Err(Reason::Other);
        };
        match (both.stage.failed(), leave) {
            (Some(reason), _) => Err(reason),
            (None, _) if faulted => Err(Reason::Fault),
            (None, Leave::Done) => Ok(()),
            (None, _) => Err(Reason::Other),
        }
    }

    /// Executes the translated code of `twin` where memory holds what was loaded at the rehearsal. Returns
    /// how it differs, if it does.
    fn replay(
        &mut self,
        twin: &Twin,
        before: &Registers,
        expected: &Registers,
    ) -> Option<Difference> {
        let both = self.translator.both.as_mut()?;
        if !both.stage.copy_pages() {
            return None;
        }
        let leave = self.on_stage(Stage::replay, |cpu| cpu.run_code(twin.code.0));
        self.pending = None;
        (self.wild, self.switched) = (false, false);
        let found = Registers::of(self);
        let both = self.translator.both.as_mut()?;
        let wrong = both.stage.wrong_bytes();
        let astray = both.stage.failed().is_some() || leave != Leave::Done;
        if !astray && wrong.is_empty() && expected.is(&found, twin.open) {
            return None;
        }
        let mut what = report::what(expected, &found, twin.open);
        let places = both.stage.addresses(&wrong);
        what.extend(places.iter().map(|la| format!("{la:#x}")));
        if astray {
            what.push("an exception or an access that only translated code makes".into());
        }
        Some(Difference {
            what: what.join(", "),
            report: twin.describe(before, expected, &found) + &both.stage.describe(&wrong),
        })
    }

    /// Ends the machine.
    fn differs(&mut self, Difference { what, report }: Difference) {
        self.count(|counts| counts.differences += 1);
        tracing::error!(
            "the interpreter and translated code differ in {what}; processor {}, level {}, {report}",
            self.id,
            self.cpl
        );
        self.crash = format!(
            "the interpreter and translated code differ in {what} after the block at {:#x}: a defect of this \
             program; report it with what was logged, and use --processor interpreter meanwhile",
            self.rip
        );
        let crash = self.crash_report();
        if let Some(both) = &mut self.translator.both {
            both.difference = Some(Box::new(crash));
        }
    }

    fn skip(&mut self, reason: Reason) {
        if let Some(both) = &mut self.translator.both {
            both.skip(reason);
        }
    }

    fn count(&mut self, count: impl FnOnce(&mut Counts)) {
        if let Some(both) = &mut self.translator.both {
            count(&mut both.counts);
        }
    }

    /// The way to what executes at the instruction pointer, in 64-bit code: a unit and its twin, or one
    /// instruction that is not translated.
    pub fn find_twin(&mut self) -> Result<Jump, Trap> {
        let rip = self.rip;
        self.fetch_address(rip)?;
        if self.translator.full() || self.stubs.full() {
            self.forget_code();
        }
        if let Some(code) = self.make_unit(rip) {
            let jump = Jump::to_code(code, rip);
            self.remember_jump(rip, jump);
            return Ok(jump);
        }
        self.pending = None;
        let block = self.block(self.mode | mode::SINGLE)?;
        // SAFETY: owned by `self.blocks`, see `enter_block`.
        let block = unsafe { &*block };
        let jump = Jump::to(block, jump_tag(rip, self.mode));
        if block.second.is_none() {
            self.remember_jump(rip, jump);
        }
        Ok(jump)
    }
}
