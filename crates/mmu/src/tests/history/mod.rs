//! The mechanism's history: each fault that it has had elsewhere, as the sequence of events that
//! showed it. The old protocol, kept as a model in `old`, fails the sequence; ours passes it.

mod old;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use umbra_slots::{AddressSpace, Flags, Generation, Gfn, Gpa, Listener, Options, Wait};
use umbra_x86::{Gva, pte};

use self::old::{Flaw, Old, packing};
use super::guest::*;
use crate::entry::{Entry, Mmio, Tag};
use crate::rights::Rights;
use crate::{Config, Kind};

const AT: u64 = 0x4000_0000;

/// What an access to page X found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Ram,
    Mmio,
}

/// What happens to the map.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// RAM appears at page X.
    Create,
    /// So many publications that change nothing.
    Nothing(u64),
}

/// Where an access meets a change.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// The access has decided what X is, and remembers it after the change.
    Decided,
    /// The access begins at the inner step of the publication.
    Publishing,
}

/// A monitor with one processor, and a page X that is MMIO at first.
pub trait Subject {
    fn access(&mut self) -> Answer;
    fn change(&mut self, change: Change);
    fn access_during(&mut self, change: Change, when: When) -> Answer;
    fn generation(&self) -> u64;

    /// Publishes until the generation has this remainder.
    fn until(&mut self, remainder: u64, modulus: u64) {
        while self.generation() % modulus != remainder {
            self.change(Change::Nothing(1));
        }
    }
}

/// Ours. The record of the last access is on, as in production.
struct Ours {
    machine: Arc<Mutex<Machine>>,
    space: Arc<AddressSpace>,
    publishing: Arc<Mutex<Option<Answer>>>,
    armed: Arc<AtomicU32>,
}

/// Accesses X between the swap and what the MMU does after it.
struct Between {
    machine: Mutex<Option<Arc<Mutex<Machine>>>>,
    answer: Arc<Mutex<Option<Answer>>>,
    armed: Arc<AtomicU32>,
}

impl Listener for Between {
    fn published(&self, _: &umbra_slots::Change) -> Option<Wait> {
        if self.armed.swap(0, Ordering::Relaxed) == 1 {
            let machine = self.machine.lock().clone().unwrap();
            *self.answer.lock() = Some(ask(&mut machine.lock()));
        }
        None
    }
}

fn ask(m: &mut Machine) -> Answer {
    match m.kind(AT, READ) {
        Kind::Ram(_) => Answer::Ram,
        Kind::Mmio { .. } => Answer::Mmio,
        other => panic!("{other:?}"),
    }
}

fn apply(space: &AddressSpace, change: Change) {
    match change {
        Change::Create => {
            let region = ram(0x1000);
            drop(
                space
                    .update("create", |e| {
                        e.add_ram(HOLE, region, 0, 0x1000, Flags::default())
                    })
                    .unwrap()
                    .stale,
            );
        }
        Change::Nothing(times) => {
            for _ in 0..times {
                drop(space.update("nothing", |_| Ok(())).unwrap().stale);
            }
        }
    }
}

impl Ours {
    fn new(bits: u32, first: u64) -> Self {
        let space = AddressSpace::new(Options {
            first_generation: Generation(first),
            ..Options::default()
        });
        let (publishing, armed): (Arc<Mutex<_>>, Arc<AtomicU32>) = Default::default();
        let between = Arc::new(Between {
            machine: Mutex::new(None),
            answer: publishing.clone(),
            armed: armed.clone(),
        });
        // Before the MMU, so that it is called before it.
        space.add_listener(between.clone());
        let config = Config {
            tag_bits: bits,
            ..Config::default()
        };
        let mut m = Machine::on(space.clone(), config);
        m.map(AT, HOLE.0, PWU | pte::A | pte::D);
        let machine = Arc::new(Mutex::new(m));
        *between.machine.lock() = Some(machine.clone());
        Self {
            machine,
            space,
            publishing,
            armed,
        }
    }
}

impl Subject for Ours {
    fn access(&mut self) -> Answer {
        ask(&mut self.machine.lock())
    }

    fn change(&mut self, change: Change) {
        apply(&self.space, change);
    }

    fn access_during(&mut self, change: Change, when: When) -> Answer {
        match when {
            When::Decided => {
                let space = self.space.clone();
                let done = AtomicU32::new(0);
                let mut m = self.machine.lock();
                m.mmu.hook.set(move |step| {
                    if step == "walked" && done.fetch_add(1, Ordering::Relaxed) == 0 {
                        apply(&space, change);
                    }
                });
                let answer = ask(&mut m);
                m.mmu.hook.clear();
                answer
            }
            When::Publishing => {
                self.armed.store(1, Ordering::Relaxed);
                self.change(change);
                self.publishing.lock().take().expect("asked inside")
            }
        }
    }

