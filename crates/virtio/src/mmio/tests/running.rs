//! A device at work: buffers, interrupts, doorbells, resets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use umbra_slots::IoId;

use crate::echo::echo;
use crate::testing::{Bells, Driver, INDIRECT, NEXT, RINGS, WRITE};
use crate::{Features, Transport};

const FROM: u64 = 0x2000;
const TO: u64 = 0x3000;

/// A chain at descriptor 0 that has `len` bytes copied from FROM to TO.
fn copy(driver: &Driver, len: u32) {
    driver.describe(0, (FROM, len, NEXT, 1));
    driver.describe(1, (TO, len, WRITE, 0));
}

#[test]
fn buffers_are_used_and_the_driver_is_interrupted() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    driver.memory.put(FROM, b"hello, device");
    copy(&driver, 13);
    let reports = driver.memory.reports();
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1 && d.line.is_high());
    assert_eq!(driver.used(0), (0, 13));
    assert_eq!(&driver.memory.get(TO), b"hello, device");
    assert!(
        driver.memory.reports() >= reports + 3,
        "data, element, index"
    );
    assert_eq!(driver.read(0x60), 1);
    driver.write(0x64, 2);
    assert!(driver.line.is_high(), "another reason was acknowledged");
    driver.write(0x64, 1);
    assert!(driver.read(0x60) == 0 && !driver.line.is_high());
    assert_eq!(driver.status(), 15);
}

#[test]
fn many_rounds_come_back_in_order() {
    let (mut driver, _) = echo();
    driver.start(Features::EVENT_IDX);
    for round in 0..100u16 {
        driver.memory.put(FROM, &round.to_le_bytes());
        copy(&driver, 2);
        driver.offer(0);
        driver.wait(|d| d.used_in(0) == round + 1);
        assert_eq!(driver.memory.get_u16(TO), round);
        assert_eq!(driver.used(round), (0, 2));
    }
}

#[test]
fn the_second_queue_works_beside_the_first() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    let table = RINGS[0] + 0x1_0000;
    driver.describe_at(table, (FROM, 1, NEXT, 1));
    driver.describe_at(table + 16, (TO, 1, WRITE, 0));
    driver.memory.put(FROM, b"x");
    driver.offer_in(1, 0);
    driver.write(0x50, 0);
    driver.write(0x50, 1);
    driver.wait(|d| d.used_in(1) == 1);
    assert_eq!((driver.used_in(0), &driver.memory.get(TO)), (0, b"x"));
}

#[test]
fn what_was_available_before_the_device_began_is_used() {
    let (mut driver, _) = echo();
    assert!(driver.agree(Features::VERSION_1));
    driver.set_up(0);
    copy(&driver, 4);
    driver.offer_in(0, 0);
    driver.write(0x70, 15);
    driver.wait(|d| d.used_in(0) == 1);
}

#[test]
fn a_driver_that_does_not_want_interrupts_gets_none() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    driver.memory.put(RINGS[1], &1u16.to_le_bytes());
    copy(&driver, 4);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    driver.memory.put(RINGS[1], &0u16.to_le_bytes());
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 2 && d.line.is_high());
}

#[test]
fn with_event_idx_the_driver_is_interrupted_at_the_index_that_it_names() {
    let (mut driver, _) = echo();
    driver.start(Features::EVENT_IDX);
    let used_event = RINGS[1] + 4 + 2 * 8;
    driver.memory.put(used_event, &2u16.to_le_bytes());
    copy(&driver, 4);
    for done in 1..=3 {
        driver.offer(0);
        driver.wait(|d| d.used_in(0) == done);
        if done < 3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!driver.line.is_high(), "{done}");
        }
    }
    driver.wait(|d| d.line.is_high());
}

