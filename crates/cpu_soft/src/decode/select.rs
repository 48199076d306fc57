//! Which handler executes an instruction.
//!
//! A flat list: one line a mnemonic, and a function a family for what the line needs to know.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use umbra_x86::vector;

use super::classify::{
    condition, form, has_immediate, has_memory, is_cmov, is_immediate, is_legacy_xmm, is_setcc,
    lockable, operand_size, source_size, stack_size,
};
use super::operands::{self, gpr, segment};
use super::{Builder, Flow};
use crate::cpu::mode;
use crate::op::{Handler, Op, addr};
use crate::ops::alu::{self, Place};
use crate::ops::stack::{self, Source};
use crate::ops::string::{self, Kind};
use crate::ops::system::{self, Stored};
use crate::ops::{bits, branch, by_size, flagops, hypercall, mov, muldiv, shift, simd, vintage};
use crate::{far, regs};

/// What a line of the list answers: a handler that goes on, or one that ends the block.
pub(super) enum Pick {
    On(Handler),
    End(Handler),
    /// Not one of ours: perhaps it runs natively.
    Other,
}

use Pick::{End, On, Other};

/// Instantiates for 2, 4 and 8 bytes.
macro_rules! wide {
    ($size:expr, $f:path) => {
        match $size {
            2 => {
                use $f as f;
                f::<2> as Handler
            }
            4 => {
                use $f as f;
                f::<4>
            }
            _ => {
                use $f as f;
                f::<8>
            }
        }
    };
}

/// Instantiates for register or memory operand.
macro_rules! reg_or_mem {
    ($memory:expr, $reg:expr, $mem:expr) => {
        if $memory { $mem } else { $reg }
    };
}

