//! The rules of SDM vol. 3, chapter 11, as claims.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use umbra_clock::Clock;
use umbra_irq::{Msi, MsiTarget};

use super::*;

const ENABLE_X2APIC: u64 = 0xfee0_0c00;

/// `count` local APICs in xAPIC mode, enabled.
fn xapics(count: u32) -> Arc<Apics> {
    let apics = Apics::new(count, Clock::start());
    apics
        .all()
        .iter()
        .for_each(|apic| apic.mmio_write(0xf0, 0x1ff));
    apics
}

/// `count` local APICs in x2APIC mode, enabled.
fn x2apics(count: u32) -> Arc<Apics> {
    let apics = xapics(count);
    apics
        .all()
        .iter()
        .for_each(|apic| apic.write_msr(0x1b, ENABLE_X2APIC).unwrap());
    apics
}

fn msi(apics: &Apics, vector: u32) {
    apics.send(Msi {
        address: 0xfee0_0000,
        data: vector,
    });
}

/// Which of the local APICs have work, by number.
fn receivers(apics: &Apics) -> Vec<u32> {
    apics
        .all()
        .iter()
        .filter(|apic| apic.work())
        .map(|apic| apic.id())
        .collect()
}

#[test]
fn higher_vectors_interrupt_lower_ones_and_not_their_own_class() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    msi(&apics, 0x41);
    assert_eq!(apic.acknowledge(), Some(0x41));
    msi(&apics, 0x4f);
    assert!(!apic.work(), "same class");
    msi(&apics, 0x51);
    assert_eq!(apic.acknowledge(), Some(0x51));
    apic.mmio_write(0xb0, 0);
    assert_eq!(apic.acknowledge(), None);
    apic.mmio_write(0xb0, 0);
    assert_eq!(apic.acknowledge(), Some(0x4f));
}

#[test]
fn the_task_priority_holds_vectors_back_by_class() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apic.set_tpr(4);
    assert_eq!(
        (apic.tpr(), apic.mmio_read(0x80), apic.mmio_read(0xa0)),
        (4, 0x40, 0x40)
    );
    msi(&apics, 0x4f);
    assert!(!apic.work() && apic.pending().is_none());
    apic.set_tpr(3);
    assert!(apic.work());
    assert_eq!(apic.pending(), Some(0x4f));
}

#[test]
fn irr_isr_and_tmr_read_back() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apics.send(Msi {
        address: 0xfee0_0000,
        data: 0x8061,
    });
    assert_eq!(apic.mmio_read(0x230), 2, "IRR");
    assert_eq!(apic.mmio_read(0x1b0), 2, "TMR");
    apic.acknowledge();
    assert_eq!(
        (apic.mmio_read(0x230), apic.mmio_read(0x130)),
        (0, 2),
        "moved to ISR"
    );
}

#[test]
fn a_software_disabled_chip_accepts_no_vector_but_init_and_nmi() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apic.mmio_write(0x350, 0x700);
    apic.mmio_write(0xf0, 0xff);
    assert_eq!(
        apic.mmio_read(0x350),
        0x1_0700,
        "all LVT entries are masked"
    );
    apic.mmio_write(0x350, 0x700);
    assert_eq!(apic.mmio_read(0x350), 0x1_0700, "and stay so");
    msi(&apics, 0x41);
    assert!(!apic.work());
    msi(&apics, 0x400);
    assert_eq!(apic.take_event(), Some(Event::Nmi));
}

#[test]
fn x2apic_mode_can_only_be_left_through_disabled() {
    let apics = Apics::new(1, Clock::start());
    let apic = apics.apic(0);
    assert_eq!(apic.read_msr(0x1b), Some(0xfee0_0900));
    assert_eq!(
        apic.read_msr(0x802),
        None,
        "no x2APIC registers in xAPIC mode"
    );
    assert_eq!(apic.window(), Some(0xfee0_0000));
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0400), None, "EXTD without EN");
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0901), None, "reserved bit");
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0d00), Some(()));
    assert_eq!(apic.window(), None);
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0900), None, "x2APIC to xAPIC");
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0100), Some(()));
    assert_eq!(
        apic.write_msr(0x1b, 0xfee0_0d00),
        None,
        "disabled to x2APIC"
    );
    assert_eq!(apic.write_msr(0x1b, 0xfee0_1900), Some(()));
    assert_eq!(apic.window(), Some(0xfee0_1000));
}

