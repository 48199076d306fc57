//! An assembler of the few instructions that surround the guest's own.
//!
//! The guest's instructions are encoded by `iced-x86`; what stands around them (checks, spills, exits) is
//! always the same dozen forms, and an encoder that knows no others is several times as fast.

/// A host register, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

/// A memory operand: base, index with the logarithm of its scale, displacement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mem {
    pub base: Option<Reg>,
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
    /// From the base of GS.
    pub gs: bool,
}

impl Mem {
    /// The same, from the base of GS.
    pub fn by_gs(self) -> Self {
        Self { gs: true, ..self }
    }

    /// So many bytes further, which the caller has found to be in reach.
    pub fn plus(self, bytes: i32) -> Self {
        let disp = self.disp.wrapping_add(bytes);
        Self { disp, ..self }
    }
}

/// `[base + disp]`.
pub const fn at(base: Reg, disp: i32) -> Mem {
    Mem {
        base: Some(base),
        index: None,
        disp,
        gs: false,
    }
}

/// The eight operations of two operands that share one encoding, numbered as there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Conditions as in the opcode, those that the surroundings need.
pub mod cc {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
}

/// A place in the code that is jumped to, perhaps before it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Code that is being made.
#[derive(Default)]
pub struct Asm {
    /// The bytes so far.
    pub code: Vec<u8>,
    labels: Vec<Option<usize>>,
    fixups: Vec<(usize, Label)>,
    outside: Vec<(usize, u64)>,
    /// Addresses that are loaded, by number.
    named: Vec<(usize, usize)>,
    /// Registers, a bit each, that were written since [`Asm::keep`].
    written: u16,
}

fn bit(reg: Reg) -> u16 {
    1 << reg.0
}

impl Asm {
    /// A place that is not known yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// `label` is here.
    pub fn bind(&mut self, label: Label) {
        self.writes_all();
        self.labels[label.0] = Some(self.code.len());
    }

    /// A place that is here.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// How far from the start of the code `label` is.
    pub fn offset(&self, label: Label) -> Option<usize> {
        self.labels.get(label.0).copied().flatten()
    }

    /// Resolves everything for code that executes at `base`. `None` where a distance does not fit or a
    /// label was never bound.
    pub fn finish(mut self, base: u64) -> Option<Vec<u8>> {
        for (place, label) in std::mem::take(&mut self.fixups) {
            let target = self.offset(label)?;
            let distance = target as i64 - (place as i64 + 4);
            self.patch(place, distance)?;
        }
        for (place, target) in std::mem::take(&mut self.outside) {
            let next = base.wrapping_add(place as u64 + 4);
            self.patch(place, target.wrapping_sub(next) as i64)?;
        }
        Some(self.code)
    }

    fn patch(&mut self, place: usize, distance: i64) -> Option<()> {
        let distance = i32::try_from(distance).ok()?;
        self.code
            .get_mut(place..place + 4)?
            .copy_from_slice(&distance.to_le_bytes());
        Some(())
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8, byte: bool) {
        let bits = u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        // SPL, BPL, SIL and DIL need the prefix, whatever it says.
        if bits != 0 || byte && (reg >= 4 || base >= 4) {
            self.code.push(0x40 | bits);
        }
    }

