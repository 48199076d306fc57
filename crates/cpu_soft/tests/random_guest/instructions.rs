//! Single instructions: what programs do most, with random operands.

use super::assembler::{Form, Operand};
use super::scene::{INDEX, Maker, OTHERS, POINTERS, form};
use super::{DATA, DATA_PAGES};
use Operand::{Memory, Register};

const SIZES: [usize; 4] = [1, 2, 4, 8];
/// Opcodes of the eight operations of two operands: for bytes and others, to memory and from there.
const OPERATIONS: [[&[u8]; 4]; 8] = [
    [&[0x00], &[0x01], &[0x02], &[0x03]],
    [&[0x08], &[0x09], &[0x0a], &[0x0b]],
    [&[0x10], &[0x11], &[0x12], &[0x13]],
    [&[0x18], &[0x19], &[0x1a], &[0x1b]],
    [&[0x20], &[0x21], &[0x22], &[0x23]],
    [&[0x28], &[0x29], &[0x2a], &[0x2b]],
    [&[0x30], &[0x31], &[0x32], &[0x33]],
    [&[0x38], &[0x39], &[0x3a], &[0x3b]],
];
const CMP: usize = 7;
/// Conditional moves and SETcc, by condition; not all, but each flag.
const CMOV: [&[u8]; 8] = [
    &[0x0f, 0x40],
    &[0x0f, 0x42],
    &[0x0f, 0x44],
    &[0x0f, 0x46],
    &[0x0f, 0x48],
    &[0x0f, 0x4a],
    &[0x0f, 0x4c],
    &[0x0f, 0x4f],
];
const SET: [&[u8]; 8] = [
    &[0x0f, 0x91],
    &[0x0f, 0x93],
    &[0x0f, 0x95],
    &[0x0f, 0x97],
    &[0x0f, 0x99],
    &[0x0f, 0x9b],
    &[0x0f, 0x9d],
    &[0x0f, 0x9e],
];
/// SSE instructions of a register and a register or memory; those behind the first two need alignment.
const VECTOR: [(Option<u8>, &[u8]); 12] = [
    (None, &[0x0f, 0x10]),
    (None, &[0x0f, 0x11]),
    (None, &[0x0f, 0x28]),
    (Some(0x66), &[0x0f, 0x7f]),
    (Some(0x66), &[0x0f, 0xfe]),
    (Some(0x66), &[0x0f, 0xef]),
    (Some(0x66), &[0x0f, 0x64]),
    (None, &[0x0f, 0x58]),
    (Some(0x66), &[0x0f, 0x59]),
    (Some(0xf2), &[0x0f, 0x5c]),
    (Some(0xf3), &[0x0f, 0x51]),
    (Some(0x66), &[0x0f, 0x2e]),
];
impl Maker {
    /// All status flags are defined behind it.
    pub(super) fn compare(&mut self) {
        let (one, other) = (self.pick(&OTHERS), self.pick(&OTHERS));
        self.code().form(form(&[0x39], 8), one, Register(other));
    }

    pub(super) fn register(&mut self) -> u8 {
        loop {
            let register = self.pick(&OTHERS);
            if Some(register) != self.avoided {
                return register;
            }
        }
    }

    pub(super) fn memory(&mut self) -> Operand {
        let base = self.pick(&POINTERS);
        let disp = match self.random.below(6) {
            0 => self.random.below(0x2000) as i32 - 0x1000,
            _ => 8 * self.random.below(8) as i32,
        };
        let scale = self.random.below(4) as u8;
        let index = self.random.once_in(4).then_some((INDEX, scale));
        Memory(base, index, disp)
    }

    fn operand(&mut self) -> Operand {
        if self.random.once_in(2) {
            self.memory()
        } else {
            Register(self.register())
        }
    }

    pub(super) fn simple(&mut self) {
        match self.random.below(22) {
            0..=6 => self.operation(),
            7 | 8 => self.constant(),
            9..=11 => self.movement(),
            12 => self.one(),
            13 => self.shift(),
            14 => self.condition(),
            15 | 16 => self.stack(),
            17 | 18 => self.vector(),
            19 => self.exchange(),
            20 if self.random.once_in(2) => self.bits(),
            20 => self.seldom(),
            _ => self.product(),
        }
    }

