//! What is known of general registers within a piece: which of them differ by a constant.
//!
//! A register's value is a *base*, some number that has not changed since it came about, and a distance from it.
//! Instructions that add a constant change the distance; all others that write the register begin a new base.
//! Two accesses by the same base are so many bytes apart, whatever the base is.

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpKind, Register};
use umbra_x86::state::gpr;

use super::memory::{has_memory, is_plain};
use crate::native::writes;

/// A value: a base and a distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub base: u32,
    pub distance: i64,
}

impl Value {
    /// So many bytes further.
    pub fn plus(self, bytes: i64) -> Self {
        let distance = self.distance.wrapping_add(bytes);
        Self { distance, ..self }
    }
}

/// The base of constants.
const ZERO: u32 = 0;

/// An access to memory of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub at: Value,
    pub size: usize,
    pub write: bool,
}

/// The values of the general registers.
#[derive(Clone)]
pub struct Bases {
    of: [Value; 16],
    /// Sums of a base and a scaled index, which are bases, too.
    sums: Vec<(Sum, u32)>,
    next: u32,
}

/// Base, index, scale.
type Sum = (u32, u32, u32);

impl Bases {
    /// Nothing is known.
    pub fn new() -> Self {
        let of = std::array::from_fn(|i| Value {
            base: i as u32 + 1,
            distance: 0,
        });
        Self {
            of,
            sums: Vec::new(),
            next: 17,
        }
    }

    /// The value of a register.
    pub fn of(&self, number: usize) -> Value {
        self.of[number & 15]
    }

    /// The value of the memory operand's address, if it has no segment that counts.
    pub fn address(&mut self, insn: &Instruction) -> Option<Value> {
        let segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
        if segment || !is_plain(insn) {
            return None;
        }
        let displacement = insn.memory_displacement64() as i64;
        let base = match insn.memory_base() {
            Register::RIP | Register::None => Value {
                base: ZERO,
                distance: 0,
            },
            base => self.of(base.number()),
        };
        let sum = match insn.memory_index() {
            Register::None => base,
            index => self.sum(base, self.of(index.number()), insn.memory_index_scale()),
        };
        Some(sum.plus(displacement))
    }

    fn sum(&mut self, base: Value, index: Value, scale: u32) -> Value {
        let sum = (base.base, index.base, scale);
        let known = self.sums.iter().find(|known| known.0 == sum);
        let number = known.map_or(self.next, |known| known.1);
        if number == self.next {
            self.next += 1;
            self.sums.push((sum, number));
        }
        Value {
            base: number,
            distance: index.distance.wrapping_mul(scale.into()),
        }
        .plus(base.distance)
    }

    fn fresh(&mut self, number: usize) {
        self.of[number & 15] = Value {
            base: self.next,
            distance: 0,
        };
        self.next += 1;
    }

    /// `insn` has executed.
    pub fn step(&mut self, insn: &Instruction, info: &mut InstructionInfoFactory) {
        let registers = |i| insn.op_kind(i) == OpKind::Register;
        let number = |i| insn.op_register(i).full_register().number();
        match insn.code() {
            Code::Push_r64
            | Code::Push_rm64
            | Code::Pushq_imm8
            | Code::Pushq_imm32
            | Code::Pushfq => {
                self.of[gpr::RSP] = self.of(gpr::RSP).plus(-8);
            }
            Code::Pop_r64 => {
                self.of[gpr::RSP] = self.of(gpr::RSP).plus(8);
                self.fresh(number(0));
            }
            Code::Leaveq => {
                self.of[gpr::RSP] = self.of(gpr::RBP).plus(8);
                self.fresh(gpr::RBP);
            }
            Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if registers(0) => {
                self.of[number(0)] = self.of(number(0)).plus(insn.immediate(1) as i64);
            }
            Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if registers(0) => {
                let bytes = (insn.immediate(1) as i64).wrapping_neg();
                self.of[number(0)] = self.of(number(0)).plus(bytes);
            }
            Code::Mov_rm64_r64 | Code::Mov_r64_rm64 if registers(0) && registers(1) => {
                self.of[number(0)] = self.of(number(1));
            }
            Code::Lea_r64_m => match self.address(insn) {
                Some(value) => self.of[number(0)] = value,
                None => self.fresh(number(0)),
            },
            _ => {
                for used in info.info(insn).used_registers() {
                    let register = used.register();
                    if writes(used.access()) && register.is_gpr() {
                        self.fresh(register.full_register().number());
                    }
                }
            }
        }
    }

