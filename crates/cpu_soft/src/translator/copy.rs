//! Instructions that run as they are: registers renamed, the memory operand replaced.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

use super::asm::{Mem, Reg};
use super::emit::Emitter;
use super::flags::{Effect, Place, Recipe, effect};
use super::forms::{general, turned};
use super::layout::{AX, FRAME, Home, S0, S1, is_high_byte, sized};
use super::memory::{has_memory, is_plain};
use super::pins::{Target, Way};
use super::sse::{is_aligned, is_sse};
use crate::native::writes;
use crate::op::Op;

/// Tells whether `insn` is of a kind that is copied, if its operands allow it.
pub fn is_copied(insn: &Instruction) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        Mov | Movzx | Movsx | Movsxd | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test
        | Inc | Dec | Neg | Not | Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
        | Imul | Mul | Bsf | Bsr | Bswap | Xchg | Xadd | Cmpxchg | Popcnt | Cbw | Cwde | Cdqe
        | Cwd | Cdq | Cqo => true,
        // A register as bit number reaches beyond the operand.
        Bt | Bts | Btr | Btc => {
            !(insn.op0_kind() == OpKind::Memory && insn.op1_kind() == OpKind::Register)
        }
        _ => {
            insn.condition_code() != iced_x86::ConditionCode::None
                && !insn.is_jcc_short_or_near()
                && (0..insn.op_count()).all(|i| {
                    insn.op_kind(i) == OpKind::Memory
                        || insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_gpr()
                })
        }
    }
}

/// CMPXCHG16B, which is copied where its operand is aligned. It is not compared with the interpreter.
fn is_wide(insn: &Instruction) -> bool {
    insn.code() == Code::Cmpxchg16b_m128
}

/// Uses RAX beside its operands, or has it as an operand that can be no other.
fn names_ax(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let implicit = match insn.mnemonic() {
        Mul | Cmpxchg | Cmpxchg16b | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo => true,
        Imul => insn.op_count() == 1,
        _ => false,
    };
    let code = insn.op_code();
    implicit
        || (0..insn.op_count()).any(|i| {
            use OpCodeOperandKind as Kind;
            // AH has a name beside AL only.
            insn.op_kind(i) == OpKind::Register && insn.op_register(i) == Register::AH
                || matches!(code.op_kind(i), Kind::al | Kind::ax | Kind::eax | Kind::rax)
        })
}

/// What has to happen around a copied instruction.
struct Plan {
    bytes: Vec<u8>,
    /// What leads to the operand is needed in `S1`, because `S0` is used otherwise.
    second: bool,
    /// RAX goes in and, if the second is set, out.
    ax: Option<bool>,
    /// Guest registers of the frame that a scratch register stands for.
    spilled: Vec<Spilled>,
    /// Guest registers that are written.
    written: Vec<u8>,
}

/// A guest register of the frame, in a scratch register for one instruction.
struct Spilled {
    number: u8,
    scratch: Reg,
    /// Also where it is only written, if the instruction may leave it alone (BSF of zero): what a scratch
    /// register holds is no business of the guest's.
    load: bool,
    store: bool,
}

