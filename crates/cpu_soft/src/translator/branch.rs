//! Near branches, and how code is left for code.
//!
//! Inside a unit a branch is a host branch. To another unit of the page it goes through a link; to
//! another page, or by register, through the jumps of the context, which say where an address was
//! translated to *in this address space*; the kernel's own branches between global pages get links, too. Every way back
//! looks whether somebody wants attention, unless its piece has looked by an access or the piece that it goes to does
//! so itself, and so does every way whose target is not known to lie ahead: no loop is without such a way.

use iced_x86::{Code, Instruction, OpKind};

use super::asm::{Alu, Label, Reg, at, cc};
use super::cache::Link;
use super::emit::{Cold, Emitter, Tail};
use super::heads::{Flags, Head};
use super::layout::{S0, S1, SP, frame, slot};
use super::memory::is_plain;
use super::pins::{Target, Way};
use crate::jumps::{JUMP_FACTOR, JUMPS, Jump, SPARE, code_index, translated_tag};
use crate::op::{Leave, Op};
use crate::ops::branch::KNOWN;

const TAG: i32 = std::mem::offset_of!(Jump, tag) as i32;
const CODE: i32 = std::mem::offset_of!(Jump, packed) as i32;
const JUMP_SHIFT: u8 = size_of::<Jump>().trailing_zeros() as u8;
const _: () = assert!(size_of::<Jump>().is_power_of_two());

