//! RAM that leaves the map, becomes read-only, or is logged (R19, R20, R21, R29, R39).

use umbra_slots::{Flags, Gpa, GpaRange, IoId, Target};
use umbra_x86::{Gva, pte};

use super::guest::*;
use crate::{Flush, Kind};

const AT: u64 = 0x4000_0000;
const BASE: Gpa = Gpa(0x5000_0000);

fn add(m: &Machine, len: u64, flags: Flags) -> umbra_slots::SlotId {
    m.space
        .update("create", |e| e.add_ram(BASE, ram(len), 0, len, flags))
        .unwrap()
        .wait()
}

const LOGGED: Flags = Flags {
    read_only: false,
    dirty_log: true,
};

#[test]
fn r19_ram_that_leaves_takes_its_leaves_and_its_tables_along() {
    let mut m = Machine::new(checked());
    let slot = add(&m, 0x10_0000, Flags::default());
    // A leaf into the slot, and a leaf table inside it.
    m.map(AT, BASE.0, PWU);
    let directory = m.entry_at(AT + 0x20_0000, 2);
    m.store(directory, (BASE.0 + 0x1000) | PWU);
    m.store(BASE.0 + 0x1000, 0x20_0000 | PWU);
    m.page(AT, WRITE);
    m.page(AT + 0x20_0000, WRITE);
    m.flushes();

    let gone = m.space.update("delete", |e| e.remove(slot)).unwrap();
    assert!(m.vcpu.pending());
    assert_eq!(m.flushes(), [Flush::All]);
    gone.wait();
    m.audit();
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    // The table reads as all ones: reserved bits.
    assert_eq!(m.error(AT + 0x20_0000, READ), 0b1001);
}

#[test]
fn r19_moved_and_shortened_ram_is_found_where_it_is_now() {
    let mut m = Machine::new(checked());
    let slot = add(&m, 0x2000, Flags::default());
    let other = Gpa(0x6000_0000);
    m.map(AT, BASE.0 + 0x1000, PWU);
    m.map(AT + 0x1000, other.0 + 0x1000, PWU);
    let host = m.page(AT, READ).page;
    assert!(matches!(m.kind(AT + 0x1000, READ), Kind::Mmio { .. }));
    m.space
        .update("move", |e| e.move_to(slot, other))
        .unwrap()
        .wait_from(&mut m.vcpu);
    m.audit();
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    assert_eq!(m.page(AT + 0x1000, READ).page, host);
    m.space
        .update("shrink", |e| e.resize(slot, 0x1000))
        .unwrap()
        .wait_from(&mut m.vcpu);
    m.audit();
    assert!(matches!(m.kind(AT + 0x1000, READ), Kind::Mmio { .. }));
}

#[test]
fn a_large_mapping_goes_when_only_its_end_leaves() {
    let mut m = Machine::new(checked());
    let slot = add(&m, 0x40_0000, Flags::default());
    let at = m.entry_at(AT, 2);
    m.store(at, BASE.0 | PWU | pte::PS);
    m.page(AT + 0x1f_f000, WRITE);
    assert_eq!(m.mmu.tables.lock().rmap.large_frames().count(), 1);
    m.space
        .update("shrink", |e| e.resize(slot, 0x1f_0000))
        .unwrap()
        .wait_from(&mut m.vcpu);
    m.audit();
    assert!(matches!(m.kind(AT + 0x1f_f000, READ), Kind::Mmio { .. }));
    m.page(AT + 0x1e_f000, READ);
    m.audit();
}

#[test]
fn r19_memory_that_left_stays_mapped_until_every_processor_dropped_it() {
    let mut m = Machine::new(checked());
    let region = ram(0x1000);
    let weak = std::sync::Arc::downgrade(&region);
    let slot = m
        .space
        .update("create", |e| {
            e.add_ram(BASE, region, 0, 0x1000, Flags::default())
        })
        .unwrap()
        .wait();
    m.map(AT, BASE.0, PWU);
    m.page(AT, READ);
    m.flushes();
    drop(m.space.update("delete", |e| e.remove(slot)).unwrap());
    assert!(weak.upgrade().is_some(), "the processor may still use it");
    m.flushes();
    assert!(weak.upgrade().is_none());
}

