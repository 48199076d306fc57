//! A chip that was saved and restored is the same chip.

use std::sync::Arc;

use proptest::prelude::*;
use umbra_clock::Clock;
use umbra_x86::vcpu::LapicImage;

use super::regs::reg;
use super::*;

const XAPIC: u64 = 0xfee0_0900;
const X2APIC: u64 = 0xfee0_0d00;

/// Chips 0 and 1 of a set.
fn apics() -> (Arc<Apics>, Arc<LocalApic>) {
    let apics = Apics::new(2, Clock::start());
    let apic = apics.apic(0);
    (apics, apic)
}

/// What every chip 0 has.
fn blank(base: u64) -> ApicState {
    let mut image = LapicImage::default();
    image.set_register(reg::VERSION, 0x5_0014);
    image.set_register(reg::DFR, u32::MAX);
    image.set_register(reg::LDR, u32::from(base == X2APIC));
    ApicState {
        image,
        base,
        tsc_deadline: 0,
        tsc_offset: 0,
        at_ns: 0,
    }
}

prop_compose! {
    fn states()(
        x2apic: bool,
        (tpr, esr, svr) in (0..=0xffu32, 0..=0xffu32, 0..=0x3ffu32),
        (ldr, dfr) in (0..=0xffu32, any::<u32>()),
        vectors in prop::array::uniform24(any::<u32>()),
        lvt in prop::array::uniform6(any::<u32>()),
        icr: u64,
        (initial, current, divide) in (any::<u32>(), any::<u32>(), any::<u32>()),
        (deadline, offset, at) in (any::<u64>(), any::<i64>(), any::<u64>()),
    ) -> ApicState {
        let mut state = blank(if x2apic { X2APIC } else { XAPIC });
        // A deadline that has passed would fire.
        state.tsc_offset = offset % (1 << 40);
        state.at_ns = at % (1 << 40);
        let image = &mut state.image;
        image.set_register(reg::TPR, tpr);
        image.set_register(reg::ESR, esr);
        image.set_register(reg::SVR, svr);
        if !x2apic {
            image.set_register(reg::LDR, ldr << 24);
            image.set_register(reg::DFR, dfr | 0x0fff_ffff);
        }
        for (i, word) in (0u32..).zip(vectors) {
            let reserved = if i % 8 == 0 { 0xffff } else { 0 };
            image.set_register(reg::ISR + i, word & !reserved);
        }
        for (i, entry) in (0u32..).zip(lvt) {
            image.set_register(reg::LVT_TIMER + i, entry & access::LVT_WRITABLE[i as usize]);
        }
        image.set_register(reg::ICR, icr as u32 & access::ICR_WRITABLE as u32);
        image.set_register(reg::ICR_HIGH, (icr >> 32) as u32);
        image.set_register(reg::DIVIDE, divide & 0b1011);
        match lvt[0] >> 17 & 3 {
            2 if deadline % 4 == 0 => {}
            2 => state.tsc_deadline = deadline | 1 << 50,
            mode => {
                let current = if mode == 1 { current.max(1) } else { current };
                image.set_register(reg::INITIAL, initial.max(1));
                image.set_register(reg::CURRENT, current);
            }
        }
        state
    }
}

/// Without what is only written: the priorities that follow from other registers.
fn plain(mut state: ApicState) -> ApicState {
    state.image.set_register(reg::PPR, 0);
    state.image.set_register(reg::APR, 0);
    state
}

proptest! {
    #[test]
    fn what_is_restored_is_saved(state in states()) {
        let (_apics, apic) = apics();
        prop_assert_eq!(apic.restore(&state), Ok(()));
        prop_assert_eq!(plain(apic.save(state.at_ns)), state);
    }

    /// Whatever the bytes are, a chip takes them or says what is wrong, and then has not changed.
    #[test]
    fn what_is_refused_changes_nothing(
        good in states(),
        (register, value) in (0u32..0x40, any::<u32>()),
        base in prop::sample::select(vec![XAPIC, X2APIC, 0xfee0_0400, 0xfee0_0901, 1 << 60]),
    ) {
        let (_apics, apic) = apics();
        apic.restore(&good).unwrap();
        let before = apic.save(good.at_ns);
        let mut other = good.clone();
        other.image.set_register(register, value);
        other.base = base;
        prop_assert_eq!(apic.check(&other).is_ok(), apic.clone().restore(&other).is_ok());
        if apic.check(&other).is_err() {
            prop_assert_eq!(apic.save(good.at_ns), before);
        }
    }
}

