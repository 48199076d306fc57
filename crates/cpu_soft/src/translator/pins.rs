//! One check for several accesses by one register.
//!
//! Where a piece accesses memory by a base ([`bases`](super::bases)) more than once, the first access checks the
//! whole stretch, from the lowest byte to the highest, and puts the host's address of it into the frame: a *pin*.
//! The others load it from there, and neither check nor disturb flags. What a check promises holds until the
//! interpreter is called or translated code is left (both may take a translation away), so pins end with the
//! piece, and with every call.
//!
//! A stretch that is not on one page, or not writable as a whole, fails where a single access might not. So a
//! piece with pins is made twice, and the second time without: code goes there when the check of a stretch fails,
//! and behind an instruction that the interpreter executed where there were pins.

use iced_x86::{Code, Instruction};

use super::asm::{Label, at};
use super::bases::{Access, Value};
use super::copy::is_copied;
use super::emit::Emitter;
use super::layout::{BP, S0, SP, frame, slot};
use super::sse::is_sse;
use crate::op::Op;

/// Pins at a time.
pub const PINS: usize = 4;
/// Most bytes of a stretch. The longer, the more of them lie on two pages.
const STRETCH: i64 = 256;
/// Instructions that are looked at for what a stretch serves.
const REACH: usize = 64;

/// A stretch of memory whose host address is in the frame.
#[derive(Clone, Copy, Debug)]
struct Pin {
    at: Value,
    len: i64,
    write: bool,
    /// A place in it that is known to be a multiple of sixteen.
    aligned: Option<Value>,
}

impl Pin {
    fn holds(&self, access: &Access) -> bool {
        let from = access.at.distance.wrapping_sub(self.at.distance);
        let end = from.checked_add(access.size as i64);
        self.at.base == access.at.base
            && from >= 0
            && end.is_some_and(|end| end <= self.len)
            && (self.write || !access.write)
    }
}

/// The pins at a place of a piece.
#[derive(Clone, Default)]
pub struct Pins {
    pins: [Option<Pin>; PINS],
    next: usize,
}

impl Pins {
    /// There are none any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn any(&self) -> bool {
        self.pins.iter().any(Option::is_some)
    }

    fn find(&self, access: &Access) -> Option<usize> {
        let holds = |pin: &Option<Pin>| pin.is_some_and(|pin| pin.holds(access));
        self.pins.iter().position(holds)
    }

    fn add(&mut self, pin: Pin) -> usize {
        let number = self.next % PINS;
        self.pins[number] = Some(pin);
        self.next += 1;
        number
    }
}

/// What an instruction accesses.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// Its memory operand.
    Operand(&'a Instruction),
    /// The stack, so far from RSP.
    Stack(i32),
    /// Where RBP points to.
    Base,
}

/// How an access comes to its host address.
#[derive(Clone, Copy)]
pub enum Way {
    /// By a pin: number, and distance in it.
    Pinned(usize, i32),
    /// By the check of a stretch, which begins so far from the access: number, distance, length.
    First(usize, i32, usize),
    /// By a check of its own.
    Alone,
}

impl Way {
    /// Whether it disturbs no flags.
    pub fn is_pinned(&self) -> bool {
        matches!(self, Self::Pinned(..))
    }

    /// How far behind the address in the register the access is.
    pub fn distance(&self) -> i32 {
        match self {
            Self::Pinned(_, distance) | Self::First(_, distance, _) => *distance,
            Self::Alone => 0,
        }
    }
}

/// How a piece is being made.
#[derive(Default)]
pub struct Making {
    /// Where code of the second making is gone to, by instruction; `None` while that is made itself.
    plain: Option<Vec<Option<Label>>>,
    pub pins: Pins,
    /// The pin that `S0` held last.
    loaded: Option<usize>,
    /// The current instruction's index.
    pub index: usize,
}

impl Making {
    /// The first making of a piece of `count` instructions.
    pub fn first(count: usize) -> Self {
        Self {
            plain: Some(vec![None; count + 1]),
            ..Self::default()
        }
    }

    /// What of the second making is needed, if anything is.
    pub fn needed(&self) -> Option<&[Option<Label>]> {
        let plain = self.plain.as_deref()?;
        plain.iter().any(Option::is_some).then_some(plain)
    }
}

