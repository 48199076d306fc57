//! The record of a processor's last MMIO translations (R9, R10, R18, R31, R32).

use std::sync::atomic::{AtomicU32, Ordering};

use umbra_slots::{Flags, Generation, Gpa, GpaRange, IoId};
use umbra_x86::{Gva, cr0, cr4, efer, pte};

use super::guest::*;
use crate::{Access, Audit, Config, Kind, PagingRegs, Scope};

const AT: u64 = 0x4000_0000;
const RAM_PAGE: u64 = 0x60_0000;
/// Two device pages.
const FIRST: u64 = HOLE.0;
const SECOND: u64 = HOLE.0 + 0x1000;

/// The record is on, and there is no oracle that would look first.
fn recording(tag_bits: u32) -> Config {
    Config {
        tag_bits,
        ..Config::default()
    }
}

fn with_device(config: Config) -> Machine {
    let mut m = Machine::at(config, Generation(1000));
    m.map(AT, FIRST, PWU | pte::A | pte::D);
    m
}

/// Accesses until the record answers.
fn prime(m: &mut Machine, gva: u64, access: Access) {
    let hits = m.statistic("mmio_record_hits");
    for _ in 0..3 {
        assert!(matches!(m.kind(gva, access), Kind::Mmio { .. }));
    }
    assert!(m.statistic("mmio_record_hits") > hits);
}

fn put_ram_over_the_hole(space: &umbra_slots::AddressSpace) {
    let region = ram(0x1000);
    let _ = space
        .update("create", |e| {
            e.add_ram(HOLE, region, 0, 0x1000, Flags::default())
        })
        .unwrap();
}

#[test]
fn repeated_accesses_to_a_page_take_no_lock() {
    let mut m = with_device(recording(19));
    prime(&mut m, AT, READ);
    prime(&mut m, AT, WRITE);
    let (mmu, hits) = (m.mmu.clone(), m.statistic("mmio_record_hits"));
    let locked = mmu.tables.lock();
    for access in [READ, WRITE, READ] {
        let found = m.vcpu.translate(Gva(AT + 0x30), access).unwrap();
        assert_eq!(found.gpa, Gpa(FIRST + 0x30));
    }
    drop(locked);
    assert_eq!(m.statistic("mmio_record_hits"), hits + 3);
}

#[test]
fn r9_a_record_is_stale_after_every_change_of_the_map() {
    let mut m = with_device(recording(19));
    prime(&mut m, AT, READ);
    let hits = m.statistic("mmio_record_hits");
    m.publish(1);
    let generation = m.space.generation();
    assert_eq!(m.kind(AT, READ), Kind::Mmio { generation });
    assert_eq!(m.statistic("mmio_record_hits"), hits);
    prime(&mut m, AT, READ);
    put_ram_over_the_hole(&m.space);
    m.page(AT, READ);
}

/// The map changes after the shadow answered and before the answer is noted: what is noted
/// carries the number of the map that answered.
#[test]
fn r9_a_record_carries_the_generation_of_its_decision() {
    let mut m = with_device(recording(19));
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    let (space, done) = (m.space.clone(), AtomicU32::new(0));
    m.mmu.hook.set(move |step| {
        if step == "hit" && done.fetch_add(1, Ordering::Relaxed) == 0 {
            put_ram_over_the_hole(&space);
        }
    });
    assert!(
        matches!(m.kind(AT, READ), Kind::Mmio { .. }),
        "asked before"
    );
    m.mmu.hook.clear();
    m.page(AT, READ);
}

#[test]
fn r10_no_answer_comes_before_the_check_of_the_generation() {
    for primed in [false, true] {
        let mut m = Machine::at(recording(19), Generation(1000));
        let range = GpaRange::new(HOLE, 0x1000).unwrap();
        let add = m.space.update("window", |e| e.add_io(range, IoId(7)));
        let window = add.unwrap().wait();
        m.map(AT, HOLE.0, PWU);
        if primed {
            prime(&mut m, AT, WRITE);
        } else {
            m.kind(AT, WRITE);
        }
        let region = ram(0x1000);
        let replaced = m.space.update("RAM in place of a window", |e| {
            e.remove(window)?;
            e.add_ram(HOLE, region, 0, 0x1000, Flags::default())
        });
        replaced.unwrap().wait();
        assert!(m.page(AT, WRITE).write, "primed: {primed}");
    }
}

/// With two bits, four changes bring the tag round. The record never looks at it.
#[test]
fn r18_a_record_is_stale_when_the_tag_has_come_round() {
    let mut m = with_device(recording(2));
    prime(&mut m, AT, READ);
    put_ram_over_the_hole(&m.space);
    m.publish(3);
    m.page(AT, READ);
}

