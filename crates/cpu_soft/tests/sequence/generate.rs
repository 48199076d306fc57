//! Random sequences that mostly succeed: registers that point into the memory are seldom changed,
//! and what needs special operands gets them from instructions before it.

use iced_x86::{
    Code, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
};

use super::{Case, MEMORY, MEMORY_LEN, Step, WINDOW};
use crate::forms::{compares, forms, is_bit_string, is_string};
use crate::random::Random;

/// Registers that point into the memory, and one that is a small number.
const POINTERS: [Register; 4] = [Register::RBP, Register::R12, Register::R13, Register::R14];
const INDEX: Register = Register::R15;

/// A form of an instruction, with what is asked of it often.
struct Form {
    code: Code,
    kinds: &'static [K],
    /// A memory operand must be aligned to 16 bytes, or may have to.
    aligned: bool,
}

/// What all cases of a run share.
pub struct Generator {
    integer: Vec<Form>,
    vector: Vec<Form>,
    pool: Vec<u8>,
}

impl Generator {
    pub fn new() -> Self {
        let (vector, integer) = forms()
            .filter_map(form)
            .partition(|form| is_vector(form.code));
        let mut random = Random::new(1);
        let pool = (0..1 << 13).flat_map(|_| random.value().to_le_bytes());
        Self {
            integer,
            vector,
            pool: pool.collect(),
        }
    }

    /// Makes the case that `seed` and `number` name.
    pub fn case(&self, seed: u64, number: u64) -> Case {
        let mut maker = Maker {
            all: self,
            random: Random::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95)),
            gpr: [0; 16],
            steps: Vec::new(),
            field: None,
        };
        for _ in 0..8 {
            // The first numbers of similar seeds are similar.
            maker.random.next();
        }
        maker.registers();
        if maker.random.once_in(2) {
            maker.field = Some((maker.pointer(), maker.target(true)));
        }
        let count = 2 + maker.random.below(15) as usize;
        while maker.steps.len() < count {
            maker.add();
        }
        maker.case()
    }
}

fn is_vector(code: Code) -> bool {
    code.cpuid_features().iter().any(|f| {
        let name = format!("{f:?}");
        ["SSE", "SSSE", "MMX", "FPU", "AES", "PCLMUL"]
            .iter()
            .any(|p| name.starts_with(p))
    })
}

/// `None` for what no random operands can be made for.
fn form(code: Code) -> Option<Form> {
    let info = code.op_code();
    let mnemonic = info.mnemonic();
    let near = info
        .op_kinds()
        .iter()
        .any(|k| *k == K::br64_1 || *k == K::br64_4);
    // These are made by hand, or go where no code is.
    let special = matches!(
        mnemonic,
        Mnemonic::Enter | Mnemonic::Xlatb | Mnemonic::Popf | Mnemonic::Popfq
    );
    let name = format!("{code:?}");
    let open = matches!(
        code,
        // Makes differ about how much it reads; counts beyond the width are undefined.
        Code::Movsxd_r16_rm16 | Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL
    );
    if special || open || matches!(mnemonic, Mnemonic::Jmp | Mnemonic::Call) && !near {
        return None;
    }
    let aligned = code.cpuid_features().iter().any(|f| {
        ["SSE", "SSSE"]
            .iter()
            .any(|p| format!("{f:?}").starts_with(p))
    }) || ["Cmpxchg16b", "Aes", "Pclmul"]
        .iter()
        .any(|p| name.starts_with(p));
    Some(Form {
        code,
        kinds: info.op_kinds(),
        aligned,
    })
}

/// Makes one case.
struct Maker<'a> {
    all: &'a Generator,
    random: Random,
    gpr: [u64; 16],
    steps: Vec<Step>,
    /// A register and the part of the memory that most instructions access by it.
    field: Option<(Register, u64)>,
}

