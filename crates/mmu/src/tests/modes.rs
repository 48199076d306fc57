//! The five table formats: walks, reserved bits, large pages, accessed and dirty bits.

use umbra_slots::Gpa;
use umbra_x86::{cr0, cr4, efer, pte};

use super::guest::*;
use crate::{Config, Kind, PagingRegs};

const AT: u64 = 0x4000_0000;
const TARGET: u64 = 0x60_0000;

fn store32(m: &mut Machine, at: u64, value: u32) {
    let space = m.space.clone();
    m.vcpu
        .tracked(Gpa(at), 4, |_| {
            space.load().write(Gpa(at), &value.to_le_bytes()).unwrap();
        })
        .unwrap();
}

fn load32(m: &Machine, at: u64) -> u32 {
    let mut bytes = [0; 4];
    m.space.load().read(Gpa(at), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn protected(m: &mut Machine, cr4: u64, efer: u64) {
    m.regs = PagingRegs {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3: m.regs.cr3,
        cr4,
        efer,
        pkru: 0,
    };
    m.load_regs();
}

/// Maps a page in 32-bit tables; gives the places of both entries.
fn map32(m: &mut Machine, gva: u32, to: u32, flags: u64) -> (u64, u64) {
    let directory = m.regs.cr3 + u64::from(gva >> 22) * 4;
    if load32(m, directory) & 1 == 0 {
        let table = m.alloc() as u32;
        store32(m, directory, table | PWU as u32);
    }
    let table = u64::from(load32(m, directory) & !0xfff);
    let entry = table + u64::from(gva >> 12 & 0x3ff) * 4;
    store32(m, entry, to | flags as u32);
    (directory, entry)
}

#[test]
fn without_paging_linear_is_physical() {
    let mut m = Machine::new(checked());
    protected(&mut m, 0, 0);
    m.regs.cr0 = cr0::PE;
    m.load_regs();
    for access in [READ, WRITE, FETCH, user(WRITE)] {
        let page = m.page(TARGET + 0x123, access);
        assert_eq!(page.page, m.host(TARGET));
        assert!(page.read && page.write && page.fetch);
    }
    assert_eq!(
        m.translate(0x1_0000_0000 + TARGET, READ).unwrap().gpa,
        Gpa(TARGET)
    );
    assert!(matches!(m.kind(HOLE.0, WRITE), Kind::Mmio { .. }));
    assert_eq!(
        m.translate(HOLE.0 + 0x20, WRITE).unwrap().gpa,
        Gpa(HOLE.0 + 0x20)
    );
    m.audit();
}

#[test]
fn tables_of_32_bit_paging_are_walked() {
    let mut m = Machine::new(checked());
    protected(&mut m, 0, 0);
    let (directory, entry) = map32(&mut m, 0xc012_3000, TARGET as u32, PWU);
    assert_eq!(m.page(0xc012_3abc, READ).page, m.host(TARGET));
    assert_eq!(load32(&m, directory) as u64 & (pte::A | pte::D), pte::A);
    assert_eq!(load32(&m, entry) as u64 & (pte::A | pte::D), pte::A);
    assert!(m.page(0xc012_3abc, WRITE).write);
    assert_eq!(
        load32(&m, entry) as u64 & (pte::A | pte::D),
        pte::A | pte::D
    );
    assert_eq!(m.error(0xc012_4000, user(WRITE)), 0b110);
    m.audit();
}

#[test]
fn four_mib_pages_need_cr4_pse() {
    let mut m = Machine::new(checked());
    protected(&mut m, cr4::PSE, 0);
    let directory = m.regs.cr3 + 0x300 * 4;
    store32(&mut m, directory, 0x40_0000 | (PWU | pte::PS) as u32);
    let page = m.page(0xc020_1000, WRITE);
    assert_eq!(page.page, m.host(0x60_1000));
    assert!(page.large && page.write);
    assert_eq!(m.mmu.tables.lock().rmap.large_frames().count(), 1);
    m.audit();
    // Without PSE the same entry refers to a table at 4 MiB, which is all zeros.
    m.regs.cr4 = 0;
    m.load_regs();
    assert_eq!(m.error(0xc020_1000, WRITE), 0b010);
}

#[test]
fn pse36_extends_the_frame_of_a_four_mib_page_and_reserves_the_rest() {
    let mut m = Machine::new(Config {
        phys_bits: 36,
        ..checked()
    });
    protected(&mut m, cr4::PSE, 0);
    let directory = m.regs.cr3;
    store32(
        &mut m,
        directory,
        0x40_0000 | 1 << 13 | (PWU | pte::PS) as u32,
    );
    assert_eq!(
        m.translate(0x20_1000, READ).unwrap().gpa,
        Gpa(0x1_0060_1000)
    );
    for bit in [17, 21] {
        store32(
            &mut m,
            directory + 4,
            0x40_0000 | 1 << bit | (PWU | pte::PS) as u32,
        );
        assert_eq!(m.error(0x40_0000, READ), 0b1001, "bit {bit}");
    }
}

#[test]
fn a_four_mib_page_with_a_table_inside_is_split() {
    let mut m = Machine::new(checked());
    protected(&mut m, cr4::PSE, 0);
    // Identity, over the tables themselves.
    let directory = m.regs.cr3;
    store32(&mut m, directory, (PWU | pte::PS) as u32);
    let root = m.regs.cr3;
    assert_eq!(m.kind(root, WRITE), Kind::Tracked);
    assert!(m.page(0x30_0000, WRITE).write);
    assert_eq!(m.mmu.tables.lock().rmap.large_frames().count(), 0);
    m.audit();
}

#[test]
fn pae_walks_from_the_loaded_registers_and_not_from_memory() {
    let mut m = Machine::new(checked());
    protected(&mut m, cr4::PAE, efer::NXE);
    let (table, directory) = (m.alloc(), m.alloc());
    let pdpt = m.regs.cr3 + 0x20;
    m.regs.cr3 = pdpt;
    m.store(pdpt + 3 * 8, directory | pte::P);
    m.store(directory, table | PWU);
    m.store(table + 8, TARGET | PWU | pte::XD);
    m.vcpu.load_pdptes(pdpt).unwrap();
    m.load_regs();
    assert_eq!(m.page(0xc000_1000, WRITE).page, m.host(TARGET));
    assert_eq!(m.error(0xc000_1000, FETCH), 0b10001);
    assert_eq!(m.error(0x8000_1000, READ), 0);
    m.store(pdpt + 3 * 8, 0);
    m.page(0xc000_1000, WRITE); // not loaded yet
    m.vcpu.load_pdptes(pdpt).unwrap();
    assert_eq!(m.error(0xc000_1000, READ), 0);
    m.audit();
}

#[test]
fn reserved_bits_in_a_pdpte_are_refused_and_change_nothing() {
    let mut m = Machine::new(checked());
    protected(&mut m, cr4::PAE, 0);
    let pdpt = m.regs.cr3;
    let good = m.alloc() | pte::P;
    m.store(pdpt, good);
    m.vcpu.load_pdptes(pdpt).unwrap();
    for bit in [1, 2, 5, 6, 7, 8, 46, 52, 63] {
        m.store(pdpt + 8, 1 << bit | pte::P);
        assert!(m.vcpu.load_pdptes(pdpt).is_err(), "bit {bit}");
        m.store(pdpt + 8, 1 << bit); // not present: ignored
        assert!(m.vcpu.load_pdptes(pdpt).is_ok());
    }
    assert!(m.vcpu.load_pdptes(HOLE.0).is_err());
}

#[test]
fn five_levels_are_walked() {
    let mut m = Machine::new(checked());
    m.regs.cr4 |= cr4::LA57;
    m.load_regs();
    let gva = 0x00ab_1234_5678_9000;
    let at = m.entry_under(m.regs.cr3, 5, gva, 1);
    m.store(at, TARGET | PWU);
    assert_eq!(m.page(gva, WRITE).page, m.host(TARGET));
    assert_eq!(m.error(gva + 0x1_0000_0000_0000, READ), 0);
    m.audit();
}

#[test]
fn a_1_gib_page_is_mapped_as_large_as_ram_allows() {
    let mut m = Machine::new(checked());
    let at = m.entry_at(AT, 3);
    m.store(at, PWU | pte::PS);
    // The gigabyte holds the guest's tables and ends beyond RAM: 2 MiB pieces, and MMIO.
    let page = m.page(AT + 0x80_0000, WRITE);
    assert_eq!(page.page, m.host(0x80_0000));
    assert!(page.large && page.write);
    assert_eq!(m.mmu.tables.lock().rmap.large_frames().count(), 1);
    let cr3 = m.regs.cr3;
    assert_eq!(m.kind(AT + cr3, WRITE), Kind::Tracked);
    assert!(matches!(m.kind(AT + RAM, READ), Kind::Mmio { .. }));
    m.audit();
}

#[test]
fn large_mappings_can_be_turned_off() {
    let mut m = Machine::new(Config {
        large_pages: false,
        ..checked()
    });
    let at = m.entry_at(AT, 2);
    m.store(at, 0x80_0000 | PWU | pte::PS);
    assert!(m.page(AT + 0x1000, WRITE).large);
    assert_eq!(m.mmu.tables.lock().rmap.large_frames().count(), 0);
    m.audit();
}

#[test]
fn a_large_clean_page_becomes_writable_with_its_dirty_bit() {
    let mut m = Machine::new(checked());
    let at = m.entry_at(AT, 2);
    m.store(at, 0x80_0000 | PWU | pte::PS);
    assert!(!m.page(AT, READ).write);
    assert!(m.page(AT + 0x5000, WRITE).write);
    assert_ne!(m.load(at) & pte::D, 0);
    assert!(m.page(AT, READ).write);
    m.store(at, m.load(at) & !pte::D);
    assert!(!m.page(AT, READ).write);
    m.audit();
}

#[test]
fn reserved_bits_of_long_mode() {
    // level, flags beside present, writable, user; reserved?
    let cases = [
        (4, pte::PS, true),
        (4, 1 << 46, true),
        (4, 1 << 51, true),
        (4, 1 << 52, false),
        (3, pte::PS | 1 << 13, true),
        (3, pte::PS | 1 << 29, true),
        (3, pte::PS | pte::PAT_LARGE, false),
        (2, pte::PS | 1 << 13, true),
        (2, pte::PS | 1 << 20, true),
        (2, pte::PS | pte::PAT_LARGE, false),
        (1, 1 << 46, true),
        (1, pte::PS, false),
        (1, 1 << 62, false),
    ];
    for (level, bits, reserved) in cases {
        let mut m = Machine::new(checked());
        m.map(AT, TARGET, PWU);
        let at = m.entry_at(AT, level);
        let raw = if bits & pte::PS != 0 && (level == 2 || level == 3) {
            PWU | bits
        } else {
            m.load(at) | bits
        };
        m.store(at, raw);
        match m.translate(AT, READ) {
            Ok(_) => assert!(!reserved, "level {level}, {bits:#x}"),
            Err(fault) => {
                assert!(reserved, "level {level}, {bits:#x}");
                assert_eq!(fault.error.0, 0b1001);
            }
        }
    }
}

#[test]
fn xd_is_reserved_without_nxe() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU | pte::XD);
    assert_eq!(m.error(AT, FETCH), 0b10001);
    m.page(AT, READ);
    m.regs.efer &= !efer::NXE;
    m.load_regs();
    assert_eq!(m.error(AT, READ), 0b1001);
    assert_eq!(
        m.error(AT, FETCH),
        0b1001,
        "no fetch bit without NXE and SMEP"
    );
}

