//! Drivers that break the rules of rings: nothing but their own device suffers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use umbra_slots::Gpa;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::Features;
use crate::echo::echo;
use crate::testing::{Driver, INDIRECT, NEXT, RAM, RINGS, ROM, WRITE};

const FROM: u64 = 0x2000;
const TO: u64 = 0x3000;

/// The device asks for a reset, says so, and works again after it.
fn needs_reset_and_recovers(driver: &mut Driver, what: &str) {
    driver.wait(Driver::needs_reset);
    driver.wait(|d| d.line.is_high());
    assert_eq!(driver.read(0x60) & 2, 2, "{what}");
    assert_eq!(driver.status(), 15 | 64, "{what}");
    // Whatever the driver does but a reset, nothing happens.
    for status in [15, 1, 64] {
        driver.write(0x50, 0);
        driver.write(0x70, status);
    }
    assert_eq!(driver.status(), 15 | 64, "{what}");
    driver.start(Features::NONE);
    assert!(!driver.line.is_high(), "{what}");
    driver.describe(0, (FROM, 4, NEXT, 1));
    driver.describe(1, (TO, 4, WRITE, 0));
    driver.memory.put(FROM, b"good");
    driver.memory.put(TO, &[0; 4]);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(&driver.memory.get(TO), b"good", "{what}");
}

#[test]
fn queues_that_do_not_fit_into_memory_need_a_reset() {
    let [table, available, used] = RINGS;
    let cases = [
        ("no descriptors", 0, RINGS),
        ("no power of two", 3, RINGS),
        ("larger than the largest", 16, RINGS),
        ("only the low 16 bits fit", 0x1_0008, RINGS),
        ("the largest number", u32::MAX, RINGS),
        ("table in a hole", 8, [RAM, available, used]),
        ("table half in a hole", 8, [RAM - 0x40, available, used]),
        ("available ring in a hole", 8, [table, RAM + 0x1000, used]),
        ("used ring in a hole", 8, [table, available, RAM + 0x1000]),
        ("used ring in read-only memory", 8, [table, available, ROM]),
        ("table not aligned", 8, [table + 8, available, used]),
        (
            "available ring not aligned",
            8,
            [table, available + 1, used],
        ),
        ("used ring not aligned", 8, [table, available, used + 2]),
        ("table at the end of addresses", 8, [!0xf, available, used]),
        ("available at the end of addresses", 8, [table, !1, used]),
        (
            "used ring at the end of addresses",
            8,
            [table, available, !3],
        ),
    ];
    for (what, size, rings) in cases {
        let (mut driver, knobs) = echo();
        assert!(driver.agree(Features::VERSION_1));
        driver.set_up_at(0, size, rings);
        assert_eq!(driver.read(0x44), 1, "the last value written, {what}");
        driver.write(0x70, 15);
        assert_eq!(knobs.count()[0], 0, "{what}");
        needs_reset_and_recovers(&mut driver, what);
    }
}

/// Place, address, length, flags, next of a descriptor.
type Descriptor = (u64, (u64, u32, u16, u16));

const fn at(index: u64) -> u64 {
    RINGS[0] + 16 * index
}

