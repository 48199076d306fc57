//! What is agreed on for the heads of pieces that are gone to inside a unit.
//!
//! All ways to a head bring the flags to the same place, and which one is cheapest is decided by what the piece does
//! first: replace them, read them, or disturb them by a check.
//!
//! Every cycle looks somewhere whether somebody wants attention. It has a branch backwards: either the piece looks
//! in front of that, or the piece that it goes to does, before it branches. The check of an access is such a look
//! ([`gate`](crate::gate)), and so is what the interpreter executes.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};

use super::asm::Label;
use super::copy::is_copied;
use super::emit::{Piece, is_nothing};
use super::flags::{Effect, Place, Recipe, effect};
use super::layout::{Home, is_high_byte};
use super::memory::{has_memory, is_plain};
use super::sse::is_sse;

/// Where flags are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// In the host's flags.
    Host,
    /// In the frame.
    Saved,
    /// Nowhere: they are replaced before anything could look at them.
    Dead,
    /// Nowhere, but all who come can compute them so.
    Computed(Recipe),
}

impl Flags {
    /// Where they are at the head, then. What is dead is said to be in the host's flags, for nothing disturbs
    /// those before they are replaced.
    pub fn place(self) -> Place {
        match self {
            Self::Host | Self::Dead => Place::HOST,
            Self::Saved => Place::SAVED,
            Self::Computed(recipe) => Place::computed(recipe),
        }
    }

    /// Tells whether a conditional branch may go there as it is, with its flags at `place`.
    pub fn admits(self, place: &Place) -> bool {
        match self {
            Self::Host | Self::Dead => true,
            Self::Saved => false,
            Self::Computed(_) => self.is_within_reach(place),
        }
    }