#[test]
fn descriptors_may_be_in_a_table_of_their_own() {
    let (mut driver, _) = echo();
    driver.start(Features::INDIRECT_DESC);
    driver.memory.put(FROM, b"abcd");
    driver.describe(3, (0x5000, 48, INDIRECT, 0));
    driver.describe_at(0x5000, (FROM, 2, NEXT, 1));
    driver.describe_at(0x5010, (FROM + 2, 2, NEXT, 2));
    driver.describe_at(0x5020, (TO, 8, WRITE, 0));
    driver.offer(3);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!((driver.used(0), &driver.memory.get(TO)), ((3, 4), b"abcd"));
}

#[test]
fn notifications_before_the_driver_is_ready_do_nothing() {
    let (mut driver, knobs) = echo();
    driver.set_up(0);
    copy(&driver, 4);
    for status in [0, 1, 3] {
        driver.write(0x70, status);
        driver.write(0x50, 0);
    }
    driver.offer(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!((driver.used_in(0), knobs.count()[0]), (0, 0));
}

#[test]
fn notifications_of_queues_that_do_not_exist_do_nothing() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    for queue in [2, 7, 0xffff, 0x1_0000, u32::MAX] {
        driver.write(0x50, queue);
    }
    copy(&driver, 4);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
}

#[test]
fn a_reset_in_the_middle_of_work_is_complete_when_it_returns() {
    let (mut driver, knobs) = echo();
    driver.start(Features::NONE);
    knobs.delay_ms.store(50, Ordering::SeqCst);
    driver.memory.put(FROM, b"late");
    copy(&driver, 4);
    driver.offer(0);
    driver.wait(|_| knobs.busy.load(Ordering::SeqCst));
    driver.write(0x70, 0);
    // What it does from now on would be seen.
    driver.memory.put(TO, &[0; 4]);
    driver.memory.put(RINGS[2], &[0; 4]);
    let reports = driver.memory.reports();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!((driver.memory.get_u32(TO), driver.used_in(0)), (0, 0));
    assert_eq!(driver.memory.reports(), reports);
    assert!(!driver.line.is_high() && driver.read(0x60) == 0);
    assert_eq!(knobs.count()[1], 1);
    // It can be used again.
    knobs.delay_ms.store(0, Ordering::SeqCst);
    driver.start(Features::NONE);
    copy(&driver, 4);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(&driver.memory.get(TO), b"late");
}

#[test]
fn a_queue_that_is_taken_back_is_touched_no_more_and_others_go_on() {
    let (mut driver, knobs) = echo();
    driver.start(Features::NONE);
    driver.write(0x30, 0);
    driver.write(0x44, 0);
    assert_eq!((driver.read(0x44), knobs.count()), (0, [2, 1, 1]));
    copy(&driver, 4);
    driver.offer(0);
    let table = RINGS[0] + 0x1_0000;
    driver.describe_at(table, (0, 0, 0, 0));
    driver.offer_in(1, 0);
    driver.write(0x50, 1);
    driver.wait(|d| d.used_in(1) == 1);
    assert_eq!(driver.used_in(0), 0);
    driver.write(0x44, 1);
    assert_eq!(driver.read(0x44), 0, "it does not come back but by a reset");
    assert_eq!(driver.status(), 15);
}

#[test]
fn doorbells_are_there_while_the_device_works() {
    let (mut driver, _) = echo();
    let bells = Arc::new(Bells::default());
    driver.transport.attach(IoId(9), bells.clone());
    assert_eq!(bells.hung(), []);
    driver.start(Features::NONE);
    assert_eq!(bells.hung(), [(9, 0), (9, 1)]);
    copy(&driver, 4);
    driver.offer_in(0, 0);
    bells.ring(9, 0);
    driver.wait(|d| d.used_in(0) == 1);
    // The register still works.
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 2);
    driver.write(0x30, 1);
    driver.write(0x44, 0);
    assert_eq!(bells.hung(), [(9, 0)]);
    driver.write(0x70, 0);
    assert_eq!(bells.hung(), []);
}

