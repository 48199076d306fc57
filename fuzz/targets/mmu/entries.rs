//! Which addresses, tables and entries there are: few enough that random ones meet each other.

use umbra_fuzz::Source;
use umbra_x86::pte;

use crate::map::{BIG, HOLE, SECOND};

/// Pages that are used as tables, at any level and often at several.
pub const TABLES: u64 = 16;
const FIRST_TABLE: u64 = 0x10_0000;
/// Pages that the first entries lead to.
const DATA: u64 = 0x60_0000;
/// Present, writable, user.
const PWU: u64 = pte::P | pte::RW | pte::US;

/// The format of a processor's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// CR0.PG is off.
    Off,
    /// 32-bit.
    Bits32,
    /// PAE.
    Pae,
    /// Four levels.
    Level4,
    /// Five levels.
    Level5,
}

/// The address of a table.
pub fn table(number: u64) -> u64 {
    FIRST_TABLE + number % TABLES * 0x1000
}

/// The table whose entries are fit for page-directory-pointer registers.
pub const POINTERS: u64 = TABLES - 1;

/// One of eight entries of a table of `count`: its first and its last four.
fn index(choice: u64, count: u64) -> u64 {
    match choice & 7 {
        low @ 0..4 => low,
        high => count - 8 + high,
    }
}

/// A canonical address whose index at each level is one that entries are written at.
pub fn address(format: Format, source: &mut Source<'_>) -> u64 {
    let choice = u64::from(source.u16());
    let offset = u64::from(source.u16() & 0xfff);
    let at = |level: u64| index(choice >> (3 * (level - 1)), 512) << (12 + 9 * (level - 1));
    match format {
        Format::Off => entry(source) & 0xffff_f000 | offset,
        Format::Bits32 => index(choice >> 3, 1024) << 22 | index(choice, 1024) << 12 | offset,
        Format::Pae => (choice >> 6 & 3) << 30 | at(2) | at(1) | offset,
        Format::Level4 => canonical(at(4) | at(3) | at(2) | at(1) | offset, 48),
        Format::Level5 => canonical(at(5) | at(4) | at(3) | at(2) | at(1) | offset, 57),
    }
}

fn canonical(address: u64, bits: u32) -> u64 {
    ((address << (64 - bits)) as i64 >> (64 - bits)) as u64
}

/// Where an entry is, and how wide.
pub fn place(format: Format, source: &mut Source<'_>) -> (u64, usize) {
    let choice = source.u8();
    let table = table(u64::from(choice & 15));
    match format {
        Format::Off | Format::Bits32 => (table + 4 * index(u64::from(choice >> 4), 1024), 4),
        _ => (table + 8 * index(u64::from(choice >> 4), 512), 8),
    }
}

/// An entry: likely and unlikely flags on a likely or unlikely frame.
pub fn entry(source: &mut Source<'_>) -> u64 {
    let (choice, low, high) = (source.u8(), source.u8(), source.u8());
    let number = u64::from(choice >> 3);
    let frame = match choice & 7 {
        0..3 => table(number),
        3 => DATA + number * 0x1000,
        4 => SECOND + (number << 19 & !0x1f_ffff | number << 12),
        5 => [
            HOLE,
            HOLE + 0x1000,
            BIG,
            BIG + (1 << 21),
            0,
            1 << 21,
            1 << 22,
        ][number as usize % 7],
        6 => return source.u64(),
        _ => u64::from(source.u32()) << 12,
    };
    // The dirty and size bits are rarer than the others: most entries are to lead somewhere.
    let size = if high & 3 == 3 { pte::PS } else { 0 };
    let flags = u64::from(low) & 0x7f & !pte::P | u64::from(low >> 7 == 0) | size;
    let global = if high & 4 != 0 { pte::G } else { 0 };
    let execute = if high & 0x18 == 0x18 { pte::XD } else { 0 };
    let key = u64::from(high >> 5) << pte::PKEY_SHIFT;
    let frame = if size != 0 && high & 8 != 0 {
        frame & !0x1f_ffff
    } else {
        frame
    };
    frame | flags | global | execute | key
}

/// The tables as they are at first: every one leads to others, three of them to data.
pub fn first_entries() -> impl Iterator<Item = (u64, u64)> {
    (0..TABLES).flat_map(|number| {
        (0..8).map(move |choice| {
            let next = table((number * 3 + choice + 1) % TABLES);
            let data = DATA + (number * 8 + choice) * 0x1000;
            let value = match number {
                POINTERS => next | pte::P,
                12.. => data | PWU,
                _ => next | PWU,
            };
            (table(number) + 8 * index(choice, 512), value)
        })
    })
}
