//! MMIO entries and the generation: hits, staleness, the wrap.

use umbra_slots::{Flags, Generation, Gpa, GpaRange, IoId};
use umbra_x86::pte;

use super::guest::*;
use crate::{Config, Kind};

const AT: u64 = 0x4000_0000;

fn with_mmio(config: Config, first: u64) -> Machine {
    let mut m = Machine::at(config, Generation(first));
    m.map(AT, HOLE.0, PWU | pte::A | pte::D);
    m
}

fn is_mmio(m: &mut Machine, gva: u64) -> bool {
    let found = m.translate(gva, READ).unwrap();
    matches!(found.kind, Kind::Mmio { .. })
}

#[test]
fn r3_a_repeated_access_hits_at_every_generation() {
    let ends = [
        1,
        511,
        512,
        1023,
        1024,
        1 << 18,
        (1 << 19) - 2,
        (1 << 19) - 1,
    ];
    for generation in ends.into_iter().chain((0..19).map(|bit| 1 << bit)) {
        let mut m = with_mmio(plain(), generation);
        assert!(is_mmio(&mut m, AT));
        let slow = m.statistic("slow_faults");
        for access in [READ, WRITE, user(READ), user(WRITE)] {
            let found = m.translate(AT + 0x28, access).unwrap();
            assert_eq!(found.gpa, Gpa(HOLE.0 + 0x28), "at generation {generation}");
            let now = m.space.generation();
            assert_eq!(found.kind, Kind::Mmio { generation: now });
        }
        assert_eq!(
            m.statistic("slow_faults"),
            slow,
            "at generation {generation}"
        );
        assert_eq!(m.statistic("mmio_hits"), 4);
    }
}

#[test]
fn r3_every_tag_of_a_small_width_hits() {
    for bits in 2..=6 {
        let mut m = with_mmio(
            Config {
                tag_bits: bits,
                ..checked()
            },
            0,
        );
        for _ in 0..2 << bits {
            assert!(is_mmio(&mut m, AT));
            let slow = m.statistic("slow_faults");
            assert!(is_mmio(&mut m, AT));
            assert_eq!(m.statistic("slow_faults"), slow);
            m.publish(1);
        }
    }
}

#[test]
fn r4_frame_zero_is_an_ordinary_frame() {
    let mut m = with_mmio(checked(), 0);
    let slot = m.ram;
    m.map(0, 0x5000_0000, PWU);
    assert!(is_mmio(&mut m, 0));
    assert!(is_mmio(&mut m, 0));
    assert!(m.statistic("mmio_hits") >= 1);
    assert!(m.space.load().slot(slot).is_some());
}

#[test]
fn r11_a_change_of_the_map_costs_one_slow_fault_for_each_page() {
    let mut m = with_mmio(checked(), 0);
    assert!(is_mmio(&mut m, AT));
    for _ in 0..5 {
        m.publish(1);
        let (slow, stale) = (m.statistic("slow_faults"), m.statistic("mmio_stale"));
        for _ in 0..3 {
            assert!(is_mmio(&mut m, AT));
        }
        assert_eq!(m.statistic("slow_faults"), slow + 1);
        assert_eq!(m.statistic("mmio_stale"), stale + 1);
    }
}

#[test]
fn r11_the_same_without_paging() {
    let mut m = Machine::new(checked());
    m.regs = Default::default();
    m.load_regs();
    for _ in 0..5 {
        m.publish(1);
        let slow = m.statistic("slow_faults");
        for _ in 0..3 {
            assert!(is_mmio(&mut m, HOLE.0));
        }
        assert_eq!(m.statistic("slow_faults"), slow + 1);
    }
}

