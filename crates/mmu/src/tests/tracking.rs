//! Guest tables under the shadow: trapped writes, floods, tables out of sync, recycling.

use umbra_slots::{AccessError, Gpa, GpaRange};
use umbra_x86::{Gva, pte};

use super::guest::*;
use crate::{Access, AccessKind, Audit, Config, Flush, Kind, Scope, Unsync};

const AT: u64 = 0x4000_0000;
const TARGET: u64 = 0x60_0000;
/// Where all of low memory is visible.
const DIRECT: u64 = 0xffff_8880_0000_0000;

/// A machine with all RAM mapped at DIRECT by 2 MiB pages.
fn with_direct_map(config: Config) -> Machine {
    let mut m = Machine::new(config);
    for at in (0..RAM).step_by(2 << 20) {
        let entry = m.entry_at(DIRECT + at, 2);
        m.store(entry, at | pte::P | pte::RW | pte::PS | pte::A | pte::D);
    }
    m
}

fn unsync(writes: u32) -> Config {
    Config {
        unsync: Unsync::After(writes),
        ..checked()
    }
}

#[test]
fn a_write_to_a_table_traps_and_other_pages_of_the_same_large_page_do_not() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, READ);
    assert_eq!(m.kind(DIRECT + entry, WRITE), Kind::Tracked);
    let page = m.page(DIRECT + entry, READ);
    assert!(page.read && !page.write);
    assert!(m.page(DIRECT + 0x100_0000, WRITE).write);
    m.audit();
}

#[test]
fn a_page_that_becomes_a_table_loses_its_write_translations_everywhere() {
    let mut m = with_direct_map(checked());
    let table = m.alloc();
    assert!(m.page(DIRECT + table, WRITE).write);
    let directory = m.entry_at(AT, 2);
    m.store(directory, table | PWU);
    m.store(table, TARGET | PWU);
    m.vcpu.take_flushes(|_| {});
    m.vcpu.translate(Gva(AT), READ).unwrap();
    assert!(m.flushes().contains(&Flush::Writers(frame(table))));
    assert_eq!(m.kind(DIRECT + table, WRITE), Kind::Tracked);
    m.audit();
}

#[test]
fn a_trapped_write_is_seen_by_the_next_translation() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    let epoch = m.mmu.epoch();
    m.store(entry, (TARGET + 0x1000) | PWU);
    assert_ne!(m.mmu.epoch(), epoch, "a present entry was dropped");
    assert_eq!(m.page(AT, READ).page, m.host(TARGET + 0x1000));
    m.store(entry, (TARGET + 0x1000) | pte::P | pte::A);
    assert_eq!(m.error(AT, WRITE), 0b11);
    assert_eq!(m.error(AT, user(READ)), 0b101);
    m.store(entry, 0);
    assert_eq!(m.error(AT, READ), 0);
    for level in 2..=4 {
        m.map(AT, TARGET, PWU);
        m.page(AT, READ);
        let at = m.entry_at(AT, level);
        let raw = m.load(at);
        m.store(at, 0);
        assert_eq!(m.error(AT, READ), 0, "level {level}");
        m.store(at, raw);
        m.page(AT, READ);
    }
    m.audit();
}

#[test]
fn a_write_of_one_byte_and_one_across_entries_are_followed() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    m.map(AT + 0x1000, TARGET + 0x1000, PWU);
    m.page(AT, READ);
    m.page(AT + 0x1000, READ);
    let space = m.space.clone();
    m.vcpu.tracked(umbra_slots::Gpa(entry + 4), 8, |_| {
        let map = space.load();
        map.write(umbra_slots::Gpa(entry + 4), &[0; 8]).unwrap();
    });
    assert_eq!(m.error(AT + 0x1000, READ), 0, "the low half was cleared");
    m.page(AT, READ);
    m.vcpu.tracked(umbra_slots::Gpa(entry), 1, |_| {
        let map = space.load();
        map.write(umbra_slots::Gpa(entry), &[0]).unwrap();
    });
    assert_eq!(m.error(AT, READ), 0);
    m.audit();
}