#[test]
fn r21_a_root_outside_ram_recovers_when_ram_is_created_there() {
    let mut m = Machine::new(checked());
    m.regs.cr3 = BASE.0;
    m.load_regs();
    assert_eq!(m.error(AT, READ), 0b1001, "all ones: reserved bits");
    add(&m, 0x1000, Flags::default());
    assert_eq!(m.error(AT, READ), 0, "zeros: not present");
    m.map(AT, 0x20_0000, PWU);
    m.page(AT, READ);
    m.audit();
}

/// A BAR with memory behind it, and one with registers, go over each other's places, RAM's
/// neighbourhood and back; after each move every page is what the map says, in one go (R29).
#[test]
fn r29_memory_that_moves_is_where_the_map_says_and_nowhere_else() {
    let mut m = Machine::new(checked());
    let memory = add(&m, 0x2000, Flags::default());
    let range = GpaRange::new(Gpa(BASE.0 + 0x4000), 0x1000).unwrap();
    let registers = m.space.update("BAR", |e| e.add_io(range, IoId(1)));
    let registers = registers.unwrap().wait();
    let pages = 8;
    for page in 0..pages {
        m.map(AT + (page << 12), BASE.0 + (page << 12), PWU);
    }
    let moves = [
        (memory, 0x1000),
        (registers, 0x3000),
        (memory, 0x4000),
        (registers, 0x0000),
        (memory, 0x1000),
        (registers, 0x7000),
        (memory, 0x0000),
    ];
    for (slot, to) in moves {
        for page in 0..pages {
            let _ = m.kind(AT + (page << 12), WRITE); // everything is remembered
        }
        let generation = m.space.generation();
        let moved = m.space.update("BAR", |e| e.move_to(slot, Gpa(BASE.0 + to)));
        moved.unwrap().wait_from(&mut m.vcpu);
        assert_eq!(m.space.generation().0, generation.0 + 1, "R25");
        for page in 0..pages {
            let map = m.space.load_full();
            let kind = m.kind(AT + (page << 12), READ);
            match (map.resolve(Gpa(BASE.0 + (page << 12))), kind) {
                (Target::Ram(ram), Kind::Ram(page)) => assert_eq!(page.page, ram.host),
                (Target::Io { .. } | Target::Nothing, Kind::Mmio { .. }) => {}
                other => panic!("page {page} after {to:#x}: {other:?}"),
            }
        }
        m.audit();
    }
}

/// R20: RAM that is exchanged for other RAM, or moves to and fro, is at every moment what one of
/// the maps says: a page that is RAM in all of them is never MMIO.
#[test]
fn r20_memory_under_exchange_is_never_taken_for_mmio() {
    let config = crate::Config {
        tag_bits: 2,
        last_mmio: true,
        ..checked()
    };
    let mut m = Machine::new(config);
    let mut slot = add(&m, 0x2000, Flags::default());
    for page in 0..3 {
        m.map(AT + (page << 12), BASE.0 + (page << 12), PWU);
    }
    m.vcpu.leave();
    let space = m.space.clone();
    let updater = std::thread::spawn(move || {
        for round in 0..1000u64 {
            let region = ram(0x2000);
            let to = Gpa(BASE.0 + ((round % 2) << 12));
            let exchanged = space.update("exchange", |e| {
                e.remove(slot)?;
                e.add_ram(to, region, 0, 0x2000, Flags::default())
            });
            slot = exchanged.unwrap().wait();
        }
    });
    m.vcpu.enter();
    while !updater.is_finished() {
        // The middle page is in all maps.
        m.page(AT + 0x1000, READ);
        for page in [0, 2] {
            let kind = m.kind(AT + (page << 12), READ);
            assert!(matches!(kind, Kind::Ram(_) | Kind::Mmio { .. }), "{kind:?}");
        }
    }
    m.vcpu.leave();
    updater.join().unwrap();
    m.audit();
}