impl Builder<'_> {
    /// Fills in handler and operands of `op`.
    pub(super) fn select(&mut self, insn: &Instruction, op: &mut Op) -> Flow {
        if insn.has_lock_prefix() && !lockable(insn) {
            return Flow::End; // `op` is an undefined instruction already
        }
        self.operands(insn, op);
        let (handler, flow) = match self.pick(insn, op) {
            On(handler) => (handler, Flow::On),
            End(handler) => (handler, Flow::End),
            Other => match self.native(insn, op) {
                Some(handler) => (handler, Flow::On),
                None => (system::unimplemented as Handler, Flow::End),
            },
        };
        op.handler.set(handler);
        flow
    }

    fn long(&self) -> bool {
        self.mode & mode::SIZE == 2
    }

    /// The first register, the second register, memory and immediate, wherever they stand.
    fn operands(&mut self, insn: &Instruction, op: &mut Op) {
        let mut registers = 0;
        for i in 0..insn.op_count() {
            match insn.op_kind(i) {
                OpKind::Register => {
                    let register = insn.op_register(i);
                    let value = if register.is_gpr() {
                        gpr(register)
                    } else if register.is_segment_register() {
                        segment(register)
                    } else {
                        register.number() as u8
                    };
                    match registers {
                        0 => op.a = value,
                        1 => op.b = value,
                        _ => {}
                    }
                    registers += 1;
                }
                OpKind::Memory => operands::memory(insn, op, self.long(), self.rip),
                // As wide as the operand, whatever the code segment is.
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    op.imm = insn.near_branch_target();
                }
                OpKind::FarBranch16 => {
                    op.imm = insn.far_branch16().into();
                    op.disp = i32::from(insn.far_branch_selector());
                }
                OpKind::FarBranch32 => {
                    op.imm = insn.far_branch32().into();
                    op.disp = i32::from(insn.far_branch_selector());
                }
                kind if is_immediate(kind) => op.imm = insn.immediate(i),
                _ => {}
            }
        }
    }

    fn native(&mut self, insn: &Instruction, op: &mut Op) -> Option<Handler> {
        match self.cpu.stubs.plan(insn) {
            Ok(plan) => Some(simd::native(op, &plan)),
            Err(reason) => {
                tracing::debug!(%insn, %reason, "no stub");
                None
            }
        }
    }

    /// The list.
    fn pick(&mut self, insn: &Instruction, op: &mut Op) -> Pick {
        use Mnemonic::*;
        let memory = has_memory(insn);
        let size = operand_size(insn);
        let place = match (memory, insn.has_lock_prefix()) {
            (false, _) => Place::Reg,
            (true, false) => Place::Mem,
            (true, true) => Place::Locked,
        };
        match insn.mnemonic() {
            Add => On(alu::binary::<alu::Add>(form(insn), size)),
            Or => On(alu::binary::<alu::Or>(form(insn), size)),
            Adc => On(alu::binary::<alu::Adc>(form(insn), size)),
            Sbb => On(alu::binary::<alu::Sbb>(form(insn), size)),
            And => On(alu::binary::<alu::And>(form(insn), size)),
            Sub => On(alu::binary::<alu::Sub>(form(insn), size)),
            Xor => On(alu::binary::<alu::Xor>(form(insn), size)),
            Cmp => alu::compare::<alu::Sub>(form(insn), size).map_or(Other, On),
            Test => alu::compare::<alu::And>(form(insn), size).map_or(Other, On),
            Inc => On(alu::unary::<alu::Inc>(place, size)),
            Dec => On(alu::unary::<alu::Dec>(place, size)),
            Neg => On(alu::unary::<alu::Neg>(place, size)),
            Not => On(alu::unary::<alu::Not>(place, size)),
            Xadd => On(alu::xadd(place, size)),
            Cmpxchg => On(alu::cmpxchg(place, size)),
            Cmpxchg8b => On(alu::cmpxchg_pair::<4>),
            Cmpxchg16b => On(alu::cmpxchg_pair::<8>),
            Mov => self.pick_mov(insn, op, size),
            Movzx => On(mov::extend(false, memory, source_size(insn), size)),
            Movsx | Movsxd => On(mov::extend(true, memory, source_size(insn), size)),
            Movbe => On(pick_movbe(insn, size)),
            Lea => On(wide!(size, mov::lea)),
            Xchg => On(reg_or_mem!(
                memory,
                by_size_mov_xchg_rr(size),
                by_size_mov_xchg_mr(size)
            )),
            Bswap => On(wide!(size, mov::bswap)),
            Xlatb => {
                op.addr = 0;
                self.xlat_address(insn, op);
                On(mov::xlat)
            }
            Cbw => On(mov::widen::<2>),
            Cwde => On(mov::widen::<4>),
            Cdqe => On(mov::widen::<8>),
            Cwd => On(mov::sign_to_dx::<2>),
            Cdq => On(mov::sign_to_dx::<4>),
            Cqo => On(mov::sign_to_dx::<8>),
            Shl | Sal => On(self.pick_shift::<shift::Shl>(insn, place, size)),
            Shr => On(self.pick_shift::<shift::Shr>(insn, place, size)),
            Sar => On(self.pick_shift::<shift::Sar>(insn, place, size)),
            Rol => On(self.pick_shift::<shift::Rol>(insn, place, size)),
            Ror => On(self.pick_shift::<shift::Ror>(insn, place, size)),
            Rcl => On(self.pick_shift::<shift::Rcl>(insn, place, size)),
            Rcr => On(self.pick_shift::<shift::Rcr>(insn, place, size)),
            Shld => On(shift::double_shift(
                true,
                !has_immediate(insn),
                memory,
                size,
            )),
            Shrd => On(shift::double_shift(
                false,
                !has_immediate(insn),
                memory,
                size,
            )),
            Mul => On(muldiv::multiply(false, memory, size)),
            Imul => On(pick_imul(insn, memory, size)),
            Div => On(muldiv::divide(false, memory, size)),
            Idiv => On(muldiv::divide(true, memory, size)),
            Bt => On(bits::bit_test::<bits::Bt>(
                memory,
                has_immediate(insn),
                false,
                size,
            )),
            Bts => On(self.pick_bit::<bits::Bts>(insn, memory, size)),
            Btr => On(self.pick_bit::<bits::Btr>(insn, memory, size)),
            Btc => On(self.pick_bit::<bits::Btc>(insn, memory, size)),
            Bsf => On(bits::scan::<bits::Bsf>(memory, size)),
            Bsr => On(bits::scan::<bits::Bsr>(memory, size)),
            // Without BMI1 and LZCNT in CPUID the prefix is ignored (SDM vol. 2, TZCNT, LZCNT).
            Tzcnt if self.has_bmi1() => On(bits::scan::<bits::Tzcnt>(memory, size)),
            Tzcnt => On(bits::scan::<bits::Bsf>(memory, size)),
            Lzcnt if self.has_lzcnt() => On(bits::scan::<bits::Lzcnt>(memory, size)),
            Lzcnt => On(bits::scan::<bits::Bsr>(memory, size)),
            Popcnt => On(bits::scan::<bits::Popcnt>(memory, size)),
            Crc32 => On(bits::crc32(memory, source_size(insn))),
            Push => self.pick_push(insn, op),
            Pop => self.pick_pop(insn, op),
            Pushf => On(flagops::pushf::<2>),
            Pushfd => On(flagops::pushf::<4>),
            Pushfq => On(flagops::pushf::<8>),
            Popf => On(flagops::popf::<2>),
            Popfd => On(flagops::popf::<4>),
            Popfq => On(flagops::popf::<8>),
            Pusha => On(stack::pusha::<2>),
            Pushad => On(stack::pusha::<4>),
            Popa => On(stack::popa::<2>),
            Popad => On(stack::popa::<4>),
            Leave => On(wide!(stack_size(insn), stack::leave)),
            Enter => {
                op.imm = insn.immediate16().into();
                op.extra = insn.immediate8_2nd();
                // The older frames are reached through RBP.
                op.addr |= addr::STACK;
                On(wide!(stack_size(insn), stack::enter))
            }
            Jmp => {
                op.extra = self.known_target(insn, op);
                pick_jmp(insn)
            }
            Call => {
                op.extra = self.known_target(insn, op);
                pick_call(insn)
            }
            Ret => End(match insn.code() {
                Code::Retnw | Code::Retnw_imm16 => branch::ret::<2>,
                Code::Retnd | Code::Retnd_imm16 => branch::ret::<4>,
                _ => branch::ret::<8>,
            }),
            Retf => End(match insn.code() {
                Code::Retfw | Code::Retfw_imm16 => far::retf::<2>,
                Code::Retfd | Code::Retfd_imm16 => far::retf::<4>,
                _ => far::retf::<8>,
            }),
            Iret => End(far::iret::<2>),
            Iretd => End(far::iret::<4>),
            Iretq => End(far::iret::<8>),
            Loop => count_branch(insn, op, branch::loop_always),
            Loope => count_branch(insn, op, branch::loop_equal),
            Loopne => count_branch(insn, op, branch::loop_not_equal),
            Jcxz | Jecxz | Jrcxz => count_branch(insn, op, branch::jcxz),
            Int => {
                op.extra = far::SENSITIVE;
                End(far::int)
            }
            Int3 => self.interrupt(op, vector::BP),
            Int1 => {
                op.extra = far::PRIVILEGED;
                self.interrupt(op, vector::DB)
            }
            Into => {
                op.imm = vector::OF.into();
                End(far::into)
            }
            Syscall => End(far::syscall),
            Sysret => self.wide_end(insn.code() == Code::Sysretd, op, far::sysret),
            Sysretq => self.wide_end(false, op, far::sysret),
            Sysenter => End(far::sysenter),
            Sysexit => self.wide_end(true, op, far::sysexit),
            Sysexitq => self.wide_end(false, op, far::sysexit),
            Clc => On(flagops::clc),
            Stc => On(flagops::stc),
            Cmc => On(flagops::cmc),
            Cld => On(flagops::cld),
            Std => On(flagops::std),
            Cli => On(flagops::cli),
            Sti => On(flagops::sti),
            Lahf => On(flagops::lahf),
            Sahf => On(flagops::sahf),
            Stac => self.set_ac(op, umbra_x86::rflags::AC),
            Clac => self.set_ac(op, 0),
            Nop | Endbr64 | Endbr32 | Lfence | Sfence | Prefetcht0 | Prefetcht1 | Prefetcht2
            | Prefetchnta | Prefetchw | Prefetch | Clflush | Reservednop | Rdsspd | Rdsspq
            | Fdisi | Feni => On(mov::nop),
            Mfence => On(mov::mfence),
            Pause => On(mov::pause),
            Hlt => End(system::hlt),
            Vmcall | Vmmcall => On(hypercall::call),
            Ud0 | Ud1 | Ud2 => End(system::undefined),
            Cpuid => On(system::cpuid),
            Serialize => On(system::serialize),
            Rdtsc => On(system::rdtsc),
            Rdtscp => On(system::rdtscp),
            Rdpmc => On(system::rdpmc),
            Rdmsr => On(system::rdmsr),
            Wrmsr => On(system::wrmsr),
            Swapgs => On(system::swapgs),
            Rdfsbase => self.base(op, regs::offset(0), reg_base(insn, true)),
            Rdgsbase => self.base(op, regs::offset(1), reg_base(insn, true)),
            Wrfsbase => self.base(op, regs::offset(0), reg_base(insn, false)),
            Wrgsbase => self.base(op, regs::offset(1), reg_base(insn, false)),
            Lgdt | Lidt => {
                op.extra = u8::from(insn.mnemonic() == Lidt);
                op.b = if matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
                    2
                } else {
                    4
                };
                On(system::load_table)
            }
            Sgdt | Sidt => {
                op.extra = u8::from(insn.mnemonic() == Sidt);
                On(system::store_table)
            }
            Lldt | Ltr => {
                op.extra = u8::from(insn.mnemonic() == Ltr);
                op.b = op.a;
                On(reg_or_mem!(
                    memory,
                    system::load_system::<false>,
                    system::load_system::<true>
                ))
            }
            Sldt => self.store_system(op, memory, Stored::Ldtr, size),
            Str => self.store_system(op, memory, Stored::Tr, size),
            Smsw => self.store_system(op, memory, Stored::Msw, size),
            Lmsw => On(reg_or_mem!(memory, system::lmsw_r, system::lmsw_m)),
            Clts => On(system::clts),
            Verr | Verw => {
                op.extra = u8::from(insn.mnemonic() == Verw);
                op.b = op.a;
                On(reg_or_mem!(
                    memory,
                    system::verify::<false>,
                    system::verify::<true>
                ))
            }
            Lar | Lsl => {
                op.extra = u8::from(insn.mnemonic() == Lsl);
                On(pick_inspect(memory, size))
            }
            Invlpg => On(system::invlpg),
            Invpcid if self.cpu.cpuid.get(7, 0).ebx >> 10 & 1 != 0 => On(if self.long() {
                system::invpcid::<8>
            } else {
                system::invpcid::<4>
            }),
            Invd | Wbinvd => On(system::wbinvd),
            In | Out => self.pick_port(insn, op),
            Rdpkru => On(system::rdpkru),
            Wrpkru => On(system::wrpkru),
            Movsb | Lodsb | Stosb | Scasb | Cmpsb | Insb | Outsb => self.string(insn, op, 1),
            Movsw | Lodsw | Stosw | Scasw | Cmpsw | Insw | Outsw => self.string(insn, op, 2),
            Lodsd | Stosd | Scasd | Insd | Outsd => self.string(insn, op, 4),
            Movsd if insn.is_string_instruction() => self.string(insn, op, 4),
            Cmpsd if insn.is_string_instruction() => self.string(insn, op, 4),
            Movsq | Lodsq | Stosq | Scasq | Cmpsq => self.string(insn, op, 8),
            Lds | Les | Lss | Lfs | Lgs => self.pick_load_far(insn, op, size),
            Daa => On(vintage::daa),
            Das => On(vintage::das),
            Aaa => On(vintage::aaa),
            Aas => On(vintage::aas),
            Aam => On(vintage::aam),
            Aad => On(vintage::aad),
            Salc => On(vintage::salc),
            Bound => On(if size == 2 {
                vintage::bound::<2>
            } else {
                vintage::bound::<4>
            }),
            Arpl => On(reg_or_mem!(memory, vintage::arpl_r, vintage::arpl_m)),
            _ => self.pick_simd(insn, op, memory),
        }
    }

    fn pick_simd(&mut self, insn: &Instruction, op: &mut Op, memory: bool) -> Pick {
        use Mnemonic::*;
        let condition = condition(insn.condition_code());
        if let Some(cc) = condition {
            return match insn.mnemonic() {
                _ if insn.is_jcc_short_or_near() => {
                    op.extra = self.known_target(insn, op);
                    End(branch::conditional(cc))
                }
                _ if is_setcc(insn) => On(mov::setcc(cc, memory)),
                _ if is_cmov(insn) => On(mov::cmov(cc, memory, operand_size(insn))),
                _ => Other,
            };
        }
        let to_register = insn.op0_kind() == OpKind::Register;
        match insn.mnemonic() {
            Movups | Movupd | Movdqu | Lddqu | Movaps | Movapd | Movdqa | Movntdq | Movntps
            | Movntpd | Movntdqa
                if is_legacy_xmm(insn) =>
            {
                if !matches!(insn.mnemonic(), Movups | Movupd | Movdqu | Lddqu) {
                    op.extra = simd::flag::ALIGNED;
                }
                On(match (memory, to_register) {
                    (true, true) => simd::load16,
                    (true, false) => simd::store16,
                    _ => simd::move16,
                })
            }
            Movq | Movsd | Movd | Movss if memory && is_legacy_xmm(insn) => {
                let wide = insn.memory_size().size() == 8;
                On(match (to_register, wide) {
                    (true, true) => simd::load_scalar::<8>,
                    (true, false) => simd::load_scalar::<4>,
                    (false, true) => simd::store_scalar::<8>,
                    (false, false) => simd::store_scalar::<4>,
                })
            }
            Pxor | Xorps | Xorpd if !memory && is_legacy_xmm(insn) => On(simd::pxor),
            Movnti => On(if operand_size(insn) == 8 {
                simd::movnti::<8>
            } else {
                simd::movnti::<4>
            }),
            Maskmovdqu => {
                // The explicit operands are the data and the mask, behind the address.
                op.a = insn.op1_register().number() as u8;
                op.b = insn.op2_register().number() as u8;
                operands::string_address(insn, op, self.long());
                On(simd::maskmovdqu)
            }
            Maskmovq => {
                op.a = insn.op1_register().number() as u8;
                op.b = insn.op2_register().number() as u8;
                operands::string_address(insn, op, self.long());
                On(simd::maskmovq)
            }
            Ldmxcsr => On(simd::ldmxcsr),
            Stmxcsr => On(simd::stmxcsr),
            Fxsave => On(simd::fxsave),
            Fxrstor => On(simd::fxrstor),
            Fxsave64 => {
                op.extra = 8;
                On(simd::fxsave)
            }
            Fxrstor64 => {
                op.extra = 8;
                On(simd::fxrstor)
            }
            Wait => On(simd::wait),
            Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64
            | Xgetbv | Xsetbv => self.pick_xsave(insn, op),
            _ => self.pick_bmi(insn, op, memory),
        }
    }

    fn pick_mov(&mut self, insn: &Instruction, op: &mut Op, size: usize) -> Pick {
        let (to, from) = (insn.op0_kind(), insn.op1_kind());
        let register = |i| insn.op_register(i);
        if to == OpKind::Register && register(0).is_segment_register() {
            if register(0) == Register::CS {
                return End(system::undefined);
            }
            let number = segment(register(0));
            op.b = number;
            if from == OpKind::Register {
                op.a = gpr(register(1));
                return On(far::mov_seg_r);
            }
            return On(far::mov_seg_m);
        }
        if from == OpKind::Register && register(1).is_segment_register() {
            op.b = segment(register(1));
            op.extra = Stored::Segment as u8;
            if to == OpKind::Memory {
                return On(system::store_m);
            }
            return On(wide!(register(0).size(), system::store_r));
        }
        for (i, other, to_system) in [(0, 1, true), (1, 0, false)] {
            if insn.op_kind(i) != OpKind::Register {
                continue;
            }
            let special = register(i);
            if special.is_cr() || special.is_dr() {
                op.a = gpr(register(other));
                op.b = special.number() as u8;
                return On(match (special.is_cr(), to_system) {
                    (true, true) => system::mov_to_cr,
                    (true, false) => system::mov_from_cr,
                    (false, true) => system::mov_to_dr,
                    (false, false) => system::mov_from_dr,
                });
            }
        }
        On(mov::by_form(form(insn), size))
    }

    fn pick_shift<O: shift::Shift>(
        &self,
        insn: &Instruction,
        place: Place,
        size: usize,
    ) -> Handler {
        shift::shift::<O>(place, !has_immediate(insn), size)
    }

    fn pick_bit<O: bits::BitOp>(&self, insn: &Instruction, memory: bool, size: usize) -> Handler {
        bits::bit_test::<O>(memory, has_immediate(insn), insn.has_lock_prefix(), size)
    }

    /// Whether a relative branch needs no check of its target, nor of what follows it.
    fn known_target(&self, insn: &Instruction, op: &Op) -> u8 {
        let flat = mode::FLAT | 1;
        let known = if self.long() {
            branch::plausible(op.imm)
        } else {
            self.mode & (mode::SIZE | mode::FLAT) == flat && insn.next_ip() >> 32 == 0
        };
        if known { branch::KNOWN } else { 0 }
    }

    fn pick_push(&self, insn: &Instruction, op: &mut Op) -> Pick {
        let size = stack_size(insn);
        match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                op.a = segment(insn.op0_register());
                On(wide!(size, stack::push_seg))
            }
            OpKind::Register => On(stack::push(Source::Reg, size)),
            OpKind::Memory => On(stack::push(Source::Mem, size)),
            _ => On(stack::push(Source::Imm, size)),
        }
    }

    fn pick_pop(&self, insn: &Instruction, op: &mut Op) -> Pick {
        let size = stack_size(insn);
        match insn.op0_kind() {
            OpKind::Register if insn.op0_register().is_segment_register() => {
                op.b = segment(insn.op0_register());
                On(wide!(size, far::pop_seg))
            }
            OpKind::Memory => On(stack::pop(true, size)),
            _ => On(stack::pop(false, size)),
        }
    }

    fn interrupt(&self, op: &mut Op, vector: u8) -> Pick {
        op.imm = vector.into();
        End(far::int)
    }

    fn wide_end(&self, narrow: bool, op: &mut Op, handler: Handler) -> Pick {
        op.extra = if narrow { 4 } else { 8 };
        End(handler)
    }

    fn set_ac(&self, op: &mut Op, bit: u64) -> Pick {
        op.imm = bit;
        On(flagops::set_ac)
    }

    /// RDFSBASE and its kin; `which` is 0 for FS and 8 for GS.
    fn base(&self, op: &mut Op, which: u8, handler: Handler) -> Pick {
        use umbra_x86::state::seg;
        op.b = (if which == 0 { seg::FS } else { seg::GS }) as u8;
        On(handler)
    }

    fn store_system(&self, op: &mut Op, memory: bool, what: Stored, size: usize) -> Pick {
        op.extra = what as u8;
        On(if memory {
            system::store_m
        } else {
            wide!(size, system::store_r)
        })
    }

    fn pick_port(&self, insn: &Instruction, op: &mut Op) -> Pick {
        let input = insn.mnemonic() == Mnemonic::In;
        op.extra = u8::from(!has_immediate(insn));
        let accumulator = if input {
            insn.op0_register()
        } else {
            insn.op1_register()
        };
        On(match (input, accumulator.size()) {
            (true, 1) => system::port_in::<1>,
            (true, 2) => system::port_in::<2>,
            (true, _) => system::port_in::<4>,
            (false, 1) => system::port_out::<1>,
            (false, 2) => system::port_out::<2>,
            (false, _) => system::port_out::<4>,
        })
    }

    fn string(&self, insn: &Instruction, op: &mut Op, size: usize) -> Pick {
        use Mnemonic::*;
        operands::string_address(insn, op, self.long());
        op.extra = if insn.has_repne_prefix() {
            string::REPNE
        } else if insn.has_rep_prefix() || insn.has_repe_prefix() {
            string::REP
        } else {
            0
        };
        let kind = match insn.mnemonic() {
            Movsb | Movsw | Movsd | Movsq => Kind::Movs,
            Stosb | Stosw | Stosd | Stosq => Kind::Stos,
            Lodsb | Lodsw | Lodsd | Lodsq => Kind::Lods,
            Scasb | Scasw | Scasd | Scasq => Kind::Scas,
            Cmpsb | Cmpsw | Cmpsd | Cmpsq => Kind::Cmps,
            Insb | Insw | Insd => Kind::Ins,
            _ => Kind::Outs,
        };
        On(string::string(kind, size))
    }

    fn xlat_address(&self, insn: &Instruction, op: &mut Op) {
        operands::set_segment(op, insn.memory_segment(), self.long());
        match insn.memory_base() {
            Register::BX => op.addr |= addr::A16,
            Register::EBX => op.addr |= addr::A32,
            _ => {}
        }
    }

    fn pick_load_far(&self, insn: &Instruction, op: &mut Op, size: usize) -> Pick {
        use Mnemonic::*;
        let register = match insn.mnemonic() {
            Lds => Register::DS,
            Les => Register::ES,
            Lss => Register::SS,
            Lfs => Register::FS,
            _ => Register::GS,
        };
        op.b = segment(register);
        On(wide!(size, far::load_far))
    }
}