impl Maker<'_> {
    fn registers(&mut self) {
        for i in 0..16 {
            self.gpr[i] = self.random.value();
        }
        for pointer in POINTERS {
            self.gpr[pointer.number()] = MEMORY + 0x200 + 8 * self.random.below(0x380);
        }
        self.gpr[4] = MEMORY + 0x800 + 8 * self.random.below(0x100);
        self.gpr[15] = self.random.below(64);
    }

    fn case(mut self) -> Case {
        let start = WINDOW + 0x80 + self.random.below(0x180);
        let mut flags = self.random.next() & 0x8d5;
        if self.random.once_in(16) {
            flags |= 0x400;
        }
        if self.random.once_in(12) {
            flags |= 0x4_0000;
        }
        let at = self.random.below((self.all.pool.len() - MEMORY_LEN) as u64) as usize & !7;
        Case {
            start,
            gpr: self.gpr,
            flags,
            fx: self.fx(),
            memory: self.all.pool[at..at + MEMORY_LEN].to_vec(),
            steps: self.steps,
        }
    }

    fn put(&mut self, insn: Instruction) {
        let skip = 1 + self.random.below(4) as usize;
        self.steps.push(Step {
            insn,
            skip,
            joined: false,
        });
    }

    /// Puts an instruction whose address, or what makes it, comes from the step before.
    fn join(&mut self, insn: Instruction, skip: usize) {
        self.steps.push(Step {
            insn,
            skip,
            joined: true,
        });
    }

    /// Adds an instruction, with what prepares its operands; nothing if there is no way.
    fn add(&mut self) {
        let before = self.steps.len();
        if self.random.once_in(24) {
            self.by_hand();
        } else {
            self.random_form();
        }
        if !self.holds() {
            self.steps.truncate(before);
        }
    }

    /// Whether all encodes, and no undefined flag is used. Later steps change neither for earlier
    /// ones, except where a branch leads.
    fn holds(&self) -> bool {
        let case = Case {
            steps: self.steps.clone(),
            start: WINDOW,
            gpr: self.gpr,
            flags: 0,
            fx: [0; 512],
            memory: Vec::new(),
        };
        case.undefined().is_some() && case.code().is_some_and(|code| code.bytes.len() < 0x180)
    }

    fn random_form(&mut self) {
        let all = self.all;
        let forms = if self.random.once_in(3) {
            &all.vector
        } else {
            &all.integer
        };
        let form = &forms[self.random.below(forms.len() as u64) as usize];
        let mut insn = Instruction::default();
        insn.set_code(form.code);
        if self.operands(form, &mut insn).is_none() {
            return;
        }
        if is_string(form.code) {
            self.string(&mut insn);
        }
        let to_memory = insn.op_count() > 0 && insn.op0_kind() == OpKind::Memory;
        if to_memory && is_bit_string(form.code) {
            self.bit_number(&insn);
        }
        match insn.mnemonic() {
            // Counts beyond the width are undefined for 16 bits.
            Mnemonic::Shld | Mnemonic::Shrd if insn.op2_kind() == OpKind::Immediate8 => {
                insn.set_immediate8(self.random.below(17) as u8);
            }
            Mnemonic::Div | Mnemonic::Idiv if !self.random.once_in(4) => self.dividend(&insn),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz => {
                self.set(Register::ECX, 3);
            }
            _ => {}
        }
        self.put(insn);
    }

    /// MOV register, a number below `limit`.
    fn set(&mut self, register: Register, limit: u64) {
        let value = self.random.below(limit) as u32;
        self.put(Instruction::with2(Code::Mov_r32_imm32, register, value).expect("valid"));
    }

    /// LEA register, somewhere in the memory.
    fn point(&mut self, register: Register) {
        let base = self.pointer();
        let target = MEMORY + 0x200 + self.random.below(0x1c00);
        let displacement = target.wrapping_sub(self.gpr[base.number()]) as i64;
        let memory = MemoryOperand::with_base_displ(base, displacement);
        self.put(Instruction::with2(Code::Lea_r64_m, register, memory).expect("valid"));
    }

    fn pointer(&mut self) -> Register {
        POINTERS[self.random.below(4) as usize]
    }

    fn by_hand(&mut self) {
        match self.random.below(9) {
            5..7 => self.indirect(),
            7 => self.astray(),
            8 => self.control(),
            0 => {
                self.point(Register::RBX);
                let memory = MemoryOperand::with_base_index(Register::RBX, Register::AL);
                self.put(Instruction::with1(Code::Xlat_m8, memory).expect("valid"));
            }
            1 => self.put(Instruction::with(Code::Pushfq)),
            2 => {
                // Status flags and DF, sometimes AC; nothing that traps.
                let mut value = self.random.next() as i32 & 0xcd5;
                if self.random.once_in(8) {
                    value |= 0x4_0000;
                }
                self.put(Instruction::with1(Code::Pushq_imm32, value).expect("valid"));
                self.put(Instruction::with(Code::Popfq));
            }
            3 => self.put(Instruction::with(Code::Ud2)),
            _ => {
                let size = 8 * self.random.below(16) as i32;
                let level = self.random.below(3) as i32;
                self.put(Instruction::with2(Code::Enterq_imm16_imm8, size, level).expect("valid"));
            }
        }
    }

    /// A register that may hold anything.
    fn free(&mut self) -> Register {
        loop {
            let register = self.number(Register::RAX, 12);
            if !matches!(register.number(), 4 | 5) {
                return register;
            }
        }
    }

    /// Eight aligned bytes, mostly in the memory.
    fn place(&mut self) -> MemoryOperand {
        let base = self.pointer();
        let target = self.target(true) & !7;
        let displacement = target.wrapping_sub(self.gpr[base.number()]) as i64;
        MemoryOperand::with_base_displ(base, displacement)
    }

    /// A jump, call or return to an address that an instruction before it made.
    fn indirect(&mut self) {
        let register = self.free();
        let skip = self.random.below(4) as usize;
        let here = MemoryOperand::with_base_displ(Register::RIP, 1);
        let lea = Instruction::with2(Code::Lea_r64_m, register, here).expect("valid");
        let way = self.random.below(6);
        let mut steps = Vec::new();
        match way {
            0 | 1 => {
                let code = [Code::Jmp_rm64, Code::Call_rm64][way as usize];
                steps.push(Instruction::with1(code, register).expect("valid"));
            }
            2 | 3 => {
                let place = self.place();
                steps.push(Instruction::with2(Code::Mov_rm64_r64, place, register).expect("valid"));
                let code = [Code::Jmp_rm64, Code::Call_rm64][way as usize - 2];
                steps.push(Instruction::with1(code, place).expect("valid"));
            }
            _ => {
                steps.push(Instruction::with1(Code::Push_r64, register).expect("valid"));
                let release = 8 * self.random.below(4) as i32;
                steps.push(match way {
                    4 => Instruction::with(Code::Retnq),
                    _ => Instruction::with1(Code::Retnq_imm16, release).expect("valid"),
                });
            }
        }
        let mut left = steps.len();
        self.steps.push(Step {
            insn: lea,
            skip: skip + left,
            joined: false,
        });
        for step in steps {
            left -= 1;
            self.join(step, skip + left);
        }
    }

    /// A jump or return to where no code is.
    fn astray(&mut self) {
        let register = self.free();
        let target = match self.random.below(3) {
            0 => MEMORY + self.random.below(MEMORY_LEN as u64),
            1 => self.random.next() >> 18 & !0xfff,
            _ => super::CODE - 1 - self.random.below(0x100),
        };
        self.put(Instruction::with2(Code::Mov_r64_imm64, register, target).expect("valid"));
        if self.random.once_in(2) {
            self.join(
                Instruction::with1(Code::Jmp_rm64, register).expect("valid"),
                0,
            );
        } else {
            self.join(
                Instruction::with1(Code::Push_r64, register).expect("valid"),
                0,
            );
            self.join(Instruction::with(Code::Retnq), 0);
        }
    }

    /// MXCSR with some exceptions open, flags set already, another rounding, or tiny numbers as zero.
    fn control(&mut self) {
        let mut value = 0x1f80 | self.random.next() as u32 & 0xe07f;
        if self.random.once_in(2) {
            value &= !(1 << (7 + self.random.below(6)));
        }
        let place = self.place();
        let value = value as i32;
        self.put(Instruction::with2(Code::Mov_rm32_imm32, place, value).expect("valid"));
        self.join(
            Instruction::with1(Code::Ldmxcsr_m32, place).expect("valid"),
            0,
        );
    }

    /// A dividend that a divisor of the same size mostly takes.
    fn dividend(&mut self, insn: &Instruction) {
        let size = match insn.op0_kind() {
            OpKind::Memory => insn.memory_size().size(),
            _ => insn.op0_register().size(),
        };
        let signed = insn.mnemonic() == Mnemonic::Idiv;
        let code = match (size, signed) {
            (1, true) => Code::Cbw,
            (2, true) => Code::Cwd,
            (4, true) => Code::Cdq,
            (_, true) => Code::Cqo,
            (1, false) => return self.set(Register::EAX, 0x100),
            _ => return self.set(Register::EDX, 1),
        };
        self.put(Instruction::with(code));
    }

    /// The bit number of a bit string reaches beyond the operand: keeps it near.
    fn bit_number(&mut self, insn: &Instruction) {
        let register = insn.op1_register().full_register32();
        if !matches!(register.number(), 4 | 5 | 12..) {
            self.set(register, 4096);
        }
    }

    fn string(&mut self, insn: &mut Instruction) {
        if self.random.once_in(8) {
            return;
        }
        self.point(Register::RSI);
        self.point(Register::RDI);
        self.set(Register::ECX, 40);
        match self.random.below(3) {
            0 => {}
            1 if compares(insn.mnemonic()) => insn.set_has_repne_prefix(true),
            _ => insn.set_has_rep_prefix(true),
        }
    }

    fn operands(&mut self, form: &Form, insn: &mut Instruction) -> Option<()> {
        let in_memory = self.random.once_in(2);
        for (i, kind) in form.kinds.iter().enumerate() {
            let i = i as u32;
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
                    if in_memory =>
                {
                    None
                }
                K::r8_or_mem | K::r8_reg | K::r8_opcode => Some(self.byte()),
                K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => {
                    Some(self.general(Register::AX))
                }
                K::r32_or_mem
                | K::r32_reg
                | K::r32_vvvv
                | K::r32_rm
                | K::r32_opcode
                | K::r32_reg_mem => Some(self.general(Register::EAX)),
                K::r64_or_mem
                | K::r64_reg
                | K::r64_vvvv
                | K::r64_rm
                | K::r64_opcode
                | K::r64_reg_mem => Some(self.general(Register::RAX)),
                K::mm_or_mem | K::mm_reg | K::mm_rm => Some(self.number(Register::MM0, 8)),
                K::xmm_or_mem | K::xmm_reg | K::xmm_rm => Some(self.number(Register::XMM0, 16)),
                K::sti_opcode => Some(self.number(Register::ST0, 8)),
                K::st0 => Some(Register::ST0),
                K::al => Some(Register::AL),
                K::cl => Some(Register::CL),
                K::ax => Some(Register::AX),
                K::dx => Some(Register::DX),
                K::eax => Some(Register::EAX),
                K::rax => Some(Register::RAX),
                K::br64_1 | K::br64_4 => {
                    insn.set_op_kind(i, OpKind::NearBranch64);
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
                _ => {
                    self.immediate(insn, i, *kind)?;
                    continue;
                }
            };
            match choice {
                Some(register) => {
                    insn.set_op_kind(i, OpKind::Register);
                    insn.set_op_register(i, register);
                }
                None => {
                    self.memory(insn, i, form.aligned);
                    let lockable = i == 0 && form.code.op_code().can_use_lock_prefix();
                    insn.set_has_lock_prefix(lockable && self.random.once_in(4));
                }
            }
        }
        Some(())
    }

    fn number(&mut self, first: Register, count: u64) -> Register {
        let number = self.random.below(count) as usize;
        Register::try_from(first as usize + number).expect("a register of this class")
    }

    /// Not RSP, and seldom one that points.
    fn general(&mut self, first: Register) -> Register {
        loop {
            let register = self.number(first, 16);
            match register.number() {
                4 => {}
                5 | 12.. if !self.random.once_in(16) => {}
                _ => return register,
            }
        }
    }

    fn byte(&mut self) -> Register {
        if self.random.once_in(3) {
            return self.number(Register::AL, 8);
        }
        loop {
            let register = self.number(Register::SPL, 12);
            if !matches!(register.number(), 4 | 5 | 12..) {
                return register;
            }
        }
    }

    fn immediate(&mut self, insn: &mut Instruction, i: u32, kind: K) -> Option<()> {
        let value = self.random.value();
        insn.set_op_kind(
            i,
            match kind {
                K::imm8_const_1 | K::imm8 => OpKind::Immediate8,
                K::imm8sex16 => OpKind::Immediate8to16,
                K::imm8sex32 => OpKind::Immediate8to32,
                K::imm8sex64 => OpKind::Immediate8to64,
                K::imm16 => OpKind::Immediate16,
                K::imm32 => OpKind::Immediate32,
                K::imm32sex64 => OpKind::Immediate32to64,
                K::imm64 => OpKind::Immediate64,
                _ => return None,
            },
        );
        match kind {
            K::imm8_const_1 => insn.set_immediate8(1),
            K::imm8 => insn.set_immediate8(value as u8),
            K::imm8sex16 => insn.set_immediate8to16((value as i8).into()),
            K::imm8sex32 => insn.set_immediate8to32((value as i8).into()),
            K::imm8sex64 => insn.set_immediate8to64((value as i8).into()),
            K::imm16 => insn.set_immediate16(value as u16),
            K::imm32 => insn.set_immediate32(value as u32),
            K::imm32sex64 => insn.set_immediate32to64((value as i32).into()),
            _ => insn.set_immediate64(value),
        }
        Some(())
    }

    /// Where a memory operand lies: mostly in the memory, sometimes across its pages or its end.
    fn target(&mut self, aligned: bool) -> u64 {
        let at = match self.random.below(40) {
            0 => MEMORY_LEN as u64 - self.random.below(16),
            1 => MEMORY_LEN as u64 + self.random.below(0x8000),
            2..=4 => 0x1000 - self.random.below(16),
            _ => 0x200 + self.random.below(0x1c00),
        };
        let keep = aligned && !self.random.once_in(12) || self.random.once_in(4);
        MEMORY + if keep { at & !15 } else { at }
    }

    fn memory(&mut self, insn: &mut Instruction, i: u32, aligned: bool) {
        // Fields of one structure are what code accesses most.
        let field = self.field.filter(|_| !self.random.once_in(3));
        let (base, target) = match field {
            Some((base, at)) if aligned => (base, at + 16 * self.random.below(8)),
            Some((base, at)) => (base, at + self.random.below(0x80)),
            None => (self.pointer(), self.target(aligned)),
        };
        let narrow = self.random.once_in(16);
        let mut address = target.wrapping_sub(self.gpr[base.number()]);
        insn.set_op_kind(i, OpKind::Memory);
        insn.set_memory_base(if narrow { base.full_register32() } else { base });
        insn.set_memory_index_scale(1);
        if self.random.once_in(if field.is_some() { 12 } else { 3 }) {
            let scale = 1 << self.random.below(4);
            insn.set_memory_index(if narrow {
                INDEX.full_register32()
            } else {
                INDEX
            });
            insn.set_memory_index_scale(scale);
            address = address.wrapping_sub(self.gpr[15] * u64::from(scale));
        }
        let short = (address as i64) == i64::from(address as i8);
        insn.set_memory_displ_size(match (short, narrow) {
            (true, _) => 1,
            (false, true) => 4,
            (false, false) => 8,
        });
        insn.set_memory_displacement64(if narrow {
            address & 0xffff_ffff
        } else {
            address
        });
    }

    /// An FXSAVE image with plausible numbers, all exceptions masked.
    fn fx(&mut self) -> [u8; 512] {
        let mut fx = [0; 512];
        let control = 0x37f | (self.random.below(4) as u16) << 10;
        fx[0..2].copy_from_slice(&control.to_le_bytes());
        fx[2..4].copy_from_slice(&((self.random.below(8) as u16) << 11).to_le_bytes());
        fx[4] = self.random.next() as u8 | self.random.next() as u8;
        let rounding = (self.random.below(4) as u32) << 13;
        fx[24..28].copy_from_slice(&(0x1f80 | rounding).to_le_bytes());
        for i in 0..8 {
            let at = 32 + 16 * i;
            let mantissa = 1 << 63 | self.random.next();
            let exponent = 0x3fff - 40 + self.random.below(80) as u16;
            fx[at..at + 8].copy_from_slice(&mantissa.to_le_bytes());
            fx[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
        }
        for at in (160..416).step_by(4) {
            let value = match self.random.below(4) {
                0 => (self.random.next() as f32 / 3.0e10).to_bits(),
                1 => (1.5f32 * self.random.below(100) as f32 - 70.0).to_bits(),
                _ => self.random.value() as u32,
            };
            fx[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        fx
    }
}
