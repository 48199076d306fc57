//! Every interleaving of small scenes, over the code that ships: `cargo xtask loom`.
//!
//! Each scene is a few guest pages, one or two processors and a thread that changes the map. Guest
//! page-table entries are stand-ins that loom sees (`memory`). What a scene asserts holds in every
//! interleaving, with as many preemptions as loom is told (4 where it is told nothing).

use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use umbra_slots::{AddressSpace, Flags, Generation, Gpa, RamRegion, SlotId};
use umbra_sync::word_at;
use umbra_x86::{Gva, pte};

use super::guest::*;
use crate::{Config, Kind, Scope, Unsync, VcpuMmu};

/// Where loom is told nothing. With 6, all scenes take a minute.
const PREEMPTIONS: usize = 4;
const AT: u64 = 0x4000_0000;
/// In another leaf table than `AT`.
const WINDOW_TO_TABLE: u64 = 0x4020_0000;
/// Accessed and dirty already: nothing to be set by the walk.
const LEAF: u64 = PWU | pte::A | pte::D;

fn model(scene: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(PREEMPTIONS));
    builder.max_branches = 100_000;
    builder.check(scene);
}

/// Two bits of tag.
fn narrow() -> Config {
    Config {
        tag_bits: 2,
        max_pages: 64,
        ..Config::default()
    }
}

fn create(space: &AddressSpace) -> (SlotId, Weak<RamRegion>) {
    let region = ram(0x1000);
    let weak = Arc::downgrade(&region);
    let added = space.update("create", |e| {
        e.add_ram(HOLE, region, 0, 0x1000, Flags::default())
    });
    (added.unwrap().wait(), weak)
}

fn publish(space: &AddressSpace, times: u32) {
    for _ in 0..times {
        drop(space.update("nothing", |_| Ok(())).unwrap().stale);
    }
}

fn is_ram(vcpu: &mut VcpuMmu, gva: u64) -> bool {
    vcpu.take_flushes(|_| {});
    let found = vcpu.translate(Gva(gva), READ).unwrap();
    matches!(found.kind, Kind::Ram(_))
}

/// A processor asks, as often as `asks` says, while `change` creates RAM under it. What began
/// after the change returned is answered by it, and so is everything later.
fn ram_appears(config: Config, first: u64, primed: u32, asks: u32, bumps: u32) {
    let mut m = Machine::at(config, Generation(first));
    m.map(AT, HOLE.0, LEAF);
    touch(&mut m, AT);
    for _ in 0..primed {
        assert!(!is_ram(&mut m.vcpu, AT));
    }
    let changed = Arc::new(AtomicBool::new(false));
    let updater = {
        let (space, changed) = (m.space.clone(), changed.clone());
        thread::spawn(move || {
            create(&space);
            changed.store(true, Ordering::Release);
            publish(&space, bumps);
        })
    };
    for _ in 0..asks {
        let certain = changed.load(Ordering::Acquire);
        assert!(is_ram(&mut m.vcpu, AT) || !certain, "MMIO where RAM is");
    }
    updater.join().unwrap();
    assert!(is_ram(&mut m.vcpu, AT), "MMIO for ever where RAM is");
}

#[test]
fn r7_r8_a_decision_of_an_older_map_is_never_installed_as_current() {
    model(|| ram_appears(narrow(), 0, 0, 1, 0));
}

#[test]
fn r9_the_record_of_a_processor_is_stale_with_the_map() {
    model(|| ram_appears(narrow(), 0, 3, 2, 0));
}

/// The entry is there, and after four changes its tag is current again (R17).
#[test]
fn r15_an_entry_is_not_valid_again_when_its_tag_comes_round() {
    for first in 0..4 {
        model(move || {
            let config = Config {
                last_mmio: false,
                ..narrow()
            };
            ram_appears(config, first, 1, 1, 3);
        });
    }
}

/// R16: processors that fault while the tag wraps neither keep the wrap from ending nor are kept
/// from an answer. (What does not end, loom reports.)
#[test]
fn r16_wraps_and_faults_end() {
    model(|| {
        let mut m = Machine::at(narrow(), Generation(2));
        m.map(AT, HOLE.0, LEAF);
        touch(&mut m, AT);
        let updater = {
            let space = m.space.clone();
            thread::spawn(move || publish(&space, 5))
        };
        for _ in 0..2 {
            assert!(!is_ram(&mut m.vcpu, AT));
        }
        updater.join().unwrap();
        assert_eq!(m.statistic("wraps"), 2);
        assert!(!is_ram(&mut m.vcpu, AT));
    });
}

