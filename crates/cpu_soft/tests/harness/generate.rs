//! Random operands for every form of every instruction.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register};

use super::{Case, MEMORY, MEMORY_LEN};
use crate::forms::{compares, is_bit_string, is_string};
use crate::random::Random;

/// Makes cases.
pub struct Generator(Random);

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    fn next(&mut self) -> u64 {
        self.0.next()
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0.below(n)
    }

    fn value(&mut self) -> u64 {
        self.0.value()
    }

    /// Makes a case for `code`; `None` where no operands of this kind can be made.
    pub fn case(&mut self, code: Code, round: u64) -> Option<Case> {
        let mut gpr = [0; 16];
        gpr.iter_mut().for_each(|r| *r = self.value());
        gpr[4] = MEMORY + 0x1000;
        let mut memory = vec![0; MEMORY_LEN];
        for chunk in memory.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.value().to_le_bytes());
        }
        let flags = 2
            | self.next() & 0x8d5
            | if is_string(code) {
                self.next() & 0x400
            } else {
                0
            };
        let mut insn = Instruction::default();
        insn.set_code(code);
        self.operands(code, &mut insn, &mut gpr, round)?;
        if insn.op0_kind() == OpKind::Memory && is_bit_string(code) {
            self.bit_number(&mut insn, &mut gpr);
        }
        if is_string(code) {
            self.string(&mut insn, &mut gpr);
        }
        if matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) {
            // Results of counts beyond the width of 16-bit operands are undefined.
            gpr[1] = gpr[1] & !0xff | self.below(17);
            if insn.op2_kind() == OpKind::Immediate8 {
                insn.set_immediate8(self.below(17) as u8);
            }
        }
        self.divisor(&mut insn, &mut gpr, &mut memory);
        match insn.mnemonic() {
            // Branches count in RCX: both outcomes of a small number are likely.
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz => {
                gpr[1] = self.below(3);
            }
            Mnemonic::Jecxz => gpr[1] = self.below(2) << (32 * self.below(2)),
            Mnemonic::Enter => {
                insn.set_op_kind(1, OpKind::Immediate8_2nd);
                insn.set_immediate16(self.below(512) as u16);
                insn.set_immediate8_2nd(self.below(4) as u8);
                gpr[5] = MEMORY + 0x1100 + self.below(64);
            }
            Mnemonic::Xlatb => gpr[3] = MEMORY + 0x100,
            Mnemonic::Leave => gpr[5] = MEMORY + 0x1100 + self.below(64),
            // An indirect branch would have to know where the code behind it is.
            Mnemonic::Jmp | Mnemonic::Call if insn.op0_kind() != OpKind::NearBranch64 => {
                return None;
            }
            _ => {}
        }
        let fx = self.fx();
        Some(Case {
            insn,
            gpr,
            flags,
            fx,
            memory,
        })
    }

    fn operands(
        &mut self,
        code: Code,
        insn: &mut Instruction,
        gpr: &mut [u64; 16],
        round: u64,
    ) -> Option<()> {
        let kinds = code.op_code().op_kinds().to_vec();
        let memory_form = round % 2 == 1;
        let locked = round % 4 == 1 && code.op_code().can_use_lock_prefix();
        for (i, kind) in kinds.iter().enumerate() {
            let i = i as u32;
            let register = |n: u64, base: Register| {
                Register::try_from(base as usize + n as usize).expect("a register of this class")
            };
            // Stack pointer: only as itself; it must stay in the area.
            let mut number = self.below(16);
            if number == 4 {
                number = 5;
            }
            let choice = match kind {
                K::mem | K::mem_mpx | K::mem_mib => None,
                K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::mm_or_mem
                | K::xmm_or_mem
                | K::r32_or_mem_mpx
                | K::r64_or_mem_mpx
                    if memory_form =>
                {
                    None
                }
                K::r8_or_mem | K::r8_reg | K::r8_opcode => {
                    Some(register(self.below(8), Register::SPL))
                }
                K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => {
                    Some(register(number, Register::AX))
                }
                K::r32_or_mem
                | K::r32_reg
                | K::r32_vvvv
                | K::r32_rm
                | K::r32_opcode
                | K::r32_reg_mem => Some(register(number, Register::EAX)),
                K::r64_or_mem
                | K::r64_reg
                | K::r64_vvvv
                | K::r64_rm
                | K::r64_opcode
                | K::r64_reg_mem => Some(register(number, Register::RAX)),
                K::mm_or_mem | K::mm_reg | K::mm_rm => Some(register(self.below(8), Register::MM0)),
                K::xmm_or_mem | K::xmm_reg | K::xmm_rm => {
                    Some(register(self.below(16), Register::XMM0))
                }
                K::sti_opcode => Some(register(self.below(8), Register::ST0)),
                K::st0 => Some(Register::ST0),
                K::al => Some(Register::AL),
                K::cl => Some(Register::CL),
                K::ax => Some(Register::AX),
                K::dx => Some(Register::DX),
                K::eax => Some(Register::EAX),
                K::rax => Some(Register::RAX),
                K::imm8
                | K::imm8sex16
                | K::imm8sex32
                | K::imm8sex64
                | K::imm16
                | K::imm32
                | K::imm32sex64
                | K::imm64
                | K::imm8_const_1 => {
                    self.immediate(insn, i, *kind);
                    continue;
                }
                K::br64_1 | K::br64_4 => {
                    insn.set_op_kind(i, OpKind::NearBranch64);
                    continue;
                }
                K::seg_rBX_al => {
                    insn.set_op_kind(i, OpKind::Memory);
                    insn.set_memory_base(Register::RBX);
                    insn.set_memory_index(Register::AL);
                    insn.set_memory_index_scale(1);
                    continue;
                }
                K::seg_rSI => {
                    insn.set_op_kind(i, OpKind::MemorySegRSI);
                    continue;
                }
                K::es_rDI => {
                    insn.set_op_kind(i, OpKind::MemoryESRDI);
                    continue;
                }
                _ => return None,
            };
            match choice {
                Some(register) => {
                    insn.set_op_kind(i, OpKind::Register);
                    insn.set_op_register(i, register);
                }
                None => {
                    self.memory(code, insn, i, gpr);
                    insn.set_has_lock_prefix(locked && i == 0);
                }
            }
        }
        Some(())
    }

    fn immediate(&mut self, insn: &mut Instruction, i: u32, kind: K) {
        let value = self.value();
        let (op, value) = match kind {
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8 => (OpKind::Immediate8, value & 0xff),
            K::imm8sex16 => (OpKind::Immediate8to16, value as i8 as i16 as u16 as u64),
            K::imm8sex32 => (OpKind::Immediate8to32, value as i8 as i32 as u32 as u64),
            K::imm8sex64 => (OpKind::Immediate8to64, value as i8 as u64),
            K::imm16 => (OpKind::Immediate16, value & 0xffff),
            K::imm32 => (OpKind::Immediate32, value & 0xffff_ffff),
            K::imm32sex64 => (OpKind::Immediate32to64, value as i32 as u64),
            _ => (OpKind::Immediate64, value),
        };
        insn.set_op_kind(i, op);
        match op {
            OpKind::Immediate8 => insn.set_immediate8(value as u8),
            OpKind::Immediate8to16 => insn.set_immediate8to16(value as i16),
            OpKind::Immediate8to32 => insn.set_immediate8to32(value as i32),
            OpKind::Immediate8to64 => insn.set_immediate8to64(value as i64),
            OpKind::Immediate16 => insn.set_immediate16(value as u16),
            OpKind::Immediate32 => insn.set_immediate32(value as u32),
            OpKind::Immediate32to64 => insn.set_immediate32to64(value as i64),
            _ => insn.set_immediate64(value),
        }
    }

    /// A memory operand in the area: base, sometimes a scaled index, a displacement.
    fn memory(&mut self, code: Code, insn: &mut Instruction, i: u32, gpr: &mut [u64; 16]) {
        // Registers that no implicit operand uses.
        let bases = [Register::R12, Register::R13, Register::R14, Register::RBP];
        let base = bases[self.below(4) as usize];
        let aligned = MEMORY + 0x400 + 16 * self.below(64);
        let unaligned_ok = !code
            .cpuid_features()
            .iter()
            .any(|f| format!("{f:?}").starts_with("SS"))
            && !matches!(code, Code::Cmpxchg16b_m128)
            && !format!("{code:?}").starts_with("Aes")
            && !format!("{code:?}").starts_with("Pclmul");
        let target = if unaligned_ok {
            aligned + self.below(16)
        } else {
            aligned
        };
        let displacement = self.below(256) as i64 - 128;
        let mut address = target.wrapping_sub(displacement as u64);
        insn.set_op_kind(i, OpKind::Memory);
        insn.set_memory_base(base);
        insn.set_memory_displ_size(1);
        insn.set_memory_displacement64(displacement as u64);
        insn.set_memory_index_scale(1);
        if self.below(2) == 0 {
            let scale = 1 << self.below(4);
            let index = self.below(64);
            insn.set_memory_index(Register::R15);
            insn.set_memory_index_scale(scale);
            gpr[15] = index;
            address = address.wrapping_sub(index * u64::from(scale));
        }
        gpr[base.number()] = address;
    }

    /// The bit number of a bit string reaches beyond the operand: keeps it in the area.
    fn bit_number(&mut self, insn: &mut Instruction, gpr: &mut [u64; 16]) {
        let mut number = insn.op1_register().number();
        if matches!(number, 4 | 5 | 12..) {
            insn.set_op_register(1, same_class(insn.op1_register(), 2));
            number = 2;
        }
        gpr[number] = self.below(4096).wrapping_sub(2048);
    }

    fn string(&mut self, insn: &mut Instruction, gpr: &mut [u64; 16]) {
        gpr[6] = MEMORY + 0xc00 + self.below(64);
        gpr[7] = MEMORY + 0x1400 + self.below(64);
        gpr[1] = self.below(40);
        match self.below(3) {
            0 => {}
            1 => insn.set_has_rep_prefix(true),
            _ if compares(insn.mnemonic()) => insn.set_has_repne_prefix(true),
            _ => insn.set_has_rep_prefix(true),
        }
    }

    /// Keeps divisions from faulting: the high half is smaller than the divisor.
    fn divisor(&mut self, insn: &mut Instruction, gpr: &mut [u64; 16], memory: &mut [u8]) {
        let signed = insn.mnemonic() == Mnemonic::Idiv;
        if !signed && insn.mnemonic() != Mnemonic::Div {
            return;
        }
        let size = match insn.op0_kind() {
            OpKind::Memory => insn.memory_size().size(),
            _ => insn.op0_register().size(),
        };
        // Every byte of the divisor is 0x41 to 0x5f, the dividend is one word sign-extended (or
        // zero-extended): the quotient always fits.
        memory.iter_mut().for_each(|b| *b = *b & 0x1e | 0x41);
        if insn.op0_kind() == OpKind::Register {
            let number = insn.op0_register().number();
            let number = if matches!(number, 0 | 2 | 4) {
                3
            } else {
                number
            };
            insn.set_op_register(
                0,
                if size == 1 {
                    Register::BL
                } else {
                    same_class(insn.op0_register(), number)
                },
            );
            let number = if size == 1 { 3 } else { number };
            gpr[number] = gpr[number] & 0x1e1e_1e1e_1e1e_1e1e | 0x4141_4141_4141_4141;
        }
        let negative = signed && self.below(2) == 0;
        let high = if negative { u64::MAX } else { 0 };
        let top = 1u64 << (8 * size - 1);
        let low = if signed {
            gpr[0] & ((top >> 1) - 1)
        } else {
            gpr[0] & (top - 1)
        };
        let low = if negative { low | top | top >> 1 } else { low };
        if size == 1 {
            gpr[0] = high << 8 & 0xff00 | low & 0xff;
        } else {
            gpr[0] = low;
            gpr[2] = high;
        }
    }

    /// An FXSAVE image with plausible numbers, all exceptions masked.
    fn fx(&mut self) -> [u8; 512] {
        let mut fx = [0; 512];
        fx[0..2].copy_from_slice(&(0x37f | (self.below(4) as u16) << 10).to_le_bytes());
        fx[2..4].copy_from_slice(&((self.below(8) as u16) << 11).to_le_bytes());
        fx[4] = self.next() as u8 | self.next() as u8;
        let rounding = (self.below(4) as u32) << 13;
        fx[24..28].copy_from_slice(&(0x1f80 | rounding).to_le_bytes());
        for i in 0..8 {
            let number = self.extended();
            fx[32 + 16 * i..42 + 16 * i].copy_from_slice(&number);
        }
        for at in (160..416).step_by(4) {
            let value = match self.below(4) {
                0 => (self.next() as f32 / 3.0e10).to_bits(),
                1 => (1.5f32 * self.below(100) as f32 - 70.0).to_bits(),
                _ => self.value() as u32,
            };
            fx[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        fx
    }

    /// An 80-bit number.
    fn extended(&mut self) -> [u8; 10] {
        let mut number = [0; 10];
        let exponent: u64 = match self.below(8) {
            0 => 0,
            1 => 0x7fff,
            _ => 0x3fff - 40 + self.below(80),
        };
        let mantissa = if exponent == 0 {
            0
        } else {
            1 << 63 | self.next()
        };
        let sign = self.below(2) << 15;
        number[..8].copy_from_slice(&mantissa.to_le_bytes());
        number[8..].copy_from_slice(&((exponent | sign) as u16).to_le_bytes());
        number
    }
}

/// Register `number` of the size that `register` has.
fn same_class(register: Register, number: usize) -> Register {
    let base = match register.size() {
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    Register::try_from(base as usize + number).expect("a register of this class")
}