    fn operation(&mut self) {
        let (which, size) = (self.random.below(8) as usize, self.pick(&SIZES));
        let (register, operand) = (self.register(), self.operand());
        let from = self.random.below(2) as usize;
        let opcode = OPERATIONS[which][2 * from + usize::from(size > 1)];
        let memory = matches!(operand, Memory(..));
        if memory && from == 0 && which != CMP && self.random.once_in(4) {
            self.raw(&[0xf0]);
        }
        self.code().form(form(opcode, size), register, operand);
        if matches!(which, 1 | 4 | 6) {
            self.compare();
        }
    }

    fn constant(&mut self) {
        let (which, size, operand) = (
            self.random.below(8) as u8,
            self.pick(&SIZES),
            self.operand(),
        );
        let opcode: &[u8] = if size == 1 { &[0x80] } else { &[0x83] };
        self.code().form(form(opcode, size), which, operand);
        let value = self.random.next() as u8;
        self.raw(&[value]);
        if matches!(which, 1 | 4 | 6) {
            self.compare();
        }
    }

    fn movement(&mut self) {
        let (register, operand, size) = (self.register(), self.operand(), self.pick(&SIZES));
        let wide = self.pick(&[4, 8]);
        let (opcode, size): (&[u8], usize) = match self.random.below(8) {
            0 => (&[0x0f, 0xb6], wide),
            1 => (&[0x0f, 0xb7], wide),
            2 => (&[0x0f, 0xbe], wide),
            3 => (&[0x0f, 0xbf], wide),
            4 => (&[0x63], 8),
            5 | 6 if size == 1 => (&[0x88], 1),
            5 | 6 => (&[0x89], size),
            _ if size == 1 => (&[0x8a], 1),
            _ => (&[0x8b], size),
        };
        self.code().form(form(opcode, size), register, operand);
    }

    fn one(&mut self) {
        let (size, operand) = (self.pick(&SIZES), self.operand());
        let (opcode, digit): ([&[u8]; 2], u8) = match self.random.below(4) {
            0 => ([&[0xfe], &[0xff]], 0),
            1 => ([&[0xfe], &[0xff]], 1),
            2 => ([&[0xf6], &[0xf7]], 2),
            _ => ([&[0xf6], &[0xf7]], 3),
        };
        self.code()
            .form(form(opcode[usize::from(size > 1)], size), digit, operand);
    }

    fn shift(&mut self) {
        let (size, operand, digit) = (
            self.pick(&SIZES),
            self.operand(),
            self.pick(&[0, 1, 2, 3, 4, 5, 7]),
        );
        let count = self.random.below(66) as u8;
        let (opcode, count): (&[u8], Option<u8>) = match (self.random.once_in(2), size) {
            (true, 1) => (&[0xd2], None),
            (true, _) => (&[0xd3], None),
            (false, 1) => (&[0xc0], Some(count)),
            (false, _) => (&[0xc1], Some(count)),
        };
        self.code().form(form(opcode, size), digit, operand);
        if let Some(count) = count {
            self.raw(&[count]);
        }
        self.compare();
    }

    fn condition(&mut self) {
        let (register, operand) = (self.register(), self.operand());
        let size = self.pick(&[2, 4, 8]);
        let form = if self.random.once_in(2) {
            form(self.pick(&CMOV), size)
        } else {
            form(self.pick(&SET), 1)
        };
        self.code().form(form, register, operand);
    }

    fn stack(&mut self) {
        let (one, other) = (self.register(), self.register());
        match self.random.below(4) {
            0 => {
                let memory = self.memory();
                self.code().form(form(&[0xff], 4), 6, memory);
            }
            1 => self.raw(&[0x9c]),
            _ => self.code().form(form(&[0xff], 4), 6, Register(one)),
        }
        if self.random.once_in(3) {
            self.operation();
        }
        if self.random.once_in(5) {
            let memory = self.memory();
            self.code().form(form(&[0x8f], 4), 0, memory);
        } else {
            self.code().form(form(&[0x8f], 4), 0, Register(other));
        }
    }

