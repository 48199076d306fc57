//! Just enough of an assembler.

/// Code for a place in memory.
pub struct Code {
    at: u64,
    pub bytes: Vec<u8>,
}

/// A register, or memory.
#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Register(u8),
    /// Base, index with its scale as a power of two, displacement.
    Memory(u8, Option<(u8, u8)>, i32),
    /// The first 2 GiB.
    At(u32),
}

use Operand::{At, Memory, Register};

/// An instruction with a ModRM byte.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// A prefix in front of REX.
    pub prefix: Option<u8>,
    /// Its bytes; 0x0f is the first of two.
    pub opcode: &'static [u8],
    /// Size of the operands, in bytes.
    pub size: usize,
}

impl Code {
    pub fn new(at: u64) -> Self {
        let bytes = Vec::new();
        Self { at, bytes }
    }

    /// Where the next instruction is.
    pub fn here(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    fn word(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// An instruction of a register, or of a digit in its place, and an operand.
    pub fn form(&mut self, form: Form, reg: u8, operand: Operand) {
        if form.size == 2 {
            self.raw(&[0x66]);
        }
        self.bytes.extend(form.prefix);
        let (base, index) = match operand {
            Register(base) => (base, 0),
            Memory(base, index, _) => (base, index.map_or(0, |(index, _)| index)),
            At(_) => (0, 0),
        };
        let wide = u8::from(form.size == 8);
        let rex = wide << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        // Without it, the upper four registers of a byte are the second bytes of the lower four.
        if rex != 0 || form.size == 1 && (reg | base) & 3 != 0 {
            self.raw(&[0x40 | rex]);
        }
        self.raw(form.opcode);
        self.operand(reg & 7, operand);
    }

    fn operand(&mut self, reg: u8, operand: Operand) {
        let (mode, sib, disp) = match operand {
            Register(number) => (0xc0 | number & 7, None, None),
            At(address) => (4, Some(0x25), Some(address)),
            Memory(base, index, disp) => {
                let (index, scale) = index.unwrap_or((4, 0));
                let sib = scale << 6 | (index & 7) << 3 | base & 7;
                (0x84, Some(sib), Some(disp as u32))
            }
        };
        self.raw(&[mode | reg << 3]);
        self.bytes.extend(sib);
        if let Some(disp) = disp {
            self.word(disp);
        }
    }

    /// `mov register, value`, in its longest form.
    pub fn set(&mut self, register: u8, value: u64) {
        self.raw(&[0x48 | register >> 3, 0xb8 | register & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// `mov qword [at], value`; the value is the last four bytes.
    pub fn store(&mut self, at: u64, value: u32) {
        let form = Form {
            prefix: None,
            opcode: &[0xc7],
            size: 8,
        };
        self.form(form, 0, At(at as u32));
        self.word(value);
    }

    /// `wrmsr` of a constant.
    pub fn wrmsr(&mut self, number: u32, value: u64) {
        for (opcode, value) in [
            (0xb9, number),
            (0xb8, value as u32),
            (0xba, (value >> 32) as u32),
        ] {
            self.raw(&[opcode]);
            self.word(value);
        }
        self.raw(&[0x0f, 0x30]);
    }

    /// `jmp` with a displacement of 32 bits.
    pub fn jump(&mut self, to: u64) {
        let distance = to.wrapping_sub(self.here() + 5);
        self.raw(&[0xe9]);
        self.word(distance as u32);
    }

    /// Changes the four bytes at `place`.
    pub fn patch(&mut self, place: usize, value: u32) {
        self.bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Leads a displacement of 32 bits, the four bytes in front of `from`, to the next instruction.
    pub fn land(&mut self, from: usize) {
        let distance = self.bytes.len() - from;
        self.patch(from - 4, distance as u32);
    }
}
