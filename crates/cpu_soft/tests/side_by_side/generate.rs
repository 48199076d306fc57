//! Cases from all encodings: every opcode of every map, with every mandatory prefix and every
//! value of the register field, the rest random.

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpKind,
    Register,
};

use super::tables::{
    ABSENT, ABSENT_CODE, CODE_16, CODE_32, CONFORMING_CODE, DATA_16, DOWN_16, DOWN_32,
    EXECUTE_ONLY, LIMIT, LIMITED, ONE_PAGE, READ_ONLY, STACK_16, USER_CODE_32, USER_CODE_64,
    USER_DATA, segment,
};
use super::{Case, MEMORY, MEMORY_LEN, code_base};
use crate::forms::{is_common, status_flags};
use crate::random::Random;

/// One encoding: map, opcode, mandatory prefix, register field.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    map: &'static [u8],
    opcode: u8,
    prefix: Option<u8>,
    reg: u8,
}

/// All of them.
pub fn encodings() -> impl Iterator<Item = Encoding> {
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let prefixes = [None, Some(0x66), Some(0xf2), Some(0xf3)];
    maps.into_iter().flat_map(move |map| {
        (0..=255).flat_map(move |opcode| {
            prefixes.into_iter().flat_map(move |prefix| {
                (0..8).map(move |reg| Encoding {
                    map,
                    opcode,
                    prefix,
                    reg,
                })
            })
        })
    })
}

/// What cannot be compared this way, and why.
fn excluded(insn: &Instruction) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        // System calls, and what the kernel answers in the processor's stead.
        Sysenter | Syscall | Sgdt | Sidt | Sldt | Str | Smsw => true,
        Int => matches!(insn.immediate8(), 3 | 4 | 0x80),
        // What differs between any two processors, or moments.
        Cpuid | Rdtsc | Rdtscp | Rdpmc | Xgetbv | Prefetchw | Prefetch | Ud0 | Ud1 => true,
        Jmp | Call if insn.memory_size().size() == 10 => true,
        // Makes differ about how much the 16-bit form reads.
        Movsxd if insn.op0_register().size() == 2 => true,
        // Makes differ about the 64-bit form.
        Lss if insn.op0_register().size() == 8 => true,
        // FS and GS belong to this program.
        _ if matches!(insn.memory_segment(), Register::FS | Register::GS) => true,
        Lfs | Lgs => true,
        Mov | Push | Pop
            if (0..insn.op_count())
                .any(|i| matches!(insn.op_register(i), Register::FS | Register::GS)) =>
        {
            true
        }
        // Images with pointers in them.
        Fxsave | Fxrstor | Fnsave | Fsave | Frstor | Fnstenv | Fstenv | Fldenv => true,
        // Historic opcodes that some processors ignore and others refuse.
        Fnstdw | Fnstsg | Fstdw | Fstsg | Frstpm | Fsetpm | Fnsetpm | Fneni | Fndisi | Fdisi
        | Feni | Umov | Loadall | Salc | Cldemote | Int1 | Sysret | Sysexit => true,
        // SYSRET and its kin do not exist outside 64-bit code on some makes.
        // Makes differ about a register operand, and about prefixes that mean nothing.
        Reservednop => true,
        Loope | Loopne => insn.has_rep_prefix() || insn.has_repne_prefix(),
        Swapgs | Monitor | Mwait | Getsec | Rsm => true,
        _ => false,
    }
}

/// Everything that the processor model claims.
fn has_features(insn: &Instruction) -> bool {
    let old = CpuidFeature::INTEL8086_ONLY;
    let mut features = insn.cpuid_features().iter();
    features.all(|f| is_common(*f) || *f == old)
}

pub struct Generator {
    random: Random,
    cs: u16,
    bits: u32,
}

