//! What is compared: which instructions, and which of their flags.
//!
//! The manual leaves some flags undefined. The interpreter makes something of them and the host's processor
//! something else, and both are right. Such a flag is not compared, and a unit ends before an instruction
//! that reads one: the next begins with one value for both.

use iced_x86::{Code, Instruction, Mnemonic, RflagsBits};

use crate::translator::copy::is_copied;
use crate::translator::emit::is_nothing;
use crate::translator::sse::is_sse;

/// How many of `insns` can be compared as one.
pub fn reach(insns: &[Instruction]) -> usize {
    let mut open = 0;
    let fits = |insn: &&Instruction| {
        let reads = status(insn.rflags_read()) & open != 0;
        open = then(open, insn);
        is_compared(insn) && !reads
    };
    insns.iter().take_while(fits).count()
}

/// The status flags that are undefined behind `insns`, as RFLAGS bits.
pub fn after(insns: &[Instruction]) -> u64 {
    insns.iter().fold(0, then)
}

fn then(open: u64, insn: &Instruction) -> u64 {
    // By no bits, flags stay as they were.
    let kept = if shifts(insn) {
        open
    } else {
        open & !status(insn.rflags_modified())
    };
    kept | status(insn.rflags_undefined())
}

fn shifts(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
    )
}

/// Tells whether an instruction changes nothing but what is compared. Whatever else comes to be translated
/// belongs here, too, if that is so of it.
fn is_compared(insn: &Instruction) -> bool {
    use Mnemonic::*;
    is_nothing(insn)
        || is_copied(insn)
        || is_sse(insn)
        || insn.is_jcc_short_or_near()
        || insn.is_jmp_short_or_near()
        || matches!(
            insn.code(),
            Code::Call_rel32_64
                | Code::Jmp_rm64
                | Code::Call_rm64
                | Code::Retnq
                | Code::Retnq_imm16
        )
        || matches!(
            insn.mnemonic(),
            Lea | Tzcnt | Push | Pop | Leave | Cli | Pushfq | Div | Idiv
        )
}

/// The status flags among flags of the decoder, as RFLAGS bits.
fn status(bits: u32) -> u64 {
    use umbra_x86::rflags::{AF, CF, OF, PF, SF, ZF};
    [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}
