//! A driver of the entropy device.

use std::sync::atomic::{AtomicU32, Ordering};

use umbra_virtio::testing::{Driver, NEXT, RAM, ROM, WRITE};

use super::*;

const BUFFER: u64 = 0x2_0000;

fn driver(device: Rng) -> Driver {
    Driver::new(Box::new(device), 8)
}

/// A source that counts: 1, 2, 3, …
fn counting() -> Source {
    let next = AtomicU32::new(0);
    Arc::new(move |to| {
        for byte in &mut *to {
            *byte = (next.fetch_add(1, Ordering::Relaxed) + 1) as u8;
        }
        Ok(to.len())
    })
}

#[test]
fn it_is_an_entropy_device_with_one_queue_and_no_configuration() {
    let driver = driver(Rng::default());
    assert_eq!((driver.read(0x08), driver.read(0x34)), (4, 64));
    assert_eq!(driver.read(0x100), 0);
    driver.write(0x30, 1);
    assert_eq!(driver.read(0x34), 0);
}

#[test]
fn the_host_fills_a_request_and_nothing_beside_it() {
    let mut driver = driver(Rng::new());
    driver.start(Features::RINGS);
    driver.memory.put(BUFFER, &[0; 64]);
    driver.describe(0, (BUFFER + 8, 16, NEXT | WRITE, 1));
    driver.describe(1, (BUFFER + 32, 16, WRITE, 0));
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1 && d.line.is_high());
    assert_eq!(driver.used(0), (0, 32));
    let bytes: [u8; 64] = driver.memory.get(BUFFER);
    for (range, filled) in [
        (0..8, false),
        (8..24, true),
        (24..32, false),
        (32..48, true),
        (48..64, false),
    ] {
        // All zeros by chance once in 2^128.
        let any = bytes[range.clone()].iter().any(|byte| *byte != 0);
        assert_eq!(any, filled, "{range:?}");
    }
}

#[test]
fn bytes_are_given_in_order_and_once() {
    let mut driver = driver(Rng::with_source(counting()));
    driver.start(Features::NONE);
    driver.describe(0, (BUFFER, 3, NEXT | WRITE, 1));
    driver.describe(1, (BUFFER + 0x100, 2, WRITE, 0));
    for (round, expected) in [(1, [1, 2, 3]), (2, [6, 7, 8])] {
        driver.offer(0);
        driver.wait(|d| d.used_in(0) == round);
        assert_eq!(driver.memory.get(BUFFER), expected);
    }
    assert_eq!(driver.memory.get(BUFFER + 0x100), [9, 10, 0]);
}

#[test]
fn a_request_gets_64_kib_at_most() {
    let mut driver = driver(Rng::with_source(counting()));
    driver.start(Features::NONE);
    driver.memory.put(0x5_0000, &[0xaa]);
    driver.describe(0, (0x4_0000, 0x2_0000, WRITE, 0));
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(driver.used(0), (0, 0x1_0000));
    assert_eq!(driver.memory.get(0x4_fffe), [0xff, 0, 0xaa], "the end");
}

#[test]
fn a_request_without_room_comes_back_empty() {
    let mut driver = driver(Rng::with_source(counting()));
    driver.start(Features::NONE);
    driver.memory.put(BUFFER, &[0xaa; 4]);
    for (round, flags, len) in [(1, 0, 4), (2, WRITE, 0)] {
        driver.describe(0, (BUFFER, len, flags, 0));
        driver.offer(0);
        driver.wait(|d| d.used_in(0) == round);
        assert_eq!(driver.used(round - 1), (0, 0));
    }
    assert_eq!(driver.memory.get(BUFFER), [0xaa; 4]);
    assert!(!driver.needs_reset());
}

#[test]
fn buffers_to_read_are_skipped() {
    let mut driver = driver(Rng::with_source(counting()));
    driver.start(Features::NONE);
    driver.memory.put(BUFFER, &[0xaa; 4]);
    driver.describe(0, (BUFFER, 4, NEXT, 1));
    driver.describe(1, (BUFFER + 8, 4, WRITE, 0));
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(driver.used(0), (0, 4));
    assert_eq!(driver.memory.get(BUFFER), [0xaa; 4]);
    assert_eq!(driver.memory.get(BUFFER + 8), [1, 2, 3, 4]);
}