#[test]
fn an_entry_that_is_rewritten_as_it_was_keeps_its_shadow() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    let slow = m.statistic("slow_faults");
    let epoch = m.mmu.epoch();
    m.store(entry, m.load(entry));
    assert_eq!(m.mmu.epoch(), epoch);
    m.page(AT, WRITE);
    assert_eq!(m.statistic("slow_faults"), slow);
}

#[test]
fn a_table_that_is_written_over_and_over_is_no_longer_shadowed() {
    let mut m = with_direct_map(checked());
    let table = {
        m.map(AT, TARGET, PWU);
        let at = m.entry_at(AT, 2);
        m.load(at) & pte::FRAME
    };
    m.page(AT, READ);
    assert_eq!(m.kind(DIRECT + table, WRITE), Kind::Tracked);
    for i in 0..512 {
        m.store(table + i * 8, 0);
    }
    assert_eq!(m.statistic("pages_flooded"), 1);
    assert!(m.page(DIRECT + table, WRITE).write);
    assert_eq!(m.error(AT, READ), 0);
    m.audit();
}

#[test]
fn a_flooded_root_that_is_in_use_is_replaced() {
    let mut m = with_direct_map(checked());
    m.map(AT, TARGET, PWU);
    m.page(AT, READ);
    let root = m.regs.cr3;
    for _ in 0..8 {
        m.store(root + 0x7f8, 0);
    }
    assert_eq!(m.statistic("pages_flooded"), 1);
    m.audit();
    m.page(AT, READ);
    m.audit();
}

#[test]
fn the_guest_may_map_its_own_root_as_a_table() {
    let mut m = with_direct_map(checked());
    let root = m.regs.cr3;
    m.store(root + 0x1ed * 8, root | pte::P | pte::RW);
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, READ);
    // Linear address of AT's leaf entry through the recursive slot.
    let own = 0xffff_0000_0000_0000 | 0x1ed << 39 | (AT >> 9 & 0x7f_ffff_fff8);
    assert_eq!(m.kind(own, WRITE), Kind::Tracked);
    assert_eq!(m.translate(own, READ).unwrap().gpa.0, entry);
    m.store(entry, (TARGET + 0x1000) | PWU);
    assert_eq!(m.page(AT, READ).page, m.host(TARGET + 0x1000));
    m.audit();
}

#[test]
fn an_unsync_table_is_written_freely_and_read_again_by_invlpg() {
    // No oracle: it would read the table as soon as it sees the difference.
    let mut m = with_direct_map(Config {
        audit: Audit::Off,
        ..unsync(3)
    });
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    for i in 1..=3 {
        assert_eq!(m.kind(DIRECT + entry, WRITE), Kind::Tracked);
        m.store(entry + i * 8, TARGET | PWU);
    }
    assert_eq!(m.statistic("unsynced"), 1);
    assert!(m.page(DIRECT + entry, WRITE).write, "no trap any more");
    m.audit();
    // As a store through that translation would.
    let raw = (TARGET + 0x1000) | PWU | pte::A;
    let space = m.space.clone();
    let at = umbra_slots::Gpa(entry);
    space.load().write(at, &raw.to_le_bytes()).unwrap();
    assert_eq!(m.page(AT, READ).page, m.host(TARGET), "as stale as a TLB");
    m.vcpu.guest_flush(Scope::Page(Gva(AT)));
    assert_eq!(m.page(AT, READ).page, m.host(TARGET + 0x1000));
    m.audit();
}

/// INVLPG flushes a global translation in every address space, and the next CR3 load may ask for
/// no flush.
#[test]
fn invlpg_reads_an_unsync_table_for_other_address_spaces_too() {
    let mut m = with_direct_map(Config {
        audit: Audit::Off,
        ..unsync(1)
    });
    let entry = m.map(AT, TARGET, PWU | pte::G);
    let first = m.regs.cr3;
    // Another root leads to the same leaf table with fewer rights: another role.
    m.regs.cr3 = m.alloc();
    let second = m.regs.cr3;
    let directory = m.entry_at(AT, 2);
    m.store(directory, (entry & !0xfff) | pte::P | pte::US);
    m.load_regs();
    m.page(AT, READ);
    m.regs.cr3 = first;
    m.load_regs();
    m.page(AT, READ);
    m.store(entry + 8, 0);
    assert_eq!(m.statistic("unsynced"), 1);

    let raw = (TARGET + 0x1000) | PWU | pte::G;
    let space = m.space.clone();
    let at = umbra_slots::Gpa(entry);
    space.load().write(at, &raw.to_le_bytes()).unwrap();
    m.vcpu.guest_flush(Scope::Page(Gva(AT)));
    m.regs.cr3 = second;
    m.load_regs();
    assert_eq!(m.page(AT, READ).page, m.host(TARGET + 0x1000));
    m.audit();
}

