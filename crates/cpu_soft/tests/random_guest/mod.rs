//! Guests that are made at random, and end in the same state whoever executes them.
//!
//! A guest is a row of *scenes*, which it plays some rounds of. Each is code of the kernel, and often code of level 3
//! after it, from which an exception, INT or SYSCALL leads to the next scene. A scene is made of *steps*, each of
//! which is a few instructions that are made of a number of its own, so that a guest is shrunk by leaving steps out.
//!
//! ```text
//!   0x1000 GDT, IDT, TSS, variables, handlers     0x8_0000  what handlers have noted
//!   0x1_0000 start; 0x2_0000 code of scenes       0x10_0000 page tables of two address spaces
//!   0x5_0000 stacks (above)                       0x14_0000 code of level 3, its stack
//!   0x20_0000 … data, eight pages of the two address spaces; code of level 3 and its stack, linear
//!   0x30_0000 frames of data
//! ```
//! Whatever depends on time is left out, as are flags where the manual leaves them undefined: what has left some so is
//! followed by a comparison. A page-table entry is changed in the address space that is in use, and INVLPG follows.

mod assembler;
mod fixed;
mod instructions;
mod scene;

use std::collections::BTreeMap;

use umbra_x86::state::{CpuState, DescriptorTable, Segment, seg};
use umbra_x86::{cr0, cr4, efer, msr, pte, rflags};

use crate::bare::{self, Machine};
use crate::random::Random;
use assembler::Code;
use scene::Maker;

const GDT: u64 = bare::GDT;
const IDT: u64 = bare::IDT;
const TSS: u64 = 0x3000;
/// Where to go on, rounds left, and so on, as `fixed` has them.
const RESUME: u64 = 0x4000;
const ROUNDS: u64 = 0x4008;
const LOG_AT: u64 = 0x4010;
const FIXES: u64 = 0x4018;
const STEPS_LEFT: u64 = 0x4020;
const NO_IDT: u64 = 0x4040;
const GOOD: u64 = 0x4100;
const FIXED_CODE: u64 = 0x5000;
const HANDLERS: u64 = 34;
/// Where scenes are.
const SCENES: u64 = 0x2_0000;
const SCENES_LEN: usize = 0x2_0000;
/// Stacks grow down from here, and from two and four pages above.
const KERNEL_STACK: u64 = 0x5_0000;
const STACKS: std::ops::Range<usize> = 0x4_8000..0x5_5000;
const LOG: u64 = 0x8_0000;
const LOG_END: u64 = 0xc_0000;
/// Bytes that a handler notes.
const NOTE: usize = 32;
/// Page tables: four pages for each address space.
const SPACES: [u64; 2] = [0x10_0000, 0x11_0000];
/// Code of level 3: frames, and where it is for itself.
const USER_FRAMES: u64 = 0x14_0000;
const USER_CODE: u64 = 0x21_0000;
const USER_CODE_LEN: usize = 0x1_0000;
const USER_STACK_FRAME: u64 = 0x15_0000;
const USER_STACK: u64 = 0x22_0000;
const DATA: u64 = 0x20_0000;
const DATA_PAGES: u64 = 8;
const FRAMES: u64 = 0x30_0000;
const FRAME_COUNT: u64 = 12;

const CODE_0: u16 = 0x38;
const CODE_3: u16 = 0x2b;
const DATA_3: u16 = 0x23;
const TASK: u16 = 0x48;
const IPI: u8 = 0x40;
const SYSTEM_CALL: u8 = 0x80;

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    seed: u64,
    pub scenes: Vec<Scene>,
}

/// Numbers of steps, of the kernel and of level 3; without the latter, the kernel goes on with the next scene.
#[derive(Clone, Debug)]
pub struct Scene {
    seed: u64,
    pub kernel: Vec<u64>,
    pub user: Option<Vec<u64>>,
}

/// A guest: what is written where, and how its processor begins.
pub struct Guest {
    pub parts: Vec<(u64, Vec<u8>)>,
    pub state: CpuState,
}

