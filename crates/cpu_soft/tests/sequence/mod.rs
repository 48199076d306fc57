//! Sequences of instructions at privilege level 3 in 64-bit mode, run twice: on this machine and on
//! the software processor.
//!
//! ```text
//!   0x4000_0000  code    two pages, the sequence near their border, INT3 everywhere else
//!   0x4002_0000  memory  two pages, no code
//!   all else             not present
//! ```
//! Whatever happens ends in an exception: that of an instruction, or the INT3 behind the last.

pub mod generate;
pub mod guest;
pub mod host;
pub mod shrink;

use iced_x86::{Encoder, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::forms::status_flags;

pub const CODE: u64 = 0x4000_0000;
pub const CODE_LEN: usize = 0x2000;
pub const MEMORY: u64 = 0x4002_0000;
pub const MEMORY_LEN: usize = 0x2000;
/// What each case overwrites of the code pages, across their border.
pub const WINDOW: u64 = CODE + 0xe00;
pub const WINDOW_LEN: usize = 0x400;
pub const INT3: u8 = 0xcc;

/// An instruction; if it names another one, how many of the following that skips.
#[derive(Clone)]
pub struct Step {
    pub insn: Instruction,
    pub skip: usize,
    /// Means something only behind the step before it: nothing goes here from elsewhere, or a
    /// sequence might go in circles.
    pub joined: bool,
}

/// State before, and the sequence.
#[derive(Clone)]
pub struct Case {
    pub steps: Vec<Step>,
    pub start: u64,
    pub gpr: [u64; 16],
    pub flags: u64,
    pub fx: [u8; 512],
    pub memory: Vec<u8>,
}

/// State after.
#[derive(Debug)]
pub struct Outcome {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub flags: u64,
    pub fx: [u8; 512],
    pub vector: u8,
    pub error: u64,
    pub cr2: u64,
}

/// A sequence as bytes.
pub struct Code {
    pub bytes: Vec<u8>,
    /// Where each instruction begins, and where the last one ends.
    pub at: Vec<u64>,
}

/// Whether the instruction goes to where its step says: at once, or by a register, a word in memory
/// or on the stack that a step before it made.
fn goes(insn: &Instruction) -> bool {
    use FlowControl::*;
    !matches!(insn.flow_control(), Next | Exception | Interrupt)
}

/// Whether the bytes of the instruction tell where its step goes.
fn names(insn: &Instruction) -> bool {
    is_near(insn) || insn.memory_base() == Register::RIP
}

fn is_near(insn: &Instruction) -> bool {
    insn.op_count() > 0 && insn.op0_kind() == OpKind::NearBranch64
}

/// Lets the instruction name the code at `target`.
fn aim(insn: &mut Instruction, target: u64) {
    if is_near(insn) {
        insn.set_near_branch64(target);
    } else {
        insn.set_memory_displacement64(target);
    }
}

impl Case {
    /// The step that step `i` goes to, or makes the address of.
    fn target(&self, i: usize) -> usize {
        let far = i + 1 + self.steps[i].skip;
        (far..self.steps.len())
            .find(|t| !self.steps[*t].joined)
            .unwrap_or(self.steps.len())
    }

    /// Lays the sequence out; `None` where some branch does not reach that far.
    pub fn code(&self) -> Option<Code> {
        let mut at = vec![self.start];
        let mut encoder = Encoder::new(64);
        for step in &self.steps {
            let mut insn = step.insn;
            let here = at[at.len() - 1];
            if names(&insn) {
                aim(&mut insn, here);
            }
            at.push(here + encoder.encode(&insn, here).ok()? as u64);
        }
        let mut encoder = Encoder::new(64);
        for (i, step) in self.steps.iter().enumerate() {
            let mut insn = step.insn;
            if names(&insn) {
                aim(&mut insn, at[self.target(i)]);
            }
            encoder.encode(&insn, at[i]).ok()?;
        }
        let bytes = encoder.take_buffer();
        Some(Code { bytes, at })
    }

    /// The status flags that the manual leaves undefined before each instruction and at the end;
    /// `None` if one of them would be used.
    pub fn undefined(&self) -> Option<Vec<u64>> {
        let count = self.steps.len();
        let mut before = vec![0; count + 1];
        for (i, step) in self.steps.iter().enumerate() {
            let insn = &step.insn;
            if before[i] & status_flags(insn.rflags_read()) != 0 {
                return None;
            }
            let kept = if always_writes(insn) {
                before[i] & !status_flags(insn.rflags_modified())
            } else {
                before[i]
            };
            let after = kept | status_flags(insn.rflags_undefined());
            before[i + 1] |= after;
            if goes(insn) {
                before[self.target(i)] |= after;
            }
        }
        Some(before)
    }
}

/// Whether the instruction changes the flags whatever its count is.
fn always_writes(insn: &Instruction) -> bool {
    use Mnemonic::*;
    !insn.is_string_instruction()
        && !matches!(
            insn.mnemonic(),
            Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
        )
}