impl Emitter<'_> {
    /// Decides how `target` is reached. All ways of an instruction are decided before its first check.
    pub(super) fn way(&mut self, target: Target, size: usize, write: bool) -> Way {
        let value = match target {
            _ if self.making.plain.is_none() => None,
            Target::Operand(insn) => self.bases.address(insn),
            Target::Stack(distance) => Some(self.bases.of(4).plus(distance.into())),
            Target::Base => Some(self.bases.of(5)),
        };
        let Some(at) = value else { return Way::Alone };
        let access = Access { at, size, write };
        if let Some(number) = self.making.pins.find(&access) {
            return Way::Pinned(number, self.distance(number, at));
        }
        let Some((low, high, write)) = self.stretch(access) else {
            return Way::Alone;
        };
        if !in_reach(target, low) {
            return Way::Alone;
        }
        let pin = Pin {
            at: at.plus(low),
            len: high - low,
            write,
            aligned: None,
        };
        let number = self.making.pins.add(pin);
        Way::First(number, -low as i32, (high - low) as usize)
    }

    fn distance(&self, number: usize, at: Value) -> i32 {
        let pin = self.making.pins.pins[number];
        pin.map_or(0, |pin| at.distance.wrapping_sub(pin.at.distance) as i32)
    }

    /// From where to where around `first` the piece accesses memory by its base, this and the following
    /// instructions, as far as one check can serve; and whether it writes. `None` where it does so only once.
    fn stretch(&mut self, first: Access) -> Option<(i64, i64, bool)> {
        let mut count = 0;
        let (mut low, mut high, mut write) = (0, first.size as i64, first.write);
        let mut bases = self.bases.clone();
        for insn in self.ahead[self.making.index..].iter().take(REACH) {
            if !stays(insn) {
                break;
            }
            for access in bases.accesses(insn, &mut self.info).into_iter().flatten() {
                let from = access.at.distance.wrapping_sub(first.at.distance);
                if access.at.base != first.at.base || from.unsigned_abs() > STRETCH as u64 {
                    continue;
                }
                let (new_low, new_high) = (low.min(from), high.max(from + access.size as i64));
                if new_high - new_low <= STRETCH {
                    (low, high) = (new_low, new_high);
                    count += 1;
                    write |= access.write;
                }
            }
            bases.step(insn, &mut self.info);
        }
        (count > 1).then_some((low, high, write))
    }

    /// Brings the host's address of what `way` leads to into `S0`, less the distance that is returned. `S1` is
    /// lost, and the flags of the host unless it is pinned. Where that fails, the interpreter executes `op`, and
    /// code goes on at `resume`, if at all.
    pub(super) fn reach(
        &mut self,
        way: Way,
        target: Target,
        (size, write): (usize, bool),
        op: &Op,
        resume: Option<Label>,
    ) -> i32 {
        match way {
            Way::Pinned(number, distance) => {
                if self.making.loaded != Some(number) || !self.asm.kept(S0) {
                    self.asm.load(S0, pin_slot(number));
                }
                self.hold_pin(number);
                distance
            }
            Way::First(number, distance, len) => {
                let write = self.making.pins.pins[number].is_some_and(|pin| pin.write);
                let failed = self.plainly(op);
                self.linear(target, -distance);
                self.check_target(target, (len, write), failed);
                self.asm.store(8, pin_slot(number), S0);
                self.hold_pin(number);
                distance
            }
            Way::Alone => {
                let failed = self.failed(op, resume);
                self.linear(target, 0);
                self.check_target(target, (size, write), failed);
                0
            }
        }
    }

    /// Makes the linear address of `target` in `S0` a host address, or goes to `failed`.
    fn check_target(&mut self, target: Target, (size, write): (usize, bool), failed: Label) {
        match self.recent(target, size, write) {
            Some(recent) => self.check_recent(recent, size, failed),
            None => self.check(size, write, failed),
        }
    }

    /// `S0` holds a pin, until something is put there.
    fn hold_pin(&mut self, number: usize) {
        self.making.loaded = Some(number);
        self.asm.keep(S0);
    }

    /// The linear address of `target` and some bytes more, into `S0`.
    fn linear(&mut self, target: Target, more: i32) {
        match target {
            Target::Operand(insn) => self.address(insn, more),
            Target::Stack(distance) => self.asm.lea(8, S0, at(SP, distance + more)),
            Target::Base => self.asm.lea(8, S0, at(BP, more)),
        }
    }

    /// Tells whether the access of `way` is known to be aligned to sixteen bytes.
    pub(super) fn known_aligned(&mut self, way: Way, insn: &Instruction) -> bool {
        let (Way::Pinned(number, _) | Way::First(number, ..)) = way else {
            return false;
        };
        let pin = self.making.pins.pins[number];
        let (known, here) = (pin.and_then(|pin| pin.aligned), self.bases.address(insn));
        known.zip(here).is_some_and(|(known, here)| {
            known.base == here.base && known.distance.wrapping_sub(here.distance) & 15 == 0
        })
    }

    /// The access of `way` was found to be aligned.
    pub(super) fn found_aligned(&mut self, way: Way, insn: &Instruction) {
        if let Way::Pinned(number, _) | Way::First(number, ..) = way {
            let here = self.bases.address(insn);
            if let Some(pin) = &mut self.making.pins.pins[number] {
                pin.aligned = here;
            }
        }
    }

    /// Where code goes on behind the current instruction, when the interpreter has executed it: `resume`, unless
    /// there are pins, which are not good any more.
    pub(super) fn behind(&mut self, resume: Label) -> Label {
        if self.making.pins.any() {
            self.plain_at(self.making.index + 1).unwrap_or(resume)
        } else {
            resume
        }
    }

    /// The second making's code of instruction `index`.
    pub(super) fn plain_at(&mut self, index: usize) -> Option<Label> {
        let place = self.making.plain.as_mut()?.get_mut(index)?;
        let label = *place.get_or_insert_with(|| self.asm.label());
        Some(label)
    }
}

/// Tells whether the address of `target` and `more` is made of the same operands.
fn in_reach(target: Target, more: i64) -> bool {
    let Target::Operand(insn) = target else {
        return true;
    };
    let constant = insn.memory_displacement64() as i64;
    let operands = insn.memory_base().is_gpr() || insn.memory_index().is_gpr();
    !operands || i32::try_from(constant.wrapping_add(more)).is_ok()
}

fn pin_slot(number: usize) -> super::asm::Mem {
    frame(slot::PINS + 8 * number as i32)
}

/// Tells whether translated code executes `insn` itself, and its pins stay.
pub fn stays(insn: &Instruction) -> bool {
    is_copied(insn)
        || is_sse(insn)
        || matches!(
            insn.code(),
            Code::Push_r64
                | Code::Push_rm64
                | Code::Pushq_imm8
                | Code::Pushq_imm32
                | Code::Pop_r64
                | Code::Leaveq
                | Code::Lea_r64_m
                | Code::Lea_r32_m
                | Code::Call_rel32_64
                | Code::Call_rm64
                | Code::Retnq
                | Code::Nopd
                | Code::Nop_rm32
                | Code::Endbr64
        )
        || insn.is_jcc_short_or_near()
}