fn by_size_mov_xchg_rr(size: usize) -> Handler {
    use mov::xchg_rr;
    by_size!(size, xchg_rr)
}

fn by_size_mov_xchg_mr(size: usize) -> Handler {
    use mov::xchg_mr;
    by_size!(size, xchg_mr)
}

fn reg_base(insn: &Instruction, read: bool) -> Handler {
    match (read, insn.op0_register().size()) {
        (true, 4) => system::rd_base::<4>,
        (true, _) => system::rd_base::<8>,
        (false, 4) => system::wr_base::<4>,
        (false, _) => system::wr_base::<8>,
    }
}

fn pick_inspect(memory: bool, size: usize) -> Handler {
    match (memory, size) {
        (false, 2) => system::inspect::<false, 2>,
        (false, 4) => system::inspect::<false, 4>,
        (false, _) => system::inspect::<false, 8>,
        (true, 2) => system::inspect::<true, 2>,
        (true, 4) => system::inspect::<true, 4>,
        (true, _) => system::inspect::<true, 8>,
    }
}

fn pick_movbe(insn: &Instruction, size: usize) -> Handler {
    if insn.op0_kind() == OpKind::Register {
        wide!(size, mov::movbe_rm)
    } else {
        wide!(size, mov::movbe_mr)
    }
}

