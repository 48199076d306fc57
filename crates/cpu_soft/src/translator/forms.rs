//! Other forms of the same instruction: RAX is not where its short forms expect it, and a register of the frame
//! is an operand in memory.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// `insn` in a form in which RAX is an operand like any other, if it has one.
pub fn general(insn: &Instruction) -> Instruction {
    let mut out = *insn;
    match insn.code() {
        Code::Cwde => extend(&mut out, Code::Movsx_r32_rm16, Register::EAX, Register::AX),
        Code::Cdqe => extend(
            &mut out,
            Code::Movsxd_r64_rm32,
            Register::RAX,
            Register::EAX,
        ),
        code => out.set_code(long(code)),
    }
    out
}

/// Makes `insn` a sign extension of `from` into `to`.
fn extend(insn: &mut Instruction, code: Code, to: Register, from: Register) {
    insn.set_code(code);
    insn.set_op0_kind(OpKind::Register);
    insn.set_op0_register(to);
    insn.set_op1_kind(OpKind::Register);
    insn.set_op1_register(from);
}

/// The form with a ModRM byte of one that names the accumulator by its opcode.
fn long(code: Code) -> Code {
    use Code::*;
    match code {
        Add_AL_imm8 => Add_rm8_imm8,
        Add_EAX_imm32 => Add_rm32_imm32,
        Add_RAX_imm32 => Add_rm64_imm32,
        Or_AL_imm8 => Or_rm8_imm8,
        Or_EAX_imm32 => Or_rm32_imm32,
        Or_RAX_imm32 => Or_rm64_imm32,
        Adc_AL_imm8 => Adc_rm8_imm8,
        Adc_EAX_imm32 => Adc_rm32_imm32,
        Adc_RAX_imm32 => Adc_rm64_imm32,
        Sbb_AL_imm8 => Sbb_rm8_imm8,
        Sbb_EAX_imm32 => Sbb_rm32_imm32,
        Sbb_RAX_imm32 => Sbb_rm64_imm32,
        And_AL_imm8 => And_rm8_imm8,
        And_EAX_imm32 => And_rm32_imm32,
        And_RAX_imm32 => And_rm64_imm32,
        Sub_AL_imm8 => Sub_rm8_imm8,
        Sub_EAX_imm32 => Sub_rm32_imm32,
        Sub_RAX_imm32 => Sub_rm64_imm32,
        Xor_AL_imm8 => Xor_rm8_imm8,
        Xor_EAX_imm32 => Xor_rm32_imm32,
        Xor_RAX_imm32 => Xor_rm64_imm32,
        Cmp_AL_imm8 => Cmp_rm8_imm8,
        Cmp_EAX_imm32 => Cmp_rm32_imm32,
        Cmp_RAX_imm32 => Cmp_rm64_imm32,
        Test_AL_imm8 => Test_rm8_imm8,
        Test_EAX_imm32 => Test_rm32_imm32,
        Test_RAX_imm32 => Test_rm64_imm32,
        code => code,
    }
}

/// For an instruction on a register or memory and a register, the one whose second operand may be in memory.
pub fn turned(code: Code) -> Option<Code> {
    use Mnemonic::*;
    let family = matches!(
        code.mnemonic(),
        Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Mov
    );
    let forms = [
        (Code::Add_rm8_r8, Code::Add_rm64_r64),
        (Code::Or_rm8_r8, Code::Or_rm64_r64),
        (Code::Adc_rm8_r8, Code::Adc_rm64_r64),
        (Code::Sbb_rm8_r8, Code::Sbb_rm64_r64),
        (Code::And_rm8_r8, Code::And_rm64_r64),
        (Code::Sub_rm8_r8, Code::Sub_rm64_r64),
        (Code::Xor_rm8_r8, Code::Xor_rm64_r64),
        (Code::Cmp_rm8_r8, Code::Cmp_rm64_r64),
        (Code::Mov_rm8_r8, Code::Mov_rm64_r64),
    ];
    let turnable = |(first, last)| (first as usize..=last as usize).contains(&(code as usize));
    if !family || !forms.into_iter().any(turnable) {
        return None;
    }
    // The decoder lists the four sizes of one direction, then those of the other.
    Code::try_from(code as usize + 4).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::OpCodeOperandKind as Kind;

    #[test]
    fn turning_exchanges_what_may_be_in_memory() {
        let mut count = 0;
        for code in Code::values() {
            let Some(other) = turned(code) else { continue };
            count += 1;
            assert_eq!(code.mnemonic(), other.mnemonic());
            let kinds = |code: Code| (code.op_code().op0_kind(), code.op_code().op1_kind());
            let expected = match kinds(code) {
                (Kind::r8_or_mem, Kind::r8_reg) => (Kind::r8_reg, Kind::r8_or_mem),
                (Kind::r16_or_mem, Kind::r16_reg) => (Kind::r16_reg, Kind::r16_or_mem),
                (Kind::r32_or_mem, Kind::r32_reg) => (Kind::r32_reg, Kind::r32_or_mem),
                (Kind::r64_or_mem, Kind::r64_reg) => (Kind::r64_reg, Kind::r64_or_mem),
                kinds => panic!("{code:?}: {kinds:?}"),
            };
            assert_eq!(kinds(other), expected, "{code:?}");
        }
        assert_eq!(count, 36);
    }

    #[test]
    fn no_long_form_names_the_accumulator() {
        let names = |kind| matches!(kind, Kind::al | Kind::ax | Kind::eax | Kind::rax);
        let mut count = 0;
        for code in Code::values().filter(|code| long(*code) != *code) {
            count += 1;
            let (short, long) = (code.op_code(), long(code).op_code());
            assert_eq!(short.mnemonic(), long.mnemonic());
            assert!(names(short.op0_kind()) && !names(long.op0_kind()));
            assert_eq!(short.op1_kind(), long.op1_kind(), "{code:?}");
        }
        assert_eq!(count, 27);
    }
}
