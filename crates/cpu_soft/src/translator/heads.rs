//! Where a piece that is gone to inside a unit expects the flags.
//!
//! All ways to a piece's head bring the flags to the same place, and which one is cheapest is decided by what the
//! piece does first: replace them, read them, or disturb them by a check.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::asm::Label;
use super::copy::is_copied;
use super::emit::{Piece, is_nothing, poll_place};
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
}

/// Where the flags are best at the head of `pieces[at]`.
pub fn flags_at(pieces: &[Piece], at: usize) -> Flags {
    let piece = &pieces[at];
    match first_use(piece) {
        // A conditional branch has them in the host's flags and goes there directly; who is in the piece saves
        // them as well as who comes.
        Flags::Saved if branched_to(pieces, piece.rip) => Flags::Host,
        flags => flags,
    }
}

fn first_use(piece: &Piece) -> Flags {
    let poll = poll_place(piece);
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