#[test]
fn a_buffer_out_of_reach_needs_a_reset_and_nothing_is_written() {
    for (at, len) in [
        (RAM, 4),
        (RAM - 4, 8),
        (ROM, 4),
        (u64::MAX - 2, 8),
        (0, u32::MAX),
    ] {
        let mut driver = driver(Rng::with_source(counting()));
        driver.start(Features::NONE);
        driver.memory.put(BUFFER, &[0xaa; 4]);
        driver.describe(0, (BUFFER, 4, NEXT | WRITE, 1));
        driver.describe(1, (at, len, WRITE, 0));
        driver.offer(0);
        driver.wait(Driver::needs_reset);
        assert_eq!(driver.used_in(0), 0, "{at:#x}");
        assert_eq!(driver.memory.get(BUFFER), [0xaa; 4], "{at:#x}");
    }
}

#[test]
fn a_request_waits_for_a_source_that_has_nothing_yet() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let source = move |to: &mut [u8]| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        1 => Err(io::ErrorKind::Interrupted.into()),
        _ => {
            to[0] = 7;
            Ok(1)
        }
    };
    let mut driver = driver(Rng::with_source(Arc::new(source)));
    driver.start(Features::EVENT_IDX);
    driver.describe(0, (BUFFER, 2, WRITE, 0));
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(driver.memory.get(BUFFER), [7, 7]);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[test]
fn a_source_that_has_nothing_for_ever_does_not_keep_the_device_from_a_reset() {
    let nothing = |_: &mut [u8]| Err(io::ErrorKind::WouldBlock.into());
    let mut driver = driver(Rng::with_source(Arc::new(nothing)));
    driver.start(Features::NONE);
    driver.describe(0, (BUFFER, 2, WRITE, 0));
    driver.offer(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    driver.write(0x70, 0);
    assert_eq!((driver.status(), driver.used_in(0)), (0, 0));
}

#[test]
fn a_source_that_runs_dry_gives_what_it_had() {
    let once = AtomicU32::new(0);
    let source = move |to: &mut [u8]| match once.fetch_add(1, Ordering::SeqCst) {
        0 => {
            to[..2].fill(9);
            Ok(2)
        }
        // More than was asked for is not believed.
        1 => Ok(usize::MAX),
        _ => Ok(0),
    };
    let mut driver = driver(Rng::with_source(Arc::new(source)));
    driver.start(Features::NONE);
    driver.describe(0, (BUFFER, 0x1800, WRITE, 0));
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(driver.used(0), (0, 0x1002));
}

#[test]
fn a_source_that_fails_needs_a_reset() {
    let fails = |_: &mut [u8]| Err(io::ErrorKind::PermissionDenied.into());
    let mut driver = driver(Rng::with_source(Arc::new(fails)));
    driver.start(Features::NONE);
    driver.describe(0, (BUFFER, 2, WRITE, 0));
    driver.offer(0);
    driver.wait(|d| d.needs_reset() && d.line.is_high());
}

#[test]
fn a_limit_delays_what_is_asked_for_and_loses_nothing() {
    let bucket = |size| {
        Some(crate::virtio::Bucket {
            size,
            one_time_burst: 0,
            refill_time: std::time::Duration::from_millis(200),
        })
    };
    let table = [(bucket(8), None), (None, bucket(1))];
    for (bandwidth, operations) in table {
        let limits = Limits {
            bandwidth,
            operations,
        };
        let mut driver = driver(Rng::with_source(counting()).limited(limits));
        driver.start(Features::NONE);
        driver.describe(0, (BUFFER, 8, WRITE, 0));
        let begin = Instant::now();
        for (round, first) in [(1, 1), (2, 9)] {
            driver.offer(0);
            driver.wait(|d| d.used_in(0) == round);
            assert_eq!(driver.memory.get::<1>(BUFFER), [first], "{limits:?}");
        }
        let took = begin.elapsed();
        assert!(took >= std::time::Duration::from_millis(190), "{took:?}");
    }
}
