//! What the translator counts: what was made, and the ways out of it.
//!
//! ```text
//!   translated code ─┬─ one instruction of the interpreter's ── its cause ─┬─> goes on behind it, or elsewhere
//!                    │                                                     └─> the loop
//!                    ├─ a branch whose link leads nowhere yet ───────────────> the loop
//!                    └─ somebody wants attention ── who ─────────────────────> the loop
//! ```
//! Each way out has one cause. All of them are counted in Rust, where code has been left already.

use iced_x86::{CpuidFeature, FlowControl, Instruction, Mnemonic};
use umbra_cpu::Statistics;

use super::emit::Piece;
use super::glue::Single;
use crate::cpu::Cpu;
use crate::native::{self, Unit};
use crate::op::Leave;

/// Why the interpreter executed an instruction of translated code: the first of these that is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It raised an exception.
    Fault,
    /// It reached a device, by memory or by a port.
    Device,
    /// It wrote to a page table, which the MMU has to see.
    PageTable,
    /// It wrote to a page with code.
    CodeWritten,
    /// It is made as host code, but its page was not in the translation cache, or it reaches over the border of one.
    Miss,
    /// It is made as host code, but failed a check of another kind.
    Check,
    /// It is of a sort that is not made as host code, or did not fit the common case of it.
    Of(Sort),
}

/// What sort of instruction one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// x87 and MMX.
    X87,
    /// Strings.
    String,
    /// Privileged, or about the processor itself: levels, interrupts, its registers and its time.
    System,
    /// SSE and what came after it.
    Vector,
    /// A branch inside a code segment. One that is made as host code has not found its target among the jumps.
    Branch,
    /// None of these.
    Other,
}

const CAUSES: usize = 12;

/// How they are listed.
const NAMES: [&str; CAUSES] = [
    "interpreter called for faults",
    "interpreter called for devices",
    "interpreter called for page tables",
    "interpreter called for code written",
    "interpreter called for cache misses",
    "interpreter called for other checks",
    "interpreter called for x87 and MMX",
    "interpreter called for strings",
    "interpreter called for system code",
    "interpreter called for SSE",
    "interpreter called for branches",
    "interpreter called for others",
];

impl Cause {
    fn number(self) -> usize {
        match self {
            Self::Fault => 0,
            Self::Device => 1,
            Self::PageTable => 2,
            Self::CodeWritten => 3,
            Self::Miss => 4,
            Self::Check => 5,
            Self::Of(sort) => 6 + sort as usize,
        }
    }
}

impl Sort {
    fn of(insn: &Instruction) -> Self {
        if insn.is_string_instruction() {
            return Self::String;
        }
        if is_system(insn) {
            return Self::System;
        }
        match native::unit(insn) {
            // CMOVcc came with the x87 instructions of its name.
            _ if insn.cpuid_features() == [CpuidFeature::CMOV] => Self::Other,
            Some(Unit::X87 | Unit::Mmx) => Self::X87,
            Some(Unit::Sse) => Self::Vector,
            None if insn.flow_control() != FlowControl::Next => Self::Branch,
            None => Self::Other,
        }
    }
}

fn is_system(insn: &Instruction) -> bool {
    let flow = insn.flow_control();
    insn.is_privileged()
        || matches!(flow, FlowControl::Interrupt | FlowControl::Exception)
        || insn.code().is_jmp_far()
        || insn.code().is_call_far()
        || insn.is_save_restore_instruction()
        || is_about_processor(insn.mnemonic())
}

fn is_about_processor(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Syscall
            | M::Sysenter
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Retf
            | M::Pushf
            | M::Pushfq
            | M::Popf
            | M::Popfq
            | M::Cli
            | M::Sti
            | M::In
            | M::Out
            | M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpkru
            | M::Wrpkru
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Xgetbv
            | M::Pause
            | M::Vmcall
            | M::Vmmcall
    )
}

/// Says of each single what sort of instruction it is; they are those of `pieces`, in about this order.
pub fn sort(singles: &mut [Single], pieces: &[Piece]) {
    let count: usize = pieces.iter().map(|piece| piece.insns.len()).sum();
    let mut insns = pieces.iter().flat_map(|piece| &piece.insns).cycle();
    let mut current = None;
    for single in singles {
        let rip = single.rip();
        if current.map(Instruction::ip) != Some(rip) {
            current = insns.by_ref().take(count).find(|insn| insn.ip() == rip);
        }
        single.sort = current.map_or(Sort::Other, Sort::of);
    }
}

/// Who wanted attention: the first of these that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attention {
    /// The APIC's timer is due.
    Timer,
    /// The MMU has dropped translations.
    Flush,
    /// Another processor or a device wrote to code.
    Code,
    /// The machine: it pauses, looks at the processor, or ends.
    Kick,
    /// An interrupt or a message has come, or waited.
    Interrupt,
    /// It is over already, or the processor wanted it itself.
    Other,
}

const WHO: [&str; 6] = [
    "attention for the timer",
    "attention for a flush by the MMU",
    "attention for code written elsewhere",
    "attention for the machine",
    "attention for an interrupt",
    "attention for anything else",
];

/// Counters of a translator.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Units made.
    pub units: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Bytes of host code made.
    pub bytes: u64,
    /// Bytes of the code cache that are used.
    pub kept: u64,
    /// Units that died with their bytes.
    pub dropped: u64,
    /// Times everything was thrown away, for lack of room.
    pub cleared: u64,
    /// Entries from the loop.
    pub entries: u64,
    /// Links led to their target.
    pub links: u64,
    /// Branches that left because their link led nowhere yet.
    pub unlinked: u64,
    /// Instructions left to the interpreter.
    pub singles: u64,
    /// Of those, after how many other code was gone to.
    pub transfers: u64,
    /// Of those, how many left to the loop.
    pub left: u64,
    causes: [u64; CAUSES],
    /// Code was left because somebody wanted attention; who is not counted yet.
    called: bool,
    attention: [u64; WHO.len()],
}