    fn generation(&self) -> u64 {
        self.space.generation().0
    }
}

/// Runs a sequence on ours, which must end with RAM, and on the model, which must not; and on the
/// model without its flaw, so that it is the flaw that fails.
fn only_the_old_fails(flaw: Flaw, first: u64, sequence: impl Fn(&mut dyn Subject) -> Answer) {
    const BITS: u32 = 3;
    assert_eq!(sequence(&mut Ours::new(BITS, first)), Answer::Ram, "ours");
    assert_eq!(
        sequence(&mut Old::new(Flaw::None, BITS, first)),
        Answer::Ram
    );
    assert_eq!(
        sequence(&mut Old::new(flaw, BITS, first)),
        Answer::Mmio,
        "{flaw:?}"
    );
}

/// 2013 (`f2fd125d3282`): Fedora 9 rebooted. The generation was put into spare bits of the entry,
/// and the readers of frame and access did not mask it out (R1).
#[test]
fn history_2013_the_generation_leaks_into_frame_and_access() {
    let (gfn, access) = (0xfee00, 1);
    for generation in [0, 1, 511, 512, 513, 1 << 18, (1 << 19) - 150] {
        let entry = packing::encode_2013(gfn, access, generation);
        let moved = packing::gfn_2013(entry) << 12 != gfn << 12;
        assert_eq!(moved, generation >= 512);
        let other_access = packing::access_2013(entry) != access;
        assert_eq!(other_access, generation % 512 != 0);

        let ours = Mmio {
            gfn: Gfn(gfn),
            rights: Rights::WRITE,
            tag: Tag::of(Generation(generation), 19),
        };
        assert_eq!(Entry::decode(Entry::Mmio(ours).encode()), Entry::Mmio(ours));
    }
    let entry = packing::encode_2013(gfn, access, 512);
    assert_eq!(packing::gfn_2013(entry) << 12, 0x0010_0000_fee0_0000);

    // A whole access, the second one answered from the entry.
    for first in [511, 512, (1 << 19) - 150] {
        let mut ours = Ours::new(19, first);
        for _ in 0..3 {
            let mut m = ours.machine.lock();
            assert_eq!(
                m.translate(AT + 0x30, READ).unwrap().gpa,
                Gpa(HOLE.0 + 0x30)
            );
        }
        assert_eq!(ours.access(), Answer::Mmio);
    }
}

/// 2013 (`1c118b822692`): a stale entry goes to the fast repair, which sees no present leaf, takes
/// the fault for spurious, and has the access retried, for ever (R11).
#[test]
fn history_2013_a_stale_entry_is_repaired_for_ever() {
    // What the handler of then did: an entry that is valid ends the fault. For a stale one the fast
    // repair looks for a present leaf to make writable; an MMIO entry is none, so "somebody zapped
    // it meanwhile, retry", and nothing was changed.
    let (entry, present_leaf, now) = (Tag(7), false, Tag(8));
    let handle = || match entry == now {
        true => Some(Answer::Mmio),
        false if !present_leaf => None,
        false => Some(Answer::Ram),
    };
    assert_eq!((0..1000).find_map(|_| handle()), None, "it never ends");

    for paging in [true, false] {
        let mut m = Machine::new(plain());
        m.map(AT, HOLE.0, PWU);
        if !paging {
            m.regs = Default::default();
            m.load_regs();
        }
        let gva = if paging { AT } else { HOLE.0 };
        m.kind(gva, READ);
        m.publish(1);
        let slow = m.statistic("slow_faults");
        assert!(matches!(m.kind(gva, READ), Kind::Mmio { .. }));
        assert_eq!(
            m.statistic("slow_faults"),
            slow + 1,
            "one slow fault, and done"
        );
    }
}

/// 2014 (`56f17dd3fbc4`): the record of the last access is asked before the generation (R9, R10).
#[test]
fn history_2014_the_last_access_outlives_the_map() {
    only_the_old_fails(Flaw::RecordFirst, 0, |s| {
        for _ in 0..3 {
            assert_eq!(s.access(), Answer::Mmio);
        }
        s.change(Change::Create);
        s.access()
    });
}

/// 2014 (`ee3d1570b586`): decided by the old map, stamped with the number of the new (R7).
#[test]
fn history_2014_a_decision_is_stamped_with_another_maps_number() {
    only_the_old_fails(Flaw::StampedAnew, 0, |s| {
        s.access_during(Change::Create, When::Decided);
        s.access()
    });
}

