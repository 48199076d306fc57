//! Registers one by one, and the order of things.

use std::sync::atomic::Ordering;

use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::Features;
use crate::echo::{OWN, echo};
use crate::testing::{Driver, RINGS, ROM};

const STATUS: u64 = 0x70;
const QUEUE_READY: u64 = 0x44;

/// Offsets of all registers that can be read, and what they are before anything is written.
const AT_FIRST: [(u64, u32); 13] = [
    (0x00, 0x7472_6976),
    (0x04, 2),
    (0x08, 42),
    (0x0c, 0x5242_4d55),
    (0x10, 1 << 3 | 1 << 28 | 1 << 29),
    (0x34, 8),
    (0x44, 0),
    (0x60, 0),
    (0x70, 0),
    (0xb0, u32::MAX),
    (0xb4, u32::MAX),
    (0xb8, u32::MAX),
    (0xbc, u32::MAX),
];

fn read<const N: usize>(driver: &Driver, offset: u64) -> [u8; N] {
    let mut data = [0xaa; N];
    driver
        .transport
        .mmio_read(MmioAddress(0), offset, &mut data);
    data
}

#[test]
fn at_first_registers_say_what_the_device_is_and_all_others_are_zero() {
    let (driver, _) = echo();
    for offset in 0..0x100 {
        let known = AT_FIRST.iter().find(|(at, _)| *at == offset);
        let expected = known.map_or(0, |(_, value)| *value);
        assert_eq!(driver.read(offset), expected, "{offset:#x}");
    }
}

#[test]
fn other_widths_read_as_zero_and_write_nothing() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    for offset in 0..0x100 {
        assert_eq!(read::<1>(&driver, offset), [0], "{offset:#x}");
        assert_eq!(read::<2>(&driver, offset), [0; 2], "{offset:#x}");
        assert_eq!(read::<8>(&driver, offset), [0; 8], "{offset:#x}");
        for width in [1, 2, 3, 5, 8] {
            let data = &[0; 8][..width];
            driver.transport.mmio_write(MmioAddress(0), offset, data);
        }
    }
    assert_eq!(driver.status(), 15, "it was not reset");
    assert_eq!(driver.read(QUEUE_READY), 1);
}

#[test]
fn writing_where_nothing_is_written_changes_nothing() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    let registers = || (0..0x100).map(|at| driver.read(at)).collect::<Vec<_>>();
    let before = registers();
    let written = [
        0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
    ];
    for offset in (0..0x100).filter(|at| !written.contains(at)) {
        for value in [0, 1, u32::MAX] {
            driver.write(offset, value);
        }
    }
    assert_eq!(registers(), before);
}

#[test]
fn features_are_offered_in_words_of_32() {
    let (driver, _) = echo();
    let own = OWN.with(Features::RINGS);
    for select in [0, 1, 2, 3, 4, 99, u32::MAX] {
        driver.write(0x14, select);
        assert_eq!(driver.read(0x10), own.word(select), "{select}");
    }
}

#[test]
fn features_are_agreed_on_only_if_they_were_offered_and_modern() {
    let version = Features::VERSION_1;
    let table = [
        (version, true),
        (version.with(OWN).with(Features::RINGS), true),
        (Features::NONE, false),
        (OWN, false),
        (version.with(Features::bit(0)), false),
        (version.with(Features::bit(33)), false),
        (version.with(Features::bit(127)), false),
    ];
    for (accepted, good) in table {
        let (driver, knobs) = echo();
        assert_eq!(driver.agree(accepted), good, "{accepted:?}");
        // Refused or not, DRIVER_OK without FEATURES_OK does nothing.
        if !good {
            driver.write(STATUS, 1 | 2 | 4);
            assert_eq!((driver.status(), knobs.count()[0]), (3, 0), "{accepted:?}");
        }
    }
}

#[test]
fn bits_that_do_not_exist_cannot_be_accepted() {
    let (driver, _) = echo();
    driver.write(0x24, 4);
    driver.write(0x20, 0);
    assert!(driver.agree(Features::VERSION_1), "none of them was");
    driver.write(STATUS, 0);
    driver.write(0x24, u32::MAX);
    driver.write(0x20, 1);
    assert!(!driver.agree(Features::VERSION_1));
    driver.write(STATUS, 0);
    assert!(driver.agree(Features::VERSION_1), "a reset forgets it");
}

#[test]
fn features_are_fixed_once_they_are_agreed_on() {
    let (driver, _) = echo();
    assert!(driver.agree(Features::VERSION_1));
    // Were it taken, this would have been refused.
    driver.write(0x24, 0);
    driver.write(0x20, 1);
    driver.write(STATUS, 15);
    assert_eq!(driver.status(), 15);
}