fn pick_imul(insn: &Instruction, memory: bool, size: usize) -> Handler {
    match insn.op_count() {
        1 => muldiv::multiply(true, memory, size),
        2 => muldiv::imul2(memory, size),
        _ => muldiv::imul3(memory, size),
    }
}

fn pick_jmp(insn: &Instruction) -> Pick {
    End(match insn.code() {
        Code::Jmp_rm16 => reg_or_mem!(has_memory(insn), branch::jmp_r::<2>, branch::jmp_m::<2>),
        Code::Jmp_rm32 => reg_or_mem!(has_memory(insn), branch::jmp_r::<4>, branch::jmp_m::<4>),
        Code::Jmp_rm64 => reg_or_mem!(has_memory(insn), branch::jmp_r::<8>, branch::jmp_m::<8>),
        Code::Jmp_ptr1616 | Code::Jmp_ptr1632 => far::jmp_ptr,
        Code::Jmp_m1616 => far::jmp_mem::<2>,
        Code::Jmp_m1632 => far::jmp_mem::<4>,
        Code::Jmp_m1664 => far::jmp_mem::<8>,
        _ => branch::jmp,
    })
}

fn pick_call(insn: &Instruction) -> Pick {
    End(match insn.code() {
        Code::Call_rel16 => branch::call_rel::<2>,
        Code::Call_rel32_32 => branch::call_rel::<4>,
        Code::Call_rm16 => reg_or_mem!(has_memory(insn), branch::call_r::<2>, branch::call_m::<2>),
        Code::Call_rm32 => reg_or_mem!(has_memory(insn), branch::call_r::<4>, branch::call_m::<4>),
        Code::Call_rm64 => reg_or_mem!(has_memory(insn), branch::call_r::<8>, branch::call_m::<8>),
        Code::Call_ptr1616 => far::call_ptr::<2>,
        Code::Call_ptr1632 => far::call_ptr::<4>,
        Code::Call_m1616 => far::call_mem::<2>,
        Code::Call_m1632 => far::call_mem::<4>,
        Code::Call_m1664 => far::call_mem::<8>,
        _ => branch::call_rel::<8>,
    })
}

/// LOOP and JCXZ count in the address size, which the code's name has.
fn count_branch(insn: &Instruction, op: &mut Op, handler: Handler) -> Pick {
    let name = format!("{:?}", insn.code());
    op.extra = if name.ends_with("_CX") || insn.mnemonic() == Mnemonic::Jcxz {
        2
    } else if name.ends_with("_ECX") || insn.mnemonic() == Mnemonic::Jecxz {
        4
    } else {
        8
    };
    End(handler)
}
