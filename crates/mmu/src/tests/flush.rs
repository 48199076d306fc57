//! The flush hub.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use umbra_slots::Gfn;

use super::guest::*;
use crate::Flush;

#[test]
fn a_processor_that_is_outside_is_not_waited_for() {
    let mut m = Machine::new(checked());
    let _outside = m.mmu.attach(Box::new(|| {}));
    m.vcpu.flush_writers(Gfn(1)); // returns
}

#[test]
fn a_processor_that_is_inside_is_woken_and_waited_for() {
    let mut m = Machine::new(checked());
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let mut other = m.mmu.attach(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    let dropped = Arc::new(AtomicBool::new(false));
    let seen = dropped.clone();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let running = thread::spawn(move || {
        other.enter();
        ready.send(()).unwrap();
        while !other.pending() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        other.take_flushes(|flush| {
            assert_eq!(flush, Flush::Writers(Gfn(7)));
            seen.store(true, Ordering::Release);
        });
        other.leave();
    });
    is_ready.recv().unwrap();
    m.vcpu.flush_writers(Gfn(7));
    assert!(dropped.load(Ordering::Acquire));
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    running.join().unwrap();
}

#[test]
fn two_processors_that_flush_each_other_both_come_through() {
    let mut m = Machine::new(checked());
    let mut other = m.mmu.attach(Box::new(|| {}));
    let running = thread::spawn(move || {
        other.enter();
        for _ in 0..2000 {
            other.flush_writers(Gfn(1));
            other.take_flushes(|_| {});
        }
        other.leave();
    });
    for _ in 0..2000 {
        m.vcpu.flush_writers(Gfn(2));
        m.vcpu.take_flushes(|_| {});
    }
    m.vcpu.leave();
    running.join().unwrap();
}

/// R24: a processor's own thread changes the map inside a device access and waits.
#[test]
fn r24_processors_that_change_the_map_and_wait_do_not_wait_for_each_other() {
    let mut m = Machine::new(checked());
    let slots: Vec<_> = (0..2u64)
        .map(|i| {
            let at = umbra_slots::Gpa(0x5000_0000 + i * 0x10_0000);
            m.space
                .update("create", |e| {
                    e.add_ram(at, ram(0x1000), 0, 0x1000, Default::default())
                })
                .unwrap()
                .wait()
        })
        .collect();
    let mut other = m.mmu.attach(Box::new(|| {}));
    let space = m.space.clone();
    let toggle = move |slot, i: u64, space: &umbra_slots::AddressSpace| {
        let to = umbra_slots::Gpa(0x6000_0000 + slot_offset(slot) + (i & 1) * 0x10_0000);
        space
            .update("move", |e| e.move_to(slot, to))
            .unwrap()
            .wait();
    };
    let (mine, theirs) = (slots[0], slots[1]);
    let running = thread::spawn(move || {
        other.enter();
        for i in 0..300 {
            toggle(theirs, i, &space);
            other.take_flushes(|_| {});
        }
        other.leave();
    });
    for i in 0..300 {
        toggle(mine, i, &m.space);
        m.vcpu.take_flushes(|_| {});
    }
    m.vcpu.leave();
    running.join().unwrap();
}

fn slot_offset(slot: umbra_slots::SlotId) -> u64 {
    if slot.to_string() == "1" {
        0
    } else {
        0x1000_0000
    }
}

#[test]
fn a_long_queue_becomes_one_flush_of_everything() {
    let mut m = Machine::new(checked());
    for i in 0..100 {
        m.mmu.hub.post(Flush::Writers(Gfn(i)), None);
    }
    assert_eq!(m.flushes(), [Flush::All]);
    assert!(!m.vcpu.pending());
}