#[test]
fn a_part_that_cannot_be_is_named() {
    let (_apics, apic) = apics();
    let before = apic.save(0);
    let register = |number: u32, value: u32| {
        let mut state = blank(XAPIC);
        state.image.set_register(number, value);
        state
    };
    let mut deadline = blank(XAPIC);
    deadline.tsc_deadline = 5;
    let mut other_id = register(reg::ID, 0);
    other_id.base = X2APIC;
    other_id.image.set_register(reg::ID, 1);
    for (state, text) in [
        (
            register(reg::ID, 1 << 24),
            "local APIC register 0x20 is 0x1000000: another processor's id",
        ),
        (
            other_id,
            "local APIC register 0x20 is 0x1: another processor's id",
        ),
        (
            register(reg::VERSION, 0x6_0014),
            "local APIC register 0x30 is 0x60014: another version",
        ),
        (
            register(reg::SVR, 0x11ff),
            "local APIC register 0xf0 is 0x11ff: a reserved bit",
        ),
        (
            register(reg::IRR, 0x8000),
            "local APIC register 0x200 is 0x8000: vectors below 16",
        ),
        (
            register(reg::LVT_ERROR, 0x700),
            "local APIC register 0x370 is 0x700: a reserved bit",
        ),
        (
            register(reg::CURRENT, 7),
            "local APIC register 0x390 is 0x7: the timer was not started",
        ),
        (deadline, "MSR 0x6e0 is 0x5: the timer counts instead"),
        (
            blank(0xfee0_0400),
            "MSR 0x1b is 0xfee00400: x2APIC mode of a chip that is off",
        ),
    ] {
        let error = apic.restore(&state).unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
        assert_eq!(apic.save(0), before);
    }
}

#[test]
fn a_chip_that_could_suppress_the_end_of_interrupts_is_taken_unless_it_does() {
    let (_apics, apic) = apics();
    let mut state = blank(XAPIC);
    state.image.set_register(reg::VERSION, 0x105_0014);
    state.image.set_register(reg::SVR, 0x1ff);
    assert_eq!(apic.restore(&state), Ok(()));
    assert_eq!(apic.save(0).image.register(reg::VERSION), 0x5_0014);
    state.image.set_register(reg::SVR, 0x11ff);
    let part = ApicPart::Register(0xf0);
    assert_eq!(apic.restore(&state).map_err(|e| e.part), Err(part));
}

#[test]
fn a_count_goes_on_and_never_fires_early() {
    // Register, what it divides by.
    for (divide, divisor) in [(0xb, 1), (0, 2), (0xa, 128)] {
        for (mode, periodic) in [(0, false), (1 << 17, true)] {
            let (_apics, old) = apics();
            old.mmio_write(0xf0, 0x1ff);
            old.mmio_write(0x3e0, divide);
            old.mmio_write(0x320, mode | 0x41);
            old.mmio_write(0x380, 1_000_000);
            let due = old.next_timer().unwrap();
            let (_apics, new) = apics();
            // With a nanosecond to go there is still a count.
            for early in [due / 2, 129, 128, 127, 1] {
                new.restore(&old.save(due - early)).unwrap();
                let after = new.next_timer().unwrap();
                assert!(
                    (due..due + divisor).contains(&after),
                    "{early}: {due}, {after}"
                );
                new.tick(due - 1);
                assert!(!new.work());
            }
            new.tick(due + divisor);
            assert_eq!(new.pending(), Some(0x41));
            assert_eq!(new.next_timer().is_some(), periodic);
        }
    }
}

#[test]
fn what_was_due_when_it_was_saved_is_requested() {
    let (_apics, old) = apics();
    old.mmio_write(0xf0, 0x1ff);
    old.mmio_write(0x320, 0x41);
    old.mmio_write(0x380, 1_000_000);
    let state = old.save(old.next_timer().unwrap());
    let (_apics, new) = apics();
    new.restore(&state).unwrap();
    assert_eq!((new.pending(), new.next_timer()), (Some(0x41), None));
}

#[test]
fn a_deadline_is_kept_in_guest_time() {
    const MODE: u32 = 2 << 17;
    let (_apics, old) = apics();
    old.mmio_write(0xf0, 0x1ff);
    old.set_tsc_offset(-700);
    old.mmio_write(0x320, MODE | 0x41);
    old.write_msr(0x6e0, 1 << 40).unwrap();
    let state = old.save(1000);
    let (_apics, new) = apics();
    new.restore(&state).unwrap();
    assert_eq!(new.next_timer(), Some((1 << 40) + 700));
    // A machine whose counter is elsewhere keeps the deadline, not the host's time.
    let moved = ApicState {
        tsc_offset: 300,
        ..state
    };
    new.restore(&moved).unwrap();
    assert_eq!(new.next_timer(), Some((1 << 40) - 300));
}

#[test]
fn a_started_periodic_timer_runs_though_its_count_was_rounded_to_zero() {
    let mut state = blank(XAPIC);
    state.at_ns = 500;
    state.image.set_register(reg::LVT_TIMER, 1 << 17 | 0x41);
    state.image.set_register(reg::INITIAL, 100_000);
    let (_apics, apic) = apics();
    apic.restore(&state).unwrap();
    assert_eq!(apic.next_timer(), Some(500 + 2 * 100_000));
}

#[test]
fn an_interrupt_in_service_ends_after_a_restore_and_the_ioapic_hears_of_it() {
    let (apics, old) = apics();
    old.mmio_write(0xf0, 0x1ff);
    apics.deliver(&Message {
        delivery: Delivery::Fixed,
        vector: 0x61,
        level: true,
        destination: Destination::All,
    });
    assert_eq!(old.acknowledge(), Some(0x61));
    let new = Apics::new(2, Clock::start());
    let heard = Arc::new(AtomicU64::new(0));
    let listener = Arc::clone(&heard);
    new.on_end_of_interrupt(Box::new(move |vector| {
        listener.store(vector.into(), Ordering::Relaxed);
    }));
    new.apic(0).restore(&old.save(0)).unwrap();
    new.apic(0).mmio_write(0xb0, 0);
    assert_eq!(heard.load(Ordering::Relaxed), 0x61);
}
