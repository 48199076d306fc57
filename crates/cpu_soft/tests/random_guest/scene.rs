//! Steps: a few instructions each.

use umbra_x86::{msr, rflags};

use super::assembler::{Code, Form, Operand};
use super::{
    DATA, DATA_PAGES, FIXES, FRAMES, KERNEL_STACK, NO_IDT, RESUME, ROUNDS, SCENES, SPACES,
    STEPS_LEFT, USER_CODE, USER_FRAMES, USER_STACK, data_entry,
};
use crate::random::Random;
use Operand::{At, Memory, Register};

/// Registers that point into the data, and one that is small.
pub const POINTERS: [u8; 4] = [3, 5, 12, 13];
pub const INDEX: u8 = 14;
/// Those that instructions write.
pub const OTHERS: [u8; 10] = [0, 1, 2, 6, 7, 8, 9, 10, 11, 15];
/// What counts the rounds of a loop.
const COUNTER: u8 = 9;
/// Status flags, which any code may set.
const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// A constant in code that may be changed, and the ModRM byte in front of it.
#[derive(Clone, Copy)]
struct Site {
    /// Where the kernel and level 3 have it; who is not meant to have it, nowhere.
    kernel: u64,
    user: Option<u64>,
    register: u8,
}

/// Makes the code of all scenes.
pub struct Maker {
    kernel: Code,
    user: Code,
    smap: bool,
    sites: Vec<Site>,
    /// Where the scene before says what is next.
    resume: Option<usize>,
    in_user: bool,
    pub(super) random: Random,
    /// A register that is not to be written.
    pub(super) avoided: Option<u8>,
}

pub const fn form(opcode: &'static [u8], size: usize) -> Form {
    Form {
        prefix: None,
        opcode,
        size,
    }
}

/// String instructions; the first four do not compare.
const STRINGS: [u8; 5] = [0xa4, 0xaa, 0xac, 0xa6, 0xae];

impl Maker {
    pub fn new(smap: bool) -> Self {
        Self {
            kernel: Code::new(SCENES),
            user: Code::new(USER_CODE),
            smap,
            sites: Vec::new(),
            resume: None,
            in_user: false,
            random: Random::new(0),
            avoided: None,
        }
    }

