//! Registers of the frame that a loop uses more than others.
//!
//! Three guest registers live in the frame, because the host has three too few. A unit with a loop that stays in
//! translated code may let them change places with registers that the loop uses less: it does so where it is
//! entered, and takes it back before every way out of it and around every call of the interpreter.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic};
use umbra_x86::state::gpr;

use super::asm::{Asm, Mem, Reg};
use super::emit::Piece;
use super::heads::loops;
use super::layout::{Home, home};
use super::pins::stays;
use crate::native::writes;

/// Guest registers of the frame.
const FRAMED: [u8; 3] = [9, 10, 11];
/// Guest registers that may go there: no instruction that is copied has them as an operand that it does not name,
/// but for strings and LEAVE.
const MOVABLE: [u8; 8] = [5, 6, 7, 8, 12, 13, 14, 15];
/// How much more a loop has to use a register than another one.
const MARGIN: u32 = 3;

/// Which registers change places: of the frame, and of the host.
#[derive(Clone, Debug, Default)]
pub struct Swaps(Vec<(u8, u8)>);

impl Swaps {
    /// What is best for the loops of `pieces`.
    pub fn of(pieces: &[Piece], info: &mut InstructionInfoFactory) -> Self {
        let weights = weigh(pieces, info);
        if weights.iter().all(|weight| *weight == 0) {
            return Self::default();
        }
        let insns = || pieces.iter().flat_map(|piece| &piece.insns);
        let strings = insns().any(Instruction::is_string_instruction);
        let leaves = insns().any(|insn| insn.mnemonic() == Mnemonic::Leave);
        let weight = |number: &u8| weights[usize::from(*number)];
        let mut framed = FRAMED;
        framed.sort_by_key(|number| std::cmp::Reverse(weight(number)));
        let mut movable: Vec<u8> = MOVABLE.into();
        movable.retain(|number| match usize::from(*number) {
            gpr::RSI | gpr::RDI => !strings,
            gpr::RBP => !leaves,
            _ => true,
        });
        movable.sort_by_key(weight);
        let pairs = framed.into_iter().zip(movable);
        Self(
            pairs
                .filter(|(comes, goes)| weight(comes) >= weight(goes) + MARGIN)
                .collect(),
        )
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where guest register `number` is while they have changed places.
    pub fn home(&self, number: u8) -> Home {
        let pair = self.0.iter().find_map(|(comes, goes)| match number & 15 {
            n if n == *comes => Some(*goes),
            n if n == *goes => Some(*comes),
            _ => None,
        });
        home(pair.unwrap_or(number))
    }

    /// Emits what has them change places, or takes it back. `scratch` is lost, and no flag.
    pub fn emit(&self, asm: &mut Asm, scratch: Reg) {
        for (slot, reg) in self.places() {
            asm.load(scratch, slot);
            asm.store(8, slot, reg);
            asm.mov(reg, scratch);
        }
    }

    fn places(&self) -> impl Iterator<Item = (Mem, Reg)> {
        self.0
            .iter()
            .filter_map(|pair| match (home(pair.0), home(pair.1)) {
                (Home::Frame(slot), Home::Host(reg)) => Some((slot, reg)),
                _ => None,
            })
    }
}

/// How often each register is used in loops that neither leave the unit nor call the interpreter.
fn weigh(pieces: &[Piece], info: &mut InstructionInfoFactory) -> [u32; 16] {
    let mut weights = [0; 16];
    let quick = |body: &Vec<&Instruction>| body.iter().all(|insn| is_quick(insn));
    for insn in loops(pieces).into_iter().filter(quick).flatten() {
        for used in info.info(insn).used_registers() {
            let (register, access) = (used.register(), used.access());
            if register.is_gpr() {
                let number = register.full_register().number();
                weights[number & 15] += 1 + u32::from(writes(access));
            }
        }
    }
    weights
}

/// Tells whether the unit executes `insn` itself, and stays in itself.
fn is_quick(insn: &Instruction) -> bool {
    use FlowControl::*;
    match insn.flow_control() {
        Next => stays(insn),
        ConditionalBranch | UnconditionalBranch => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    /// The swaps of a unit that is entered in front of its one loop.
    fn swaps(code: &[u8]) -> Swaps {
        let piece = |rip, code| Piece {
            rip,
            insns: Decoder::with_ip(64, code, rip, DecoderOptions::NONE)
                .into_iter()
                .collect(),
            ops: Vec::new(),
            ended: false,
        };
        let pieces = [piece(0x1000, &[0x90]), piece(0x1001, code)];
        Swaps::of(&pieces, &mut InstructionInfoFactory::new())
    }

    #[test]
    fn what_a_loop_uses_most_is_in_host_registers() {
        // add r9, r10; xor r10, r9; dec ecx; jnz
        let code = [0x4d, 0x01, 0xd1, 0x4d, 0x31, 0xca, 0xff, 0xc9, 0x75, 0xf6];
        let found = swaps(&code);
        assert_eq!(found.0.len(), 2);
        for number in 0..16 {
            let pair = |to| found.0.contains(&(number, to)) || found.0.contains(&(to, number));
            match found.home(number) {
                Home::Frame(_) => assert!(number == 11 || pair(9) || pair(10), "{number}"),
                Home::Host(_) => assert_ne!(number, 11),
            }
        }
        assert!(matches!(found.home(9), Home::Host(_)));
        assert!(matches!(found.home(10), Home::Host(_)));
    }

    #[test]
    fn a_loop_that_leaves_has_nothing_of_it() {
        // The same with a call, with CPUID, and without a way back.
        for code in [
            &[
                0x4d, 0x01, 0xd1, 0x4d, 0x31, 0xca, 0xe8, 0, 1, 0, 0, 0x75, 0xf3,
            ][..],
            &[0x4d, 0x01, 0xd1, 0x4d, 0x31, 0xca, 0x0f, 0xa2, 0x75, 0xf6],
            &[0x4d, 0x01, 0xd1, 0x4d, 0x31, 0xca, 0xff, 0xc9, 0x75, 0x06],
        ] {
            assert!(swaps(code).is_empty(), "{code:x?}");
        }
    }

    #[test]
    fn registers_that_strings_name_stay() {
        let body = [
            0x4d, 0x01, 0xd1, 0x4d, 0x31, 0xca, 0x4d, 0x01, 0xdb, 0xff, 0xc9, 0x75, 0xf3,
        ];
        let of_strings = |swaps: &Swaps| swaps.0.iter().any(|pair| [6, 7].contains(&pair.1));
        assert!(of_strings(&swaps(&body)));
        // rep stosb behind the loop; leave
        let strings = [&body[..], &[0xf3, 0xaa, 0xc9]].concat();
        let found = swaps(&strings);
        assert_eq!(found.0.len(), 3);
        assert!(!of_strings(&found) && !found.0.iter().any(|pair| pair.1 == 5));
    }
}