#[test]
fn doorbells_of_a_device_that_works_already_come_at_once_and_go_with_it() {
    let (mut driver, knobs) = echo();
    let bells = Arc::new(Bells::default());
    driver.start(Features::NONE);
    driver.transport.attach(IoId(1), bells.clone());
    assert_eq!(bells.hung(), [(1, 0), (1, 1)]);
    driver.transport.attach(IoId(2), bells.clone());
    assert_eq!(bells.hung(), [(2, 0), (2, 1)], "another window");
    driver.transport.shut_down();
    assert_eq!((bells.hung(), knobs.count()[1]), (vec![], 1));
    driver.transport.attach(IoId(3), bells.clone());
    driver.start(Features::NONE);
    assert_eq!(bells.hung(), [(3, 0), (3, 1)]);
    drop(driver);
    assert_eq!((bells.hung(), knobs.count()[1]), (vec![], 2));
}

#[test]
fn a_device_that_the_host_refuses_asks_for_a_reset() {
    let (mut driver, knobs) = echo();
    let bells = Arc::new(Bells::default());
    driver.transport.attach(IoId(1), bells.clone());
    knobs.refuses.store(true, Ordering::SeqCst);
    assert!(driver.agree(Features::VERSION_1));
    driver.set_up(0);
    driver.write(0x70, 15);
    assert_eq!((driver.status(), driver.read(0x60)), (15 | 64, 2));
    assert!(driver.line.is_high());
    driver.write(0x50, 0);
    assert_eq!(bells.hung(), []);
    driver.write(0x70, 0);
    assert_eq!((driver.status(), driver.line.is_high()), (0, false));
    assert_eq!(knobs.count()[1], 0, "it was never active");
    knobs.refuses.store(false, Ordering::SeqCst);
    driver.start(Features::NONE);
}

#[test]
fn a_worker_that_panics_asks_for_a_reset_and_can_be_reset() {
    let (mut driver, knobs) = echo();
    driver.start(Features::NONE);
    knobs.panics.store(true, Ordering::SeqCst);
    copy(&driver, 4);
    driver.offer(0);
    // The status says it a moment before the interrupt does.
    driver.wait(|d| d.needs_reset() && d.line.is_high());
    driver.write(0x70, 0);
    knobs.panics.store(false, Ordering::SeqCst);
    driver.start(Features::NONE);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == 1);
}

#[test]
fn a_device_that_is_paused_stands_still_and_then_goes_on() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    for round in 0..20u16 {
        driver.memory.put(FROM, &round.to_le_bytes());
        copy(&driver, 2);
        driver.transport.pause();
        driver.offer(0);
        assert_eq!(driver.used_in(0), round);
        driver.transport.resume();
        driver.wait(|d| d.used_in(0) == round + 1);
        assert_eq!(driver.memory.get_u16(TO), round);
    }
    driver.transport.resume();
    assert_eq!(driver.status(), 15, "it went on already");
    assert!(driver.transport.is_active());
    driver.write(0x70, 0);
    assert!(!driver.transport.is_active());
}

#[test]
fn a_device_that_needs_a_reset_does_not_go_on_by_a_pause() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    driver.describe(0, (FROM, 4, NEXT, 0));
    driver.offer(0);
    driver.wait(Driver::needs_reset);
    driver.transport.pause();
    driver.transport.resume();
    copy(&driver, 4);
    driver.offer(0);
    driver.transport.pause();
    assert_eq!(driver.used_in(0), 0);
    assert!(driver.needs_reset());
}

#[test]
fn a_reset_during_a_pause_is_one() {
    let (mut driver, _) = echo();
    driver.start(Features::NONE);
    driver.transport.pause();
    driver.write(0x70, 0);
    driver.transport.resume();
    assert_eq!(driver.status(), 0);
    copy(&driver, 4);
    driver.offer(0);
    driver.transport.pause();
    assert_eq!(driver.used_in(0), 0);
}
