//! What people are shown of the tables.

use umbra_x86::{cr4, pte};

use super::guest::*;
use crate::Kind;

const AT: u64 = 0x4000_0000;

fn lines(m: &Machine, address: Option<u64>) -> Vec<String> {
    m.mmu.describe_tables(&m.regs, address)
}

#[test]
fn guest_and_shadow_stand_side_by_side_and_stale_mmio_is_marked() {
    let mut m = Machine::new(plain());
    for page in 0..8 {
        m.map(
            AT + (page << 12),
            0x60_0000 + (page << 12),
            PWU | pte::A | pte::D,
        );
    }
    m.map(AT + 0x8000, HOLE.0, PWU | pte::A | pte::D);
    for page in 0..4 {
        m.page(AT + (page << 12), WRITE);
    }
    assert!(matches!(m.kind(AT + 0x8000, READ), Kind::Mmio { .. }));

    let text = lines(&m, None).join("\n");
    let has = |text: &str, wanted: &str| assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
    has(&text, "Level4");
    has(
        &text,
        "[  0] 0000000040000000 x4: WUXAD- 0x600000 | RAM WUX writable",
    );
    has(&text, "[  4] 0000000040004000 x4: WUXAD- 0x604000 | -");
    has(
        &text,
        "[  8] 0000000040008000: WUXAD- 0xfee00000 | MMIO WU- tag 1 valid",
    );

    m.publish(1);
    let text = lines(&m, Some(AT + 0x8123)).join("\n");
    has(&text, "generation 2, tag 2 of 19 bits");
    has(&text, "MMIO WU- tag 1 STALE");
    assert!(
        !text.contains("0x600000"),
        "only what was asked for:\n{text}"
    );
}

#[test]
fn high_addresses_are_canonical_and_other_formats_are_shown_too() {
    let mut m = Machine::new(plain());
    let high = 0xffff_8000_0000_0000;
    m.map(high, 0x60_0000, PWU);
    m.page(high, READ);
    assert!(
        lines(&m, Some(high))
            .join("\n")
            .contains("ffff800000000000")
    );

    m.regs = Default::default();
    m.load_regs();
    m.page(0x60_0000, READ);
    assert!(lines(&m, None).join("\n").contains("no paging"));
}

#[test]
fn tables_that_refer_to_themselves_end() {
    let mut m = Machine::new(plain());
    let root = m.regs.cr3 & pte::FRAME;
    for index in 0..512 {
        m.store(root + index * 8, root | PWU);
    }
    let text = lines(&m, None);
    assert!(text.len() <= 200_600, "{}", text.len());
}

#[test]
fn a_large_page_that_the_shadow_splits_says_what_is_in_the_pieces() {
    let mut m = Machine::new(plain());
    // A gigabyte from 0: some RAM, and nothing behind it.
    let entry = m.entry_at(AT, 3);
    m.store(
        entry,
        PWU | pte::PS | pte::A | pte::D | 5 << pte::PKEY_SHIFT,
    );
    m.page(AT + 0x1000, READ);
    let text = lines(&m, Some(AT)).join("\n");
    assert!(text.contains(" splits it: 1 RAM, 0 MMIO valid"), "{text}");
    assert!(text.contains(" key 5"), "{text}");
}

#[test]
fn tables_that_lead_nowhere_are_named() {
    let mut m = Machine::new(plain());
    let up = m.entry_at(AT, 2);
    m.store(up, HOLE.0 | PWU);
    let reserved = m.entry_at(AT + (1 << 30), 3);
    m.store(reserved, 1 << 51 | PWU);
    let text = lines(&m, None).join("\n");
    assert!(text.contains("is in no RAM"), "{text}");
    assert!(text.contains("reserved bits"), "{text}");
}

#[test]
fn page_directory_pointers_in_no_ram_are_named() {
    let mut m = Machine::new(plain());
    m.regs.efer = 0;
    m.regs.cr3 = HOLE.0;
    let text = lines(&m, None).join("\n");
    assert!(
        text.contains("the page-directory pointers are not valid"),
        "{text}"
    );
}

#[test]
fn five_levels_reach_57_bits() {
    let mut m = Machine::new(plain());
    let top = m.alloc();
    m.store(top + 8, m.regs.cr3 | PWU);
    m.map(AT, 0x60_0000, PWU);
    m.regs.cr3 = top;
    m.regs.cr4 |= cr4::LA57;
    let text = lines(&m, Some(1 << 48 | AT)).join("\n");
    assert!(text.contains("0001000040000000"), "{text}");
}