#[test]
fn the_status_follows_the_driver_in_the_right_order_only() {
    // What is written, and what is read then.
    let table: [&[(u32, u32)]; 8] = [
        &[(1, 1), (3, 3), (11, 11), (15, 15), (0, 0)],
        &[(2, 2), (1, 3), (8, 11)],
        &[(4, 0), (12, 12), (0, 0), (4, 0)],
        // Bits are not taken back, and only a driver's are set.
        &[(11, 11), (1, 11), (0x70, 11), (0x100, 11), (!0, 0x8f)],
        &[(0x80, 0x80), (15, 0x8f)],
        &[(15, 15), (15, 15), (4, 15), (0, 0), (15, 7 & 3)],
        &[(0x40, 0), (0xffff_ff00, 0), (0xffff_ff80, 0x80)],
        &[(0, 0), (0, 0)],
    ];
    for steps in table {
        let (driver, _) = echo();
        // VERSION_1, so that features are agreed on until a reset.
        driver.write(0x24, 1);
        driver.write(0x20, 1);
        for (written, expected) in steps {
            driver.write(STATUS, *written);
            assert_eq!(driver.status(), *expected, "{written:#x} in {steps:?}");
        }
    }
}

#[test]
fn a_queue_is_set_up_until_it_is_ready() {
    let (driver, _) = echo();
    driver.write(0x30, 1);
    assert_eq!((driver.read(0x34), driver.read(QUEUE_READY)), (64, 0));
    driver.write(QUEUE_READY, 2);
    assert_eq!(driver.read(QUEUE_READY), 0, "neither 0 nor 1");
    driver.write(QUEUE_READY, 1);
    assert_eq!(driver.read(QUEUE_READY), 1);
    driver.write(0x30, 0);
    assert_eq!(driver.read(QUEUE_READY), 0, "another queue");
    driver.write(0x30, 1);
    driver.write(QUEUE_READY, 0);
    assert_eq!(driver.read(QUEUE_READY), 0, "taken back");
}

#[test]
fn queues_that_do_not_exist_are_empty() {
    let (driver, _) = echo();
    for queue in [2, 3, 0xffff, 0x1_0000, u32::MAX] {
        driver.set_up_at(queue, 8, RINGS);
        assert_eq!(
            (driver.read(0x34), driver.read(QUEUE_READY)),
            (0, 0),
            "{queue}"
        );
        driver.write(QUEUE_READY, 0);
        driver.write(0x50, queue);
    }
}

#[test]
fn a_ready_queue_keeps_its_size_and_addresses() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    // Were one of these taken, nothing would come back.
    driver.set_up_at(0, 3, [ROM; 3]);
    driver.describe(0, (0x100, 4, 1, 1));
    driver.describe(1, (0x200, 4, 2, 0));
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
}

#[test]
fn addresses_are_of_64_bits() {
    let (driver, _) = echo();
    assert!(driver.agree(Features::VERSION_1));
    driver.set_up_at(0, 8, RINGS.map(|at| at | 1 << 40));
    driver.write(STATUS, 15);
    assert!(driver.needs_reset(), "there is no RAM");
}

#[test]
fn a_reset_makes_everything_as_it_was() {
    let (mut driver, knobs) = echo();
    let registers = |driver: &Driver| (0..0x100).map(|at| driver.read(at)).collect::<Vec<_>>();
    let before = registers(&driver);
    driver.start(OWN);
    driver.write(0x14, 1);
    driver.write(0x30, 1);
    driver.describe(0, (0, 0, 0, 0));
    driver.offer(0);
    driver.wait(|d| d.line.is_high());
    driver.write(STATUS, 0);
    assert_eq!(registers(&driver), before);
    assert!(!driver.line.is_high());
    // The first one was at the beginning of `start`.
    assert_eq!(knobs.count(), [1, 1, 2]);
    driver.write(0x30, 1);
    assert_eq!(driver.read(QUEUE_READY), 0);
}

#[test]
fn the_configuration_takes_any_width_and_ends() {
    let (driver, knobs) = echo();
    assert_eq!(&read::<4>(&driver, 0x100), b"conf");
    assert_eq!(&read::<1>(&driver, 0x105), b"g");
    assert_eq!(&read::<8>(&driver, 0x101), b"onfig\0\0\0");
    assert_eq!(read::<2>(&driver, 0x106), [0; 2]);
    assert_eq!(read::<4>(&driver, u64::MAX), [0; 4]);
    let write = |offset, data: &[u8]| {
        driver.transport.mmio_write(MmioAddress(0), offset, data);
    };
    write(0x104, b"XYZ");
    write(0x200, b"beyond");
    write(u64::MAX, b"far");
    assert_eq!(&read::<8>(&driver, 0x100), b"confXY\0\0");
    assert_eq!(driver.read(0xfc), 0);
    knobs.generation.store(7, Ordering::SeqCst);
    assert_eq!(driver.read(0xfc), 7);
}
