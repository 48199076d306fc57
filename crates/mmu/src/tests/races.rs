//! The map changes between two steps of a slow fault (R7, R8).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use umbra_slots::{
    AddressSpace, Change, Flags, Generation, Gpa, GpaRange, IoId, Listener, SlotId, Wait,
};
use umbra_x86::{Gva, pte};

use super::guest::*;
use crate::{Config, Kind};

const AT: u64 = 0x4000_0000;
const STEPS: [&str; 2] = ["loaded", "walked"];

/// Runs `change` once, at the first time that a slow fault comes to `step`.
fn once(m: &Machine, step: &'static str, change: impl Fn(&AddressSpace) + Send + 'static) {
    let space = m.space.clone();
    let done = AtomicU32::new(0);
    m.mmu.hook.set(move |at| {
        if at == step && done.fetch_add(1, Ordering::Relaxed) == 0 {
            change(&space);
        }
    });
}

fn create_over_the_hole(space: &AddressSpace) {
    let region = ram(0x1000);
    let _ = space
        .update("create", |e| {
            e.add_ram(HOLE, region, 0, 0x1000, Flags::default())
        })
        .unwrap();
}

#[test]
fn r8_ram_created_between_decision_and_install_is_mapped_as_ram() {
    for step in STEPS {
        let mut m = Machine::new(checked());
        m.map(AT, HOLE.0, PWU);
        once(&m, step, create_over_the_hole);
        m.page(AT, READ);
        m.mmu.hook.clear();
        assert_eq!(m.statistic("map_races"), 1, "at {step}");
        assert_eq!(m.page(AT, READ).page, m.host(HOLE.0));
        m.audit();
    }
}

/// The decision is an epoch old when it would be installed, and its tag has come round: only the
/// check at the install, not the tag, can refuse it.
#[test]
fn r8_a_decision_that_slept_through_a_wrap_is_not_installed() {
    for step in STEPS {
        let mut m = Machine::new(Config {
            tag_bits: 2,
            ..checked()
        });
        m.map(AT, HOLE.0, PWU);
        once(&m, step, |space| {
            create_over_the_hole(space);
            for _ in 0..3 {
                let _ = space.update("nothing", |_| Ok(())).unwrap();
            }
        });
        m.page(AT, READ);
        m.mmu.hook.clear();
        m.audit();
        assert_eq!(m.page(AT, READ).page, m.host(HOLE.0));
    }
}

#[test]
fn r8_ram_deleted_between_decision_and_install_is_not_mapped() {
    for step in STEPS {
        let mut m = Machine::new(checked());
        create_over_the_hole(&m.space);
        let slot = m.space.load().slot_at(HOLE).unwrap().id();
        m.map(AT, HOLE.0, PWU);
        once(&m, step, move |space| delete(space, slot));
        assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }), "at {step}");
        m.mmu.hook.clear();
        m.audit();
    }
}

fn delete(space: &AddressSpace, slot: SlotId) {
    let _ = space.update("delete", |e| e.remove(slot)).unwrap();
}

/// R7: tag and answer come from one map. If a decision of the old map were given the number of
/// the new one, the entry would be valid, over RAM, for as long as that number is current.
#[test]
fn r7_an_entry_never_carries_another_maps_generation() {
    for step in STEPS {
        let mut m = Machine::at(Config::default(), Generation(100));
        m.map(AT, HOLE.0, PWU);
        let before = m.space.generation();
        once(&m, step, create_over_the_hole);
        let found = m.translate(AT, READ).unwrap();
        m.mmu.hook.clear();
        assert_eq!(m.space.generation().0, before.0 + 1);
        assert!(matches!(found.kind, Kind::Ram(_)), "decided anew at {step}");
        m.audit();

        // And where the answer is the same, its number is that of the map that gave it.
        m.map(AT + 0x1000, HOLE.0 + 0x1000, PWU);
        once(&m, step, |space| {
            let _ = space.update("nothing", |_| Ok(())).unwrap();
        });
        let kind = m.kind(AT + 0x1000, READ);
        m.mmu.hook.clear();
        let generation = m.space.generation();
        assert_eq!(kind, Kind::Mmio { generation });
    }
}

#[test]
fn a_storm_of_publications_cannot_keep_a_fault_from_ending() {
    let mut m = Machine::new(Config {
        tag_bits: 2,
        ..checked()
    });
    m.map(AT, HOLE.0, PWU);
    let space = m.space.clone();
    let busy = Arc::new(AtomicU32::new(0));
    let count = busy.clone();
    m.mmu.hook.set(move |step| {
        // Publishes at every step, as long as nobody holds the map still.
        if step == "walked" && count.fetch_add(1, Ordering::Relaxed) < 4 {
            let _ = space.update("storm", |_| Ok(())).unwrap();
        }
    });
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    m.mmu.hook.clear();
    assert_eq!(m.statistic("map_races"), 4);
    assert_eq!(m.statistic("holds"), 1);
}