    /// Tells whether flags that are at `place` can be brought there.
    pub fn is_within_reach(self, place: &Place) -> bool {
        !matches!(self, Self::Computed(recipe) if place.recipe != Some(recipe))
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

/// How a piece looks whether somebody wants attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Before this instruction, at the word for that.
    Before(usize),
    /// By this instruction, the first of the piece that accesses memory.
    By(usize),
}

impl Poll {
    /// Whoever has executed this instruction has looked.
    pub fn index(self) -> usize {
        match self {
            Self::Before(at) | Self::By(at) => at,
        }
    }
}

/// The heads of all pieces but the first, which look at these places, with registers at their `home`.
pub fn heads(
    pieces: &[Piece],
    polls: &[Option<Poll>],
    home: impl Fn(u8) -> Home,
    mut label: impl FnMut() -> Label,
) -> Vec<Head> {
    let inside = pieces.iter().zip(polls).skip(1);
    inside
        .map(|(piece, poll)| Head {
            rip: piece.rip,
            label: label(),
            flags: flags_at(pieces, piece, *poll, &home),
            polls: poll.is_some_and(|poll| is_first(piece, poll.index())),
        })
        .collect()
}

/// How each piece looks whether somebody wants attention, if it does. Where there is a `gate`, accesses do.
pub fn poll_places(pieces: &[Piece], gate: bool) -> Vec<Option<Poll>> {
    let mut places: Vec<_> = pieces.iter().map(|piece| poll_place(piece, gate)).collect();
    // Those that spare others from it. Without them, these look on their way.
    let mut kept = vec![false; pieces.len()];
    for (i, piece) in pieces.iter().enumerate() {
        if kept[i] || !matches!(places[i], Some(Poll::Before(_))) {
            continue;
        }
        let targets = backward(piece).map(|(_, target)| {
            let at = pieces.iter().skip(1).position(|p| p.rip == target)? + 1;
            let polls = places[at].is_some_and(|poll| is_first(&pieces[at], poll.index()));
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

/// How a piece with a branch backwards looks in front of that: by an access, or before the last instruction that
/// replaces all flags and cannot fault, for there they need not survive.
fn poll_place(piece: &Piece, gate: bool) -> Option<Poll> {
    let end = backward(piece).next()?.0;
    if let Some(at) = piece.insns[..end]
        .iter()
        .position(accesses)
        .filter(|_| gate)
    {
        return Some(Poll::By(at));
    }
    let replaces = |insn: &Instruction| {
        effect(insn) == Effect::Replaces && is_copied(insn) && !has_memory(insn)
    };
    let at = piece.insns[..end].iter().rposition(replaces)?;
    Some(Poll::Before(at))
}

/// Tells whether `insn` accesses memory, whatever registers hold: in a piece of which it is the first that does, the
/// access is checked, or the interpreter executes it.
fn accesses(insn: &Instruction) -> bool {
    let operand = has_memory(insn) && (is_copied(insn) || is_sse(insn)) && !is_nothing(insn);
    operand
        || matches!(
            insn.code(),
            Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Pop_r64 | Code::Leaveq
        )
}

/// The instructions of each loop, those between a branch backwards and a head that it goes to.
pub fn loops(pieces: &[Piece]) -> Vec<Vec<&Instruction>> {
    let insns = || pieces.iter().flat_map(|piece| &piece.insns);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for piece in pieces {
        for (i, target) in backward(piece) {
            let range = (target, piece.insns[i].ip());
            let inside = pieces.iter().skip(1).any(|piece| piece.rip == target);
            if inside && !ranges.contains(&range) {
                ranges.push(range);
            }
        }
    }
    let body = |(first, last)| {
        let mut body: Vec<_> = insns()
            .filter(|insn| (first..=last).contains(&insn.ip()))
            .collect();
        // What is in two pieces is there once.
        body.sort_by_key(|insn| insn.ip());
        body.dedup_by_key(|insn| insn.ip());
        body
    };
    ranges.into_iter().map(body).collect()
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
fn flags_at(
    pieces: &[Piece],
    piece: &Piece,
    poll: Option<Poll>,
    home: impl Fn(u8) -> Home,
) -> Flags {
    match first_use(piece, poll) {
        // A conditional branch has them in the host's flags and goes there directly; who is in the piece saves
        // them as well as who comes.
        Flags::Saved => match agreed(pieces, piece.rip, home) {
            Some(recipe) => Flags::Computed(recipe),
            None if branched_to(pieces, piece.rip) => Flags::Host,
            None => Flags::Saved,
        },
        flags => flags,
    }
}

/// How the flags come about of all who come to the head at `rip`, if it is the same for all.
fn agreed(pieces: &[Piece], rip: u64, home: impl Fn(u8) -> Home) -> Option<Recipe> {
    let mut agreed = None;
    for piece in pieces {
        for (i, insn) in piece.insns.iter().enumerate() {
            let jumps = insn.is_jmp_short_or_near();
            let branches = jumps || insn.is_jcc_short_or_near();
            let last = i + 1 == piece.insns.len() && !jumps;
            let comes =
                branches && insn.near_branch_target() == rip || last && insn.next_ip() == rip;
            if !comes {
                continue;
            }
            let mut before = piece.insns[..=i].iter().rev();
            let branch =
                |insn: &&Instruction| insn.is_jmp_short_or_near() || insn.is_jcc_short_or_near();
            let source = before.find(|insn| !branch(insn))?;
            let replaces = effect(source) == Effect::Replaces && !has_memory(source);
            let recipe = replaces.then(|| Recipe::of(source, &home)).flatten()?;
            if agreed.is_some_and(|agreed| agreed != recipe) {
                return None;
            }
            agreed = Some(recipe);
        }
    }
    agreed
}

fn first_use(piece: &Piece, poll: Option<Poll>) -> Flags {
    for (i, insn) in piece.insns.iter().enumerate() {
        if poll == Some(Poll::Before(i)) {
            return Flags::Saved;
        }
        if let Some(flags) = wanted_by(insn) {
            return flags;
        }
    }
    Flags::Host
}

/// Tells whether the flags are replaced by what follows instruction `at` before anything could look at them: another
/// instruction, one that fails, or who looks whether somebody wants attention.
pub fn are_dead_behind(insns: &[Instruction], at: usize, poll: Option<Poll>) -> bool {
    for (i, insn) in insns.iter().enumerate().skip(at + 1) {
        if poll == Some(Poll::Before(i)) {
            return false;
        }
        if let Some(flags) = wanted_by(insn) {
            return flags == Flags::Dead;
        }
    }
    false
}

/// Where `insn` wants the flags; `None` if it neither looks at them nor disturbs them, whatever it does. One that
/// wants them dead is sure to be translated.
fn wanted_by(insn: &Instruction) -> Option<Flags> {
    if is_nothing(insn) || only_moves(insn) {
        return None;
    }
    // A move from CR0 may be refused, and leaves the flags undefined. AH to DH are not encoded with every register.
    let general = |i| match insn.op_kind(i) {
        OpKind::Register => {
            let register = insn.op_register(i);
            register.is_gpr() && !is_high_byte(register)
        }
        OpKind::Memory => false,
        _ => true,
    };
    let plain = is_copied(insn) && (0..insn.op_count()).all(general);
    Some(match effect(insn) {
        Effect::Replaces if plain => Flags::Dead,
        Effect::Reads | Effect::Changes if plain => Flags::Host,
        _ if insn.is_jcc_short_or_near() => Flags::Host,
        _ => Flags::Saved,
    })
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

#[cfg(test)]
mod tests {
    use super::super::asm::Asm;
    use super::super::layout::home;
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    /// Pieces of a page, each code at an address; the first is the entry.
    fn pieces(code: &[(u64, &[u8])]) -> Vec<Piece> {
        let piece = |(rip, bytes): &(u64, &[u8])| Piece {
            rip: *rip,
            insns: Decoder::with_ip(64, bytes, *rip, DecoderOptions::NONE)
                .into_iter()
                .collect(),
            ops: Vec::new(),
            ended: false,
        };
        code.iter().map(piece).collect()
    }

    fn flags(code: &[u8]) -> Flags {
        let pieces = pieces(&[(0x1000, &[0x90]), (0x1001, code)]);
        heads(&pieces, &poll_places(&pieces, false), home, || {
            Asm::default().label()
        })[0]
            .flags
    }

    #[test]
    fn flags_are_where_the_piece_wants_them() {
        // mov eax, ecx; lea rdx, [rsp+8]; add eax, 1
        let moves = [0x89, 0xc8, 0x48, 0x8d, 0x54, 0x24, 8, 0x83, 0xc0, 1];
        assert_eq!(flags(&moves), Flags::Dead);
        // inc eax leaves CF; adc reads it; jc, too; cmovb
        for code in [
            &[0xff, 0xc0][..],
            &[0x11, 0xc0],
            &[0x72, 4],
            &[0x0f, 0x42, 0xc1],
        ] {
            assert_eq!(flags(code), Flags::Host, "{code:x?}");
        }
        // add eax, [rdi]; push rax; cpuid; mov rax, cr0; mov ah, cl, which cannot be encoded with every register
        for code in [
            &[0x03, 0x07][..],
            &[0x50],
            &[0x0f, 0xa2],
            &[0x0f, 0x20, 0xc0],
            &[0x88, 0xcc],
        ] {
            assert_eq!(flags(code), Flags::Saved, "{code:x?}");
        }
        // A shift by CL may leave them all.
        assert_eq!(flags(&[0xd3, 0xe0, 0x01, 0xc0]), Flags::Host);
    }

    #[test]
    fn flags_are_dead_where_they_are_replaced_before_anybody_looks() {
        let dead =
            |code: &[u8], poll| are_dead_behind(&pieces(&[(0x1000, code)])[0].insns, 0, poll);
        // mov rax, [rsi]; mov ecx, eax; add rdx, rax
        let code = [0x48, 0x8b, 0x06, 0x89, 0xc1, 0x48, 0x01, 0xc2];
        assert!(dead(&code, None) && dead(&code, Some(Poll::By(0))));
        assert!(!dead(&code, Some(Poll::Before(1))) && !dead(&code, Some(Poll::Before(2))));
        assert!(!dead(&code[..5], None), "the piece ends");
        // Behind the load: adc rdx, rax; je; jmp; mov ecx, [rax]; inc edx; add ch, al; add [rax], edx; shl edx, cl
        for next in [
            &[0x48, 0x11, 0xc2][..],
            &[0x74, 0],
            &[0xeb, 0],
            &[0x8b, 0x08],
            &[0xff, 0xc2],
            &[0x00, 0xc5],
            &[0x01, 0x10],
            &[0xd3, 0xe2],
        ] {
            let code = [&code[..3], next, &code[5..]].concat();
            assert!(!dead(&code, None), "{next:x?}");
        }
    }

    #[test]
    fn who_is_branched_to_by_a_condition_gets_the_flags_of_the_host() {
        // 0x1001: add eax, [rdi]; dec ecx; jne 0x1001
        let code = [0x03, 0x07, 0xff, 0xc9, 0x75, 0xfa];
        assert_eq!(flags(&code), Flags::Host);
    }

    #[test]
    fn who_comes_by_one_branch_may_compute_them() {
        // 0x1001: add eax, [rdi]; cmp eax, ecx; jne 0x1001
        let code = [0x03, 0x07, 0x39, 0xc8, 0x75, 0xfa];
        let flags = |first: &[u8]| {
            let pieces = pieces(&[(0x1010, first), (0x1001, &code)]);
            heads(&pieces, &poll_places(&pieces, false), home, || {
                Asm::default().label()
            })[0]
                .flags
        };
        let computed = flags(&[0x90]);
        let Flags::Computed(recipe) = computed else {
            panic!("{computed:?}");
        };
        assert!(computed.admits(&Place::computed(recipe)));
        assert!(!computed.admits(&Place::HOST) && !computed.is_within_reach(&Place::BOTH));
        // Another branch leads there, too: jne; jmp. And who comes from above.
        for other in [&[0x75, 0xef][..], &[0xeb, 0xef]] {
            assert_eq!(flags(other), Flags::Host, "{other:x?}");
        }
        let above = pieces(&[(0x1000, &[0x90]), (0x1001, &code)]);
        let heads = heads(&above, &poll_places(&above, false), home, || {
            Asm::default().label()
        });
        assert_eq!(heads[0].flags, Flags::Host);
    }

    #[test]
    fn who_comes_by_any_branch_may_compute_them_in_the_same_way() {
        // 0x1010: cmp eax, ecx; je 0x1020; and another that jumps there
        let one = [0x39, 0xc8, 0x74, 0x0c];
        let other = |compare: &[u8]| [compare, &[0xeb, 0xee]].concat();
        let flags = |compare: &[u8]| {
            let other = other(compare);
            let pieces = pieces(&[
                (0x1010, &one),
                (0x1030 - compare.len() as u64, &other),
                (0x1020, &[0x03, 0x07]),
            ]);
            heads(&pieces, &poll_places(&pieces, true), home, || {
                Asm::default().label()
            })[1]
                .flags
        };
        assert!(matches!(flags(&[0x39, 0xc8]), Flags::Computed(_)));
        // cmp ecx, eax; cmp eax, [rdi]; mov ecx, eax
        for compare in [[0x39, 0xc1], [0x3b, 0x07], [0x89, 0xc1]] {
            assert_eq!(flags(&compare), Flags::Host, "{compare:x?}");
        }
    }

    /// Whether every cycle of the pieces looks somewhere.
    fn all_cycles_look(pieces: &[Piece], gate: bool) -> bool {
        let polls = poll_places(pieces, gate);
        let heads = heads(pieces, &polls, home, || Asm::default().label());
        // Ways from piece to piece on which nobody looks.
        let mut blind = vec![Vec::new(); pieces.len()];
        for (at, piece) in pieces.iter().enumerate() {
            for (i, insn) in piece.insns.iter().enumerate() {
                let mut ways = Vec::new();
                if insn.is_jcc_short_or_near() || insn.is_jmp_short_or_near() {
                    ways.push(insn.near_branch_target());
                }
                if i + 1 == piece.insns.len() && !insn.is_jmp_short_or_near() {
                    ways.push(insn.next_ip());
                }
                for target in ways {
                    let Some(to) = heads.iter().position(|head| head.rip == target) else {
                        continue;
                    };
                    let polled = polls[at].is_some_and(|poll| poll.index() <= i);
                    let ahead = target > insn.ip() || polled;
                    let looks = polled || !ahead && !heads[to].polls;
                    if !looks {
                        blind[at].push(to + 1);
                    }
                }
            }
        }
        // Without those that lead nowhere, nothing is left if there is no cycle.
        let mut left: Vec<bool> = vec![true; pieces.len()];
        loop {
            let ends = |at: &usize| left[*at] && !blind[*at].iter().any(|to| left[*to]);
            match (0..pieces.len()).find(ends) {
                Some(at) => left[at] = false,
                None => return !left.contains(&true),
            }
        }
    }

    #[test]
    fn every_cycle_looks_whether_somebody_wants_attention() {
        let mut seed = 88_172_645_463_325_252u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for round in 0..20_000 {
            let count = 1 + random(6);
            let rip = |at: u64| 0x1000 + 0x10 * at;
            let mut code: Vec<(u64, Vec<u8>)> = Vec::new();
            for at in 0..count {
                let mut bytes = Vec::new();
                for _ in 0..random(4) {
                    // add eax, ecx; mov eax, [rdi]; mov eax, ecx; a branch
                    match random(4) {
                        0 => bytes.extend([0x01, 0xc8]),
                        1 => bytes.extend([0x8b, 0x07]),
                        2 => bytes.extend([0x89, 0xc8]),
                        _ => {
                            let next = rip(at) + bytes.len() as u64 + 2;
                            bytes.extend([0x75, rip(random(count)).wrapping_sub(next) as u8]);
                        }
                    }
                }
                let next = rip(at) + bytes.len() as u64 + 2;
                bytes.extend([0xeb, rip(random(count + 1)).wrapping_sub(next) as u8]);
                code.push((rip(at), bytes));
            }
            for at in 0..code.len() {
                code.swap(at, random(count) as usize);
            }
            // The entry is made twice.
            code.insert(0, code[random(count) as usize].clone());
            let code: Vec<(u64, &[u8])> = code.iter().map(|(at, c)| (*at, &c[..])).collect();
            for gate in [false, true] {
                assert!(
                    all_cycles_look(&pieces(&code), gate),
                    "{round}: {code:x?}, {gate}"
                );
            }
        }
    }
}