impl Emitter<'_> {
    /// Emits a near branch of 64-bit code; tells whether the next instruction follows it. `None` for
    /// anything else. The piece goes on at `inside`.
    pub(super) fn branch(
        &mut self,
        insn: &Instruction,
        op: &Op,
        inside: Option<u64>,
    ) -> Option<bool> {
        if insn.is_jcc_short_or_near() && op.extra == KNOWN {
            self.conditional(insn);
            if inside.is_none() {
                self.edge(insn.next_ip(), insn.ip());
            }
            return Some(inside.is_some());
        }
        match insn.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 if op.extra == KNOWN => {
                if inside.is_some() {
                    return Some(true);
                }
                self.edge(insn.near_branch_target(), insn.ip());
            }
            Code::Call_rel32_64 if op.extra == KNOWN => self.call_direct(insn, op),
            Code::Jmp_rm64 if simple(insn) => self.jump_indirect(insn, op),
            Code::Call_rm64 if simple(insn) => self.call_indirect(insn, op),
            Code::Retnq | Code::Retnq_imm16 => self.ret(insn, op),
            _ => return None,
        }
        Some(false)
    }

    fn conditional(&mut self, insn: &Instruction) {
        self.require_sse();
        self.place.restore(&mut self.asm);
        let (target, condition) = (insn.near_branch_target(), insn.condition_code());
        let Some(condition) = crate::decode::condition(condition) else {
            return;
        };
        let ready = target > insn.ip() || self.polled;
        match self.head(target) {
            Some(head) if (ready || head.polls) && head.flags.admits(&self.place) => {
                self.asm.jcc(condition, head.label);
            }
            _ => {
                let label = self.asm.label();
                self.asm.jcc(condition, label);
                self.tails.push(Tail {
                    label,
                    place: self.place,
                    from: insn.ip(),
                    target,
                    polled: self.polled,
                });
            }
        }
    }

    fn head(&self, target: u64) -> Option<Head> {
        self.heads.iter().find(|head| head.rip == target).copied()
    }

    /// Goes from the instruction at `from` to `target`.
    pub(super) fn edge(&mut self, target: u64, from: u64) {
        if self.alone {
            self.place.save(&mut self.asm);
            self.leave(target, Leave::Done);
            return;
        }
        let ahead = target > from || self.polled;
        let head = self.head(target);
        if let Some(head) = head.filter(|head| head.flags.is_within_reach(&self.place)) {
            self.require_sse();
            if !ahead && !head.polls {
                self.poll(target);
            }
            match head.flags {
                Flags::Host => self.place.restore(&mut self.asm),
                Flags::Saved => self.place.save(&mut self.asm),
                Flags::Dead | Flags::Computed(_) => {}
            }
            if self.following != Some(target) {
                self.asm.jmp(head.label);
            }
            return;
        }
        self.place.save(&mut self.asm);
        if target & !0xfff != self.page.0 {
            self.far_edge(target);
            return;
        }
        if !ahead {
            self.poll(target);
        }
        let link = self.link(target);
        self.ask(link, target);
    }

    /// Jumps through a new link. What follows is where it leads until it is connected.
    fn link(&mut self, target: u64) -> Link {
        self.settle(S0);
        let link = self.cache.link();
        let place = self.cache.place(link);
        self.count_crossing(S0);
        self.asm.jmp_through(place);
        let ask = self.asm.here();
        self.links.push((link, ask, target));
        link
    }

    /// Counts that the unit is left for another one, if that is wanted. `scratch` is lost, and the host's flags.
    fn count_crossing(&mut self, scratch: Reg) {
        if self.glue.measured {
            self.asm.load(scratch, frame(slot::CPU));
            self.asm.increment(at(scratch, super::glue::CROSSINGS));
        }
    }

    /// Leaves for `target`, and asks to have `link` lead there.
    fn ask(&mut self, link: Link, target: u64) {
        self.asm.load(S0, frame(slot::CPU));
        self.asm
            .store_imm(at(S0, super::glue::LINK), link.number() as i32 + 1);
        self.leave(target, Leave::Done);
    }

    /// Goes to another page. Flags are in the frame.
    fn far_edge(&mut self, target: u64) {
        if !self.polled {
            self.poll(target);
        }
        let link = self.link(target);
        let distance = (code_index(target) as i32) << JUMP_SHIFT;
        self.asm.load(S1, frame(slot::JUMPS));
        self.asm.imm(S0, translated_tag(target));
        for place in [distance, distance ^ SPARE as i32] {
            let missed = self.asm.label();
            self.asm.alu_mem(Alu::Cmp, S0, at(S1, TAG + place));
            self.asm.jcc(cc::NE, missed);
            self.asm.jmp_mem(at(S1, CODE + place));
            self.asm.bind(missed);
        }
        self.ask(link, target);
    }

    /// Before a branch by register or memory, which accesses memory in these ways: flags into the frame, and a look,
    /// unless an access will be checked.
    fn begin_indirect(&mut self, insn: &Instruction, ways: &[Option<Way>]) {
        self.place.save(&mut self.asm);
        let pinned = ways.iter().flatten().all(Way::is_pinned);
        if !self.polled && (pinned || self.glue.gate.is_none()) {
            self.poll(insn.ip());
        }
    }

    /// Finds the code at the linear address in `target`: its jump is at `S1` then, or at `S0` if that is `S1`.
    fn find(&mut self, target: Reg, failed: Label) -> Reg {
        let jump = if target == S1 { S0 } else { S1 };
        let asm = &mut self.asm;
        asm.imul(jump, target, JUMP_FACTOR as i32);
        asm.alu_imm(Alu::And, 4, jump, (JUMPS as i32 - 1) << JUMP_SHIFT);
        asm.alu_mem(Alu::Add, jump, frame(slot::JUMPS));
        asm.alu_mem(Alu::Cmp, target, at(jump, TAG));
        let (missed, found) = (asm.label(), asm.label());
        asm.jcc(cc::NE, missed);
        asm.bind(found);
        let spare = Cold::Spare {
            target,
            jump,
            found,
            failed,
        };
        self.cold(missed, spare);
        jump
    }

    /// Out of line: the code at the linear address in `target` is not where the jump at `jump` would be. It goes on at
    /// `found` with where it is.
    pub(super) fn find_spare(&mut self, (target, jump): (Reg, Reg), found: Label, failed: Label) {
        self.asm.alu_imm(Alu::Xor, 8, jump, SPARE as i32);
        self.asm.alu_mem(Alu::Cmp, target, at(jump, TAG));
        self.asm.jcc(cc::E, found);
        self.asm.jmp(failed);
    }

    /// The interpreter executes a branch that was not found, and leaves; nothing follows it here.
    fn not_found(&mut self, op: &Op) -> Label {
        self.failed(op, None)
    }

    /// The target of a branch by register or memory, into `S0`.
    fn target(&mut self, insn: &Instruction, way: Option<Way>, op: &Op) {
        if let Some(way) = way {
            let from = self.reach(way, Target::Operand(insn), (8, false), op, None);
            self.asm.load(S0, at(S0, from));
        } else {
            self.fetch(S0, insn.op0_register().number() as u8);
        }
    }

    /// How the memory is reached that holds a branch's target, if it is in memory.
    fn way_to_target(&mut self, insn: &Instruction) -> Option<Way> {
        let memory = insn.op0_kind() == OpKind::Memory;
        memory.then(|| self.way(Target::Operand(insn), 8, false))
    }

    fn jump_indirect(&mut self, insn: &Instruction, op: &Op) {
        let way = self.way_to_target(insn);
        self.begin_indirect(insn, &[way]);
        self.target(insn, way, op);
        self.settle(S1);
        let failed = self.not_found(op);
        let jump = self.find(S0, failed);
        self.follow(S0, jump);
    }

    /// Goes to the code that [`find`](Self::find) has found for the address in `target`, by the jump at `jump`; one
    /// that is alone leaves for its address.
    fn follow(&mut self, target: Reg, jump: Reg) {
        if self.alone {
            if target != S1 {
                self.asm.mov(S1, target);
            }
            self.leave_there(Leave::Done);
        } else {
            self.count_crossing(if jump == S0 { S1 } else { S0 });
            self.asm.jmp_mem(at(jump, CODE));
        }
    }

    fn call_indirect(&mut self, insn: &Instruction, op: &Op) {
        let (way, push) = (self.way_to_target(insn), self.way_to_push());
        self.begin_indirect(insn, &[way, Some(push)]);
        self.target(insn, way, op);
        self.settle(S1);
        let failed = self.not_found(op);
        let jump = self.find(S0, failed);
        if !self.alone {
            self.asm.load(S0, at(jump, CODE));
        }
        self.asm.store(8, frame(slot::TEMP), S0);
        self.push_return(push, insn, op);
        if self.alone {
            self.asm.load(S1, frame(slot::TEMP));
            self.leave_there(Leave::Done);
        } else {
            self.count_crossing(S0);
            self.asm.jmp_mem(frame(slot::TEMP));
        }
    }

    /// Stores the return address and moves the stack pointer.
    fn push_return(&mut self, way: Way, insn: &Instruction, op: &Op) {
        let to = self.reach_push(way, op, None);
        if let Ok(short) = i32::try_from(insn.next_ip() as i64) {
            self.asm.store_imm(at(S0, to), short);
        } else {
            self.asm.imm(S1, insn.next_ip());
            self.asm.store(8, at(S0, to), S1);
        }
        self.asm.lea(8, SP, at(SP, -8));
    }

    fn call_direct(&mut self, insn: &Instruction, op: &Op) {
        let way = self.way_to_push();
        if way.is_pinned() {
            // Saved behind it, for `S0` may still have the pin.
            self.about_to_write(4);
        } else {
            self.place.save(&mut self.asm);
        }
        self.push_return(way, insn, op);
        self.edge(insn.near_branch_target(), insn.ip());
    }

    fn ret(&mut self, insn: &Instruction, op: &Op) {
        let (stack, access) = (Target::Stack(0), (8, false));
        let way = self.way(stack, 8, false);
        // What a pin leads to is loaded while `S0` may still have the pin, and the flags are saved behind it if they need
        // not be computed.
        let first = way.is_pinned() && !self.swapped && !self.place.is_computed();
        let target = if first { S1 } else { S0 };
        if first {
            let from = self.reach(way, stack, access, op, None);
            self.asm.load(S1, at(S0, from));
            self.begin_indirect(insn, &[Some(way)]);
        } else {
            self.begin_indirect(insn, &[Some(way)]);
            let from = self.reach(way, stack, access, op, None);
            self.asm.load(S0, at(S0, from));
            self.settle(S1);
        }
        let failed = self.not_found(op);
        let jump = self.find(target, failed);
        let arguments = if insn.op_count() == 0 {
            0
        } else {
            i32::from(insn.immediate16())
        };
        self.asm.lea(8, SP, at(SP, 8 + arguments));
        self.follow(target, jump);
    }
}

/// The target is a register that has a name of its own, or memory at a plain address.
fn simple(insn: &Instruction) -> bool {
    insn.op0_kind() == OpKind::Register || is_plain(insn)
}