#[test]
fn a_guest_entry_that_changes_under_the_walk_is_walked_again() {
    let mut m = Machine::new(checked());
    let entry = m.map(AT, 0x20_0000, PWU);
    let space = m.space.clone();
    let done = AtomicU32::new(0);
    m.mmu.hook.set(move |step| {
        if step == "walked" && done.fetch_add(1, Ordering::Relaxed) == 0 {
            let raw: u64 = 0x20_1000 | PWU | pte::A;
            space.load().write(Gpa(entry), &raw.to_le_bytes()).unwrap();
        }
    });
    let found = m.vcpu.translate(Gva(AT), READ).unwrap();
    m.mmu.hook.clear();
    assert_eq!(found.gpa, Gpa(0x20_1000));
    assert_eq!(m.statistic("table_races"), 1);
    m.audit();
}

/// Looks at what the MMU does around the swap: it stands inside (added later) or outside of it.
struct Spy(Look);

type Look = Box<dyn Fn(&Change, &'static str) + Send + Sync>;
type Question = Box<dyn FnMut() + Send>;

impl Listener for Spy {
    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        (self.0)(change, "before");
        swap();
        (self.0)(change, "after");
    }

    fn published(&self, change: &Change) -> Option<Wait> {
        (self.0)(change, "published");
        None
    }
}

/// R15: the mark and the swap are one lock section; every other publication takes no lock.
#[test]
fn r15_a_wrap_is_published_inside_the_lock_section_that_makes_pages_obsolete() {
    let m = Machine::new(Config {
        tag_bits: 2,
        ..checked()
    });
    let (mmu, counted) = (m.mmu.clone(), Arc::new(AtomicU32::new(0)));
    let count = counted.clone();
    m.space
        .add_listener(Arc::new(Spy(Box::new(move |change, when| {
            if when == "published" {
                return;
            }
            let wraps = change.new.generation().0.is_multiple_of(4);
            assert_eq!(mmu.tables.is_locked(), wraps, "{when}");
            count.fetch_add(u32::from(wraps), Ordering::Relaxed);
        }))));
    m.publish(40);
    assert_eq!(counted.load(Ordering::Relaxed), 20);
    assert_eq!(m.statistic("wraps"), 10);
}

/// Whoever holds the lock, at whatever length, does not hold up a change of the map that neither
/// wraps the tag nor takes RAM away; the holder's own thread may make it.
#[test]
fn a_publication_takes_no_lock_but_at_the_wrap() {
    let mut m = Machine::new(Config::default());
    m.map(AT, HOLE.0, PWU);
    m.kind(AT, READ);
    let (mmu, space) = (m.mmu.clone(), m.space.clone());
    let locked = mmu.tables.lock();
    let before = space.generation();
    let window = GpaRange::new(HOLE, 0x1000).unwrap();
    let window = space.update("window", |e| e.add_io(window, IoId(1)));
    let window = window.unwrap().wait();
    let moved = space.update("it moves", |e| e.move_to(window, Gpa(HOLE.0 + 0x1000)));
    moved.unwrap().wait();
    space
        .update("it goes", |e| e.remove(window))
        .unwrap()
        .wait();
    m.publish(10);
    assert_eq!(space.generation().0, before.0 + 13);
    drop(locked);
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
}

/// Between the swap and the reaping, pages of the old cycle are still there, pinned roots among
/// them. An entry whose tag is current again must not be found through them.
#[test]
fn r15_an_obsolete_page_is_not_used_although_it_is_not_yet_reaped() {
    let space = AddressSpace::new(Default::default());
    let asked: Arc<Mutex<Option<Question>>> = Arc::default();
    let ask = asked.clone();
    // Added before the MMU: called before it reaps.
    space.add_listener(Arc::new(Spy(Box::new(move |_, when| {
        if when == "published"
            && let Some(question) = ask.lock().as_mut()
        {
            question();
        }
    }))));
    let config = Config {
        tag_bits: 2,
        ..Config::default()
    };
    let mut m = Machine::on(space, config);
    m.map(AT, HOLE.0, PWU);
    while !m.space.generation().0.is_multiple_of(4) {
        m.publish(1);
    }
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    create_over_the_hole(&m.space);
    m.publish(2);
    let (space, answers) = (m.space.clone(), Arc::new(AtomicU32::new(0)));
    let count = answers.clone();
    let vcpu = Arc::new(Mutex::new(m));
    let asking = vcpu.clone();
    *asked.lock() = Some(Box::new(move || {
        asking.lock().page(AT, READ);
        count.fetch_add(1, Ordering::Relaxed);
    }));
    space.update("wrap", |_| Ok(())).unwrap().wait();
    assert_eq!(answers.load(Ordering::Relaxed), 1);
    *asked.lock() = None;
    vcpu.lock().audit();
}