#[test]
fn r31_a_flush_of_the_page_drops_the_record() {
    let scopes = [
        Scope::Page(Gva(AT)),
        Scope::PcidPage(0, Gva(AT)),
        Scope::Pcid(0),
        Scope::NonGlobal,
        Scope::All,
    ];
    for scope in scopes {
        for (to, device) in [(SECOND, true), (RAM_PAGE, false)] {
            for access in [READ, WRITE] {
                let mut m = with_device(recording(19));
                let entry = m.entry_at(AT, 1);
                prime(&mut m, AT, access);
                m.store(entry, to | PWU | pte::A | pte::D);
                m.vcpu.guest_flush(scope);
                let found = m.translate(AT, access).unwrap();
                assert_eq!(found.gpa, Gpa(to), "{scope:?}");
                assert_eq!(matches!(found.kind, Kind::Mmio { .. }), device);
            }
        }
    }
}

#[test]
fn r31_a_flush_of_another_page_keeps_the_record() {
    let mut m = with_device(recording(19));
    prime(&mut m, AT, READ);
    m.vcpu.guest_flush(Scope::Page(Gva(AT + 0x1000)));
    let hits = m.statistic("mmio_record_hits");
    m.kind(AT, READ);
    assert_eq!(m.statistic("mmio_record_hits"), hits + 1);
}

#[test]
fn r31_registers_that_change_the_translation_drop_the_record() {
    let mut m = with_device(recording(19));
    let other = m.alloc();
    let (old, new) = (
        m.regs,
        PagingRegs {
            cr3: other,
            ..m.regs
        },
    );
    m.regs = new;
    m.map(AT, SECOND, PWU);
    m.regs = old;
    prime(&mut m, AT, READ);
    m.regs = new;
    m.load_regs();
    assert_eq!(m.translate(AT, READ).unwrap().gpa, Gpa(SECOND));

    let without_paging = PagingRegs {
        cr0: cr0::PE,
        efer: 0,
        ..old
    };
    let mut m = with_device(recording(19));
    prime(&mut m, AT, READ);
    m.regs = without_paging;
    m.load_regs();
    assert_eq!(m.translate(AT, READ).unwrap().gpa, Gpa(AT));
}

#[test]
fn r31_new_page_directory_pointers_drop_the_record() {
    let mut m = Machine::new(recording(19));
    let tables = [m.alloc(), m.alloc()];
    for (table, to) in tables.into_iter().zip([FIRST, SECOND]) {
        let entry = m.entry_under(table, 3, 0, 1);
        m.store(entry, to | PWU);
        let pointer = m.load(table) & pte::FRAME | pte::P;
        m.store(table, pointer);
    }
    m.regs = PagingRegs {
        cr3: tables[0],
        cr4: cr4::PAE,
        efer: efer::NXE,
        ..m.regs
    };
    m.load_regs();
    m.vcpu.load_pdptes(tables[0]).unwrap();
    prime(&mut m, 0, READ);
    // The registers are loaded anew from another table, CR3 as it was.
    m.vcpu.load_pdptes(tables[1]).unwrap();
    assert_eq!(m.translate(0, READ).unwrap().gpa, Gpa(SECOND));
}

#[test]
fn r32_a_record_answers_only_the_same_kind_of_access() {
    let mut m = with_device(recording(19));
    let entry = m.entry_at(AT, 1);
    m.store(entry, FIRST | pte::P | pte::RW | pte::A | pte::D);
    prime(&mut m, AT, READ);
    prime(&mut m, AT, WRITE);
    assert_eq!(m.error(AT, user(READ)), 0b101);
    assert_eq!(m.error(AT, user(WRITE)), 0b111);

    // SMAP: a user page is the supervisor's only while EFLAGS.AC is set.
    m.store(entry, FIRST | PWU | pte::A | pte::D);
    m.regs.cr4 |= cr4::SMAP;
    m.load_regs();
    let allowed = Access { ac: true, ..READ };
    prime(&mut m, AT, allowed);
    assert_eq!(m.error(AT, READ), 0b001);
}

#[test]
fn r4_page_zero_has_a_record_like_any_other() {
    let mut m = Machine::new(recording(19));
    m.map(0, FIRST, PWU);
    prime(&mut m, 0, READ);
    let slot = m.ram;
    m.space
        .update("RAM moves up", |e| e.move_to(slot, Gpa(1 << 32)))
        .unwrap()
        .wait_from(&mut m.vcpu);
    m.regs = PagingRegs {
        cr0: cr0::PE,
        efer: 0,
        ..m.regs
    };
    m.load_regs();
    prime(&mut m, 0, READ);
    assert_eq!(m.translate(8, READ).unwrap().gpa, Gpa(8), "frame 0");
}

#[test]
fn an_answer_that_the_shadow_does_not_keep_is_not_recorded() {
    let mut m = Machine::new(Config {
        audit: Audit::Off,
        ..recording(19)
    });
    // A leaf table where there is no RAM reads as all ones: no answer; so one level up, by PKU.
    m.regs.cr4 |= cr4::PKE;
    m.load_regs();
    m.map(AT, FIRST, PWU | pte::A | pte::D | 3 << pte::PKEY_SHIFT);
    for _ in 0..5 {
        assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    }
    assert_eq!(m.statistic("mmio_record_hits"), 0);
}