#[test]
fn a_cr3_load_reads_unsync_tables_and_protects_the_quiet_ones() {
    let mut m = with_direct_map(unsync(1));
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    m.kind(DIRECT + entry, WRITE);
    m.store(entry + 8, TARGET | PWU);
    assert!(m.page(DIRECT + entry, WRITE).write);
    let space = m.space.clone();
    let at = umbra_slots::Gpa(entry);
    space.load().write(at, &0u64.to_le_bytes()).unwrap();
    let epoch = m.mmu.epoch();
    m.vcpu.guest_flush(Scope::NonGlobal);
    assert_ne!(m.mmu.epoch(), epoch);
    assert_eq!(m.error(AT, READ), 0);
    assert!(m.page(DIRECT + entry, WRITE).write, "it was just written");
    m.flushes();
    m.vcpu.guest_flush(Scope::NonGlobal);
    assert_eq!(m.flushes(), [Flush::Writers(frame(entry))]);
    assert_eq!(
        m.kind(DIRECT + entry, WRITE),
        Kind::Tracked,
        "quiet: protected"
    );
    m.audit();
}

#[test]
fn a_leaf_table_that_is_also_a_directory_does_not_get_out_of_sync() {
    let mut m = with_direct_map(unsync(1));
    let entry = m.map(AT, TARGET, PWU);
    let table = entry & !0xfff;
    m.page(AT, WRITE);
    m.store(entry + 8, 0);
    assert_eq!(m.statistic("unsynced"), 1);
    // Now the same table, a level higher.
    let up = m.entry_at(0x80_0000_0000, 3);
    m.store(up, table | PWU);
    m.store(TARGET, 0x70_0000 | PWU);
    m.page(0x80_0000_0000, READ);
    assert_eq!(m.kind(DIRECT + entry, WRITE), Kind::Tracked);
    m.store(entry + 8, 0);
    assert_eq!(m.kind(DIRECT + entry, WRITE), Kind::Tracked);
    m.audit();
}

/// Another processor still holds a write right to the page that became a table: until it has
/// dropped it the shadow is right only after a flush, and after that every write traps.
#[test]
fn r36_a_new_table_settles_when_the_last_stale_write_right_is_gone() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    let mut other = m.mmu.attach(Box::new(|| {}));
    other.set_regs(&m.regs);
    other.enter();
    let held = other.translate(Gva(DIRECT + entry), WRITE).unwrap();
    assert!(matches!(held.kind, Kind::Ram(page) if page.write));

    m.page(AT, WRITE); // the page is a table now
    assert!(m.statistic("unsettled") > 0);
    assert_eq!(m.kind(DIRECT + entry, WRITE), Kind::Tracked, "no new right");
    m.audit();

    m.vcpu.guest_flush(Scope::NonGlobal);
    assert!(
        m.statistic("unsettled") > 0,
        "nobody can make the other hurry"
    );

    // The other processor writes with the right that it holds, and flushes: that settles the
    // table, because it takes what is pending before it writes again.
    let space = m.space.clone();
    let raw = (TARGET + 0x1000) | PWU;
    let at = umbra_slots::Gpa(entry);
    space.load().write(at, &raw.to_le_bytes()).unwrap();
    other.guest_flush(Scope::NonGlobal);
    assert_eq!(m.statistic("unsettled"), 0);
    assert!(other.pending());
    other.take_flushes(|_| {});
    let found = other.translate(Gva(AT), READ).unwrap();
    assert_eq!(found.gpa.0, TARGET + 0x1000);
    let tracked = other.translate(Gva(DIRECT + entry), WRITE).unwrap();
    assert_eq!(tracked.kind, Kind::Tracked);
    other.leave();
    m.audit();
}