/// 2018 (`daa07cbc9ae3`): frame bits that were moved within the entry come back twice (R1).
#[test]
fn history_2018_a_split_frame_is_put_together_wrong() {
    let broken: Vec<u32> = (12..46)
        .filter(|&bit| packing::gpa_2018(packing::encode_2018(1 << bit)) != 1 << bit)
        .collect();
    assert_eq!(broken, [41, 42, 43, 44, 45], "the displaced bits");
    for bit in 0..40 {
        let ours = Mmio {
            gfn: Gfn(1 << bit),
            rights: Rights::WRITE_USER,
            tag: Tag(0x2_a5a5),
        };
        assert_eq!(Entry::decode(Entry::Mmio(ours).encode()), Entry::Mmio(ours));
    }
}

/// 2019 (`e1359e2beb8b`): with two maps that share the numbers, one of them is never 0 at the wrap
/// (R15).
#[test]
fn history_2019_a_wrap_is_missed_because_the_number_is_not_zero() {
    only_the_old_fails(Flaw::WrapIsZero, 3, |s| {
        s.until(3, 8);
        assert_eq!(s.access(), Answer::Mmio);
        s.change(Change::Create);
        s.until(3, 8);
        s.access()
    });
}

/// 2019 (`152482580a1b`): the number that collides is visible before the zap (R15).
#[test]
fn history_2019_a_very_old_entry_is_used_between_publication_and_zap() {
    only_the_old_fails(Flaw::ZapAfter, 0, |s| {
        s.until(0, 8);
        assert_eq!(s.access(), Answer::Mmio);
        s.change(Change::Create);
        s.until(7, 8);
        s.access_during(Change::Nothing(1), When::Publishing)
    });
}

/// 2019 (`92f58b5c0181`): "zap until there is none" never ends while processors make new ones
/// faster (R16).
#[test]
fn history_2019_a_zap_is_outrun_by_the_processors() {
    // Two made for each one zapped.
    let mut pages = 10u64;
    let ended = (0..10_000).any(|_| {
        pages += 2 - 1;
        pages == 0
    });
    assert!(!ended, "it never ends");

    let mut m = Machine::new(Config {
        tag_bits: 2,
        ..plain()
    });
    let pages = 64;
    for i in 0..pages {
        m.map(AT + (i << 21), HOLE.0, PWU);
    }
    for i in 0..pages {
        m.kind(AT + (i << 21), READ);
    }
    m.mmu.tables.lock().make_obsolete();
    let (old, mut steps) = (m.statistic("pages"), 0);
    while m.mmu.tables.lock().reap(1) {
        steps += 1;
        // Two made for each one reaped, as long as there are any to make.
        for i in 0..2 {
            m.kind(AT + (((2 * steps + i) % pages) << 21), READ);
        }
        assert!(steps <= 2 * old, "the reaping does not end");
    }
    m.audit();
}

/// 2020 (`56871d444bc4`): a large number overwrites the bits that say what an entry is (R2).
#[test]
fn history_2020_a_large_generation_makes_another_kind_of_entry() {
    let kind = |generation| packing::encode_2019(generation) & packing::KIND;
    assert_eq!(kind(511), kind(0));
    assert_ne!(kind(1024), kind(0), "an entry of another kind");
    for generation in (0..19).map(|bit| 1u64 << bit) {
        let raw = Entry::Mmio(Mmio {
            gfn: Gfn(0),
            rights: Rights::WRITE_USER,
            tag: Tag::of(Generation(generation), 19),
        })
        .encode();
        assert!(matches!(Entry::decode(raw), Entry::Mmio(_)));
    }
}

/// 2020 (`34c0f6f2695a`): a shift got lost, and from some number on no entry was ever valid: right
/// answers, and a cache that is dead (R3).
#[test]
fn history_2020_no_entry_is_valid_above_the_low_bits() {
    let matches = |generation| packing::tag_2020(generation) == generation;
    assert!(matches(5) && !matches(1024), "every access is slow");
    for first in [5u64, 512, 1024, 4096] {
        let mut m = Machine::at(plain(), Generation(first));
        m.map(AT, HOLE.0, PWU);
        m.kind(AT, READ);
        let slow = m.statistic("slow_faults");
        m.kind(AT, READ);
        assert_eq!(m.statistic("slow_faults"), slow, "a hit at {first}");
    }
}

