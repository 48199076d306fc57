//! SSE in translated code.
//!
//! The guest's XMM registers are the host's, by their numbers, and MXCSR is the host's, from the first unit
//! that needs them until translated code is left or the interpreter is called, which keep neither: they store
//! all into the state's image ([`glue`](super::glue)). A byte in the frame says which it is.
//!
//! A unit with SSE instructions asks that byte when it is entered; within it, all is loaded where a piece
//! begins, so a loop loads nothing. What calls the interpreter loads anew before the next instruction that
//! needs it. Where an SSE instruction would raise something (CR0.TS, CR4.OSFXSR, an exception that MXCSR does
//! not mask) nothing is loaded: the interpreter executes one instruction, and translated code is left.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

use super::asm::{Label, at, cc};
use super::emit::Emitter;
use super::glue::READY;
use super::layout::{S0, S1, frame, slot};
use crate::native;
use crate::op::{Leave, Op};

/// Tells whether `insn` is an SSE instruction that is copied if its operands allow it: on XMM registers,
/// perhaps general ones, and memory.
pub fn is_sse(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let family = |f: &CpuidFeature| {
        matches!(
            f,
            CpuidFeature::SSE
                | CpuidFeature::SSE2
                | CpuidFeature::SSE3
                | CpuidFeature::SSSE3
                | CpuidFeature::SSE4_1
                | CpuidFeature::SSE4_2
        )
    };
    if insn.encoding() != EncodingKind::Legacy || !insn.cpuid_features().iter().any(family) {
        return false;
    }
    // These have operands that are not named, or state of their own.
    if matches!(
        insn.mnemonic(),
        Maskmovdqu
            | Pcmpestri
            | Pcmpestrm
            | Pcmpistri
            | Pcmpistrm
            | Pcmpestri64
            | Pcmpestrm64
            | Ldmxcsr
            | Stmxcsr
    ) {
        return false;
    }
    let mut xmm = false;
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            OpKind::Register if insn.op_register(i).is_xmm() => xmm = true,
            OpKind::Register if insn.op_register(i).is_gpr() => {}
            OpKind::Memory | OpKind::Immediate8 => {}
            _ => return false,
        }
    }
    xmm
}

/// Tells whether the memory operand has to be a multiple of sixteen.
pub fn is_aligned(insn: &Instruction) -> bool {
    insn.memory_size().size() == 16 && native::must_align(insn.mnemonic())
}

impl Emitter<'_> {
    /// At the entry of a unit: loads what is not loaded. Flags are in the frame, and lost in the host.
    pub(super) fn enter_sse(&mut self, first: &Op) {
        if !self.uses_sse {
            return;
        }
        let resume = self.asm.label();
        let load = self.not_loaded(first, resume);
        self.asm.cmp_byte_imm(frame(slot::FLOAT), 0);
        self.asm.jcc(cc::E, load);
        self.asm.bind(resume);
        self.place.disturbed();
        self.sse_loaded = true;
    }

    /// Loads, in a unit that needs it, what a call of the interpreter has stored. Leaves for the next
    /// instruction where SSE instructions would raise something. The host's flags may be lost.
    pub(super) fn require_sse(&mut self) {
        if !self.uses_sse || self.sse_loaded {
            return;
        }
        self.place.save(&mut self.asm);
        self.load_or_leave(self.at);
        self.place.disturbed();
        self.sse_loaded = true;
    }

    /// Loads; leaves for `rip` where SSE instructions would raise something. Flags are in the frame; those
    /// of the host and `S1` are lost.
    pub(super) fn load_or_leave(&mut self, rip: u64) {
        let ready = self.asm.label();
        self.asm.load(S1, frame(slot::CPU));
        self.asm.cmp_byte_imm(at(S1, READY), 0);
        self.asm.jcc(cc::NE, ready);
        self.leave(rip, Leave::Done);
        self.asm.bind(ready);
        self.asm.call(self.glue.load);
    }

    /// Has the interpreter execute `op` where `distance` bytes behind the host address in `S0` is no multiple
    /// of sixteen. `S1` and the host's flags are lost.
    pub(super) fn check_aligned(&mut self, distance: i32, op: &Op, resume: Label) {
        let failed = self.failed(op, Some(resume));
        if distance & 15 == 0 {
            self.asm.test_imm(S0, 15);
        } else {
            self.asm.lea(4, S1, at(S0, distance));
            self.asm.test_imm(S1, 15);
        }
        self.asm.jcc(cc::NE, failed);
        self.place.disturbed();
    }
}