#[test]
fn broken_chains_need_a_reset() {
    const BOTH: u16 = NEXT | WRITE;
    let cases: [(&str, &[Descriptor]); 16] = [
        ("a loop of one", &[(at(0), (FROM, 4, NEXT, 0))]),
        (
            "a loop of two",
            &[(at(0), (FROM, 4, BOTH, 1)), (at(1), (FROM, 4, BOTH, 0))],
        ),
        (
            "a next descriptor that does not exist",
            &[(at(0), (FROM, 4, NEXT, 8))],
        ),
        ("one far away", &[(at(0), (FROM, 4, NEXT, 0xffff))]),
        (
            "readable after writable",
            &[(at(0), (TO, 4, BOTH, 1)), (at(1), (FROM, 4, 0, 0))],
        ),
        ("nothing to write to", &[(at(0), (FROM, 4, 0, 0))]),
        (
            "too little to write to",
            &[(at(0), (FROM, 4, NEXT, 1)), (at(1), (TO, 3, WRITE, 0))],
        ),
        ("read from a hole", &[(at(0), (RAM, 4, 0, 0))]),
        ("read beyond memory", &[(at(0), (RAM - 2, 4, 0, 0))]),
        (
            "write to a hole",
            &[(at(0), (FROM, 4, NEXT, 1)), (at(1), (RAM, 4, WRITE, 0))],
        ),
        (
            "write to read-only memory",
            &[(at(0), (FROM, 4, NEXT, 1)), (at(1), (ROM, 4, WRITE, 0))],
        ),
        ("an address that wraps", &[(at(0), (u64::MAX, 4, 0, 0))]),
        (
            "lengths that overflow",
            &[
                (at(0), (FROM, u32::MAX, NEXT, 1)),
                (at(1), (FROM, u32::MAX, 0, 0)),
            ],
        ),
        (
            "an indirect table in a hole",
            &[(at(0), (RAM, 16, INDIRECT, 0))],
        ),
        (
            "half an indirect descriptor",
            &[(at(0), (0x5000, 24, INDIRECT, 0))],
        ),
        (
            "indirect in indirect",
            &[
                (at(0), (0x5000, 16, INDIRECT, 0)),
                (0x5000, (0x6000, 16, INDIRECT, 0)),
                (0x6000, (FROM, 0, 0, 0)),
            ],
        ),
    ];
    for (what, descriptors) in cases {
        let (mut driver, _) = echo();
        driver.start(Features::INDIRECT_DESC);
        for (place, descriptor) in descriptors {
            driver.describe_at(*place, *descriptor);
        }
        driver.offer(0);
        needs_reset_and_recovers(&mut driver, what);
    }
}

#[test]
fn an_indirect_chain_is_no_longer_than_the_queue() {
    let (mut driver, _) = echo();
    driver.start(Features::INDIRECT_DESC);
    let table = |driver: &Driver, len: u16| {
        driver.describe(0, (0x5000, 16 * u32::from(len), INDIRECT, 0));
        for index in 0..len {
            let flags = if index + 1 == len { 0 } else { NEXT };
            let place = 0x5000 + 16 * u64::from(index);
            driver.describe_at(place, (FROM, 0, flags, index + 1));
        }
    };
    table(&driver, 8);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    table(&driver, 9);
    driver.offer(0);
    needs_reset_and_recovers(&mut driver, "nine descriptors");
}

#[test]
fn a_head_that_does_not_exist_needs_a_reset() {
    for head in [8, 9, 0x8000, 0xffff] {
        let (mut driver, _) = echo();
        driver.start(Features::NONE);
        driver.offer(head);
        needs_reset_and_recovers(&mut driver, "a head");
    }
}

#[test]
fn an_index_that_is_too_far_ahead_needs_a_reset() {
    for index in [9u16, 0x8000, 0xffff] {
        let (mut driver, _) = echo();
        driver.start(Features::EVENT_IDX);
        driver.memory.put(RINGS[1] + 2, &index.to_le_bytes());
        driver.write(0x50, 0);
        needs_reset_and_recovers(&mut driver, "an index");
    }
}

#[test]
fn rings_whose_memory_is_taken_away_need_a_reset() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    let space = driver.memory.space.clone();
    let slot = space.load().slot_at(Gpa(0)).unwrap().id();
    let update = space.update("ram shrinks", |map| map.resize(slot, RINGS[1] & !0xfff));
    update.unwrap().wait();
    driver.write(0x50, 0);
    driver.wait(Driver::needs_reset);
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn a_driver_that_never_stops_offering_holds_nobody_up() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    driver.describe(0, (FROM, 0, 0, 0));
    driver.describe(1, (FROM, 0, 0, 0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (memory, transport) = (driver.memory.clone(), driver.transport.clone());
        let stop = &stop;
        scope.spawn(move || {
            let begin = Instant::now();
            while !stop.load(Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(20) {
                // As many as the queue holds are always available.
                let used = memory.get_u16(RINGS[2] + 2);
                memory.put(RINGS[1] + 2, &used.wrapping_add(8).to_le_bytes());
                transport.mmio_write(MmioAddress(0), 0x50, &[0; 4]);
            }
        });
        driver.wait(|d| d.used_in(0) > 1000);
        driver.write(0x70, 0);
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(driver.status(), 0);
}