#[test]
fn r12_a_stale_entry_becomes_mmio_or_ram_or_absent() {
    let mut m = with_mmio(checked(), 0);
    let entry = m.entry_at(AT, 1);
    assert!(is_mmio(&mut m, AT));
    m.publish(1);
    assert!(is_mmio(&mut m, AT), "MMIO again");
    let slot = m
        .space
        .update("create", |e| {
            e.add_ram(HOLE, ram(0x1000), 0, 0x1000, Flags::default())
        })
        .unwrap()
        .wait();
    assert_eq!(m.page(AT, READ).page, m.host(HOLE.0), "RAM");
    let slow = m.statistic("slow_faults");
    m.page(AT, READ);
    assert_eq!(m.statistic("slow_faults"), slow, "RAM in the shadow, too");
    m.audit();
    m.space.update("delete", |e| e.remove(slot)).unwrap().wait();
    assert!(is_mmio(&mut m, AT), "and back");
    m.store(entry, 0);
    assert_eq!(m.error(AT, READ), 0, "absent");
    m.audit();
}

#[test]
fn r12_a_window_over_a_hole_changes_the_generation_that_is_reported() {
    let mut m = with_mmio(checked(), 0);
    assert!(is_mmio(&mut m, AT));
    let window = GpaRange::new(HOLE, 0x100).unwrap();
    m.space
        .update("window", |e| e.add_io(window, IoId(7)))
        .unwrap()
        .wait();
    let generation = m.space.generation();
    assert_eq!(m.kind(AT, READ), Kind::Mmio { generation });
}

#[test]
fn r13_a_host_that_turns_ram_into_mmio_behind_the_guest_leaves_no_trace_of_the_ram() {
    let mut m = Machine::new(checked());
    let entry = m.map(AT, 0x20_0000, PWU | pte::A);
    m.page(AT, READ);
    // No trap: the host writes the table itself.
    let raw = HOLE.0 | PWU | pte::A;
    m.space
        .load()
        .write(Gpa(entry), &raw.to_le_bytes())
        .unwrap();
    // A write must set the dirty bit, so it walks the tables.
    assert!(matches!(m.vcpu.ask(umbra_x86::Gva(AT), WRITE), Ok(t) if t.gpa == HOLE));
    assert_eq!(m.mmu.tables.lock().rmap.small(frame(0x20_0000)).len(), 0);
    m.audit();
}

#[test]
fn r14_a_write_to_rom_does_not_turn_later_reads_into_mmio() {
    let mut m = Machine::new(checked());
    let rom = Gpa(0x5000_0000);
    let flags = Flags {
        read_only: true,
        ..Flags::default()
    };
    m.space
        .update("rom", |e| e.add_ram(rom, ram(0x1000), 0, 0x1000, flags))
        .unwrap()
        .wait();
    m.map(AT, rom.0, PWU);
    assert_eq!(m.kind(AT, WRITE), Kind::ReadOnly);
    let page = m.page(AT, READ);
    assert_eq!(page.page, m.host(rom.0));
    assert!(!page.write);
    assert_eq!(m.kind(AT, WRITE), Kind::ReadOnly);
}

/// Plants an untouched MMIO entry, turns its frame into RAM, and publishes until its tag comes
/// round again (R17: a bare wrap proves nothing).
#[test]
fn r15_r17_an_old_entry_is_not_valid_again_when_its_tag_comes_round() {
    for bits in 2..=4u32 {
        for start in 0..1u64 << bits {
            let mut m = with_mmio(
                Config {
                    tag_bits: bits,
                    ..Config::default()
                },
                start,
            );
            assert!(is_mmio(&mut m, AT));
            let _ = m
                .space
                .update("create over it", |e| {
                    e.add_ram(HOLE, ram(0x1000), 0, 0x1000, Flags::default())
                })
                .unwrap();
            for _ in 0..(2 << bits) {
                m.audit();
                m.publish(1);
            }
            m.audit();
            assert_eq!(m.page(AT, READ).page, m.host(HOLE.0));
        }
    }
}

#[test]
fn r15_the_wrap_of_the_widest_tag_makes_old_entries_unusable() {
    let first = (1 << 19) - 3;
    let mut m = with_mmio(Config::default(), first);
    assert!(is_mmio(&mut m, AT));
    m.publish(1);
    assert_eq!(m.statistic("wraps"), 0);
    m.publish(1);
    assert_eq!(m.statistic("wraps"), 1);
    assert_eq!(
        m.statistic("pages") - 1,
        0,
        "all but the pinned root are reaped"
    );
    assert!(is_mmio(&mut m, AT));
    assert!(is_mmio(&mut m, AT));
    m.audit();
}