impl Emitter<'_> {
    /// Emits `insn` as a copy; `false` where that cannot be, and nothing was emitted.
    pub(super) fn copy(&mut self, insn: &Instruction, op: &Op) -> bool {
        if insn.mnemonic() == Mnemonic::Lea {
            return self.lea(insn);
        }
        let insn = &general(insn);
        let scans = insn.mnemonic() == Mnemonic::Tzcnt && !self.bmi1;
        let sse = is_sse(insn);
        let wide = is_wide(insn);
        if !scans && !sse && !wide && !is_copied(insn) {
            return false;
        }
        let access = match (has_memory(insn), self.operand_access(insn)) {
            (true, None) => return false,
            (_, access) => access,
        };
        let target = Target::Operand(insn);
        let way = access.map(|(size, write)| self.way(target, size, write));
        let address = way.map(|way| self.apart_or_behind(insn, way));
        let Some(plan) = self.plan(insn, address) else {
            return false;
        };
        let effect = effect(insn);
        let needs_flags = matches!(effect, Effect::Reads | Effect::Changes);
        if effect != Effect::Replaces {
            for number in &plan.written {
                self.about_to_write(*number);
            }
        }
        if sse {
            self.require_sse();
        }
        let resume = self.asm.label();
        if let (Some(way), Some(access)) = (way, access) {
            let needs = wide || sse && is_aligned(insn);
            let aligned = !needs || self.known_aligned(way, insn);
            match (way.is_pinned() && aligned, needs_flags) {
                // Nothing will disturb them, but what computes them disturbs both scratch registers.
                (true, true) => self.place.restore(&mut self.asm),
                (true, false) => {}
                (false, true) => self.place.save(&mut self.asm),
                (false, false) => self.place.secure(&mut self.asm),
            }
            if let Some(Address::Apart(mem)) = address {
                let failed = self.failed(op, Some(resume));
                self.check_apart(mem, access, failed);
            } else {
                let from = self.reach(way, target, access, op, Some(resume));
                if !aligned {
                    self.check_aligned(from, op, resume);
                    self.found_aligned(way, insn);
                }
                if plan.second {
                    self.asm.mov(S1, S0);
                }
            }
        }
        if needs_flags {
            self.place.restore(&mut self.asm);
        }
        if plan.ax.is_some() {
            self.asm.mov(S0, AX);
        }
        for spilled in plan.spilled.iter().filter(|s| s.load) {
            if spilled.scratch != S1 || !self.holds(spilled.number) {
                self.fetch(spilled.scratch, spilled.number);
            }
        }
        if plan.ax.is_some() {
            self.asm.writes(S0);
        }
        for spilled in &plan.spilled {
            self.asm.writes(spilled.scratch);
        }
        self.asm.bytes(&plan.bytes);
        if self.held.is_some_and(|held| plan.written.contains(&held)) {
            self.held = None;
        }
        for spilled in plan.spilled.iter().filter(|s| s.store) {
            self.put(spilled.number, spilled.scratch);
        }
        // One that was read there, and written in place, is not what it was.
        let current = |s: &&Spilled| s.store || !plan.written.contains(&s.number);
        let held = plan.spilled.iter().find(|s| s.scratch == S1);
        if let Some(spilled) = held.filter(current) {
            self.hold(spilled.number);
        }
        if plan.ax == Some(true) {
            self.asm.mov(AX, S0);
        }
        self.go_on(resume);
        if matches!(effect, Effect::Replaces | Effect::Changes) {
            self.place = Place {
                recipe: Recipe::of(insn, |number| self.home(number))
                    .filter(|_| effect == Effect::Replaces),
                ..Place::HOST
            };
        }
        true
    }

    /// Size of the memory operand and whether it is written, if it is one that is checked in the usual way.
    fn operand_access(&mut self, insn: &Instruction) -> Option<(usize, bool)> {
        let i = (0..insn.op_count()).find(|i| insn.op_kind(*i) == OpKind::Memory)?;
        let offset = insn.op_code().op_kind(i) == OpCodeOperandKind::mem_offs;
        let size = insn.memory_size().size();
        let usual = matches!(size, 1 | 2 | 4 | 8) || size == 16 && (is_sse(insn) || is_wide(insn));
        if offset || !is_plain(insn) || !usual {
            return None;
        }
        Some((size, writes(self.info.info(insn).op_access(i))))
    }

    /// How to copy `insn`, whose memory operand becomes `address`.
    fn plan(&mut self, insn: &Instruction, address: Option<Address>) -> Option<Plan> {
        let memory = has_memory(insn);
        let effect = effect(insn);
        let ax = names_ax(insn);
        let apart = matches!(address, Some(Address::Apart(..)));
        let second = apart || memory && (ax || matches!(effect, Effect::Reads | Effect::Changes));
        let held = self.held.filter(|number| self.holds(*number));
        let info = self.info.info(insn);
        let mut plan = Plan {
            bytes: Vec::new(),
            second,
            ax: None,
            spilled: Vec::new(),
            written: Vec::new(),
        };
        for used in info.used_registers() {
            let register = used.register();
            if writes(used.access()) && register.is_gpr() {
                plan.written.push(register.full_register().number() as u8);
            }
        }
        let stored: [bool; 5] = std::array::from_fn(|i| writes(info.op_access(i as u32)));
        if ax {
            plan.ax = Some(plan.written.contains(&0));
        }
        // What is free for registers of the frame: flags are in place before they are loaded.
        let mut free = vec![S0, S1];
        if memory {
            free.retain(|r| *r != if second { S1 } else { S0 });
        }
        if ax {
            free.retain(|r| *r != S0);
        }
        let mut out = *insn;
        // Who has no BMI1 executes TZCNT as BSF (SDM vol. 2, TZCNT).
        out.set_code(match insn.code() {
            Code::Tzcnt_r32_rm32 => Code::Bsf_r32_rm32,
            Code::Tzcnt_r64_rm64 => Code::Bsf_r64_rm64,
            code => code,
        });
        let code = insn.op_code();
        // One register of the frame can be an operand as it is.
        let mut in_place = memory || ax || differs_in_memory(insn);
        for i in 0..insn.op_count() {
            if insn.op_kind(i) != OpKind::Register {
                continue;
            }
            let register = insn.op_register(i);
            if register.is_xmm() && is_sse(insn) {
                continue;
            }
            if !register.is_gpr() {
                return None;
            }
            if is_high_byte(register) {
                // The same here, if the encoder finds that nothing needs a REX prefix.
                continue;
            }
            let (size, number) = (register.size(), register.full_register().number() as u8);
            let host = match self.home(number) {
                _ if number == 0 && ax => S0,
                Home::Host(reg) => reg,
                Home::Frame(place) => {
                    let store = stored[i as usize];
                    // A part that was written would have to be put together when all is read.
                    let whole = size == 8 && !is_sse(insn);
                    let fits = !in_place && held != Some(number) && (whole || !store);
                    if fits && set_memory(&mut out, i, place) {
                        in_place = true;
                        continue;
                    }
                    let known = plan.spilled.iter_mut().find(|s| s.number == number);
                    if let Some(known) = known {
                        known.load = true;
                        known.store |= store;
                        known.scratch
                    } else {
                        let scratch = free.pop()?;
                        let load = !(store && i == 0 && replaces(insn));
                        plan.spilled.push(Spilled {
                            number,
                            scratch,
                            load,
                            store,
                        });
                        scratch
                    }
                }
            };
            // The count of a shift is CL, which is CL here too.
            if code.op_kind(i) != OpCodeOperandKind::cl {
                out.set_op_register(i, sized(host, size));
            }
        }
        match address {
            Some(Address::Behind(distance)) => {
                set_base(&mut out, if second { S1 } else { S0 }, distance);
            }
            Some(Address::Apart(mem)) => {
                match mem.base {
                    Some(base) if mem.index.is_none() => set_base(&mut out, base, mem.disp),
                    _ => set_base(&mut out, S0, 0),
                }
                out.set_memory_index(sized(S1, 8));
            }
            None => {}
        }
        out.set_has_rep_prefix(false);
        out.set_has_repne_prefix(false);
        let encoded = self.encoder.encode(&out, 0);
        // What cannot be encoded has left its beginning there.
        plan.bytes = self.encoder.take_buffer();
        encoded.ok().map(|_| plan)
    }

    /// What the memory operand of `insn` becomes, which is reached in this way: apart where the next such load waits
    /// for this one, because what is loaded is part of the address. Elsewhere that would be no faster.
    fn apart_or_behind(&self, insn: &Instruction, way: Way) -> Address {
        use Mnemonic::*;
        let behind = Address::Behind(way.distance());
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let to = insn.op0_register().full_register();
        let loads = matches!(insn.mnemonic(), Mov | Movzx | Movsx | Movsxd);
        let chained = loads && insn.op0_kind() == OpKind::Register && [base, index].contains(&to);
        let segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
        if !chained || segment || !matches!(way, Way::Alone) {
            return behind;
        }
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        let mem = Mem {
            base: self.in_host(base),
            index: self.in_host(index).map(|index| (index, scale)),
            disp: insn.memory_displacement64() as i32,
            gs: false,
        };
        let whole = mem.index.is_some() || index == Register::None;
        if mem.base.is_some() && whole {
            Address::Apart(mem)
        } else {
            behind
        }
    }

    /// Where the host has the guest's general register, if it has it.
    fn in_host(&self, register: Register) -> Option<Reg> {
        if !register.is_gpr() {
            return None;
        }
        match self.home(register.full_register().number() as u8) {
            Home::Host(reg) => Some(reg),
            Home::Frame(_) => None,
        }
    }

    /// LEA: computes, and touches neither memory nor flags.
    fn lea(&mut self, insn: &Instruction) -> bool {
        let size = insn.op0_register().size();
        if size < 4 || !is_plain(insn) {
            return false;
        }
        let number = insn.op0_register().full_register().number() as u8;
        self.about_to_write(number);
        let to = match self.home(number) {
            Home::Host(reg) => reg,
            Home::Frame(_) => S0,
        };
        let target = insn.memory_displacement64();
        match self.operand(insn) {
            Some(mem) => self.asm.lea(size, to, mem),
            None if size == 4 => self.asm.imm(to, target & 0xffff_ffff),
            None => self.asm.imm(to, target),
        }
        if to == S0 {
            self.put(number, S0);
        }
        true
    }
}