#[test]
fn x2apic_accesses_that_the_manual_forbids_fault() {
    let apics = x2apics(1);
    let apic = apics.apic(0);
    for read in [0x80b, 0x80e, 0x831, 0x83f, 0x809, 0x8ff] {
        assert_eq!(apic.read_msr(read), None, "read {read:#x}");
    }
    for (write, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80a, 0),
        (0x80b, 1),
        (0x80d, 0),
        (0x80e, 0),
        (0x828, 1),
        (0x831, 0),
        (0x839, 0),
        (0x808, 0x100),
        (0x80f, 1 << 12),
        (0x832, 1 << 19),
        (0x83e, 4),
        (0x83f, 0x100),
        (0x830, 1 << 20),
    ] {
        assert_eq!(apic.write_msr(write, value), None, "write {write:#x}");
    }
    assert_eq!(apic.write_msr(0x80b, 0), Some(()));
    assert_eq!(apic.read_msr(0x803), Some(0x5_0014));
}

#[test]
fn ids_read_by_mode() {
    let apics = x2apics(20);
    let apic = apics.apic(18);
    assert_eq!(apic.read_msr(0x802), Some(18));
    assert_eq!(apic.read_msr(0x80d), Some(0x1_0004), "cluster 1, bit 2");
    let apics = xapics(3);
    assert_eq!(apics.apic(2).mmio_read(0x20), 0x0200_0000);
}

#[test]
fn physical_ipis_reach_one_and_broadcasts_all() {
    let apics = xapics(3);
    apics.apic(0).mmio_write(0x310, 2 << 24);
    apics.apic(0).mmio_write(0x300, 0x41);
    assert_eq!(receivers(&apics), [2]);
    apics.apic(0).mmio_write(0x310, 0xff << 24);
    apics.apic(0).mmio_write(0x300, 0x51);
    assert_eq!(receivers(&apics), [0, 1, 2]);
}

#[test]
fn shorthands_choose_self_all_and_the_others() {
    for (shorthand, expected) in [(1, vec![1]), (2, vec![0, 1, 2]), (3, vec![0, 2])] {
        let apics = x2apics(3);
        apics
            .apic(1)
            .write_msr(0x830, shorthand << 18 | 0x41)
            .unwrap();
        assert_eq!(receivers(&apics), expected, "shorthand {shorthand}");
    }
}

#[test]
fn self_ipi_is_one_write() {
    let apics = x2apics(2);
    apics.apic(1).write_msr(0x83f, 0x77).unwrap();
    assert_eq!(apics.apic(1).acknowledge(), Some(0x77));
    assert!(!apics.apic(0).work());
}

#[test]
fn logical_flat_destinations_match_by_bit() {
    let apics = xapics(3);
    for apic in apics.all() {
        apic.mmio_write(0xd0, 1 << (24 + apic.id()));
    }
    apics.send(Msi {
        address: 0xfee0_6004,
        data: 0x41,
    });
    assert_eq!(receivers(&apics), [1, 2]);
}

#[test]
fn logical_cluster_destinations_match_cluster_and_bit() {
    let apics = xapics(3);
    for (apic, ldr) in apics.all().iter().zip([0x11, 0x12, 0x21]) {
        apic.mmio_write(0xe0, 0x0fff_ffff);
        apic.mmio_write(0xd0, ldr << 24);
    }
    apics.send(Msi {
        address: 0xfee1_3004,
        data: 0x41,
    });
    assert_eq!(receivers(&apics), [0, 1]);
}

#[test]
fn x2apic_logical_destinations_match_cluster_and_bit() {
    let apics = x2apics(20);
    apics
        .apic(0)
        .write_msr(0x830, 0x0001_0006u64 << 32 | 1 << 11 | 0x41)
        .unwrap();
    assert_eq!(receivers(&apics), [17, 18]);
}