/// R19, R38: memory that left stays mapped as long as a processor may use an address of it, and
/// no later than the update's wait.
fn ram_leaves(wait: bool) {
    let mut m = Machine::new(narrow());
    let (slot, memory) = create(&m.space);
    m.map(AT, HOLE.0, LEAF);
    touch(&mut m, AT);
    m.vcpu.take_flushes(|_| {});
    let updater = {
        let (space, memory) = (m.space.clone(), memory.clone());
        thread::spawn(move || {
            let gone = space.update("delete", |e| e.remove(slot)).unwrap();
            if wait {
                gone.wait();
            }
            drop(memory);
        })
    };
    let mut cached = None;
    for _ in 0..2 {
        if m.vcpu.pending() {
            m.vcpu.take_flushes(|_| cached = None);
        }
        let found = m.vcpu.translate(Gva(AT), READ).unwrap();
        if let Kind::Ram(page) = found.kind {
            cached = Some(page);
        }
        if cached.is_some() {
            assert!(
                memory.upgrade().is_some(),
                "an address of memory that is gone"
            );
        }
    }
    // As a processor does that sleeps, or exits.
    m.vcpu.leave();
    updater.join().unwrap();
    m.vcpu.enter();
    m.vcpu.take_flushes(|_| {});
    assert!(matches!(m.kind(AT, READ), Kind::Mmio { .. }));
    // The map of before is kept by nobody now.
    assert!(
        memory.upgrade().is_none(),
        "memory that left is kept for ever"
    );
}

#[test]
fn r19_r38_memory_outlives_every_address_of_it_that_is_in_use() {
    model(|| ram_leaves(false));
}

#[test]
fn r19_r38_who_waits_finds_no_address_in_use() {
    model(|| ram_leaves(true));
}

/// R38: a processor that was outside comes in and uses an address that it had, unless it is told to
/// drop it, while somebody takes that memory away and waits. Once that wait is over, no processor
/// is inside that was not told.
#[test]
fn r38_who_comes_in_is_told_or_waited_for() {
    model(|| {
        let mut m = Machine::new(narrow());
        let (slot, _) = create(&m.space);
        m.map(AT, HOLE.0, LEAF);
        touch(&mut m, AT);
        assert!(is_ram(&mut m.vcpu, AT));
        // Nothing but the removal is there to be told.
        m.vcpu.take_flushes(|_| {});
        m.vcpu.leave();
        let waited = Arc::new(AtomicBool::new(false));
        let updater = {
            let (space, waited) = (m.space.clone(), waited.clone());
            thread::spawn(move || {
                let gone = space.update("delete", |e| e.remove(slot)).unwrap();
                gone.wait();
                waited.store(true, Ordering::Relaxed);
            })
        };
        m.vcpu.enter();
        if !m.vcpu.pending() {
            // The address is used here.
            assert!(!waited.load(Ordering::Relaxed), "R38");
        }
        m.vcpu.leave();
        updater.join().unwrap();
        m.vcpu.enter();
        m.vcpu.take_flushes(|_| {});
    });
}

/// R24: two processors that take memory away, and wait until everybody has let go of it, do not wait
/// for each other: who waits counts as outside.
#[test]
fn r24_processors_that_wait_for_each_other_go_on() {
    model(|| {
        let m = Machine::new(narrow());
        let remove = |vcpu: &mut VcpuMmu, space: &AddressSpace, at: Gpa| {
            let slot = space.load().slot_at(at).map(|slot| slot.id());
            let gone = space.update("delete", |e| e.remove(slot.expect("it is there")));
            gone.unwrap().wait();
            vcpu.take_flushes(|_| {});
        };
        let second = Gpa(HOLE.0 + 0x10_0000);
        for at in [HOLE, second] {
            let added = m.space.update("create", |e| {
                e.add_ram(at, ram(0x1000), 0, 0x1000, Flags::default())
            });
            drop(added.unwrap().stale);
        }
        let (space, mut vcpu) = (m.space.clone(), m.mmu.attach(Box::new(|| {})));
        let other = thread::spawn(move || {
            vcpu.enter();
            remove(&mut vcpu, &space, second);
            vcpu.leave();
        });
        let mut m = m;
        remove(&mut m.vcpu, &m.space, HOLE);
        m.vcpu.leave();
        other.join().unwrap();
    });
}

/// What a processor's own cache does with one page: an address to write to, until a flush.
struct Writer {
    vcpu: VcpuMmu,
    right: Option<NonNull<u8>>,
}