    /// The accesses of `insn` whose addresses have a value.
    pub fn accesses(
        &mut self,
        insn: &Instruction,
        info: &mut InstructionInfoFactory,
    ) -> [Option<Access>; 2] {
        let sp = self.of(gpr::RSP);
        let stack = |distance, write| {
            Some(Access {
                at: sp.plus(distance),
                size: 8,
                write,
            })
        };
        let mut operand = |write| {
            let at = if has_memory(insn) {
                self.address(insn)
            } else {
                None
            };
            at.map(|at| Access {
                at,
                size: insn.memory_size().size(),
                write,
            })
        };
        match insn.code() {
            Code::Push_r64
            | Code::Push_rm64
            | Code::Pushq_imm8
            | Code::Pushq_imm32
            | Code::Pushfq
            | Code::Call_rel32_64
            | Code::Call_rm64 => [operand(false), stack(-8, true)],
            Code::Pop_r64 | Code::Retnq | Code::Retnq_imm16 => [stack(0, false), None],
            Code::Leaveq => {
                let at = self.of(gpr::RBP);
                let access = Access {
                    at,
                    size: 8,
                    write: false,
                };
                [Some(access), None]
            }
            Code::Lea_r64_m | Code::Lea_r32_m | Code::Lea_r16_m => [None, None],
            _ => {
                let memory = (0..insn.op_count()).find(|i| insn.op_kind(*i) == OpKind::Memory);
                let write = memory.is_some_and(|i| writes(info.info(insn).op_access(i)));
                [operand(write), None]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    /// What is known after `code`.
    fn after(code: &[u8]) -> Bases {
        let (mut bases, mut info) = (Bases::new(), InstructionInfoFactory::new());
        for insn in Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE) {
            assert!(!insn.is_invalid());
            bases.step(&insn, &mut info);
        }
        bases
    }

    fn distance(bases: &Bases, to: usize, from: usize) -> Option<i64> {
        let (to, from) = (bases.of(to), bases.of(from));
        (to.base == from.base).then(|| to.distance - from.distance)
    }

    #[test]
    fn what_adds_a_constant_keeps_the_base() {
        // push rbp; mov rbp, rsp; push rbx; sub rsp, 0x28; lea rax, [rbp-0x40]
        let bases = after(&[
            0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x83, 0xec, 0x28, 0x48, 0x8d, 0x45, 0xc0,
        ]);
        assert_eq!(distance(&bases, gpr::RSP, gpr::RBP), Some(-0x30));
        assert_eq!(distance(&bases, gpr::RAX, gpr::RBP), Some(-0x40));
        // leave
        let bases = after(&[0x55, 0x48, 0x89, 0xe5, 0x53, 0xc9]);
        assert_eq!(bases.of(gpr::RSP), Bases::new().of(gpr::RSP));
    }

    #[test]
    fn a_sum_is_the_same_while_its_parts_are() {
        let mut bases = Bases::new();
        let insn = |code: &[u8]| Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode();
        // mov eax, [rdx+rcx*4+8]; mov eax, [rdx+rcx*8+8]
        let (four, eight) = (insn(&[0x8b, 0x44, 0x8a, 8]), insn(&[0x8b, 0x44, 0xca, 8]));
        let before = bases.address(&four).unwrap();
        assert_ne!(bases.address(&eight).unwrap().base, before.base);
        // add rcx, 2
        bases.step(
            &insn(&[0x48, 0x83, 0xc1, 2]),
            &mut InstructionInfoFactory::new(),
        );
        assert_eq!(bases.address(&four), Some(before.plus(8)));
        // inc ecx
        bases.step(&insn(&[0xff, 0xc1]), &mut InstructionInfoFactory::new());
        assert_ne!(bases.address(&four).unwrap().base, before.base);
    }

    #[test]
    fn everything_else_begins_a_new_one() {
        for code in [
            &[0x48, 0x83, 0xe4, 0xf0][..], // and rsp, -16
            &[0x83, 0xc4, 0x08],           // add esp, 8
            &[0x89, 0xe4],                 // mov esp, esp
            &[0x5c],                       // pop rsp
            &[0x66, 0x58, 0x5c],           // pop ax; pop rsp
            &[0x48, 0x94],                 // xchg rsp, rax
            &[0x48, 0x0f, 0x44, 0xe0],     // cmove rsp, rax
        ] {
            let base = after(code).of(gpr::RSP).base;
            assert_ne!(base, Bases::new().of(gpr::RSP).base, "{code:x?}");
        }
    }

    #[test]
    fn accesses_are_so_many_bytes_apart() {
        let mut info = InstructionInfoFactory::new();
        let mut one = |code: &[u8]| {
            let insn = Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode();
            Bases::new().accesses(&insn, &mut info)
        };
        let sp = Bases::new().of(gpr::RSP);
        let access = |at, size, write| Some(Access { at, size, write });
        // push rbx; pop rbx; mov [rsp+8], eax; add rax, [rsp]; push [rsp+16]; lea
        assert_eq!(one(&[0x53]), [None, access(sp.plus(-8), 8, true)]);
        assert_eq!(one(&[0x5b]), [access(sp, 8, false), None]);
        assert_eq!(
            one(&[0x89, 0x44, 0x24, 8]),
            [access(sp.plus(8), 4, true), None]
        );
        assert_eq!(one(&[0x48, 3, 4, 0x24]), [access(sp, 8, false), None]);
        assert_eq!(
            one(&[0xff, 0x74, 0x24, 16]),
            [access(sp.plus(16), 8, false), access(sp.plus(-8), 8, true)]
        );
        assert_eq!(one(&[0x48, 0x8d, 4, 0x24]), [None, None]);
    }
}
