//! Questions about a decoded instruction: what its operands are and how wide.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};

use crate::ops::alu::Form;

pub fn is_immediate(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Immediate8
            | Immediate16
            | Immediate32
            | Immediate64
            | Immediate8to16
            | Immediate8to32
            | Immediate8to64
            | Immediate32to64
    )
}

pub fn has_immediate(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| is_immediate(insn.op_kind(i)))
}

pub fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

/// Size of the first operand in bytes.
pub fn operand_size(insn: &Instruction) -> usize {
    if insn.op_count() == 0 {
        return 0;
    }
    match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        OpKind::Memory => insn.memory_size().size(),
        _ => 0,
    }
}

/// Size of the last register or memory operand.
pub fn source_size(insn: &Instruction) -> usize {
    match insn.op1_kind() {
        OpKind::Register => insn.op1_register().size(),
        _ => insn.memory_size().size(),
    }
}

/// Bytes that a stack instruction moves.
pub fn stack_size(insn: &Instruction) -> usize {
    use Code::*;
    match insn.code() {
        Leavew | Enterw_imm16_imm8 => return 2,
        Leaved | Enterd_imm16_imm8 => return 4,
        Leaveq | Enterq_imm16_imm8 => return 8,
        _ => {}
    }
    // A pop raises the pointer as far as a push lowers it.
    insn.stack_pointer_increment().unsigned_abs() as usize
}

pub fn form(insn: &Instruction) -> Form {
    let immediate = has_immediate(insn);
    match (insn.op0_kind(), insn.op1_kind()) {
        (OpKind::Memory, _) if insn.has_lock_prefix() && immediate => Form::LockedImm,
        (OpKind::Memory, _) if insn.has_lock_prefix() => Form::LockedReg,
        (OpKind::Memory, _) if immediate => Form::MemImm,
        (OpKind::Memory, _) => Form::MemReg,
        (_, OpKind::Memory) => Form::RegMem,
        _ if immediate => Form::RegImm,
        _ => Form::RegReg,
    }
}

/// LOCK is allowed on these with a memory destination (SDM vol. 2, LOCK).
pub fn lockable(insn: &Instruction) -> bool {
    use Mnemonic::*;
    insn.op0_kind() == OpKind::Memory
        && matches!(
            insn.mnemonic(),
            Add | Adc
                | And
                | Btc
                | Btr
                | Bts
                | Cmpxchg
                | Cmpxchg8b
                | Cmpxchg16b
                | Dec
                | Inc
                | Neg
                | Not
                | Or
                | Sbb
                | Sub
                | Xor
                | Xadd
                | Xchg
        )
}

/// Number of a condition as in the opcode.
pub fn condition(code: ConditionCode) -> Option<u8> {
    Some(match code {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}

pub fn is_setcc(insn: &Instruction) -> bool {
    insn.op_count() == 1 && operand_size(insn) == 1
}

pub fn is_cmov(insn: &Instruction) -> bool {
    insn.op_count() == 2 && insn.op0_kind() == OpKind::Register && insn.op0_register().is_gpr()
}

/// All register operands are XMM: neither MMX nor general registers take part.
pub fn is_legacy_xmm(insn: &Instruction) -> bool {
    let mut registers = (0..insn.op_count())
        .filter(|i| insn.op_kind(*i) == OpKind::Register)
        .map(|i| insn.op_register(i))
        .peekable();
    registers.peek().is_some() && registers.all(Register::is_xmm)
}
