//! What a person needs who looks for the reason of a difference.

use iced_x86::{Decoder, DecoderOptions};

use super::{Registers, Twin};
use crate::fpu::{MXCSR, XMM};

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// The names of what differs, but for the flags `open`.
pub(super) fn what(expected: &Registers, found: &Registers, open: u64) -> Vec<String> {
    let mut what = Vec::new();
    for (i, name) in NAMES.iter().enumerate() {
        if expected.regs.r(i) != found.regs.r(i) {
            what.push((*name).to_owned());
        }
    }
    if expected.rip != found.rip {
        what.push("rip".into());
    }
    let flags = (expected.rflags() ^ found.rflags()) & !open;
    if flags != 0 {
        what.push(format!("flags {flags:#x}"));
    }
    let (x, y) = (expected.fx.bytes(), found.fx.bytes());
    for i in 0..16 {
        let register = XMM + 16 * i..XMM + 16 * i + 16;
        if x[register.clone()] != y[register] {
            what.push(format!("xmm{i}"));
        }
    }
    for at in (0..XMM).chain(XMM + 256..x.len()) {
        if x[at] != y[at] {
            what.push(format!("byte {at} of the FXSAVE image"));
        }
    }
    what
}

impl Twin {
    /// The block, the registers before it, and what the interpreter and the translated code made of them.
    pub(super) fn describe(
        &self,
        before: &Registers,
        expected: &Registers,
        found: &Registers,
    ) -> String {
        let mut text = format!("block at {:#x}, guest-physical {:#x}", before.rip, self.gpa);
        for insn in &self.insns {
            text += &format!("\n    {:#x}: {insn}", insn.ip());
        }
        text += "\n             before           interpreter      translated code";
        let mut line = |name: &str, values: [u128; 3], open: u128| {
            let differs = (values[1] ^ values[2]) & !open != 0;
            let mark = if differs { "*" } else { " " };
            let [before, expected, found] = values;
            text += &format!("\n  {mark} {name:<7}{before:016x} {expected:016x} {found:016x}");
        };
        let states = [before, expected, found];
        for (i, name) in NAMES.iter().enumerate() {
            line(name, states.map(|state| state.regs.r(i).into()), 0);
        }
        line("rip", states.map(|state| state.rip.into()), 0);
        line(
            "rflags",
            states.map(|state| state.rflags().into()),
            self.open.into(),
        );
        let word = |state: &Registers, at: usize, len: usize| {
            let bytes = state.fx.bytes().get(at..at + len).unwrap_or_default();
            bytes.iter().rev().fold(0, |v, b| v << 8 | u128::from(*b))
        };
        line("mxcsr", states.map(|state| word(state, MXCSR, 4)), 0);
        for i in 0..16 {
            let values = states.map(|state| word(state, XMM + 16 * i, 16));
            if values[0] | values[1] | values[2] != 0 {
                line(&format!("xmm{i}"), values, 0);
            }
        }
        if self.open != 0 {
            text += &format!("\n  undefined, so not compared: flags {:#x}", self.open);
        }
        text += "\n  translated code:";
        // SAFETY: the code of a unit that has not been buried, which nobody changes.
        let code = unsafe { std::slice::from_raw_parts(self.code.0 as *const u8, self.code.1) };
        for insn in Decoder::with_ip(64, code, self.code.0, DecoderOptions::NONE).iter() {
            text += &format!("\n    {:#x}: {insn}", insn.ip());
        }
        text
    }
}