impl Plan {
    /// The guest that `seed` and `number` name.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Random::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        for _ in 0..8 {
            random.next();
        }
        let count = 2 + random.below(10);
        let scenes = (0..count).map(|_| Scene {
            seed: random.next(),
            kernel: numbers(&mut random, 10),
            user: (!random.once_in(4)).then(|| numbers(&mut random, 14)),
        });
        let scenes = scenes.collect();
        let seed = random.next();
        Self { seed, scenes }
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        let of = |scene: &Scene| scene.kernel.len() + scene.user.as_ref().map_or(0, Vec::len);
        self.scenes.iter().map(of).sum()
    }

    /// Makes it.
    pub fn guest(&self) -> Guest {
        let mut random = Random::new(self.seed);
        let mut guest = Guest {
            parts: Vec::new(),
            state: bare::protected(),
        };
        guest.descriptors();
        let smap = guest.state(&mut random);
        for (number, top) in SPACES.into_iter().enumerate() {
            guest.tables(&mut random, number, top);
        }
        guest.variables(&mut random);
        let data = (0..FRAME_COUNT * 512).flat_map(|_| random.value().to_le_bytes());
        guest.parts.push((FRAMES, data.collect()));
        guest.code(&self.scenes, smap);
        guest
    }
}

fn numbers(random: &mut Random, most: u64) -> Vec<u64> {
    let count = 1 + random.below(most);
    (0..count).map(|_| random.next()).collect()
}

impl Guest {
    /// Puts it into a machine's memory.
    pub fn load(&self, machine: &Machine) {
        for (at, bytes) in &self.parts {
            machine.write(*at, bytes);
        }
    }

    fn words(&mut self, at: u64, words: &[u64]) {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        self.parts.push((at, bytes.collect()));
    }

    fn descriptors(&mut self) {
        for (selector, descriptor) in [
            (DATA_3, 0x00cf_f300_0000_ffff),
            (CODE_3, 0x00af_fb00_0000_ffff),
            (CODE_0, 0x00af_9b00_0000_ffff),
            (CODE_0 + 8, 0x00cf_9300_0000_ffff),
        ] {
            self.words(GDT + u64::from(selector & !7), &[descriptor]);
        }
        for vector in 0..=255 {
            let Some(at) = fixed::handler(vector) else {
                continue;
            };
            // Level 3 may ask for a breakpoint and a system call. Double faults have a stack of their own.
            let level = if matches!(vector, 3 | SYSTEM_CALL) {
                3
            } else {
                0
            };
            let low = at & 0xffff | u64::from(CODE_0) << 16 | (0x8e | level << 5) << 40;
            let stack = u64::from(vector == 8) << 32;
            self.words(IDT + 16 * u64::from(vector), &[low | stack, at >> 32]);
        }
        self.words(TSS + 4, &[KERNEL_STACK + 0x2000]);
        self.words(TSS + 0x24, &[KERNEL_STACK + 0x4000]);
        self.parts.push((FIXED_CODE, fixed::code()));
    }