/// 2021 (`e0c378684b65`): a slot is being deleted, its mappings are still there; a fault in that
/// window is taken for MMIO and written over the live mapping (R13, R20).
#[test]
fn history_2021_a_fault_on_a_slot_that_goes_overwrites_its_mapping() {
    // The old way: one entry, and who refers to it in the reverse map.
    let (mut entry, mut reverse_map) = ("RAM", vec!["entry"]);
    entry = if entry == "RAM" { "MMIO" } else { entry }; // no drop
    assert!(
        entry == "MMIO" && !reverse_map.is_empty(),
        "rmap of a leaf that is none"
    );
    reverse_map.clear();

    let ours = Ours::new(3, 0);
    let slot = {
        apply(&ours.space, Change::Create);
        ours.space.load().slot_at(HOLE).unwrap().id()
    };
    assert_eq!(ask(&mut ours.machine.lock()), Answer::Ram);
    ours.armed.store(1, Ordering::Relaxed);
    let gone = ours.space.update("delete", |e| e.remove(slot)).unwrap();
    // In the window it is RAM, which is still mapped, or MMIO with the old mapping dropped.
    let inside = ours.publishing.lock().take().unwrap();
    let mut m = ours.machine.lock();
    m.audit();
    m.flushes();
    gone.wait();
    m.audit();
    assert!(matches!(inside, Answer::Ram | Answer::Mmio));
    assert_eq!(ask(&mut m), Answer::Mmio);
    assert_eq!(m.mmu.tables.lock().rmap.small(HOLE.gfn()).len(), 0);
}

/// 2026 (`aad885e77496`): the host rewrites a guest entry from RAM to MMIO, and the MMIO entry is
/// written over a live leaf: the reverse map keeps a leaf that is none (R13).
#[test]
fn history_2026_mmio_over_a_live_leaf() {
    let mut m = Machine::new(plain());
    let entry = m.map(AT, 0x20_0000, PWU | pte::A);
    m.page(AT, READ);
    let at = {
        let tables = m.mmu.tables.lock();
        let leaves = tables.rmap.small(frame(0x20_0000));
        assert_eq!(leaves.len(), 1);
        leaves[0]
    };
    // As the old code did it: the entry alone.
    let (planted, kept) = {
        let mut tables = m.mmu.tables.lock();
        let kept = tables.pages[at.page].entry(at.index.into());
        let mmio = Mmio {
            gfn: HOLE.gfn(),
            rights: Rights::WRITE_USER,
            tag: Tag(0),
        };
        tables.pages[at.page].set(at.index.into(), Entry::Mmio(mmio));
        (Entry::Mmio(mmio), kept)
    };
    assert_ne!(planted, kept);
    assert!(m.mmu.audit().is_err(), "the auditor sees it");
    m.mmu.tables.lock().pages[at.page].set(at.index.into(), kept);
    m.audit();

    let raw = HOLE.0 | PWU | pte::A;
    m.space
        .load()
        .write(Gpa(entry), &raw.to_le_bytes())
        .unwrap();
    assert!(matches!(m.vcpu.ask(Gva(AT), WRITE), Ok(t) if t.gpa == HOLE));
    assert_eq!(m.mmu.tables.lock().rmap.small(frame(0x20_0000)).len(), 0);
    m.audit();
}

/// 2026 (`b3e6212dea2e`): a record made in one map is checked against the number of another, which
/// stands still (R33). Here a processor has one map, and its record that map's number.
#[test]
fn history_2026_a_record_is_checked_against_another_map() {
    // The old way: the number of map 0, whichever map the processor was in.
    let numbers = [7u64, 7];
    let record = numbers[0];
    let numbers = [7u64, 8]; // map 1 changes
    assert_eq!(record, numbers[0], "the stale record is taken for valid");

    let (mut first, mut second) = (Ours::new(3, 0), Ours::new(3, 0));
    for _ in 0..3 {
        assert_eq!(
            (first.access(), second.access()),
            (Answer::Mmio, Answer::Mmio)
        );
    }
    assert_eq!(first.generation(), second.generation());
    second.change(Change::Create);
    assert_eq!(
        (first.access(), second.access()),
        (Answer::Mmio, Answer::Ram)
    );
}

/// The hole that is still there elsewhere: a fault between zap and publication makes an entry with
/// the last number of the old cycle, which survives the zap and is valid again a cycle later (R15).
#[test]
fn history_today_an_entry_made_in_the_wrap_is_valid_a_cycle_later() {
    for when in [When::Publishing, When::Decided] {
        let sequence = |s: &mut dyn Subject| {
            s.until(7, 8);
            s.access_during(Change::Nothing(1), when);
            s.change(Change::Create);
            s.until(7, 8);
            s.access()
        };
        only_the_old_fails(Flaw::ZapBefore, 0, sequence);
    }
}