#[test]
fn accessed_bits_are_set_on_every_level_and_not_by_a_fault() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, pte::P);
    let entries: Vec<u64> = (1..=4).map(|level| m.entry_at(AT, level)).collect();
    assert_eq!(m.error(AT, WRITE), 0b11);
    assert!(entries.iter().all(|&at| m.load(at) & pte::A == 0));
    m.page(AT, READ);
    assert!(entries.iter().all(|&at| m.load(at) & pte::A != 0));
    assert!(entries.iter().all(|&at| m.load(at) & pte::D == 0));
}

#[test]
fn global_needs_cr4_pge() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU | pte::G);
    assert!(m.page(AT, READ).global);
    m.regs.cr4 &= !cr4::PGE;
    m.load_regs();
    assert!(!m.page(AT, READ).global);
}

#[test]
fn a_walk_is_described_line_by_line() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU);
    let lines = m.vcpu.describe_walk(umbra_x86::Gva(AT));
    assert_eq!(lines.len(), 5);
    assert!(lines[4].starts_with("0x600000 is RAM"), "{lines:?}");
}

#[test]
fn a_change_of_mode_selects_other_pages_and_coming_back_finds_the_old_ones() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU);
    m.page(AT, READ);
    let first = m.regs.cr3;
    let made = m.statistic("pages_made");
    let slow = m.statistic("slow_faults");
    m.regs.cr3 = m.alloc();
    m.load_regs();
    assert_eq!(m.error(AT, READ), 0);
    m.regs.cr3 = first;
    m.load_regs();
    m.page(AT, READ);
    m.page(AT, READ);
    assert_eq!(m.statistic("pages_made"), made);
    assert!(m.statistic("slow_faults") <= slow + 1);
}