/// Where the host has a memory operand.
#[derive(Clone, Copy)]
enum Address {
    /// So many bytes behind what a scratch register points to.
    Behind(i32),
    /// Where the guest has it, by registers that the host has, too, and `S1` further.
    Apart(Mem),
}

/// Tells whether `insn` writes its first operand whole without reading it, and is sure to write it.
fn replaces(insn: &Instruction) -> bool {
    use Mnemonic::*;
    insn.op0_register().size() >= 4
        && match insn.mnemonic() {
            Mov | Movzx | Movsx | Movsxd | Popcnt | Movd | Movq => true,
            Imul => insn.op_count() == 3,
            _ => false,
        }
}

/// Tells whether `insn` does something else where a register operand is replaced by memory: a bit number
/// reaches beyond it, an exchange locks the bus, what is exchanged and added may be one register.
fn differs_in_memory(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic(), Bt | Bts | Btr | Btc | Xchg | Xadd)
}

/// Makes operand `i`, a general register, the word of the frame at `place`; `false` where `insn` has no such
/// form.
fn set_memory(insn: &mut Instruction, i: u32, place: Mem) -> bool {
    use OpCodeOperandKind as Kind;
    let either = |kind| {
        matches!(
            kind,
            Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem
        )
    };
    if !either(insn.op_code().op_kind(i)) {
        match turned(insn.code()) {
            Some(code) if i == 1 => insn.set_code(code),
            _ => return false,
        }
    }
    insn.set_op_kind(i, OpKind::Memory);
    set_base(insn, FRAME, place.disp);
    true
}

/// Replaces the memory operand by what is `distance` bytes behind `base`.
fn set_base(insn: &mut Instruction, base: Reg, distance: i32) {
    insn.set_memory_base(sized(base, 8));
    insn.set_memory_index(Register::None);
    insn.set_memory_index_scale(1);
    insn.set_memory_displacement64(i64::from(distance) as u64);
    insn.set_memory_displ_size(u32::from(distance != 0));
    insn.set_segment_prefix(Register::None);
}