impl Writer {
    /// Writes an entry of the guest's leaf table through the mapping of the table, as the guest
    /// does: by a cached address, or trapped, as the MMU says.
    fn store(&mut self, entry: Gpa, value: u64) {
        if self.vcpu.pending() {
            let right = &mut self.right;
            self.vcpu.take_flushes(|_| *right = None);
        }
        let offset = entry.page_offset();
        if let Some(page) = self.right {
            set_word(page.as_ptr().addr() + offset as usize, value);
            return;
        }
        let gva = Gva(WINDOW_TO_TABLE + offset);
        match self.vcpu.translate(gva, WRITE).unwrap().kind {
            Kind::Ram(page) => {
                self.right = Some(page.page);
                set_word(page.page.as_ptr().addr() + offset as usize, value);
            }
            Kind::Tracked => {
                let done = self
                    .vcpu
                    .tracked(entry, 8, |at| set_word(at.as_ptr().addr(), value));
                done.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }

    fn gpa(&mut self, gva: u64) -> Gpa {
        self.vcpu.translate(Gva(gva), READ).unwrap().gpa
    }
}

fn set_word(address: usize, value: u64) {
    word_at(address, || {
        unreachable!("the walk has been here, or will be after the store")
    })
    .store(value, Ordering::Release);
}

const BEFORE: u64 = 0x60_0000;
const AFTER: u64 = 0x60_1000;

/// Shows loom the entries that map an address, before there are threads.
fn touch(m: &mut Machine, gva: u64) {
    for level in 1..=4 {
        let at = m.entry_at(gva, level);
        let page = m.host(at & !0xfff).as_ptr().addr();
        let value = m.load(at);
        word_at(page + (at & 0xfff) as usize, || value);
    }
}

/// A machine with a second processor, whose guest has a page mapped, and its leaf table, too.
fn two_with_a_table(config: Config) -> (Machine, Writer, Gpa) {
    let mut m = Machine::new(config);
    let entry = Gpa(m.map(AT, BEFORE, LEAF));
    m.map(WINDOW_TO_TABLE, entry.0 & !0xfff, LEAF);
    touch(&mut m, AT);
    touch(&mut m, WINDOW_TO_TABLE);
    let mut vcpu = m.mmu.attach(Box::new(|| {}));
    vcpu.set_regs(&m.regs);
    let writer = Writer { vcpu, right: None };
    (m, writer, entry)
}

/// R36: one processor writes a table through a right that it got before, and flushes, while the
/// other makes the shadow of that table. Mark then read, write then look: one sees the other.
fn a_write_through_an_old_right(flush: Scope) {
    let (mut m, mut writer, entry) = two_with_a_table(narrow());
    // The tables above are shadowed and protected already: nothing is marked.
    m.translate(WINDOW_TO_TABLE, READ).unwrap();
    m.flushes();
    writer.vcpu.enter();
    let page = writer.vcpu.translate(Gva(WINDOW_TO_TABLE), WRITE).unwrap();
    let Kind::Ram(page) = page.kind else {
        panic!("not a table yet");
    };
    writer.right = page.write.then_some(page.page);
    assert!(writer.right.is_some());
    let writing = thread::spawn(move || {
        writer.store(entry, AFTER | LEAF);
        writer.vcpu.guest_flush(flush);
        assert_eq!(writer.gpa(AT), Gpa(AFTER), "R36");
        writer.vcpu.leave();
    });
    let seen = m.translate(AT, READ).unwrap().gpa;
    assert!([Gpa(BEFORE), Gpa(AFTER)].contains(&seen));
    m.vcpu.leave();
    writing.join().unwrap();
    m.vcpu.enter();
    m.vcpu.guest_flush(flush);
    assert_eq!(m.translate(AT, READ).unwrap().gpa, Gpa(AFTER), "R36");
}

#[test]
fn r36_a_write_through_an_old_right_is_seen_after_a_flush_of_the_page() {
    model(|| a_write_through_an_old_right(Scope::Page(Gva(AT))));
}

/// Without the page's address nothing is read again but what is marked.
#[test]
fn r36_a_write_through_an_old_right_is_seen_after_a_flush_of_everything() {
    model(|| a_write_through_an_old_right(Scope::All));
}

/// R36: the mark of an unsync table is visible before a right to write it is. While the writer
/// makes the table unsync and writes it, the other flushes everything, which may protect it again.
#[test]
fn r36_a_table_that_went_unsync_is_read_again_at_the_flush() {
    model(|| {
        let config = Config {
            unsync: Unsync::After(1),
            ..narrow()
        };
        let (mut m, mut writer, entry) = two_with_a_table(config);
        m.translate(AT, READ).unwrap();
        m.flushes();
        writer.vcpu.enter();
        // The first trapped write makes it unsync.
        writer.store(entry, BEFORE | LEAF);
        let writing = thread::spawn(move || {
            writer.store(entry, AFTER | LEAF);
            writer.vcpu.guest_flush(Scope::Page(Gva(AT)));
            assert_eq!(writer.gpa(AT), Gpa(AFTER), "R36");
            writer.vcpu.leave();
        });
        m.vcpu.guest_flush(Scope::All);
        m.translate(AT, READ).unwrap();
        m.vcpu.leave();
        writing.join().unwrap();
        m.vcpu.enter();
        m.vcpu.guest_flush(Scope::All);
        assert_eq!(m.translate(AT, READ).unwrap().gpa, Gpa(AFTER), "R36");
    });
}