    pub(super) fn code(&mut self) -> &mut Code {
        if self.in_user {
            &mut self.user
        } else {
            &mut self.kernel
        }
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.code().raw(bytes);
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize]
    }

    /// Adds a scene.
    pub fn scene(&mut self, seed: u64, kernel: &[u64], user: Option<&[u64]>) {
        self.random = Random::new(seed);
        self.in_user = false;
        self.begin();
        for step in kernel {
            self.step(*step);
        }
        let Some(user) = user else {
            self.raw(&[0xff, 0x24, 0x25]);
            return self.raw(&(RESUME as u32).to_le_bytes());
        };
        self.random = Random::new(seed ^ 1);
        self.enter();
        for step in user {
            self.step(*step);
        }
        self.random = Random::new(seed ^ 2);
        let end: &[u8] = self.pick(&[&[0x0f, 0x05][..], &[0x0f, 0x05], &[0xcd, 0x80], &[0xf4]]);
        self.raw(end);
    }

    fn begin(&mut self) {
        if self.resume.is_some() {
            self.space();
        }
        let here = self.kernel.here() as u32;
        if let Some(place) = self.resume {
            self.kernel.patch(place, here);
        }
        self.kernel.store(RESUME, 0);
        self.resume = Some(self.kernel.bytes.len() - 4);
        self.kernel.store(FIXES, 5);
        for pointer in POINTERS {
            let at = match self.random.below(16) {
                // Nowhere: the kernel could destroy what the guest stands on.
                0 => self.random.value() | 1 << 32,
                _ => DATA + self.random.below(DATA_PAGES << 12),
            };
            self.kernel.set(pointer, at);
        }
        let index = self.random.below(64);
        self.kernel.set(INDEX, index);
        let first: &[u8] = self.pick(&[&[0xfa][..], &[0xfb]]);
        self.raw(first);
        if self.smap && !self.random.once_in(4) {
            self.raw(&[0x0f, 0x01, 0xcb]);
        }
    }

    /// So that instructions, and code of a scene, lie across the borders of pages and of what is written at once.
    fn space(&mut self) {
        let left = 0xfff - (self.code().here() & 0xfff);
        let len = match self.random.below(8) {
            0 => left.saturating_sub(self.random.below(8)),
            _ => self.random.below(80),
        };
        self.raw(&vec![0xcc; len as usize]);
    }

    /// From the kernel to level 3.
    fn enter(&mut self) {
        self.in_user = true;
        self.space();
        self.in_user = false;
        let to = self.user.here();
        let flags = rflags::FIXED
            | self.flags()
            | if self.random.once_in(2) {
                rflags::IF
            } else {
                0
            };
        let stack = USER_STACK + 0x1000 - 8 * self.random.below(4);
        if self.random.once_in(2) {
            self.kernel.set(1, to);
            self.kernel.set(11, flags);
            self.kernel.set(4, stack);
            self.raw(&[0x48, 0x0f, 0x07]);
        } else {
            for value in [0x23, stack, flags, 0x2b, to] {
                self.raw(&[0x68]);
                self.raw(&(value as u32).to_le_bytes());
            }
            self.raw(&[0x48, 0xcf]);
        }
        self.in_user = true;
    }

    fn flags(&mut self) -> u64 {
        self.random.next() & STATUS
    }

    /// The last scene leads here: another round, or the end.
    pub fn end(mut self) -> (Vec<u8>, Vec<u8>) {
        let here = self.kernel.here() as u32;
        if let Some(place) = self.resume {
            self.kernel.patch(place, here);
        }
        self.in_user = false;
        self.kernel.set(4, KERNEL_STACK);
        self.kernel.form(form(&[0xff], 8), 1, At(ROUNDS as u32));
        self.raw(&[0x74, 5]);
        self.kernel.jump(SCENES);
        self.kernel
            .form(form(&[0x0f, 0x01], 4), 3, At(NO_IDT as u32));
        self.raw(&[0x0f, 0x0b]);
        (self.kernel.bytes, self.user.bytes)
    }

    fn step(&mut self, number: u64) {
        self.random = Random::new(number);
        self.random.next();
        match self.random.below(40) {
            0..=3 => self.repeat(),
            4..=6 => self.skip(),
            7 | 8 => self.call(),
            9 => self.jump(),
            10..=12 => self.change_code(),
            13 | 14 => self.string(),
            15 => self.fault(),
            16..=24 if !self.in_user => self.privileged(),
            16..=18 => self.user_only(),
            _ => self.simple(),
        }
    }

    /// A loop of a few rounds.
    fn repeat(&mut self) {
        let count = match self.random.below(4) {
            0 => 60,
            _ => 1 + self.random.below(12),
        };
        self.code().set(COUNTER, count);
        let start = self.code().here();
        self.avoided = Some(COUNTER);
        for _ in 0..1 + self.random.below(5) {
            self.simple();
        }
        if self.random.once_in(3) {
            self.skip();
        }
        self.avoided = None;
        self.code().form(form(&[0xff], 8), 1, Register(COUNTER));
        let back = start.wrapping_sub(self.code().here() + 6) as u32;
        self.raw(&[0x0f, 0x85]);
        self.raw(&back.to_le_bytes());
    }

    /// A branch over a few instructions.
    fn skip(&mut self) {
        let condition = self.random.below(16) as u8;
        self.raw(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        let from = self.code().bytes.len();
        for _ in 0..1 + self.random.below(3) {
            self.simple();
        }
        self.code().land(from);
    }

    /// A subroutine, which the code around it jumps over.
    fn call(&mut self) {
        self.raw(&[0xe9, 0, 0, 0, 0]);
        let from = self.code().bytes.len();
        let routine = self.code().here();
        for _ in 0..1 + self.random.below(3) {
            self.simple();
        }
        self.raw(&[0xc3]);
        self.code().land(from);
        for _ in 0..1 + self.random.below(3) {
            if self.random.once_in(3) {
                let register = self.register();
                self.code().set(register, routine);
                self.code().form(form(&[0xff], 4), 2, Register(register));
            } else {
                let distance = routine.wrapping_sub(self.code().here() + 5) as u32;
                self.raw(&[0xe8]);
                self.raw(&distance.to_le_bytes());
            }
            self.simple();
        }
    }

    /// To what follows, by register or by the stack.
    fn jump(&mut self) {
        let register = self.register();
        self.code().set(register, 0);
        let place = self.code().bytes.len() - 8;
        if self.random.once_in(2) {
            self.code().form(form(&[0xff], 4), 4, Register(register));
        } else {
            self.code().form(form(&[0xff], 4), 6, Register(register));
            self.raw(&[0xc3]);
        }
        self.space();
        let here = self.code().here() as u32;
        self.code().patch(place, here);
    }

    /// A constant that is changed, by code before or behind it, or another one is.
    fn change_code(&mut self) {
        if self.sites.is_empty() || self.random.once_in(3) {
            let register = self.register();
            let operation = self.pick(&[0u8, 5, 7]);
            self.code()
                .form(form(&[0x81], 8), operation, Register(register));
            let here = self.code().here();
            let (kernel, user) = match self.in_user {
                true => (here - USER_CODE + USER_FRAMES, Some(here)),
                false => (here, None),
            };
            let value = self.random.next() as u32;
            self.raw(&value.to_le_bytes());
            self.sites.push(Site {
                kernel,
                user,
                register,
            });
            return;
        }
        let site = {
            let at = self.random.below(self.sites.len() as u64) as usize;
            self.sites[at]
        };
        let at = match (self.in_user, site.user) {
            (false, _) => site.kernel,
            (true, Some(at)) => at,
            // The kernel's, which it may not write.
            (true, None) => return,
        };
        match self.random.below(3) {
            0 => {
                let value = self.random.next() as u32;
                self.code().form(form(&[0xc7], 4), 0, At(at as u32));
                self.raw(&value.to_le_bytes());
            }
            1 => {
                let register = self.register();
                self.code().form(form(&[0x89], 4), register, At(at as u32));
            }
            _ => {
                let operation = self.pick(&[0u8, 2, 3, 5, 7]);
                self.code().form(form(&[0xc6], 1), 0, At(at as u32 - 1));
                self.raw(&[0xc0 | operation << 3 | site.register & 7]);
            }
        }
    }

    /// String instructions on a few elements.
    fn string(&mut self) {
        let (opcode, repeated) = (self.pick(&STRINGS), self.random.below(3));
        let wide = self.random.below(2) as u8;
        for register in [6, 7] {
            let memory = self.memory();
            self.code().form(form(&[0x8d], 8), register, memory);
        }
        let count = self.random.below(40);
        self.code().set(1, count);
        match repeated {
            0 => {}
            1 => self.raw(&[0xf3]),
            _ => self.raw(&[0xf2]),
        }
        if self.random.once_in(2) {
            self.raw(&[0x48]);
        }
        self.raw(&[opcode | wide]);
    }

    /// What raises an exception, or may.
    fn fault(&mut self) {
        match self.random.below(9) {
            0 => self.raw(&[0x0f, 0x0b]),
            1 => {
                self.code().set(0, 0x8000_0000_0000_0000);
                self.raw(&[0x48, 0x8b, 0x00]);
            }
            2 => {
                let register = self.register();
                self.code().form(form(&[0xf7], 8), 6, Register(register));
                self.compare();
            }
            3 => self.raw(&[0xcd, 0x80]),
            4 => {
                // A page that is not there, by many ways.
                let at = 0x23_0000 + self.random.below(0x2000);
                self.code().set(0, at);
                let form = form(self.pick(&[&[0x8b][..], &[0x89], &[0x01], &[0x8a]]), 4);
                self.code().form(form, 1, Memory(0, None, 0));
            }
            5 => {
                // To where no code is.
                self.code().set(0, 0x23_0000);
                self.raw(&[0xff, 0xe0]);
            }
            6 => {
                // An address for SSE that is not aligned.
                let pointer = self.pick(&POINTERS);
                self.code()
                    .form(form(&[0x0f, 0x28], 4), 1, Memory(pointer, None, 4));
            }
            7 => self.raw(&[0xcc]),
            // Level 0 may.
            _ => self.raw(&[0xfa, 0x0f, 0x09]),
        }
    }

    fn user_only(&mut self) {
        match self.random.below(6) {
            0 => {
                let refused: &[u8] = self.pick(&[
                    &[0xfb][..],
                    &[0x0f, 0x22, 0xd8],
                    &[0x0f, 0x01, 0xf8],
                    &[0x0f, 0x32],
                    &[0x0f, 0x01, 0xcb],
                ]);
                self.raw(refused);
            }
            1 => {
                // What is the kernel's.
                let register = self.register();
                self.code()
                    .form(form(&[0x8b], 8), register, At(ROUNDS as u32));
            }
            2 | 3 => self.set_flags(0),
            _ => self.segment(),
        }
    }

    /// What only the kernel may.
    fn privileged(&mut self) {
        match self.random.below(20) {
            0..=4 => self.change_page(),
            5..=7 => self.change_space(),
            8..=10 => {
                self.kernel.wrmsr(0x83f, super::IPI.into());
            }
            11 => self.raw(&[0xfb]),
            12 => self.raw(&[0xfa]),
            13 => {
                let interrupts = self.pick(&[0, rflags::IF]);
                self.set_flags(interrupts);
            }
            14 => {
                let access: &[u8] = self.pick(&[&[0x0f, 0x01, 0xca][..], &[0x0f, 0x01, 0xcb]]);
                self.raw(access);
            }
            15 => {
                let at = DATA + self.random.below(DATA_PAGES << 12);
                let number = self.pick(&[0xc000_0100, 0xc000_0101, msr::KERNEL_GS_BASE]);
                self.kernel.wrmsr(number, at);
            }
            16 => {
                self.raw(&[0x0f, 0x01, 0xf8]);
                self.segment();
                self.raw(&[0x0f, 0x01, 0xf8]);
            }
            17 => self.change_control(),
            18 => {
                let leaf = self.pick(&[0, 1, 7, 0x8000_0001]);
                self.kernel.set(0, leaf);
                self.kernel.set(1, 0);
                self.raw(&[0x0f, 0xa2]);
            }
            _ => {
                let steps = 1 + self.random.below(6) as u32;
                self.kernel.store(STEPS_LEFT, steps);
                self.set_flags(rflags::TF);
            }
        }
    }

    /// Of the address space that is in use.
    fn change_page(&mut self) {
        let page = DATA + (self.random.below(DATA_PAGES) << 12);
        let entry = data_entry(&mut self.random);
        // mov rcx, cr3; and rcx, -4096; mov [rcx+…], rax
        self.raw(&[0x0f, 0x20, 0xd9, 0x48, 0x81, 0xe1, 0x00, 0xf0, 0xff, 0xff]);
        self.kernel.set(0, entry);
        let slot = 0x3000 + 8 * (page >> 12 & 0x1ff) as i32;
        self.kernel.form(form(&[0x89], 8), 0, Memory(1, None, slot));
        self.kernel.form(form(&[0x0f, 0x01], 4), 7, At(page as u32));
        self.compare();
    }

    /// The other address space, or this one again.
    fn change_space(&mut self) {
        let top = self.pick(&SPACES);
        self.kernel.set(0, top);
        self.raw(&[0x0f, 0x22, 0xd8]);
    }

    /// CR0.WP, or CR4.PGE.
    fn change_control(&mut self) {
        if self.random.once_in(2) {
            self.raw(&[0x0f, 0x20, 0xc0, 0x48, 0x35, 0, 0, 1, 0, 0x0f, 0x22, 0xc0]);
        } else {
            self.raw(&[
                0x0f, 0x20, 0xe0, 0x48, 0x35, 0x80, 0, 0, 0, 0x0f, 0x22, 0xe0,
            ]);
        }
        self.compare();
    }

    fn set_flags(&mut self, more: u64) {
        let flags = self.flags() | more | self.pick(&[0, rflags::AC, rflags::ID]);
        self.raw(&[0x68]);
        self.raw(&(flags as u32).to_le_bytes());
        self.raw(&[0x9d]);
    }

    /// An access by FS or GS.
    fn segment(&mut self) {
        let prefix = self.pick(&[0x64, 0x65]);
        self.raw(&[prefix]);
        let (register, at) = (self.register(), self.random.below(0x100) as u32);
        let form = form(self.pick(&[&[0x8b][..], &[0x89], &[0x03]]), 8);
        self.code().form(form, register, At(at));
    }
}

// Frames of data are not where the kernel's large page is.
const _: () = assert!(FRAMES >= 0x20_0000);
