//! Several processors and an updater at once, on a tag of two bits (R15, R16, R19, R40).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use umbra_slots::{Flags, Gpa, Target};
use umbra_x86::{Gva, pte};

use super::guest::*;
use crate::{Config, Kind, Unsync};

const AT: u64 = 0x4000_0000;

/// Four pages that alternate between RAM and nothing while two processors read them. MMIO must be
/// right for some map between question and answer; RAM that left may be seen until the change was
/// waited for.
fn alternate(unsync: Unsync) {
    let config = Config {
        tag_bits: 2,
        unsync,
        last_mmio: true,
        ..checked()
    };
    let mut m = Machine::new(config);
    for page in 0..4 {
        m.map(AT + (page << 12), HOLE.0 + (page << 12), PWU);
    }
    let stop = Arc::new(AtomicBool::new(false));
    // Even: no RAM, and everybody knows. Odd: there may be.
    let states: Arc<[AtomicU64; 4]> = Arc::default();
    let mut processors = Vec::new();
    for id in 0..2u64 {
        let mut vcpu = m.mmu.attach(Box::new(|| {}));
        vcpu.set_regs(&m.regs);
        let (space, stop, states) = (m.space.clone(), stop.clone(), states.clone());
        processors.push(thread::spawn(move || {
            let mut seen = [0u64; 2];
            let mut i = id;
            vcpu.enter();
            while !stop.load(Ordering::Relaxed) {
                i += 1;
                vcpu.take_flushes(|_| {});
                let gva = Gva(AT + ((i % 4) << 12));
                let state = states[i as usize % 4].load(Ordering::SeqCst);
                let before = space.generation();
                let found = vcpu
                    .translate(gva, if i % 3 == 0 { WRITE } else { READ })
                    .unwrap();
                let after = space.generation();
                let quiet = before == after;
                let is_ram = matches!(space.load().resolve(found.gpa), Target::Ram(_));
                match found.kind {
                    Kind::Ram(_) => {
                        seen[0] += 1;
                        let now = states[i as usize % 4].load(Ordering::SeqCst);
                        assert!(state != now || state % 2 == 1, "RAM that left long ago");
                    }
                    Kind::Mmio { generation } => {
                        seen[1] += 1;
                        assert!(before <= generation && generation <= after);
                        assert!(!quiet || !is_ram || space.generation() != after);
                    }
                    other => panic!("{other:?}"),
                }
            }
            vcpu.leave();
            seen
        }));
    }
    m.vcpu.leave();
    for round in 0..400u64 {
        let at = Gpa(HOLE.0 + ((round % 4) << 12));
        let region = ram(0x1000);
        let state = &states[round as usize % 4];
        state.fetch_add(1, Ordering::SeqCst);
        let slot = m
            .space
            .update("create", |e| {
                e.add_ram(at, region, 0, 0x1000, Flags::default())
            })
            .unwrap()
            .wait();
        m.publish(round % 3);
        m.space.update("delete", |e| e.remove(slot)).unwrap().wait();
        state.fetch_add(1, Ordering::SeqCst);
        if round % 16 == 0 {
            m.audit();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<_> = processors.into_iter().map(|p| p.join().unwrap()).collect();
    assert!(seen.iter().all(|s| s[1] > 0), "{seen:?}");
    m.audit();
}

#[test]
fn r15_processors_never_take_ram_for_mmio_while_slots_come_and_go() {
    alternate(Unsync::Never);
}

#[test]
fn r15_the_same_with_unsync_tables() {
    alternate(Unsync::After(1));
}

/// R16: wraps as fast as they can be published end, while processors fault at full rate.
#[test]
fn r16_ten_thousand_wraps_end_while_processors_fault() {
    let mut m = Machine::new(Config {
        tag_bits: 2,
        ..Config::default()
    });
    m.map(AT, HOLE.0, PWU);
    m.vcpu.leave();
    let stop = Arc::new(AtomicBool::new(false));
    let mut vcpu = m.mmu.attach(Box::new(|| {}));
    vcpu.set_regs(&m.regs);
    let done = stop.clone();
    let running = thread::spawn(move || {
        vcpu.enter();
        while !done.load(Ordering::Relaxed) {
            vcpu.take_flushes(|_| {});
            let found = vcpu.translate(Gva(AT), READ).unwrap();
            assert_eq!(found.gpa, HOLE);
        }
        vcpu.leave();
    });
    m.publish(40_000);
    stop.store(true, Ordering::Relaxed);
    running.join().unwrap();
    assert_eq!(m.statistic("wraps"), 10_000);
    m.audit();
}

/// Two processors edit and use the tables of one address space; each flushes its own edits, and
/// the oracle looks at every answer.
#[test]
fn r40_two_processors_that_edit_one_address_space_get_right_answers() {
    for unsync in [Unsync::Never, Unsync::After(2)] {
        let mut m = Machine::new(Config {
            unsync,
            ..checked()
        });
        let entries: Vec<u64> = (0..8)
            .map(|i| m.map(AT + (i << 12), 0x60_0000 + (i << 12), PWU))
            .collect();
        let mut processors = Vec::new();
        for id in 0..2u64 {
            let mut vcpu = m.mmu.attach(Box::new(|| {}));
            vcpu.set_regs(&m.regs);
            let (space, entries) = (m.space.clone(), entries.clone());
            processors.push(thread::spawn(move || {
                vcpu.enter();
                for round in 0..3000u64 {
                    vcpu.take_flushes(|_| {});
                    // Each processor has four pages of its own.
                    let page = id * 4 + round % 4;
                    let to = 0x70_0000 + ((round % 64) << 12);
                    let (entry, gva) = (Gpa(entries[page as usize]), Gva(AT + (page << 12)));
                    vcpu.tracked(entry, 8, |_| {
                        let raw: u64 = to | PWU | if round % 2 == 0 { 0 } else { pte::A };
                        space.load().write(entry, &raw.to_le_bytes()).unwrap();
                    })
                    .unwrap();
                    vcpu.guest_flush(crate::Scope::Page(gva));
                    let found = vcpu.translate(gva, if round % 3 == 0 { WRITE } else { READ });
                    assert_eq!(found.unwrap().gpa, Gpa(to));
                }
                vcpu.leave();
            }));
        }
        m.vcpu.leave();
        for p in processors {
            p.join().unwrap();
        }
        m.audit();
    }
}