    fn vector(&mut self) {
        let (prefix, opcode) = self.pick(&VECTOR);
        let register = self.random.below(16) as u8;
        let operand = match self.operand() {
            Register(_) => Register(self.random.below(16) as u8),
            memory => memory,
        };
        let form = Form {
            prefix,
            opcode,
            size: 4,
        };
        self.code().form(form, register, operand);
    }

    fn exchange(&mut self) {
        let (register, operand, size) = (self.register(), self.operand(), self.pick(&SIZES));
        let opcode: [&[u8]; 2] = self.pick(&[
            [&[0x86][..], &[0x87]],
            [&[0x0f, 0xc0], &[0x0f, 0xc1]],
            [&[0x0f, 0xb0], &[0x0f, 0xb1]],
        ]);
        self.code()
            .form(form(opcode[usize::from(size > 1)], size), register, operand);
    }

    fn bits(&mut self) {
        let (register, operand, size) = (self.register(), self.operand(), self.pick(&[4, 8]));
        if self.random.once_in(2) {
            let opcode: &[u8] = self.pick(&[&[0x0f, 0xbc][..], &[0x0f, 0xbd]]);
            self.code().form(form(opcode, size), register, operand);
        } else {
            let digit = 4 + self.random.below(4) as u8;
            self.code().form(form(&[0x0f, 0xba], size), digit, operand);
            let bit = self.random.next() as u8;
            self.raw(&[bit]);
        }
        self.compare();
    }

    /// What programs do less often, and kernels do.
    fn seldom(&mut self) {
        let (register, size) = (self.register(), self.pick(&[4, 8]));
        match self.random.below(8) {
            0..=2 => {
                // A bit that is somewhere behind or in front of what is pointed to.
                let number = self.random.below(0x1_8000).wrapping_sub(0x1000);
                self.code().set(register, number);
                let memory = self.memory();
                let opcode = self.pick(&[
                    &[0x0f, 0xa3][..],
                    &[0x0f, 0xab],
                    &[0x0f, 0xb3],
                    &[0x0f, 0xbb],
                ]);
                if opcode != [0x0f, 0xa3] && self.random.once_in(2) {
                    self.raw(&[0xf0]);
                }
                self.code().form(form(opcode, size), register, memory);
                self.compare();
            }
            3 | 4 => {
                let at = DATA + 8 * self.random.below(DATA_PAGES << 9);
                let at = if self.random.once_in(8) { at } else { at & !15 };
                self.code().set(7, at);
                if self.random.once_in(2) {
                    self.raw(&[0xf0]);
                }
                self.code()
                    .form(form(&[0x0f, 0xc7], 8), 1, Memory(7, None, 0));
            }
            5 => {
                let segment = self.random.below(6) as u8;
                let size = self.pick(&[2, 4, 8]);
                self.code()
                    .form(form(&[0x8c], size), segment, Register(register));
            }
            6 => {
                let direction = self.pick(&[0xfc, 0xfc, 0xfd]);
                self.raw(&[direction]);
            }
            _ => {
                let form = Form {
                    prefix: Some(0xf3),
                    opcode: &[0x0f, 0xae],
                    size: 8,
                };
                let at = DATA + self.random.below(DATA_PAGES << 12);
                let which = self.random.below(4) as u8;
                if which > 1 {
                    self.code().set(register, at);
                }
                self.code().form(form, which, Register(register));
            }
        }
    }

    fn product(&mut self) {
        let (register, operand, size) = (self.register(), self.operand(), self.pick(&[2, 4, 8]));
        match self.random.below(4) {
            0 => self.code().form(form(&[0xf7], size), 4, operand),
            1 => self.code().form(form(&[0xf7], size), 5, operand),
            2 => {
                self.code().set(2, 0);
                self.code().form(form(&[0xf7], size), 6, operand);
            }
            _ => self
                .code()
                .form(form(&[0x0f, 0xaf], size), register, operand),
        }
        self.compare();
    }
}