#[test]
fn too_many_shadow_pages_are_recycled() {
    let mut m = Machine::new(Config {
        max_pages: 64,
        ..checked()
    });
    for i in 0..300 {
        m.map(AT + (i << 21), TARGET, PWU);
        m.page(AT + (i << 21), WRITE);
        assert!(m.statistic("pages") <= 64);
    }
    assert!(m.statistic("pages_recycled") > 200);
    for i in 0..300 {
        assert_eq!(m.page(AT + (i << 21), READ).page, m.host(TARGET));
    }
    m.audit();
}

#[test]
fn a_processor_gives_its_root_back() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU);
    {
        let mut other = m.mmu.attach(Box::new(|| {}));
        other.set_regs(&m.regs);
        let access = Access {
            kind: AccessKind::Read,
            user: false,
            ac: false,
        };
        other.translate(Gva(AT), access).unwrap();
        let pins = m
            .mmu
            .tables
            .lock()
            .pages
            .iter()
            .map(|(_, p)| p.pins)
            .sum::<u32>();
        assert_eq!(pins, 1);
    }
    let pins = m
        .mmu
        .tables
        .lock()
        .pages
        .iter()
        .map(|(_, p)| p.pins)
        .sum::<u32>();
    assert_eq!(pins, 0);
}

#[test]
fn tracked_refuses_what_is_no_writable_ram() {
    let mut m = Machine::new(checked());
    assert!(m.vcpu.tracked(HOLE, 8, |_| ()).is_none());
    assert!(
        m.vcpu
            .tracked(umbra_slots::Gpa(TARGET), 8, |_| ())
            .is_some()
    );
}

#[test]
fn a_devices_write_to_a_table_is_seen_by_the_next_translation() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    let moved = (TARGET + 0x1000) | PWU;
    m.mmu
        .write_for_device(Gpa(entry), &moved.to_le_bytes())
        .unwrap();
    assert_eq!(m.page(AT, READ).page, m.host(TARGET + 0x1000));
    // The end of one page and the beginning of the table: both pieces count.
    let table = entry & !0xfff;
    let mut bytes = vec![0x5a; 0x1008];
    bytes[8..].fill(0);
    m.mmu.write_for_device(Gpa(table - 8), &bytes).unwrap();
    assert_eq!(m.load(table - 8), 0x5a5a_5a5a_5a5a_5a5a);
    assert_eq!(m.error(AT, READ), 0);
    m.audit();
}

#[test]
fn a_devices_write_where_there_is_no_ram_is_refused() {
    let m = Machine::new(checked());
    let nowhere = m.mmu.write_for_device(Gpa(RAM - 4), &[1; 8]);
    assert_eq!(nowhere, Err(AccessError::NotRam(Gpa(RAM))));
    let wraps = m.mmu.write_for_device(Gpa(u64::MAX), &[1; 8]);
    assert_eq!(wraps, Err(AccessError::NotRam(Gpa(u64::MAX))));
}

#[test]
fn a_devices_own_store_to_a_table_is_followed_when_it_is_reported() {
    let mut m = with_direct_map(checked());
    let entry = m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    let store = |m: &Machine, at: u64, bytes: &[u8]| {
        m.space.load().write(Gpa(at), bytes).unwrap();
        let range = GpaRange::new(Gpa(at), bytes.len() as u64).unwrap();
        m.mmu.follow_device(range);
    };
    let moved = (TARGET + 0x1000) | PWU;
    store(&m, entry, &moved.to_le_bytes());
    assert_eq!(m.page(AT, READ).page, m.host(TARGET + 0x1000));
    m.audit();
    // From the middle of a page over more than a batch of them, with the table in the second half.
    let table = entry & !0xfff;
    store(&m, table - 40 * 0x1000 - 8, &vec![0; 41 * 0x1000 + 8]);
    assert_eq!(m.error(AT, READ), 0);
    m.audit();
    // Where there is no RAM there is nothing to follow.
    m.mmu.follow_device(GpaRange::new(HOLE, 0x2000).unwrap());
}
