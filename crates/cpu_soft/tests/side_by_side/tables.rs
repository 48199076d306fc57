//! The descriptor tables of both processors: Linux's own for a process, and what modify_ldt(2) makes.

use umbra_x86::state::Segment;

/// Linux's selectors of flat segments at level 3 (arch/x86/include/asm/segment.h).
pub const USER_CODE_32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;
pub const USER_CODE_64: u16 = 0x33;

/// Where 16-bit and small code segments begin, and where data segments do.
pub const CODE: u64 = 0x4000_0000;
pub const MEMORY: u64 = 0x4002_0000;

/// `struct user_desc` (modify_ldt(2)).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    pub number: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

const BIG: u32 = 1 << 0;
const EXPAND_DOWN: u32 = 1 << 1;
const EXECUTABLE: u32 = 2 << 1;
const CONFORMING: u32 = 3 << 1;
const READ_EXEC_ONLY: u32 = 1 << 3;
const PAGES: u32 = 1 << 4;
const NOT_PRESENT: u32 = 1 << 5;

const fn entry(number: u32, base: u64, limit: u32, flags: u32) -> Entry {
    Entry {
        number,
        base: base as u32,
        limit,
        flags,
    }
}

pub const CODE_16: u16 = selector(1);
pub const CODE_32: u16 = selector(2);
pub const DATA_16: u16 = selector(3);
pub const LIMITED: u16 = selector(4);
pub const DOWN_32: u16 = selector(5);
pub const DOWN_16: u16 = selector(6);
pub const READ_ONLY: u16 = selector(7);
pub const ABSENT: u16 = selector(8);
pub const EXECUTE_ONLY: u16 = selector(9);
/// Linux gives nobody one that is present.
pub const CONFORMING_CODE: u16 = selector(10);
pub const STACK_16: u16 = selector(11);
pub const ONE_PAGE: u16 = selector(12);
pub const ABSENT_CODE: u16 = selector(13);
pub const ENTRIES: usize = 14;

/// A local selector at level 3.
const fn selector(number: u16) -> u16 {
    number << 3 | 7
}

/// Limit of the segments that have a byte limit.
pub const LIMIT: u32 = 0x4ff;

pub const LDT: [Entry; ENTRIES - 1] = [
    entry(1, CODE, 0xffff, EXECUTABLE),
    entry(2, CODE, 0xfff, EXECUTABLE | BIG),
    entry(3, MEMORY, 0xffff, 0),
    entry(4, MEMORY, LIMIT, BIG),
    entry(5, MEMORY, LIMIT, EXPAND_DOWN | BIG),
    entry(6, MEMORY, LIMIT, EXPAND_DOWN),
    entry(7, MEMORY, LIMIT, READ_EXEC_ONLY | BIG),
    entry(8, MEMORY, LIMIT, NOT_PRESENT | BIG),
    entry(9, CODE, 0xffff, EXECUTABLE | READ_EXEC_ONLY | BIG),
    entry(10, CODE, 0xffff, CONFORMING | NOT_PRESENT | BIG),
    entry(11, MEMORY, 0xffff, 0),
    entry(12, MEMORY, 0, BIG | PAGES),
    entry(13, CODE, 0xffff, EXECUTABLE | NOT_PRESENT | BIG),
];

impl Entry {
    /// The descriptor that Linux makes of it (`fill_ldt`): level 3, accessed.
    fn descriptor(&self) -> u64 {
        let flag = |bit: u32| u64::from(self.flags & bit != 0);
        let kind = u64::from(self.flags >> 1 & 3) << 2 | (flag(READ_EXEC_ONLY) ^ 1) << 1 | 1;
        let (base, limit) = (u64::from(self.base), u64::from(self.limit));
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | (kind | 0x10 | 3 << 5 | (flag(NOT_PRESENT) ^ 1) << 7) << 40
            | (limit >> 16 & 0xf) << 48
            | (flag(BIG) << 2 | flag(PAGES) << 3) << 52
            | (base >> 24) << 56
    }
}

/// The local table as it is in memory.
pub fn local_table() -> [u64; ENTRIES] {
    let mut table = [0; ENTRIES];
    for entry in &LDT {
        table[entry.number as usize] = entry.descriptor();
    }
    table
}

/// The global table: Linux's, as far as a process can use it.
pub const GDT: [u64; 7] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];

/// What a segment register holds after loading `selector`.
pub fn segment(selector: u16) -> Segment {
    let index = usize::from(selector >> 3);
    let raw = if selector & 4 != 0 {
        local_table()[index]
    } else {
        GDT[index]
    };
    if selector & !3 == 0 {
        return Segment {
            selector,
            ..Segment::default()
        };
    }
    let attr = (raw >> 40) as u16 & 0xf0ff;
    let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
    Segment {
        selector,
        base: raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000,
        limit: if attr & Segment::G != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        },
        attr,
    }
}