/// Tables outside memory read as all ones, which is a valid answer only where no bit is reserved:
/// without PSE and PAE. Nothing would tell when such a table becomes memory, so it is not shadowed.
#[test]
fn r21_what_tables_outside_memory_say_is_forgotten_at_once() {
    let mut m = Machine::new(checked());
    m.regs = crate::PagingRegs {
        cr0: umbra_x86::cr0::PE | umbra_x86::cr0::PG,
        cr3: BASE.0,
        ..Default::default()
    };
    m.load_regs();
    let found = m.translate(AT + 0x123, READ).unwrap();
    assert_eq!(found.gpa, Gpa(0xffff_f123));
    assert_eq!(m.statistic("uncached"), 1);
    add(&m, 0x1000, Flags::default());
    assert_eq!(m.error(AT, READ), 0, "zeros: not present");
    m.audit();
}

#[test]
fn r39_a_write_is_marked_before_the_right_to_write_is_given() {
    let mut m = Machine::new(checked());
    let slot = add(&m, 0x4000, LOGGED);
    m.map(AT, BASE.0 + 0x2000, PWU | pte::A | pte::D);
    assert!(!m.page(AT, READ).write);
    assert!(m.space.harvest(slot).unwrap().is_empty(), "nothing written");
    assert!(m.page(AT, WRITE).write);
    assert!(m.page(AT, READ).write, "marked already");
    let pages: Vec<_> = m.space.harvest(slot).unwrap().iter().collect();
    assert_eq!(pages, [frame(BASE.0 + 0x2000)]);
    assert_eq!(m.flushes(), [Flush::All]);
    assert!(!m.page(AT, READ).write, "the right is gone");
    assert!(m.page(AT, WRITE).write);
    assert_eq!(m.space.harvest(slot).unwrap().count(), 1);
    m.audit();
}

#[test]
fn r39_turning_the_log_on_takes_write_rights_and_splits_large_mappings() {
    let mut m = Machine::new(checked());
    let slot = add(&m, 0x40_0000, Flags::default());
    let at = m.entry_at(AT, 2);
    m.store(at, BASE.0 | PWU | pte::PS);
    m.page(AT, WRITE);
    assert_eq!(m.mmu.tables.lock().rmap.large_frames().count(), 1);
    m.space
        .update("log", |e| e.set_flags(slot, LOGGED))
        .unwrap()
        .wait_from(&mut m.vcpu);
    assert!(!m.page(AT, READ).write);
    m.page(AT + 0x3000, WRITE);
    let pages: Vec<_> = m.space.harvest(slot).unwrap().iter().collect();
    assert_eq!(pages, [frame(BASE.0 + 0x3000)]);
    m.audit();
    m.space
        .update("stop", |e| e.set_flags(slot, Flags::default()))
        .unwrap()
        .wait_from(&mut m.vcpu);
    assert!(m.page(AT + 0x5000, WRITE).write);
}

#[test]
fn r39_accessed_bits_and_trapped_writes_are_marked_too() {
    let mut m = Machine::new(checked());
    let slot = add(&m, 0x4000, LOGGED);
    let directory = m.entry_at(AT, 2);
    m.store(directory, (BASE.0 + 0x1000) | PWU);
    m.store(BASE.0 + 0x1000, 0x20_0000 | PWU);
    assert_eq!(m.space.harvest(slot).unwrap().count(), 1);
    m.page(AT, READ); // sets the accessed bit in the table
    let pages: Vec<_> = m.space.harvest(slot).unwrap().iter().collect();
    assert_eq!(pages, [frame(BASE.0 + 0x1000)]);
    m.store(BASE.0 + 0x1008, 0);
    assert_eq!(m.space.harvest(slot).unwrap().count(), 1);
    m.vcpu.take_flushes(|_| {});
    m.vcpu.translate(Gva(AT), READ).unwrap();
}

#[test]
fn a_table_in_rom_works_without_accessed_bits() {
    let mut m = Machine::new(checked());
    let region = ram(0x1000);
    let read_only = Flags {
        read_only: true,
        ..Flags::default()
    };
    m.space
        .update("rom", |e| e.add_ram(BASE, region, 0, 0x1000, read_only))
        .unwrap()
        .wait();
    let raw: u64 = 0x20_0000 | PWU | pte::D;
    m.space.load().write(BASE, &raw.to_le_bytes()).unwrap();
    let directory = m.entry_at(AT, 2);
    m.store(directory, BASE.0 | PWU);
    assert!(m.page(AT, WRITE).write);
    assert_eq!(m.load(BASE.0), raw);
    m.audit();
}
