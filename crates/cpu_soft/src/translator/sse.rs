//! SSE in translated code.
//!
//! The guest's XMM registers are the host's, by their numbers, from where a piece first names them until
//! the interpreter is called, which keeps no such register. What is written is stored into the state's
//! image at once, so the image is always true, and whoever leaves has nothing to save.
//!
//! MXCSR is loaded before the first instruction that it matters to, and stored, for the flags in it, by
//! whatever leaves translated code or calls the interpreter ([`glue`](super::glue)). Where an instruction
//! would raise something (CR0.TS, CR4.OSFXSR, an exception that MXCSR does not mask) the interpreter
//! executes it, and translated code is left behind it.

use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

use super::asm::at;
use super::emit::Emitter;
use super::glue::READY;
use super::layout::{FRAME, S0, S1, frame, slot};
use crate::fpu::{MXCSR, XMM};
use crate::native;
use crate::op::Op;

/// What of the guest's SSE state is in the host's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// XMM registers, a bit each.
    pub xmm: u16,
    /// MXCSR.
    pub mxcsr: bool,
    /// Nothing would be raised.
    pub ready: bool,
}

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
    /// Before an SSE instruction: leaves to the interpreter what would raise something, and loads what
    /// `insn` names. The flags are safe, and lost. Returns the XMM registers that it writes.
    pub(super) fn begin_sse(&mut self, insn: &Instruction, op: &Op) -> u16 {
        let (mut used, mut written) = (0u16, 0u16);
        for register in self.info.info(insn).used_registers() {
            if register.register().is_xmm() {
                let bit = 1 << register.register().number();
                used |= bit;
                if native::writes(register.access()) {
                    written |= bit;
                }
            }
        }
        if !self.sse.ready {
            let failed = self.refused(op);
            self.asm.load(S1, frame(slot::CPU));
            self.asm.cmp_byte_imm(at(S1, READY), 0);
            self.asm.jcc(super::asm::cc::E, failed);
            self.place.disturbed();
            self.sse.ready = true;
        }
        self.load_sse(Loaded {
            xmm: used & !self.sse.xmm,
            mxcsr: native::is_float(insn) && !self.sse.mxcsr,
            ready: true,
        });
        self.sse.xmm |= used;
        self.sse.mxcsr |= native::is_float(insn);
        written
    }

    /// Loads what is in `what`. `S1` is lost.
    pub(super) fn load_sse(&mut self, what: Loaded) {
        if what.xmm == 0 && !what.mxcsr {
            return;
        }
        self.asm.imm(S1, self.fx);
        for number in (0..16).filter(|n| what.xmm >> n & 1 != 0) {
            self.asm
                .load_xmm(number, at(S1, XMM as i32 + 16 * i32::from(number)));
        }
        if what.mxcsr {
            self.asm.ldmxcsr(at(S1, MXCSR as i32));
            self.asm.store_byte_imm(at(FRAME, slot::FLOAT), 1);
        }
    }

    /// After it: what was written, into the image. `S1` is lost.
    pub(super) fn end_sse(&mut self, written: u16) {
        if written == 0 {
            return;
        }
        self.asm.imm(S1, self.fx);
        for number in (0..16).filter(|n| written >> n & 1 != 0) {
            self.asm
                .store_xmm(at(S1, XMM as i32 + 16 * i32::from(number)), number);
        }
    }

    /// Goes to `failed` where the host address in `S0` is no multiple of sixteen.
    pub(super) fn check_aligned(&mut self, failed: super::asm::Label) {
        self.asm.test_low(15);
        self.asm.jcc(super::asm::cc::NE, failed);
        debug_assert_eq!(S0, super::asm::Reg(0));
    }
}