#[test]
fn r16_obsolete_pages_are_reaped_and_new_ones_are_not() {
    let mut m = with_mmio(
        Config {
            tag_bits: 2,
            ..checked()
        },
        0,
    );
    for _ in 0..50 {
        m.publish(1);
        assert!(is_mmio(&mut m, AT));
        assert!(m.statistic("pages") <= 5);
    }
}

#[test]
fn r22_a_change_of_flags_throws_no_page_away() {
    let mut m = Machine::new(checked());
    m.map(AT, 0x20_0000, PWU);
    m.page(AT, WRITE);
    let (zapped, dropped) = (m.statistic("pages_zapped"), m.statistic("leaves_dropped"));
    let slot = m.ram;
    for read_only in [true, false] {
        let flags = Flags {
            read_only,
            ..Flags::default()
        };
        m.space
            .update("flags", |e| e.set_flags(slot, flags))
            .unwrap()
            .wait_from(&mut m.vcpu);
        match m.kind(AT, WRITE) {
            Kind::ReadOnly => assert!(read_only),
            Kind::Ram(page) => assert!(page.write && !read_only),
            other => panic!("{other:?}"),
        }
        m.audit();
    }
    assert_eq!(m.statistic("pages_zapped"), zapped);
    assert_eq!(m.statistic("leaves_dropped"), dropped);
}

#[test]
fn r34_a_page_fault_of_the_guest_comes_before_mmio() {
    let mut m = Machine::new(checked());
    m.map(AT, HOLE.0, pte::P); // supervisor, read-only
    assert!(is_mmio(&mut m, AT));
    assert_eq!(m.error(AT, WRITE), 0b11);
    assert_eq!(m.error(AT, user(READ)), 0b101);
    m.map(AT + 0x1000, HOLE.0, PWU | pte::XD);
    assert!(is_mmio(&mut m, AT + 0x1000));
    assert_eq!(m.error(AT + 0x1000, FETCH), 0b10001);
    m.map(AT + 0x2000, HOLE.0 | 1 << 50, PWU);
    assert_eq!(m.error(AT + 0x2000, READ), 0b1001);
}

#[test]
fn a_clean_page_of_mmio_gets_its_dirty_bit_with_the_first_write() {
    let mut m = Machine::new(checked());
    let entry = m.map(AT, HOLE.0, PWU);
    assert!(is_mmio(&mut m, AT));
    assert_eq!(m.load(entry) & (pte::A | pte::D), pte::A);
    m.kind(AT, WRITE);
    assert_eq!(m.load(entry) & (pte::A | pte::D), pte::A | pte::D);
    let slow = m.statistic("slow_faults");
    m.kind(AT, WRITE);
    assert_eq!(m.statistic("slow_faults"), slow);
}

#[test]
fn mmio_inside_a_large_guest_page_is_mmio_and_the_rest_is_ram() {
    let mut m = Machine::new(checked());
    let slot = m
        .space
        .update("odd end", |e| {
            e.add_ram(
                Gpa(0x4000_0000),
                ram(0x10_0000),
                0,
                0x10_0000,
                Flags::default(),
            )
        })
        .unwrap()
        .wait();
    let at = m.entry_at(AT, 2);
    m.store(at, 0x4000_0000 | PWU | pte::PS);
    let page = m.page(AT + 0xf_f000, WRITE);
    assert_eq!(page.page, m.host(0x400f_f000));
    assert!(page.large && page.write);
    assert_eq!(
        m.translate(AT + 0x10_0010, WRITE).unwrap().gpa,
        Gpa(0x4010_0010)
    );
    assert!(is_mmio(&mut m, AT + 0x10_0010));
    assert!(is_mmio(&mut m, AT + 0x1f_fff8));
    m.audit();
    m.space
        .update("gone", |e| e.remove(slot))
        .unwrap()
        .wait_from(&mut m.vcpu);
    assert!(is_mmio(&mut m, AT + 0xf_f000));
    m.audit();
}