const DATA_SEGMENTS: [u16; 8] = [
    USER_DATA, USER_DATA, DATA_16, LIMITED, DOWN_32, DOWN_16, READ_ONLY, ONE_PAGE,
];
const STACKS: [u16; 6] = [USER_DATA, USER_DATA, STACK_16, LIMITED, DOWN_32, DOWN_16];
/// What an instruction may try to load.
const SELECTORS: [u16; 20] = [
    0,
    3,
    USER_DATA,
    USER_CODE_32,
    USER_CODE_64,
    CODE_16,
    CODE_32,
    DATA_16,
    LIMITED,
    DOWN_32,
    READ_ONLY,
    ABSENT,
    EXECUTE_ONLY,
    CONFORMING_CODE,
    STACK_16,
    ABSENT_CODE,
    0x10,
    0x1b,
    0x7f7,
    0xffff,
];

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            cs: USER_CODE_32,
            bits: 32,
        }
    }

    fn pick(&mut self, from: &[u16]) -> u16 {
        from[self.random.below(from.len() as u64) as usize]
    }

    /// Makes a case; `None` where the encoding is no instruction, or one that cannot be compared.
    pub fn case(&mut self, encoding: Encoding) -> Option<Case> {
        (self.cs, self.bits) = match self.random.below(9) {
            6.. => (USER_CODE_64, 64),
            0 | 1 => (CODE_16, 16),
            2 => (CODE_32, 32),
            3 => (EXECUTE_ONLY, 32),
            _ => (USER_CODE_32, 32),
        };
        // At the end of the page is the end of CODE_32, and a page without code.
        let offset = match self.random.below(24) {
            0 => 0xff0 + self.random.below(16),
            _ => 0x400 + self.random.below(0x800),
        } as usize;
        let base = code_base(self.cs);
        let bytes = self.bytes(encoding);
        let ip = base + offset as u64;
        let mut decoder = Decoder::with_ip(self.bits, &bytes, ip, DecoderOptions::NONE);
        let mut insn = decoder.decode();
        let legacy = insn.op_code().encoding() == EncodingKind::Legacy;
        if insn.is_invalid() || !legacy || excluded(&insn) || !has_features(&insn) {
            return None;
        }
        let wide = self.bits == 64;
        let mut gpr = [0; 16];
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        gpr.iter_mut().for_each(|r| *r = self.random.value() & mask);
        let ds = self.pick(&DATA_SEGMENTS);
        let es = self.pick(&DATA_SEGMENTS);
        let ss = match insn.mnemonic() {
            // A call of 64-bit code would push through all of RSP, whose upper half is the
            // kernel's on a 16-bit stack; Linux takes the fault for an erratum, and tries for ever.
            Mnemonic::Call => USER_DATA,
            _ if wide => USER_DATA,
            _ => self.pick(&STACKS),
        };
        gpr[4] = match insn.mnemonic() {
            // Which of the words is read first is left open, and what a fault has changed by then.
            Mnemonic::Retf
            | Mnemonic::Iret
            | Mnemonic::Iretd
            | Mnemonic::Iretq
            | Mnemonic::Popa
            | Mnemonic::Popad => {
                if insn.op0_kind() == OpKind::Immediate16 {
                    insn.set_immediate16(2 * self.random.below(64) as u16);
                }
                match ss {
                    USER_DATA => MEMORY + 0x800 + 4 * self.random.below(64),
                    LIMITED => 0x100 + self.random.below(64),
                    _ => u64::from(LIMIT) + 1 + self.random.below(64),
                }
            }
            _ => self.place(ss, 4) & !1,
        };
        let mut memory = vec![0; MEMORY_LEN];
        for chunk in memory.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.random.value().to_le_bytes());
        }
        self.implicit(&insn, &mut gpr, [ds, es, ss]);
        if insn.is_string_instruction() && self.random.once_in(2) {
            insn.set_has_rep_prefix(true);
        }
        let masked = matches!(insn.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu);
        let source = match insn.memory_segment() {
            Register::DS => ds,
            Register::ES => es,
            _ => ss,
        };
        if masked && (source != USER_DATA || insn.op0_kind() == OpKind::MemorySegDI) {
            return None;
        }
        self.branch(&mut insn, base);
        let target = self.aim(&mut insn, &mut gpr, [ds, es, ss])?;
        self.operand_values(&mut insn, &mut gpr, &mut memory, ss, target);
        let mut encoder = Encoder::new(self.bits);
        encoder.encode(&insn, ip).ok()?;
        let bytes = encoder.take_buffer();
        let relative = matches!(
            insn.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        if relative && (ip..ip + 16).contains(&insn.near_branch_target()) {
            return None;
        }
        let mut flags = self.random.next() as u32 & 0x8d5;
        if insn.is_string_instruction() {
            flags |= self.random.next() as u32 & 0x400;
        }
        Some(Case {
            text: format!("{:?} {insn}", insn.code()),
            bytes,
            offset,
            undefined: status_flags(insn.rflags_undefined()) as u32,
            gpr,
            flags,
            cs: self.cs,
            ss,
            ds,
            es,
            fx: self.fx(),
            memory,
        })
    }

    fn bytes(&mut self, encoding: Encoding) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16);
        if self.random.once_in(4) {
            bytes.push(0x67);
        }
        if self.random.once_in(4) {
            // ES, CS, SS, DS
            bytes.push([0x26, 0x2e, 0x36, 0x3e][self.random.below(4) as usize]);
        }
        if self.random.once_in(16) {
            bytes.push(0xf0);
        }
        if encoding.prefix != Some(0x66) && self.random.once_in(4) {
            bytes.push(0x66);
        }
        bytes.extend(encoding.prefix);
        if self.bits == 64 && self.random.once_in(2) {
            bytes.push(0x40 | self.random.below(16) as u8);
        }
        bytes.extend(encoding.map);
        bytes.push(encoding.opcode);
        bytes.push(self.random.next() as u8 & 0xc7 | encoding.reg << 3);
        for _ in 0..10 {
            bytes.push(self.random.value() as u8);
        }
        bytes
    }

    /// An offset at which `size` bytes of a segment may lie, often near its limit.
    fn place(&mut self, selector: u16, size: u64) -> u64 {
        let limit = u64::from(LIMIT);
        let near = (limit + 1 - size.min(16)).wrapping_add(self.random.below(24)) - 8;
        match selector {
            USER_DATA if self.random.once_in(16) => {
                MEMORY + MEMORY_LEN as u64 - self.random.below(16)
            }
            USER_DATA => MEMORY + 0x400 + self.random.below(0x1000),
            _ if self.random.once_in(4) => near,
            LIMITED | READ_ONLY => self.random.below(limit),
            DATA_16 | STACK_16 if self.random.once_in(8) => {
                0x1_0000u64.wrapping_sub(self.random.below(16)) & 0xffff
            }
            DATA_16 | STACK_16 if self.random.once_in(8) => self.random.below(16),
            ONE_PAGE if self.random.once_in(4) => 0x1000 - self.random.below(16),
            ONE_PAGE => self.random.below(0xff0),
            _ => limit + 1 + self.random.below(0x1000),
        }
    }

    /// Registers that the instruction addresses memory by without saying so.
    fn implicit(&mut self, insn: &Instruction, gpr: &mut [u64; 16], segments: [u16; 3]) {
        use Mnemonic::*;
        // 64-bit code has no segments to speak of.
        let [ds, es, ss] = match self.bits {
            64 => [USER_DATA; 3],
            _ => segments,
        };
        if insn.is_string_instruction() {
            gpr[1] = self.random.below(20);
            gpr[6] = self.place(ds, 4);
            gpr[7] = self.place(es, 4);
        }
        match insn.mnemonic() {
            // Above what is pushed: in which order the frames are copied is left open.
            Enter => gpr[5] = gpr[4].wrapping_add(0x100 + self.random.below(64)),
            Leave => gpr[5] = self.place(ss, 4),
            Xlatb => gpr[3] = self.place(ds, 256),
            // What a fault in the middle leaves is left open.
            Maskmovq | Maskmovdqu => gpr[7] = MEMORY + self.random.below(0x1000),
            Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz => {
                gpr[1] = self.random.below(3) | self.random.below(2) << 16;
            }
            _ => {}
        }
    }

    /// Leads a branch into the page of code, mostly.
    fn branch(&mut self, insn: &mut Instruction, base: u64) {
        let far = matches!(insn.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32);
        // Some processors push before they look at the limit of the segment that they call.
        if !far && self.random.once_in(8) {
            return;
        }
        let target = base + self.entry();
        let near = insn
            .ip()
            .wrapping_add(self.random.below(200))
            .wrapping_sub(100);
        let short = insn.is_jcc_short()
            || insn.is_jmp_short()
            || insn.is_loop()
            || insn.is_jcx_short()
            || insn.is_loopcc();
        let target = if short { near } else { target };
        match insn.op0_kind() {
            OpKind::NearBranch16 => insn.set_near_branch16(target as u16),
            OpKind::NearBranch32 => insn.set_near_branch32(target as u32),
            OpKind::NearBranch64 => insn.set_near_branch64(target),
            OpKind::FarBranch16 | OpKind::FarBranch32 => {
                let selector = self.selector();
                insn.set_far_branch_selector(selector);
                let offset = code_base(selector) + self.entry();
                insn.set_far_branch16(offset as u16);
                if insn.op0_kind() == OpKind::FarBranch32 {
                    insn.set_far_branch32(offset as u32);
                }
            }
            _ => {}
        }
    }

    /// An offset in the page of code where the instruction is not: coming back to it may not end.
    fn entry(&mut self) -> u64 {
        match self.random.below(2) {
            0 => self.random.below(0x400),
            _ => 0xc00 + self.random.below(0x3f0),
        }
    }

    fn selector(&mut self) -> u16 {
        self.pick(&SELECTORS)
    }

    /// Lets a memory operand lie in its segment; returns the offset.
    fn aim(
        &mut self,
        insn: &mut Instruction,
        gpr: &mut [u64; 16],
        [ds, es, ss]: [u16; 3],
    ) -> Option<Option<(u16, u64)>> {
        if !(0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
            return Some(None);
        }
        let selector = match insn.memory_segment() {
            // Nobody may touch what this program keeps behind FS.
            Register::FS | Register::GS => return None,
            _ if self.bits == 64 => USER_DATA,
            Register::DS => ds,
            Register::ES => es,
            Register::SS => ss,
            _ => self.cs,
        };
        if insn.mnemonic() == Mnemonic::Xlatb {
            return Some(None);
        }
        let size = insn.memory_size().size() as u64;
        let mut offset = if selector == self.cs {
            code_base(self.cs) + self.random.below(0x1000)
        } else {
            self.place(selector, size)
        };
        // What comes first where an operand is misaligned and beyond a limit too is left open.
        if size == 16 && (selector != USER_DATA || !self.random.once_in(8)) {
            offset &= !15;
        }
        if self.bits == 64 {
            return self.aim_wide(insn, gpr, offset).map(Some);
        }
        let value = |register: Register| match register {
            Register::None => 0,
            register => gpr[register.number()],
        };
        let scaled = value(insn.memory_index()).wrapping_mul(insn.memory_index_scale().into());
        let distance = offset.wrapping_sub(value(insn.memory_base()).wrapping_add(scaled));
        let narrow = matches!(
            insn.memory_base(),
            Register::BX | Register::BP | Register::SI | Register::DI
        ) || insn.memory_displ_size() == 2;
        if narrow {
            insn.set_memory_displ_size(2);
            insn.set_memory_displacement64(u64::from(distance as u16));
        } else {
            insn.set_memory_displ_size(4);
            insn.set_memory_displacement64(u64::from(distance as u32));
        }
        Some(Some((selector, offset)))
    }

    /// In 64-bit code a displacement does not reach everywhere: the base register is set instead,
    /// sometimes to what is not canonical.
    fn aim_wide(
        &mut self,
        insn: &mut Instruction,
        gpr: &mut [u64; 16],
        offset: u64,
    ) -> Option<(u16, u64)> {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let mut distance = offset;
        if index != Register::None {
            if base != Register::None && base.number() == index.number() {
                return None;
            }
            gpr[index.number()] = self.random.below(16);
            let scaled = gpr[index.number()] * u64::from(insn.memory_index_scale());
            distance = distance.wrapping_sub(scaled);
        }
        match base {
            Register::RIP | Register::EIP => insn.set_memory_displacement64(offset),
            Register::None => {
                let narrow = index.size() == 4 || insn.memory_displ_size() == 4;
                insn.set_memory_displ_size(if narrow { 4 } else { 8 });
                insn.set_memory_displacement64(distance);
            }
            Register::RSP | Register::ESP => {
                insn.set_memory_displ_size(base.size() as u32);
                insn.set_memory_displacement64(distance.wrapping_sub(gpr[4]));
            }
            _ => {
                let number = base.number();
                gpr[number] = distance.wrapping_sub(insn.memory_displacement64());
                if base.size() == 8 && self.random.once_in(16) {
                    gpr[number] = gpr[number].wrapping_add(1 << 47);
                }
            }
        }
        Some((USER_DATA, offset))
    }

    /// What the instruction finds: selectors where it wants some, divisors that are not zero.
    fn operand_values(
        &mut self,
        insn: &mut Instruction,
        gpr: &mut [u64; 16],
        memory: &mut [u8],
        ss: u16,
        target: Option<(u16, u64)>,
    ) {
        use Mnemonic::*;
        let mut put = |selector: u16, offset: u64, bytes: &[u8]| {
            let base = segment(selector).base;
            let at = base.wrapping_add(offset).wrapping_sub(MEMORY) as usize;
            if let Some(to) = at
                .checked_add(bytes.len())
                .and_then(|end| memory.get_mut(at..end))
            {
                to.copy_from_slice(bytes);
            }
        };
        let selector = self.selector();
        let loads_segment = insn.op_count() > 0
            && insn.op0_kind() == OpKind::Register
            && insn.op0_register().is_segment_register();
        match insn.mnemonic() {
            Mov if loads_segment => match (insn.op1_kind(), target) {
                (OpKind::Register, _) => {
                    let number = insn.op1_register().number();
                    gpr[number] = gpr[number] & !0xffff | u64::from(selector);
                }
                (_, Some((segment, offset))) => put(segment, offset, &selector.to_le_bytes()),
                _ => {}
            },
            Lar | Lsl | Verr | Verw | Arpl | Lldt | Ltr => {
                let last = insn.op_count() - 1;
                if insn.op_kind(last) == OpKind::Register {
                    let number = insn.op_register(last).number();
                    // Only our own: the kernel's descriptors are its own business.
                    gpr[number] = gpr[number] & !0xffff | u64::from(selector & 0x7f | 4);
                }
                if let Some((segment, offset)) = target {
                    put(segment, offset, &(selector & 0x7f | 4).to_le_bytes());
                }
            }
            Lds | Les | Lss | Jmp | Call => {
                let entry = code_base(selector) + self.entry();
                if let Some((segment, offset)) = target {
                    // A near pointer, or a far one with the selector behind the offset.
                    let size = insn.memory_size().size() as u64;
                    put(segment, offset, &entry.to_le_bytes());
                    if matches!(size, 4 | 6 | 10) && !(size == 4 && self.bits == 32) {
                        put(segment, offset + size - 2, &selector.to_le_bytes());
                    }
                }
                if insn.op0_kind() == OpKind::Register && !self.random.once_in(8) {
                    gpr[insn.op0_register().number()] = code_base(self.cs) + self.entry();
                }
            }
            Pop if loads_segment => put(ss, gpr[4], &selector.to_le_bytes()),
            Ret | Retf | Iret | Iretd | Iretq => {
                let name = format!("{:?}", insn.code());
                let name = name.split('_').next().unwrap_or_default();
                let size = match name.as_bytes().last() {
                    Some(b'q') => 8,
                    Some(b'd') => 4,
                    _ => 2,
                };
                let target = if insn.mnemonic() == Ret {
                    self.cs
                } else {
                    selector
                };
                let flags = self.random.next() & 0xffff_ffff & !0x6_0100;
                let stack = [USER_DATA, USER_DATA, STACK_16, 0, 3, DATA_16];
                let words = [
                    code_base(target) + self.entry(),
                    target.into(),
                    flags,
                    MEMORY + 0x1000,
                    self.pick(&stack).into(),
                ];
                for (i, word) in words.into_iter().enumerate() {
                    let at = gpr[4].wrapping_add((size * i) as u64);
                    put(ss, at, &word.to_le_bytes()[..size]);
                }
            }
            Popf | Popfd | Popfq => {
                // Neither single steps nor alignment checks.
                let flags = self.random.next() & 0xffff_ffff & !0x4_0100;
                put(ss, gpr[4], &flags.to_le_bytes());
            }
            Shld | Shrd if insn.op0_register().size() == 2 || insn.memory_size().size() == 2 => {
                // Counts beyond the width are undefined.
                gpr[1] &= !0x10;
                if insn.op2_kind() == OpKind::Immediate8 {
                    insn.set_immediate8(insn.immediate8() & !0x10);
                }
            }
            _ => {}
        }
    }

    /// An FXSAVE image with plausible numbers, all exceptions masked.
    fn fx(&mut self) -> [u8; 512] {
        let mut fx = [0; 512];
        fx[0..2].copy_from_slice(&(0x37f | (self.random.below(4) as u16) << 10).to_le_bytes());
        fx[2..4].copy_from_slice(&((self.random.below(8) as u16) << 11).to_le_bytes());
        fx[4] = self.random.next() as u8 | self.random.next() as u8;
        fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        for i in 0..8 {
            let at = 32 + 16 * i;
            let mantissa = 1 << 63 | self.random.next();
            let exponent = 0x3fff - 40 + self.random.below(80) as u16;
            fx[at..at + 8].copy_from_slice(&mantissa.to_le_bytes());
            fx[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
        }
        for at in (160..416).step_by(4) {
            let value = (1.5f32 * self.random.below(100) as f32 - 70.0).to_bits();
            fx[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        fx
    }
}