#[test]
fn lowest_priority_goes_to_the_least_busy_and_equals_take_turns() {
    let apics = xapics(3);
    apics.apic(0).set_tpr(2);
    let lowest = Msi {
        address: 0xfeef_f000,
        data: 0x141,
    };
    apics.send(lowest);
    let first = receivers(&apics);
    assert!(first == [1] || first == [2], "{first:?}");
    apics.send(lowest);
    assert_eq!(
        receivers(&apics),
        [1, 2],
        "the other one has less to do now"
    );
}

#[test]
fn init_and_startup_reach_the_processor_in_order() {
    let apics = x2apics(2);
    let target = apics.apic(1);
    apics.apic(0).write_msr(0x830, 1 << 32 | 0xc500).unwrap();
    apics.apic(0).write_msr(0x830, 1 << 32 | 0x8500).unwrap();
    apics.apic(0).write_msr(0x830, 1 << 32 | 0x69a).unwrap();
    assert_eq!(target.take_event(), Some(Event::Init));
    assert_eq!(target.take_event(), Some(Event::Sipi(0x9a)));
    assert_eq!(target.take_event(), None);
    assert!(!target.work());
}

#[test]
fn init_keeps_id_and_x2apic_mode_and_clears_the_rest() {
    let apics = x2apics(2);
    let apic = apics.apic(1);
    apic.write_msr(0x808, 0x50).unwrap();
    apic.write_msr(0x83f, 0x41).unwrap();
    apics.apic(0).write_msr(0x830, 1 << 32 | 0x4500).unwrap();
    assert_eq!(apic.take_event(), Some(Event::Init));
    assert_eq!(
        (apic.read_msr(0x802), apic.read_msr(0x808)),
        (Some(1), Some(0))
    );
    assert_eq!(
        (apic.read_msr(0x80f), apic.read_msr(0x822)),
        (Some(0xff), Some(0))
    );
}

#[test]
fn only_level_triggered_vectors_are_told_to_the_ioapic() {
    let apics = xapics(1);
    let told = Arc::new(AtomicU32::new(0));
    let listener = Arc::clone(&told);
    apics.on_end_of_interrupt(Box::new(move |vector| {
        listener.store(vector.into(), Ordering::Relaxed);
    }));
    let apic = apics.apic(0);
    msi(&apics, 0x61);
    apic.acknowledge();
    apic.mmio_write(0xb0, 0);
    assert_eq!(told.load(Ordering::Relaxed), 0);
    msi(&apics, 0x8062);
    apic.acknowledge();
    apic.mmio_write(0xb0, 0);
    assert_eq!(told.load(Ordering::Relaxed), 0x62);
}

#[test]
fn the_deadline_fires_once_and_reads_zero() {
    let apics = x2apics(1);
    let apic = apics.apic(0);
    apic.write_msr(0x832, 0x4_0000 | 0xec).unwrap();
    apic.set_tsc_offset(1000);
    let hour = 3_600_000_000_000;
    apic.write_msr(0x6e0, hour).unwrap();
    assert_eq!(apic.next_timer(), Some(hour - 1000));
    apic.tick(hour - 1001);
    assert!(!apic.work());
    apic.tick(hour - 1000);
    assert_eq!(apic.acknowledge(), Some(0xec));
    assert_eq!((apic.read_msr(0x6e0), apic.next_timer()), (Some(0), None));
}

#[test]
fn a_deadline_that_has_passed_is_due_at_once() {
    let apics = x2apics(1);
    let apic = apics.apic(0);
    apic.write_msr(0x832, 0x4_0000 | 0xec).unwrap();
    apic.write_msr(0x6e0, 1).unwrap();
    assert_eq!(apic.pending(), Some(0xec));
    assert_eq!(apic.read_msr(0x6e0), Some(0));
}

#[test]
fn two_nmis_are_kept_and_more_are_merged() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    for _ in 0..3 {
        apic.mmio_write(0x300, 0x400);
    }
    let taken: Vec<_> = std::iter::from_fn(|| apic.take_event()).collect();
    assert_eq!(taken, [Event::Nmi, Event::Nmi]);
    assert!(!apic.work());
}

#[test]
fn the_page_cannot_be_moved_beyond_the_processors_addresses() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apic.set_physical_bits(46);
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0900 | 1 << 46), None);
    apic.write_msr(0x1b, 0xfed4_0900).unwrap();
    assert_eq!(apic.window(), Some(0xfed4_0000));
}