    /// Operand size prefix, REX, opcode, ModRM for two registers.
    fn rr(&mut self, size: usize, opcode: &[u8], reg: u8, rm: u8) {
        if size == 2 {
            self.code.push(0x66);
        }
        self.rex(size == 8, reg, 0, rm, size == 1);
        self.bytes(opcode);
        self.code.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// The same with a memory operand.
    fn rm(&mut self, size: usize, opcode: &[u8], reg: u8, mem: Mem) {
        if mem.gs {
            self.code.push(0x65);
        }
        if size == 2 {
            self.code.push(0x66);
        }
        let base = mem.base.map_or(0, |r| r.0);
        let index = mem.index.map_or(0, |(r, _)| r.0);
        self.rex(size == 8, reg, index, base, size == 1 && reg >= 4);
        self.bytes(opcode);
        self.modrm(reg, mem);
    }

    fn modrm(&mut self, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            // No base: a SIB byte with base 5 and a displacement of four bytes.
            let (index, scale) = mem.index.map_or((4, 0), |(r, s)| (r.0, s));
            self.bytes(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
            self.bytes(&mem.disp.to_le_bytes());
            return;
        };
        let short = i8::try_from(mem.disp);
        let mode = match short {
            // RBP and R13 as a base always have a displacement.
            Ok(0) if base.0 & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        match mem.index {
            Some((index, scale)) => {
                let sib = scale << 6 | (index.0 & 7) << 3 | base.0 & 7;
                self.bytes(&[mode | reg | 4, sib]);
            }
            // RSP and R12 as a base need a SIB byte.
            None if base.0 & 7 == 4 => self.bytes(&[mode | reg | 4, 0x24]),
            None => self.code.push(mode | reg | base.0 & 7),
        }
        match (mode, short) {
            (0, _) => {}
            (_, Ok(short)) => self.code.push(short as u8),
            (_, Err(_)) => self.bytes(&mem.disp.to_le_bytes()),
        }
    }

    /// From here on, it is noticed whether `reg`, a scratch register, is written.
    pub fn keep(&mut self, reg: Reg) {
        self.written &= !bit(reg);
    }

    /// Whether nothing has written `reg` since [`Asm::keep`], and no label was bound: who comes there may have
    /// something else in it.
    pub fn kept(&self, reg: Reg) -> bool {
        self.written & bit(reg) == 0
    }

    /// `reg` is written by what is emitted.
    pub fn writes(&mut self, reg: Reg) {
        self.written |= bit(reg);
    }

    fn writes_all(&mut self) {
        self.written = u16::MAX;
    }

    /// MOV between registers, 64 bits.
    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.writes(to);
        if to != from {
            self.rr(8, &[0x89], from.0, to.0);
        }
    }

    /// Loads 64 bits.
    pub fn load(&mut self, to: Reg, from: Mem) {
        self.writes(to);
        self.rm(8, &[0x8b], to.0, from);
    }

    /// Stores `size` bytes.
    pub fn store(&mut self, size: usize, to: Mem, from: Reg) {
        self.rm(size, if size == 1 { &[0x88] } else { &[0x89] }, from.0, to);
    }

    /// Stores a sign-extended constant in 64 bits.
    pub fn store_imm(&mut self, to: Mem, value: i32) {
        self.rm(8, &[0xc7], 0, to);
        self.bytes(&value.to_le_bytes());
    }

    /// Loads a constant. Leaves the flags alone.
    pub fn imm(&mut self, to: Reg, value: u64) {
        self.writes(to);
        if let Ok(value) = u32::try_from(value) {
            self.rex(false, 0, 0, to.0, false);
            self.code.push(0xb8 | to.0 & 7);
            self.bytes(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.rr(8, &[0xc7], 0, to.0);
            self.bytes(&value.to_le_bytes());
        } else {
            self.rex(true, 0, 0, to.0, false);
            self.code.push(0xb8 | to.0 & 7);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// Loads an address that is known when the code is done, see [`Asm::name`]; this is number `number`.
    pub fn imm_later(&mut self, to: Reg, number: usize) {
        self.writes(to);
        self.rex(true, 0, 0, to.0, false);
        self.code.push(0xb8 | to.0 & 7);
        self.named.push((self.code.len(), number));
        self.bytes(&[0; 8]);
    }

    /// Says where what [`Asm::imm_later`] loads is: number 0 at `first`, and so on, in steps of `size` bytes.
    pub fn name(&mut self, first: u64, size: usize) {
        for (place, number) in std::mem::take(&mut self.named) {
            let address = first.wrapping_add((number * size) as u64);
            self.code[place..place + 8].copy_from_slice(&address.to_le_bytes());
        }
    }

    /// Loads 16 bits, zero-extended.
    pub fn load16(&mut self, to: Reg, from: Mem) {
        self.writes(to);
        self.rm(4, &[0x0f, 0xb7], to.0, from);
    }

    /// Loads sixteen bytes.
    pub fn load_xmm(&mut self, to: u8, from: Mem) {
        self.rm(4, &[0x0f, 0x10], to, from);
    }

    /// Stores sixteen bytes.
    pub fn store_xmm(&mut self, to: Mem, from: u8) {
        self.rm(4, &[0x0f, 0x11], from, to);
    }

    /// LDMXCSR.
    pub fn ldmxcsr(&mut self, from: Mem) {
        self.rm(4, &[0x0f, 0xae], 2, from);
    }

    /// STMXCSR.
    pub fn stmxcsr(&mut self, to: Mem) {
        self.rm(4, &[0x0f, 0xae], 3, to);
    }

    /// Stores a constant in a byte.
    pub fn store_byte_imm(&mut self, to: Mem, value: u8) {
        self.rm(4, &[0xc6], 0, to);
        self.code.push(value);
    }

    /// LEA of 64 or 32 bits.
    pub fn lea(&mut self, size: usize, to: Reg, from: Mem) {
        self.writes(to);
        self.rm(size, &[0x8d], to.0, from);
    }

    /// An operation on two registers of `size` bytes.
    pub fn alu(&mut self, op: Alu, size: usize, to: Reg, from: Reg) {
        self.writes(to);
        let opcode = (op as u8) << 3 | u8::from(size > 1);
        self.rr(size, &[opcode], from.0, to.0);
    }

    /// An operation with a constant, which is sign-extended.
    pub fn alu_imm(&mut self, op: Alu, size: usize, to: Reg, value: i32) {
        self.writes(to);
        match i8::try_from(value) {
            Ok(short) => {
                let opcode = if size == 1 { 0x80 } else { 0x83 };
                self.rr(size, &[opcode], op as u8, to.0);
                self.code.push(short as u8);
            }
            Err(_) if size == 1 => {
                self.rr(1, &[0x80], op as u8, to.0);
                self.code.push(value as u8);
            }
            Err(_) => {
                self.rr(size, &[0x81], op as u8, to.0);
                let bytes = value.to_le_bytes();
                self.bytes(if size == 2 { &bytes[..2] } else { &bytes });
            }
        }
    }

    /// A 64-bit operation with a memory source.
    pub fn alu_mem(&mut self, op: Alu, to: Reg, from: Mem) {
        self.writes(to);
        self.rm(8, &[(op as u8) << 3 | 3], to.0, from);
    }

    /// Compares 32 bits of memory with a small constant.
    pub fn cmp_mem_imm(&mut self, mem: Mem, value: i8) {
        self.rm(4, &[0x83], 7, mem);
        self.code.push(value as u8);
    }

    /// Compares the 32 bits at `address`, outside this code, with a constant.
    pub fn cmp_outside(&mut self, address: u64, value: i8) {
        self.bytes(&[0x83, 0x3d]);
        // Counted from behind the instruction, the constant included.
        self.outside
            .push((self.code.len(), address.wrapping_sub(1)));
        self.bytes(&[0; 4]);
        self.code.push(value as u8);
    }

    /// A 64-bit operation with the memory at `address`, outside this code, as its source.
    pub fn alu_outside(&mut self, op: Alu, to: Reg, address: u64) {
        self.writes(to);
        self.rex(true, to.0, 0, 0, false);
        self.bytes(&[(op as u8) << 3 | 3, (to.0 & 7) << 3 | 5]);
        self.outside.push((self.code.len(), address));
        self.bytes(&[0; 4]);
    }

    /// Stores a sign-extended constant in the 64 bits at `address`, outside this code.
    pub fn store_outside(&mut self, address: u64, value: i32) {
        self.bytes(&[0x48, 0xc7, 0x05]);
        // Counted from behind the constant.
        self.outside
            .push((self.code.len(), address.wrapping_sub(4)));
        self.bytes(&[0; 4]);
        self.bytes(&value.to_le_bytes());
    }

    /// WRGSBASE.
    pub fn wrgsbase(&mut self, from: Reg) {
        self.bytes(&[0xf3, 0x48 | from.0 >> 3, 0x0f, 0xae, 0xd8 | from.0 & 7]);
    }

    /// What is as good as MFENCE, and faster: a locked operation that changes nothing. The host's flags are lost.
    pub fn fence(&mut self) {
        self.bytes(&[0xf0, 0x83, 0x0c, 0x24, 0]); // lock or dword [rsp], 0
    }

    /// Adds one to 64 bits of memory.
    pub fn increment(&mut self, mem: Mem) {
        self.rm(8, &[0xff], 0, mem);
    }

    /// Compares a byte of memory with a constant.
    pub fn cmp_byte_imm(&mut self, mem: Mem, value: u8) {
        self.rm(4, &[0x80], 7, mem);
        self.code.push(value);
    }

    /// An operation on 32 bits of memory with a constant.
    pub fn alu_mem_imm(&mut self, op: Alu, mem: Mem, value: u32) {
        self.rm(4, &[0x81], op as u8, mem);
        self.bytes(&value.to_le_bytes());
    }

    /// Makes the lower four bytes of a register eight, if it has so many.
    pub fn sign_extend(&mut self, size: usize, reg: Reg) {
        if size == 4 {
            self.writes(reg);
            self.rr(8, &[0x63], reg.0, reg.0);
        }
    }

    /// MOV of the lower two bytes.
    pub fn mov16(&mut self, to: Reg, from: Reg) {
        self.writes(to);
        self.rr(2, &[0x89], from.0, to.0);
    }

    /// SETcc.
    pub fn set(&mut self, condition: u8, reg: Reg) {
        self.writes(reg);
        self.rr(1, &[0x0f, 0x90 | condition], 0, reg.0);
    }

    /// AND of a byte of memory with a constant.
    pub fn and_byte_imm(&mut self, mem: Mem, value: u8) {
        self.rm(4, &[0x80], Alu::And as u8, mem);
        self.code.push(value);
    }

    /// OR of a byte of memory with a register.
    pub fn or_byte(&mut self, mem: Mem, from: Reg) {
        self.rm(1, &[0x08], from.0, mem);
    }

    /// BT and its kin, by the second byte of the opcode, of what `to` points to.
    pub fn bit(&mut self, lock: bool, size: usize, opcode: u8, to: Reg, number: Reg) {
        if lock {
            self.code.push(0xf0);
        }
        self.rm(size, &[0x0f, opcode], number.0, at(to, 0));
    }

    /// REP MOVS or REP STOS of elements of `size` bytes.
    pub fn string(&mut self, size: usize, moves: bool) {
        if size == 2 {
            self.code.push(0x66);
        }
        self.code.push(0xf3);
        if size == 8 {
            self.code.push(0x48);
        }
        let opcode = if moves { 0xa4 } else { 0xaa };
        self.code.push(opcode | u8::from(size > 1));
    }

    /// SAR, `size` bytes.
    pub fn sar(&mut self, size: usize, reg: Reg, count: u8) {
        self.writes(reg);
        self.rr(size, &[0xc1], 7, reg.0);
        self.code.push(count);
    }

    /// DIV of RDX:RAX, or IDIV, by a register of `size` bytes.
    pub fn div(&mut self, size: usize, signed: bool, by: Reg) {
        self.writes(Reg(0));
        self.rr(size, &[0xf7], if signed { 7 } else { 6 }, by.0);
    }

    /// Loads `size` bytes, 4 or 8.
    pub fn load_sized(&mut self, size: usize, to: Reg, from: Mem) {
        self.writes(to);
        self.rm(size, &[0x8b], to.0, from);
    }

    /// TEST of a register with itself, `size` bytes.
    pub fn test(&mut self, size: usize, reg: Reg) {
        self.rr(
            size,
            if size == 1 { &[0x84] } else { &[0x85] },
            reg.0,
            reg.0,
        );
    }

    /// TEST of the lowest byte with a constant.
    pub fn test_imm(&mut self, reg: Reg, value: u8) {
        self.rr(1, &[0xf6], 0, reg.0);
        self.code.push(value);
    }

    /// NEG, `size` bytes.
    pub fn neg(&mut self, size: usize, reg: Reg) {
        self.writes(reg);
        self.rr(size, if size == 1 { &[0xf6] } else { &[0xf7] }, 3, reg.0);
    }

    /// RORX, 64 bits (BMI2): leaves the flags alone.
    pub fn rorx(&mut self, to: Reg, from: Reg, count: u8) {
        self.writes(to);
        let (r, b) = (!(to.0 >> 3) & 1, !(from.0 >> 3) & 1);
        self.bytes(&[0xc4, r << 7 | 1 << 6 | b << 5 | 3, 0xfb, 0xf0]);
        self.bytes(&[0xc0 | (to.0 & 7) << 3 | from.0 & 7, count]);
    }

    /// SHL, 64 bits.
    pub fn shl(&mut self, reg: Reg, count: u8) {
        self.writes(reg);
        self.rr(8, &[0xc1], 4, reg.0);
        self.code.push(count);
    }

    /// SHR, 64 bits.
    pub fn shr(&mut self, reg: Reg, count: u8) {
        self.writes(reg);
        self.rr(8, &[0xc1], 5, reg.0);
        self.code.push(count);
    }

    /// IMUL with a constant, 32 bits.
    pub fn imul(&mut self, to: Reg, from: Reg, by: i32) {
        self.writes(to);
        self.rr(4, &[0x69], to.0, from.0);
        self.bytes(&by.to_le_bytes());
    }

    /// The flags, but for OF, to AH; OF to AL. RAX is lost.
    pub fn flags_to_ax(&mut self) {
        self.writes(Reg(0));
        self.bytes(&[0x9f]); // lahf
        self.bytes(&[0x0f, 0x90, 0xc0]); // seto al
    }

    /// The flags from AX as [`Asm::flags_to_ax`] leaves them. AL is lost.
    pub fn flags_from_ax(&mut self) {
        self.writes(Reg(0));
        self.bytes(&[0x04, 0x7f]); // add al, 0x7f: overflows when AL is 1
        self.bytes(&[0x9e]); // sahf
    }

    /// Jcc.
    pub fn jcc(&mut self, condition: u8, to: Label) {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.reference(to);
    }

    /// JMP.
    pub fn jmp(&mut self, to: Label) {
        self.code.push(0xe9);
        self.reference(to);
    }

    fn reference(&mut self, to: Label) {
        self.fixups.push((self.code.len(), to));
        self.bytes(&[0; 4]);
    }

    /// JMP to an address outside this code.
    pub fn jmp_to(&mut self, target: u64) {
        self.code.push(0xe9);
        self.outside.push((self.code.len(), target));
        self.bytes(&[0; 4]);
    }

    /// CALL of an address outside this code.
    pub fn call(&mut self, target: u64) {
        self.writes_all();
        self.code.push(0xe8);
        self.outside.push((self.code.len(), target));
        self.bytes(&[0; 4]);
    }

    /// JMP to where the eight bytes at `address`, outside this code, say.
    pub fn jmp_through(&mut self, address: u64) {
        self.bytes(&[0xff, 0x25]);
        self.outside.push((self.code.len(), address));
        self.bytes(&[0; 4]);
    }

    /// JMP to where memory says.
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.rm(4, &[0xff], 4, mem);
    }

    /// CALL of a register.
    pub fn call_reg(&mut self, reg: Reg) {
        self.writes_all();
        self.rr(4, &[0xff], 2, reg.0);
    }

    /// PUSH.
    pub fn push(&mut self, reg: Reg) {
        self.rex(false, 0, 0, reg.0, false);
        self.code.push(0x50 | reg.0 & 7);
    }

    /// POP.
    pub fn pop(&mut self, reg: Reg) {
        self.writes(reg);
        self.rex(false, 0, 0, reg.0, false);
        self.code.push(0x58 | reg.0 & 7);
    }

    /// PUSH of memory.
    pub fn push_mem(&mut self, mem: Mem) {
        self.rm(4, &[0xff], 6, mem);
    }

    /// POP to memory, whose address is made of what RSP is behind it.
    pub fn pop_mem(&mut self, mem: Mem) {
        self.rm(4, &[0x8f], 0, mem);
    }

    /// RET.
    pub fn ret(&mut self) {
        self.code.push(0xc3);
    }

    /// UD2: what is never reached.
    pub fn unreachable(&mut self) {
        self.bytes(&[0x0f, 0x0b]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction};

    /// What the decoder makes of code at address 0x1000.
    fn listing(build: impl FnOnce(&mut Asm)) -> Vec<String> {
        let mut asm = Asm::default();
        build(&mut asm);
        let code = asm.finish(0x1000).expect("resolves");
        let mut decoder = Decoder::with_ip(64, &code, 0x1000, DecoderOptions::NONE);
        let mut formatter = GasFormatter::new();
        let mut lines = Vec::new();
        let mut insn = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut insn);
            let mut line = String::new();
            formatter.format(&insn, &mut line);
            lines.push(line);
        }
        lines
    }

    #[test]
    fn every_register_is_a_base_an_index_and_an_operand() {
        for number in 0..16 {
            let reg = Reg(number);
            for disp in [0, 8, 0x1234, -8] {
                let mut mem = at(reg, disp);
                let one = listing(|asm| asm.load(Reg(15 - number), mem));
                assert_eq!(one.len(), 1, "{number} {disp}");
                assert!(one[0].starts_with("mov "), "{one:?}");
                if number != 4 {
                    mem.index = Some((reg, 3));
                    mem.base = Some(Reg(13));
                    let one = listing(|asm| asm.lea(8, Reg(4), mem));
                    assert_eq!(one.len(), 1, "{number} {disp}: {one:?}");
                    assert!(one[0].contains("r13,"), "{one:?}");
                }
            }
        }
    }

    #[test]
    fn forms_are_what_they_say() {
        let lines = listing(|asm| {
            asm.load(Reg(15), at(Reg(4), 8));
            asm.store(2, at(Reg(4), 48), Reg(0));
            asm.store(1, at(Reg(15), 0), Reg(6));
            asm.store_imm(at(Reg(0), 0), -1);
            asm.imm(Reg(9), 0xffff_ffff);
            asm.imm(Reg(9), !0);
            asm.imm(Reg(9), 0x1234_5678_9abc);
            asm.alu_imm(Alu::And, 4, Reg(15), 0x1_ffe0);
            asm.alu_imm(Alu::Sub, 1, Reg(6), -1);
            asm.alu_imm(Alu::Cmp, 2, Reg(8), 0x1234);
            asm.alu(Alu::Xor, 8, Reg(0), Reg(12));
            asm.alu_mem(Alu::Add, Reg(15), at(Reg(4), 8));
            asm.cmp_mem_imm(at(Reg(12), 0), 0);
            asm.jmp_mem(at(Reg(13), 8));
            asm.jmp_through(0x2000);
            asm.call(0x3000);
            asm.neg(1, Reg(5));
            asm.load_xmm(9, at(Reg(15), 0x130));
            asm.store_xmm(at(Reg(15), 0x130), 9);
            asm.ldmxcsr(at(Reg(15), 24));
            asm.stmxcsr(at(Reg(0), 24));
            asm.store_byte_imm(at(Reg(4), 0x58), 1);
            asm.cmp_byte_imm(at(Reg(15), 8), 3);
            asm.alu_mem_imm(Alu::Or, at(Reg(15), 0x100), 0x200);
            asm.sar(4, Reg(0), 31);
            asm.rorx(Reg(15), Reg(0), 7);
            asm.rorx(Reg(1), Reg(12), 7);
            asm.div(8, true, Reg(15));
            asm.div(4, false, Reg(2));
            asm.lea(
                8,
                Reg(0),
                Mem {
                    base: None,
                    index: Some((Reg(12), 2)),
                    disp: 4,
                    gs: false,
                },
            );
            asm.alu_mem(Alu::Xor, Reg(0), at(Reg(9), 8).by_gs());
            asm.push_mem(at(Reg(9), 8).by_gs());
            asm.alu_outside(Alu::Cmp, Reg(9), 0x2000);
            asm.store_outside(0x2000, 0xf01);
            asm.imul(Reg(9), Reg(0), 0x9_e377);
            asm.wrgsbase(Reg(0));
            asm.wrgsbase(Reg(9));
            asm.fence();
        });
        assert_eq!(
            lines,
            [
                "mov 8(%rsp),%r15",
                "mov %ax,0x30(%rsp)",
                "mov %sil,(%r15)",
                "movq $0xFFFFFFFFFFFFFFFF,(%rax)",
                "mov $0xFFFFFFFF,%r9d",
                "mov $0xFFFFFFFFFFFFFFFF,%r9",
                "movabs $0x123456789ABC,%r9",
                "and $0x1FFE0,%r15d",
                "sub $0xFF,%sil",
                "cmp $0x1234,%r8w",
                "xor %r12,%rax",
                "add 8(%rsp),%r15",
                "cmpl $0,(%r12)",
                "jmpq *8(%r13)",
                "jmpq *0x2000",
                "call 0x0000000000003000",
                "neg %bpl",
                "movups 0x130(%r15),%xmm9",
                "movups %xmm9,0x130(%r15)",
                "ldmxcsr 0x18(%r15)",
                "stmxcsr 0x18(%rax)",
                "movb $1,0x58(%rsp)",
                "cmpb $3,8(%r15)",
                "orl $0x200,0x100(%r15)",
                "sar $0x1F,%eax",
                "rorx $7,%rax,%r15",
                "rorx $7,%r12,%rcx",
                "idiv %r15",
                "div %edx",
                "lea 4(,%r12,4),%rax",
                "xor %gs:8(%r9),%rax",
                "pushq %gs:8(%r9)",
                "cmp 0x2000,%r9",
                "movq $0xF01,0x2000",
                "imul $0x9E377,%eax,%r9d",
                "wrgsbase %rax",
                "wrgsbase %r9",
                "lock orl $0,(%rsp)",
            ]
        );
    }

    #[test]
    fn a_label_is_reached_from_both_sides() {
        let lines = listing(|asm| {
            let (top, end) = (asm.here(), asm.label());
            asm.jcc(cc::NE, end);
            asm.jmp(top);
            asm.bind(end);
            asm.ret();
        });
        assert_eq!(
            lines,
            ["jne 0x000000000000100B", "jmp 0x0000000000001000", "ret"]
        );
    }

    #[test]
    fn a_label_that_is_nowhere_is_refused() {
        let mut asm = Asm::default();
        let nowhere = asm.label();
        asm.jmp(nowhere);
        assert!(asm.finish(0).is_none());
    }
}
