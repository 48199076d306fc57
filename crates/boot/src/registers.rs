//! The registers with which the boot processor enters a kernel.

use umbra_x86::state::{CpuState, DescriptorTable, Segment, gpr};
use umbra_x86::{cr0, cr4, efer, rflags};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::layout::{GDT, PAGE_TABLES, STACK_TOP};

/// Selectors that the Linux boot protocol demands (`__BOOT_CS` and `__BOOT_DS`); the other
/// protocols leave them open.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const CODE_64: Segment = Segment {
    selector: CODE,
    base: 0,
    limit: u32::MAX,
    attr: 0xb | Segment::S | Segment::P | Segment::L | Segment::G,
};
const CODE_32: Segment = Segment {
    selector: CODE,
    base: 0,
    limit: u32::MAX,
    attr: 0xb | Segment::S | Segment::P | Segment::DB | Segment::G,
};
const DATA_32: Segment = Segment {
    selector: DATA,
    base: 0,
    limit: u32::MAX,
    attr: 0x3 | Segment::S | Segment::P | Segment::DB | Segment::G,
};
/// A busy 32-bit (or 64-bit) task state segment.
const TASK_STATE: Segment = Segment {
    selector: TASK,
    base: 0,
    limit: 0x67,
    attr: 0xb | Segment::P,
};

/// Packs a segment into the descriptor that would load it (SDM vol. 3, 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let granular = segment.attr & Segment::G != 0;
    let limit = u64::from(if granular {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let (base, attr) = (segment.base, u64::from(segment.attr));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | attr << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56
}

/// Writes the descriptors that `state`'s segments were loaded from.
fn write_gdt<M: GuestMemoryBackend>(memory: &M, code: &Segment) -> Result<(), Error> {
    let table = [
        0,
        0,
        descriptor(code),
        descriptor(&DATA_32),
        descriptor(&TASK_STATE),
        0,
    ];
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_le_bytes()).collect();
    memory
        .write_slice(&bytes, GuestAddress(GDT))
        .map_err(Error::memory("the descriptor table"))
}

/// Maps the first 4 GiB one to one with 2 MiB pages (SDM vol. 3, 4.5).
fn write_page_tables<M: GuestMemoryBackend>(memory: &M) -> Result<(), Error> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 1 << 7;
    const GIBS: u64 = 4;
    let mut tables = vec![0u64; 512 * (2 + GIBS as usize)];
    tables[0] = (PAGE_TABLES + 0x1000) | PRESENT_WRITABLE;
    for gib in 0..GIBS {
        tables[512 + gib as usize] = (PAGE_TABLES + 0x2000 + (gib << 12)) | PRESENT_WRITABLE;
    }
    for (page, entry) in (0u64..).zip(&mut tables[1024..]) {
        *entry = page << 21 | PRESENT_WRITABLE | LARGE;
    }
    let bytes: Vec<u8> = tables
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect();
    memory
        .write_slice(&bytes, GuestAddress(PAGE_TABLES))
        .map_err(Error::memory("the page tables"))
}

fn flat(code: Segment, entry: u64) -> CpuState {
    CpuState {
        gpr: [0; 16],
        rip: entry,
        rflags: rflags::FIXED,
        seg: [DATA_32, code, DATA_32, DATA_32, DATA_32, DATA_32],
        tr: TASK_STATE,
        gdtr: DescriptorTable {
            base: GDT,
            limit: 6 * 8 - 1,
        },
        // As after reset (SDM vol. 3, table 10-1): a kernel that goes back to real mode finds the
        // interrupt vectors at 0 without loading IDTR, as it does behind a BIOS.
        idtr: DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        ..CpuState::default()
    }
}

/// 64-bit mode with flat segments, paging on, interrupts off (boot.rst, "64-bit Boot Protocol").
pub fn long_mode<M: GuestMemoryBackend>(memory: &M, entry: u64) -> Result<CpuState, Error> {
    write_gdt(memory, &CODE_64)?;
    write_page_tables(memory)?;
    let mut state = flat(CODE_64, entry);
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    state.cr3 = PAGE_TABLES;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.gpr[gpr::RSP] = STACK_TOP;
    Ok(state)
}

/// 32-bit protected mode with flat segments, paging off, interrupts off (boot.rst, "32-bit Boot
/// Protocol"; pvh.pandoc; Multiboot 3.2).
pub fn protected_mode<M: GuestMemoryBackend>(memory: &M, entry: u32) -> Result<CpuState, Error> {
    write_gdt(memory, &CODE_32)?;
    let mut state = flat(CODE_32, u64::from(entry));
    state.cr0 = cr0::PE | cr0::ET;
    state.gpr[gpr::RSP] = STACK_TOP;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_linux() {
        // arch/x86/include/asm/desc_defs.h: flat segments, accessed.
        assert_eq!(descriptor(&CODE_64), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&CODE_32), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&DATA_32), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&TASK_STATE), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_interrupt_table_is_the_one_of_reset() {
        let memory = crate::tests::memory(4);
        let reset = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        assert_eq!(protected_mode(&memory, 0x10_0000).unwrap().idtr, reset);
        assert_eq!(long_mode(&memory, 0x10_0000).unwrap().idtr, reset);
    }

    #[test]
    fn four_gib_are_mapped_one_to_one() {
        let memory = crate::tests::memory(4);
        long_mode(&memory, 0x100_0200).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        for page in [0u64, 511, 512, 2047] {
            let pdpt = read(PAGE_TABLES) & !0xfff;
            let pd = read(pdpt + page / 512 * 8) & !0xfff;
            assert_eq!(read(pd + page % 512 * 8), page << 21 | 0x83);
        }
    }
}
