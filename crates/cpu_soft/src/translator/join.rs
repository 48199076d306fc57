//! Which pieces follow each other directly, and those that are one in truth.
//!
//! What a piece leads to and nothing else does is made together with it, as one piece with a branch inside: what is
//! known at its end (where the flags are, which checks were made) is still known.

use iced_x86::{FlowControl, Instruction};

use super::emit::Piece;

/// Where a piece leads to directly, the likelier place last.
pub fn leads_to(piece: &Piece) -> Vec<u64> {
    let Some(last) = piece.insns.last() else {
        return Vec::new();
    };
    if last.is_jcc_short_or_near() {
        vec![last.near_branch_target(), last.next_ip()]
    } else if last.is_jmp_short_or_near() {
        vec![last.near_branch_target()]
    } else if ends(last) {
        Vec::new()
    } else {
        vec![last.next_ip()]
    }
}

/// Tells whether nothing follows `insn` directly.
fn ends(insn: &Instruction) -> bool {
    insn.flow_control() != FlowControl::Next
}

/// Where the code behind the last instruction of `piece` could be made: the address that follows, or where a branch
/// forward goes. A branch back has to stay one, for who executes it looks whether somebody wants attention.
fn continues_at(piece: &Piece) -> Option<u64> {
    let last = piece.insns.last()?;
    if last.is_jmp_short_or_near() {
        let target = last.near_branch_target();
        return (target > last.ip()).then_some(target);
    }
    (last.is_jcc_short_or_near() || !piece.ended && !ends(last)).then_some(last.next_ip())
}

/// Joins pieces to what only they lead to. The first stays the first.
pub fn join(mut pieces: Vec<Piece>) -> Vec<Piece> {
    let targets: Vec<u64> = pieces.iter().flat_map(leads_to).collect();
    let only = |rip| targets.iter().filter(|target| **target == rip).count() == 1;
    let mut joined: Vec<Piece> = Vec::with_capacity(pieces.len());
    pieces.reverse();
    while let Some(mut piece) = pieces.pop() {
        while let Some(rip) = continues_at(&piece).filter(|rip| only(*rip)) {
            if let Some(i) = pieces.iter().position(|p| p.rip == rip) {
                piece.add(pieces.remove(i));
            } else if let Some(i) = joined.iter().skip(1).position(|p| p.rip == rip) {
                piece.add(joined.remove(i + 1));
            } else {
                break;
            }
        }
        joined.push(piece);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn piece(rip: u64, code: &[u8]) -> Piece {
        let insns: Vec<_> = Decoder::with_ip(64, code, rip, DecoderOptions::NONE)
            .into_iter()
            .collect();
        Piece {
            rip,
            insns,
            ops: Vec::new(),
            ended: false,
        }
    }

    fn joined(pieces: Vec<Piece>) -> Vec<(u64, usize)> {
        let joined = join(pieces);
        joined.iter().map(|p| (p.rip, p.insns.len())).collect()
    }

    #[test]
    fn what_only_one_piece_leads_to_is_part_of_it() {
        // je 0x1010; nop, ret | 0x1010: jmp 0x1020 | 0x1020: nop
        let pieces = || {
            vec![
                piece(0x1000, &[0x74, 0x0e]),
                piece(0x1002, &[0x90, 0xc3]),
                piece(0x1010, &[0xeb, 0x0e]),
                piece(0x1020, &[0x90, 0xc3]),
            ]
        };
        assert_eq!(joined(pieces()), [(0x1000, 3), (0x1010, 3)]);
        // Somebody else leads to 0x1002.
        let mut more = pieces();
        more.push(piece(0x1030, &[0x75, 0xd0]));
        assert_eq!(
            joined(more),
            [(0x1000, 1), (0x1002, 2), (0x1010, 3), (0x1030, 1)]
        );
    }

    #[test]
    fn a_piece_that_was_joined_already_is_joined_with_what_it_has() {
        let pieces = vec![
            piece(0x1000, &[0x74, 0x1e]),
            // 0x1020 first, then what leads to it.
            piece(0x1020, &[0x74, 0x0e]),
            piece(0x1022, &[0xc3]),
            piece(0x1002, &[0xeb, 0x2c]),
            piece(0x1030, &[0xc3]),
        ];
        // 0x1030 is led to by 0x1020 and 0x1002; 0x1022 by 0x1020 only.
        assert_eq!(joined(pieces), [(0x1000, 2), (0x1020, 2), (0x1030, 1)]);
    }

    #[test]
    fn loops_and_the_entry_stay_apart() {
        // 0x1000: nop; jmp 0x1000, made twice: as the entry, and as what it leads to.
        let entry = || piece(0x1000, &[0x90, 0xeb, 0xfd]);
        assert_eq!(joined(vec![entry(), entry()]), [(0x1000, 2), (0x1000, 2)]);
    }
}
