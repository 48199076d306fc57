//! What is agreed on for the heads of pieces that are gone to inside a unit.
//!
//! All ways to a head bring the flags to the same place, and which one is cheapest is decided by what the piece does
//! first: replace them, read them, or disturb them by a check.
//!
//! Every cycle looks somewhere whether somebody wants attention. It has a branch backwards: either the piece looks
//! in front of that, or the piece that it goes to does, before it branches.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};

use super::asm::Label;
use super::copy::is_copied;
use super::emit::{Piece, is_nothing};
use super::flags::{Effect, Place, effect};
use super::memory::{has_memory, is_plain};

/// Where flags are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// In the host's flags.
    Host,
    /// In the frame.
    Saved,
    /// Nowhere: they are replaced before anything could look at them.
    Dead,
}

impl Flags {
    /// Where they are at the head, then. What is dead is said to be in the host's flags, for nothing disturbs
    /// those before they are replaced.
    pub fn place(self) -> Place {
        match self {
            Self::Host | Self::Dead => Place::HOST,
            Self::Saved => Place::SAVED,
        }
    }
}

/// The start of a piece that is gone to inside.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub rip: u64,
    pub label: Label,
    pub flags: Flags,
    /// Who goes there need not look whether somebody wants attention.
    pub polls: bool,
}

/// The heads of all pieces but the first, which look at these places.
pub fn heads(
    pieces: &[Piece],
    polls: &[Option<usize>],
    mut label: impl FnMut() -> Label,
) -> Vec<Head> {
    let inside = pieces.iter().zip(polls).skip(1);
    inside
        .map(|(piece, poll)| Head {
            rip: piece.rip,
            label: label(),
            flags: flags_at(pieces, piece, *poll),
            polls: poll.is_some_and(|poll| is_first(piece, poll)),
        })
        .collect()
}

/// Before which instruction each piece looks whether somebody wants attention, if it does.
pub fn poll_places(pieces: &[Piece]) -> Vec<Option<usize>> {
    let mut places: Vec<_> = pieces.iter().map(poll_place).collect();
    // Those that others rely on.
    let mut kept = vec![false; pieces.len()];
    for (i, piece) in pieces.iter().enumerate() {
        if kept[i] || places[i].is_none() {
            continue;
        }
        let targets = backward(piece).map(|(_, target)| {
            let at = pieces.iter().skip(1).position(|p| p.rip == target)? + 1;
            let polls = places[at].is_some_and(|poll| is_first(&pieces[at], poll));
            (at != i && polls).then_some(at)
        });
        if let Some(targets) = targets.collect::<Option<Vec<_>>>() {
            places[i] = None;
            for at in targets {
                kept[at] = true;
            }
        }
    }
    places
}

/// Where in a piece with a branch backwards to look: before the last instruction in front of it that replaces all
/// flags and cannot fault, for there they need not survive.
fn poll_place(piece: &Piece) -> Option<usize> {
    let end = backward(piece).next()?.0;
    let replaces = |insn: &Instruction| {
        effect(insn) == Effect::Replaces && is_copied(insn) && !has_memory(insn)
    };
    piece.insns[..end].iter().rposition(replaces)
}

/// The branches backwards of a piece, and where they go.
fn backward(piece: &Piece) -> impl Iterator<Item = (usize, u64)> {
    let insns = piece.insns.iter().enumerate();
    insns.filter_map(|(i, insn)| {
        let near = insn.is_jmp_short_or_near() || insn.is_jcc_short_or_near();
        let target = insn.near_branch_target();
        (near && target <= insn.ip()).then_some((i, target))
    })
}

/// Tells whether everybody who enters the piece comes to instruction `at`.
fn is_first(piece: &Piece, at: usize) -> bool {
    let mut before = piece.insns[..at].iter();
    before.all(|insn| insn.flow_control() == FlowControl::Next)
}

/// Where the flags are best at the head of `piece`.
fn flags_at(pieces: &[Piece], piece: &Piece, poll: Option<usize>) -> Flags {
    match first_use(piece, poll) {
        // A conditional branch has them in the host's flags and goes there directly; who is in the piece saves
        // them as well as who comes.
        Flags::Saved if branched_to(pieces, piece.rip) => Flags::Host,
        flags => flags,
    }
}

fn first_use(piece: &Piece, poll: Option<usize>) -> Flags {
    for (i, insn) in piece.insns.iter().enumerate() {
        if poll == Some(i) {
            return Flags::Saved;
        }
        if is_nothing(insn) || only_moves(insn) {
            continue;
        }
        let plain = is_copied(insn) && !has_memory(insn);
        match effect(insn) {
            Effect::Replaces if plain => return Flags::Dead,
            Effect::Reads | Effect::Changes if plain => return Flags::Host,
            _ if insn.is_jcc_short_or_near() => return Flags::Host,
            _ => return Flags::Saved,
        }
    }
    Flags::Host
}

/// Tells whether `insn` moves what registers hold, and is sure to be translated.
fn only_moves(insn: &Instruction) -> bool {
    let wide = |i| insn.op_register(i).is_gpr32() || insn.op_register(i).is_gpr64();
    match insn.mnemonic() {
        Mnemonic::Lea => wide(0) && is_plain(insn),
        Mnemonic::Mov => {
            let source = insn.op1_kind();
            wide(0) && source != OpKind::Memory && (source != OpKind::Register || wide(1))
        }
        _ => false,
    }
}

fn branched_to(pieces: &[Piece], rip: u64) -> bool {
    let mut insns = pieces.iter().flat_map(|piece| &piece.insns);
    insns.any(|insn: &Instruction| insn.is_jcc_short_or_near() && insn.near_branch_target() == rip)
}
