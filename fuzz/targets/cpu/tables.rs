//! Descriptor, interrupt, task and page tables that work, and random changes of them.

use umbra_fuzz::Source;
use umbra_x86::pte;

use crate::machine::{HANDLER, Machine, RAM, STACK};

/// Interrupt vectors of real mode and virtual-8086 mode are at 0.
pub const GDT: u64 = 0x1000;
/// Limit of the global table.
pub const GDT_LIMIT: u16 = 0xff;
pub const IDT: u64 = 0x2000;
pub const LDT: u64 = 0x3000;
pub const TSS: u64 = 0x4000;
/// A second task, of 32-bit format.
const OTHER_TSS: u64 = 0x5000;
/// Page tables: top to bottom.
pub const PAGING: u64 = 0x10_0000;

/// Selectors.
pub const CODE32: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE32_USER: u16 = 0x1b;
pub const DATA_USER: u16 = 0x23;
pub const CODE64: u16 = 0x28;
pub const CODE64_USER: u16 = 0x33;
pub const CODE16: u16 = 0x38;
pub const DATA16: u16 = 0x40;
pub const TASK: u16 = 0x48;
pub const LOCAL: u16 = 0x58;

const PWU: u64 = pte::P | pte::RW | pte::US;

/// A system descriptor's low half.
const fn system(base: u64, limit: u64, kind: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | (kind | 0x80) << 40 | (base >> 24) << 56
}

/// A gate's low half.
const fn gate(selector: u16, offset: u64, kind: u64, dpl: u64) -> u64 {
    offset & 0xffff
        | (selector as u64) << 16
        | (kind | dpl << 5 | 0x80) << 40
        | (offset >> 16) << 48
}

/// Writes descriptor tables. `handler` is the selector of exception handlers.
pub fn descriptors(machine: &mut Machine, handler: u16, long: bool) {
    let flat = [
        (CODE32, 0x00cf_9b00_0000_ffff),
        (DATA, 0x00cf_9300_0000_ffff),
        (CODE32_USER, 0x00cf_fb00_0000_ffff),
        (DATA_USER, 0x00cf_f300_0000_ffff),
        (CODE64, 0x00af_9b00_0000_ffff),
        (CODE64_USER, 0x00af_fb00_0000_ffff),
        (CODE16, 0x0000_9b00_0000_ffff),
        (DATA16, 0x0000_9300_0000_ffff),
        (TASK, system(TSS, 0x2fff, 9)),
        (LOCAL, system(LDT, 0xff, 2)),
        (0x68, gate(handler, HANDLER, 0xc, 3)),
        (0x78, system(OTHER_TSS, 0x2fff, 9)),
        (0x80, gate(0x78, 0, 5, 3)),
        (0x88, 0x00cf_9f00_0000_ffff), // conforming
        (0x90, 0x00c0_9700_0000_0fff), // expand-down
        (0x98, gate(handler, HANDLER, 4, 3)),
        (0xa0, system(TSS, 0x2fff, 1)),
        (0xa8, 0x0000_fb00_0000_ffff), // 16-bit code for users
    ];
    for (selector, descriptor) in flat {
        let at = u64::from(selector & !7);
        machine.write_u64(GDT + at, descriptor);
        machine.write_u64(LDT + at, descriptor);
    }
    for vector in 0..256 {
        let kind = if vector & 1 == 0 { 0xe } else { 0xf };
        let entry = gate(handler, HANDLER + 4 * (vector & 15), kind, 3);
        match long {
            true => {
                let stack = u64::from(vector == 8) << 32;
                machine.write_u64(IDT + 16 * vector, entry | stack);
            }
            false => {
                let far = (HANDLER & 0xf) | (HANDLER >> 4) << 16;
                machine.write(4 * vector, &(far as u32).to_le_bytes());
                machine.write_u64(IDT + 8 * vector, entry);
            }
        }
    }
    task(machine, long);
}

fn task(machine: &mut Machine, long: bool) {
    if long {
        for stack in 0..10 {
            // RSP0 to RSP2, a reserved word, IST1 to IST7.
            machine.write_u64(TSS + 4 + 8 * stack, STACK - 0x800 * (stack + 1));
        }
    } else {
        for level in 0..3 {
            machine.write_u64(TSS + 4 + 8 * level, (STACK - 0x800) | u64::from(DATA) << 32);
        }
        let words = [(0x20, HANDLER), (0x24, 2), (0x38, STACK - 0x1000)];
        for (at, value) in words {
            machine.write(OTHER_TSS + at, &(value as u32).to_le_bytes());
        }
        for (at, selector) in [(0x48, DATA), (0x4c, CODE32), (0x50, DATA), (0x54, DATA)] {
            machine.write(OTHER_TSS + at, &u32::from(selector).to_le_bytes());
        }
    }
    for tss in [TSS, OTHER_TSS] {
        machine.write(tss + 0x66, &0x68u16.to_le_bytes());
    }
}

/// Identity tables of the 32-bit format, with 4 MiB pages behind one of small ones. Returns CR3.
pub fn bits32(machine: &mut Machine) -> u64 {
    for index in 0..1024u64 {
        let large = index << 22 | PWU | pte::PS;
        machine.write(PAGING + 4 * index, &(large as u32).to_le_bytes());
        let small = index << 12 | PWU;
        machine.write(PAGING + 0x1000 + 4 * index, &(small as u32).to_le_bytes());
    }
    machine.write(PAGING, &(((PAGING + 0x1000) | PWU) as u32).to_le_bytes());
    PAGING
}

/// Identity tables of `levels` levels for the first GiB: 2 MiB pages behind small ones. The upper
/// half leads to the same. Returns CR3.
pub fn wide(machine: &mut Machine, levels: u64) -> u64 {
    // Tables lie one behind the other: level 1, 2, and so on.
    let at = |level: u64| PAGING + 0x1000 * (level - 1);
    for index in 0..512 {
        machine.write_u64(at(1) + 8 * index, index << 12 | PWU);
        machine.write_u64(at(2) + 8 * index, index << 21 | PWU | pte::PS);
    }
    machine.write_u64(at(2), at(1) | PWU);
    for level in 3..=levels {
        let pointers = level == 3 && levels == 3;
        let flags = if pointers { pte::P } else { PWU };
        let last = if pointers { 3 } else { 511 };
        machine.write_u64(at(level), at(level - 1) | flags);
        machine.write_u64(at(level) + 8 * last, at(level - 1) | flags);
    }
    at(levels)
}

/// Changes some words of the tables.
pub fn pokes(source: &mut Source<'_>, machine: &mut Machine) {
    for _ in 0..source.u8() & 7 {
        let (area, at) = (source.u8(), u64::from(source.u16()));
        let base = [GDT, IDT, LDT, TSS, OTHER_TSS, PAGING, PAGING + 0x1000, 0];
        let at = base[usize::from(area & 7)] + (at & 0xfff);
        let value = match area >> 3 {
            // Flags of an entry or a descriptor.
            0..16 => u64::from(source.u16()) << ((area >> 3 & 7) * 8),
            _ => source.u64(),
        };
        machine.write_u64(at % (RAM - 8), value);
    }
}