impl Counts {
    /// Lists what is known where units count how often they are left for others: `crossings` times.
    pub fn chain(&self, crossings: u64) -> Statistics {
        // Both have asked in vain for a place among the translated ones; a branch that was not linked is counted already.
        let not_found = self.causes[Cause::Of(Sort::Branch).number()];
        let all = crossings + not_found;
        let chained = crossings.saturating_sub(self.unlinked);
        let rate = (u128::from(chained) * 10_000).checked_div(all.into());
        vec![
            ("transfers between units", all),
            ("chained of 10000 transfers", rate.unwrap_or(0) as u64),
        ]
    }

    /// Lists them.
    pub fn statistics(&self) -> Statistics {
        let mut all = vec![
            ("units translated", self.units),
            ("instructions translated", self.instructions),
            ("bytes translated", self.bytes),
            ("bytes of code kept", self.kept),
            ("units dropped", self.dropped),
            ("translations cleared", self.cleared),
            ("entries to translated code", self.entries),
            ("links between units", self.links),
            ("branches not linked yet", self.unlinked),
        ];
        all.extend(WHO.into_iter().zip(self.attention));
        all.extend([
            ("instructions left to the interpreter", self.singles),
            ("interpreter calls to code elsewhere", self.transfers),
            ("interpreter calls back to the loop", self.left),
        ]);
        all.extend(NAMES.into_iter().zip(self.causes));
        all
    }
}

/// What has happened until now, to tell what an instruction has done.
#[derive(Clone, Copy)]
pub struct Before {
    devices: u64,
    code_writes: u64,
    tracked: u64,
    misses: u64,
}

impl Cpu {
    /// Before an instruction that the interpreter executes for translated code.
    pub(super) fn before_single(&self) -> Before {
        Before {
            devices: self.stats.mmio + self.stats.ports,
            code_writes: self.stats.code_writes,
            tracked: self.stats.tracked,
            misses: self.stats.tlb_misses,
        }
    }

    /// Counts it, after it.
    pub(super) fn count_single(&mut self, single: &Single, before: Before, leave: Leave) {
        let now = self.before_single();
        let cause = if leave == Leave::Fault {
            Cause::Fault
        } else if now.devices != before.devices {
            Cause::Device
        } else if now.tracked != before.tracked {
            Cause::PageTable
        } else if now.code_writes != before.code_writes {
            Cause::CodeWritten
        } else if now.misses != before.misses && !single.whole {
            Cause::Miss
        } else if !single.whole && matches!(single.sort, Sort::Other | Sort::Vector) {
            Cause::Check
        } else {
            Cause::Of(single.sort)
        };
        let counts = &mut self.translator.counts;
        counts.singles += 1;
        counts.causes[cause.number()] += 1;
    }

    /// Counts why code was left for the loop, unless an instruction of the interpreter's did it: `left` were those before.
    pub(super) fn count_exit(&mut self, left: u64) {
        let counts = &mut self.translator.counts;
        if counts.left != left {
            return;
        }
        match self.shared.link {
            0 => counts.called = self.translator.both.is_none(),
            _ => counts.unlinked += 1,
        }
    }

    /// Counts who wanted attention of translated code, if that was left for it.
    pub fn count_attention(&mut self) {
        if !std::mem::take(&mut self.translator.counts.called) {
            return;
        }
        let who = if self.timer_due != u64::MAX && self.clock.now() >= self.timer_due {
            Attention::Timer
        } else if self.mmu.pending() {
            Attention::Flush
        } else if self.code_port.has_any() {
            Attention::Code
        } else if self.wake.is_kicked() {
            Attention::Kick
        } else if self.apic.work() || self.nmi_pending != 0 {
            Attention::Interrupt
        } else {
            Attention::Other
        };
        self.translator.counts.attention[who as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn every_sort_of_instruction_is_known() {
        for (code, sort) in [
            (&[0xd9, 0xe8][..], Sort::X87),
            (&[0x0f, 0x77], Sort::X87),
            (&[0xf3, 0xa4], Sort::String),
            (&[0x6c], Sort::String),
            (&[0x0f, 0xa2], Sort::System),
            (&[0x0f, 0x05], Sort::System),
            (&[0x0f, 0x01, 0xf8], Sort::System),
            (&[0x48, 0xcf], Sort::System),
            (&[0xcc], Sort::System),
            (&[0xe6, 0x80], Sort::System),
            (&[0x0f, 0xae, 0x00], Sort::System),
            (&[0x0f, 0x58, 0xc1], Sort::Vector),
            (&[0xc3], Sort::Branch),
            (&[0xff, 0xe0], Sort::Branch),
            (&[0x48, 0x01, 0xc8], Sort::Other),
            (&[0x0f, 0x44, 0xc1], Sort::Other),
        ] {
            let insn = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
            assert_eq!(Sort::of(&insn), sort, "{insn}");
        }
    }

    #[test]
    fn every_cause_has_a_name_of_its_own() {
        assert_eq!(Cause::Fault.number(), 0);
        assert_eq!(Cause::Of(Sort::X87).number(), Cause::Check.number() + 1);
        assert_eq!(Cause::Of(Sort::Other).number(), CAUSES - 1);
        assert_eq!(Attention::Other as usize, WHO.len() - 1);
    }
}