    /// Tells whether the kernel is kept from data.
    fn state(&mut self, random: &mut Random) -> bool {
        let state = &mut self.state;
        for segment in &mut state.seg {
            segment.selector = CODE_0 + 8;
        }
        state.seg[seg::CS] = bare::long_code(CODE_0);
        state.tr = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            attr: 0xb | Segment::P,
        };
        state.idtr = DescriptorTable {
            base: IDT,
            limit: 0xfff,
        };
        state.gpr[4] = KERNEL_STACK;
        state.rflags = rflags::FIXED;
        state.cr0 |= cr0::PG | cr0::WP;
        state.cr3 = SPACES[0];
        state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        let mut sometimes = |flag: u64| if random.once_in(3) { flag } else { 0 };
        let smap = sometimes(cr4::SMAP);
        state.cr4 |= smap | sometimes(cr4::SMEP) | sometimes(cr4::PGE) | sometimes(cr4::PCIDE);
        state.cr4 |= sometimes(cr4::FSGSBASE);
        smap != 0
    }

    fn tables(&mut self, random: &mut Random, number: usize, top: u64) {
        const ALL: u64 = pte::P | pte::RW | pte::US;
        self.words(top, &[(top + 0x1000) | ALL]);
        self.words(top + 0x1000, &[(top + 0x2000) | ALL]);
        let kernel = pte::P | pte::RW | pte::PS | pte::G;
        self.words(top + 0x2000, &[kernel, (top + 0x3000) | ALL]);
        let table = top + 0x3000;
        let at = |la: u64| table + 8 * (la >> 12 & 0x1ff);
        for page in 0..DATA_PAGES {
            let entry = data_entry(random);
            self.words(at(DATA + (page << 12)), &[entry]);
        }
        for page in 0..USER_CODE_LEN as u64 >> 12 {
            let at = at(USER_CODE + (page << 12));
            self.words(at, &[(USER_FRAMES + (page << 12)) | ALL]);
        }
        let stack = USER_STACK_FRAME + 0x1000 * number as u64;
        self.words(at(USER_STACK), &[stack | ALL | pte::XD]);
    }

    fn variables(&mut self, random: &mut Random) {
        self.words(ROUNDS, &[2 + random.below(12)]);
        self.words(LOG_AT, &[LOG]);
        for page in 0..DATA_PAGES {
            let frame = FRAMES + (random.below(FRAME_COUNT) << 12);
            self.words(GOOD + 8 * page, &[frame | pte::P | pte::RW | pte::US]);
        }
    }

    fn code(&mut self, scenes: &[Scene], smap: bool) {
        let mut start = Code::new(bare::CODE);
        for (number, value) in [
            (msr::STAR, 0x001b_0038 << 32),
            (msr::LSTAR, fixed::SYSCALL_ENTRY),
            (
                msr::FMASK,
                rflags::IF | rflags::DF | rflags::AC | rflags::TF,
            ),
            // The x2APIC, and its spurious-interrupt vector register.
            (0x1b, 0xfee0_0d00),
            (0x80f, 0x1ff),
        ] {
            start.wrmsr(number, value);
        }
        start.jump(SCENES);
        self.parts.push((bare::CODE, start.bytes));
        let mut maker = Maker::new(smap);
        for scene in scenes {
            maker.scene(scene.seed, &scene.kernel, scene.user.as_deref());
        }
        let (kernel, user) = maker.end();
        assert!(kernel.len() <= SCENES_LEN && user.len() <= USER_CODE_LEN);
        self.parts.push((SCENES, kernel));
        self.parts.push((USER_FRAMES, user));
    }
}

/// A page-table entry for data: mostly a good one.
fn data_entry(random: &mut Random) -> u64 {
    let frame = FRAMES + (random.below(FRAME_COUNT) << 12);
    let mut entry = frame | pte::P | pte::RW | pte::US;
    for (flag, times) in [
        (pte::P, 6),
        (pte::RW, 6),
        (pte::US, 12),
        (pte::A, 4),
        (pte::D, 4),
        (pte::XD, 3),
    ] {
        if random.once_in(times) {
            entry ^= flag;
        }
    }
    entry
}

/// Where memory differs: everywhere but on the kernel's stacks, where there are flags that are undefined.
pub fn difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let differs = |at: &usize| one[*at] != other[*at] && !STACKS.contains(at);
    if one == other {
        return None;
    }
    (0..one.len()).find(differs)
}

/// What the handlers of two guests have noted, up to where that differs.
pub fn notes(one: &[u8], other: &[u8]) -> String {
    let region = LOG as usize..LOG_END as usize;
    let both = one[region.clone()]
        .chunks(NOTE)
        .zip(other[region].chunks(NOTE));
    let mut text = String::new();
    for (number, (one, other)) in both.enumerate() {
        if one != other {
            text += &format!(
                "note {number}: {}\n    instead of: {}",
                note(one),
                note(other)
            );
            break;
        }
    }
    text
}

/// How often which vector came, as far as notes are left.
pub fn count(memory: &[u8], counts: &mut BTreeMap<u32, u64>) {
    let end = word(memory, LOG_AT as usize) as usize;
    for note in memory[LOG as usize..end].chunks(NOTE) {
        *counts.entry(word(note, 0) as u32).or_default() += 1;
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8]
        .iter()
        .rev()
        .fold(0, |sum, b| sum << 8 | u64::from(*b))
}

fn note(bytes: &[u8]) -> String {
    let word = |at| word(bytes, at);
    let (vector, error) = (word(0) as u32, word(0) >> 32);
    let (rip, cr2, sum) = (word(8), word(16), word(24));
    format!("vector {vector}({error:#x}) at {rip:#x}, CR2 {cr2:#x}, registers {sum:#x}")
}