#[test]
fn a_masked_timer_fires_into_nothing() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apic.mmio_write(0x3e0, 0xb);
    apic.mmio_write(0x320, 0x1_0000 | 0xec);
    apic.mmio_write(0x380, 10);
    apic.tick(u64::MAX / 2);
    assert!(!apic.work());
    assert_eq!(apic.mmio_read(0x390), 0);
}

#[test]
fn what_expired_under_a_mask_does_not_fire_when_it_comes_off() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apic.mmio_write(0x3e0, 0xb);
    apic.mmio_write(0x320, 0x1_0000 | 0xec);
    apic.mmio_write(0x380, 10);
    // Nobody has called `tick`.
    while apic.mmio_read(0x390) != 0 {}
    apic.mmio_write(0x320, 0xec);
    apic.tick(u64::MAX / 2);
    assert!(!apic.work());
}

#[test]
fn illegal_vectors_and_registers_show_in_esr_after_a_write_to_it() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    apic.mmio_write(0x370, 0xfe);
    apic.mmio_write(0x300, 0x4_0005);
    msi(&apics, 0x0f);
    apic.mmio_write(0x40, 0);
    assert_eq!(apic.acknowledge(), Some(0xfe), "the error interrupt");
    assert_eq!(apic.mmio_read(0x280), 0);
    apic.mmio_write(0x280, 0);
    assert_eq!(apic.mmio_read(0x280), 0xe0);
    apic.mmio_write(0x280, 0);
    assert_eq!(apic.mmio_read(0x280), 0);
}

#[test]
fn registers_that_are_only_read_ignore_writes() {
    let apics = xapics(1);
    let apic = apics.apic(0);
    for offset in [0x20, 0x30, 0xa0, 0x100, 0x390] {
        apic.mmio_write(offset, 0xff);
    }
    apic.mmio_write(0x280, 0);
    assert_eq!(apic.mmio_read(0x280), 0, "no error");
    let _nothing = apic.mmio_read(0x10);
    apic.mmio_write(0x40, 0);
    apic.mmio_write(0x280, 0);
    assert_eq!(apic.mmio_read(0x280), 0x80, "no such register");
}

#[test]
fn what_comes_from_outside_wakes_the_processor() {
    let apics = xapics(2);
    let woken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&woken);
    apics.apic(1).set_wake(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    apics.send(Msi {
        address: 0xfee0_1000,
        data: 0x41,
    });
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    apics.apic(1).set_tpr(15);
    apics.send(Msi {
        address: 0xfee0_1000,
        data: 0x51,
    });
    assert_eq!(woken.load(Ordering::Relaxed), 1, "nothing deliverable");
    apics.send(Msi {
        address: 0xfee0_1000,
        data: 0x400,
    });
    assert_eq!(woken.load(Ordering::Relaxed), 2);
}

#[test]
fn lint1_is_nmi_in_virtual_wire_mode() {
    let apics = Apics::new(1, Clock::start());
    let apic = apics.apic(0);
    apic.pulse_lint1();
    assert_eq!(apic.take_event(), None, "masked after power-up");
    apic.set_virtual_wire();
    apic.pulse_lint1();
    assert_eq!(apic.take_event(), Some(Event::Nmi));
}

#[test]
fn a_multicast_reaches_who_is_listed_and_says_how_many_there_are() {
    let apics = x2apics(4);
    let sent = apics.apic(0).multicast([0, 2, 9, u32::MAX], 0x41);
    assert_eq!((sent, receivers(&apics)), (Some(2), vec![0, 2]));
    assert_eq!(apics.apic(2).acknowledge(), Some(0x41));
}

#[test]
fn a_multicast_names_its_receivers_by_itself_and_a_real_delivery_mode() {
    let apics = xapics(2);
    for icr in [0x4_0041, 0x8_0041, 0xc_0041, 0x341] {
        assert_eq!(apics.apic(0).multicast([1], icr), None, "{icr:#x}");
    }
    assert_eq!(receivers(&apics), [0; 0]);
    assert_eq!(apics.apic(0).multicast([1], 0x400), Some(1));
    assert_eq!(apics.apic(1).take_event(), Some(Event::Nmi));
}
