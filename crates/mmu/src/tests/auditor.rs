//! The auditor notices every kind of violation, each planted alone (rule R37).

use umbra_slots::{Flags, Gfn, Gpa};
use umbra_x86::pte;

use super::guest::*;
use crate::Config;
use crate::entry::{Entry, Leaf, Mmio, Tag};
use crate::page::{EntryAt, PageId};
use crate::rights::Rights;
use crate::shadowed::{ShadowedMap, State};
use crate::tables::Tables;

const AT: u64 = 0x4000_0000;
const LARGE: u64 = 0x8000_0000;
const TARGET: u64 = 0x60_0000;
const LARGE_TARGET: u64 = 0xa0_0000;
/// RAM that may only be read, and RAM whose writes are logged.
const ROM: u64 = 0x1000_0000;
const LOG: u64 = 0x1100_0000;

/// What violations are planted into: a leaf of 4 KiB, one of 2 MiB, and the pages above.
struct Scene {
    small: EntryAt,
    leaf: Leaf,
    large: EntryAt,
    large_leaf: Leaf,
    /// The entry that refers to the page of `small`, and the page above that.
    parent: EntryAt,
    top: PageId,
}

fn leaf(tables: &Tables, at: EntryAt) -> Leaf {
    match tables.pages[at.page].entry(at.index.into()) {
        Entry::Leaf(leaf) => leaf,
        other => panic!("{other:?} is no leaf"),
    }
}

fn machine() -> (Machine, Scene) {
    let mut m = Machine::new(Config::default());
    let flags = |read_only, dirty_log| Flags {
        read_only,
        dirty_log,
    };
    m.space
        .update("more", |e| {
            e.add_ram(Gpa(ROM), ram(0x20_0000), 0, 0x20_0000, flags(true, false))?;
            e.add_ram(Gpa(LOG), ram(0x20_0000), 0, 0x20_0000, flags(false, true))
        })
        .unwrap()
        .wait_from(&mut m.vcpu);
    m.map(AT, TARGET, PWU);
    let at = m.entry_at(LARGE, 2);
    m.store(at, LARGE_TARGET | PWU | pte::PS);
    m.page(AT, WRITE);
    m.page(LARGE, WRITE);
    m.audit();
    let scene = {
        let tables = m.mmu.tables.lock();
        let small = tables.rmap.small(frame(TARGET))[0];
        let large = tables.large_leaves(frame(LARGE_TARGET))[0];
        let parent = tables.pages[small.page].parents[0];
        Scene {
            small,
            leaf: leaf(&tables, small),
            large,
            large_leaf: leaf(&tables, large),
            parent,
            top: tables.pages[parent.page].parents[0].page,
        }
    };
    (m, scene)
}

/// A violation: the auditor's words, and what brings it about.
type Case = (&'static str, fn(&mut Tables, &Scene));

fn after(at: EntryAt) -> EntryAt {
    EntryAt {
        index: at.index + 7,
        ..at
    }
}

fn put(tables: &mut Tables, at: EntryAt, entry: Entry) {
    tables.pages[at.page].set(at.index.into(), entry);
}

/// Makes the leaf at `at` map another frame.
fn aim(tables: &mut Tables, at: EntryAt, gpa: u64) {
    tables.pages[at.page].set_frame(at.index.into(), frame(gpa));
}

const CASES: [Case; 24] = [
    ("counts", |t, s| t.pages[s.small.page].present += 1),
    ("was thrown away and is still in use", |t, s| {
        t.pages[s.small.page].zapped = true;
    }),
    ("does not refer to it", |t, s| {
        t.pages[s.small.page].parents.push(after(s.parent));
    }),
    ("lists a parent twice", |t, s| {
        t.pages[s.small.page].parents.push(s.parent);
    }),
    ("cannot be found by its key", |t, s| {
        let gfn = t.pages[s.small.page].gfn;
        t.shadowed.get_mut(gfn).unwrap().pages.clear();
    }),
    ("which is gone", |t, s| {
        put(t, after(s.parent), Entry::Table(PageId(9999)));
    }),
    ("skips a level", |t, s| {
        let at = EntryAt {
            page: s.top,
            index: 9,
        };
        put(t, at, Entry::Table(s.small.page));
    }),
    ("does not know its parent", |t, s| {
        put(t, after(s.parent), Entry::Table(s.small.page));
    }),
    ("which is obsolete", |t, s| {
        let validity = &mut t.pages[s.small.page].validity;
        *validity = validity.wrapping_sub(1);
    }),
    ("more rights than its parent", |t, s| {
        t.pages[s.parent.page].role.rights = Rights::from_bits(0);
    }),
    ("more rights than its page", |t, s| {
        t.pages[s.small.page].role.rights = Rights::from_bits(0);
    }),
    ("writable, but read-only or clean", |t, s| {
        let dirty = false;
        put(t, s.small, Entry::Leaf(Leaf { dirty, ..s.leaf }));
    }),
    ("writable, but read-only or clean", |t, s| {
        let read_only = true;
        put(
            t,
            s.small,
            Entry::Leaf(Leaf {
                read_only,
                ..s.leaf
            }),
        );
    }),
    ("maps a table among", |t, s| {
        t.shadowed
            .add(frame(LARGE_TARGET + 0x3000), s.small.page, State::Unsync);
    }),
    ("to another host page", |t, s| {
        let host = s.leaf.host + 0x1000;
        put(t, s.small, Entry::Leaf(Leaf { host, ..s.leaf }));
    }),
    ("reaches past the slot", |t, s| {
        aim(t, s.large, RAM - 0x1000)
    }),
    ("maps read-only", |t, s| aim(t, s.small, ROM)),
    ("by a large entry", |t, s| aim(t, s.large, LOG)),
    ("where there is no RAM", |t, s| aim(t, s.small, HOLE.0)),
    ("not once in the reverse map", |t, s| {
        aim(t, s.small, TARGET + 0x1000);
    }),
    ("MMIO above the last level", |t, s| {
        let mmio = Mmio {
            gfn: HOLE.gfn(),
            rights: s.large_leaf.rights,
            tag: Tag(0),
        };
        put(t, after(s.large), Entry::Mmio(mmio));
    }),
    ("which shadows another", |t, s| {
        let gfn = t.pages[s.small.page].gfn;
        t.shadowed.get_mut(gfn).unwrap().pages.push(s.top);
    }),
    ("and PageId", |t, s| {
        let gfn = t.pages[s.top].gfn;
        t.shadowed.get_mut(gfn).unwrap().state = State::Unsync;
    }),
    ("is in no RAM", |t, s| {
        t.shadowed.add(HOLE.gfn(), s.small.page, State::Protected);
    }),
];

#[test]
fn r37_each_kind_of_violation_is_noticed() {
    for (words, violate) in CASES {
        let (m, scene) = machine();
        violate(&mut m.mmu.tables.lock(), &scene);
        let faults = m.mmu.audit().expect_err(words).join("\n");
        assert!(faults.contains(words), "{words:?} is not in\n{faults}");
        // What is wrong on purpose must not trip the taking down.
        std::mem::forget(m);
    }
}

#[test]
fn r37_a_table_that_is_protected_and_listed_as_unsettled_is_noticed() {
    let (m, scene) = machine();
    let gfn = {
        let mut tables = m.mmu.tables.lock();
        let gfn = tables.pages[scene.small.page].gfn;
        let protected = tables.shadowed.get(gfn).unwrap().state == State::Protected;
        tables.shadowed.get_mut(gfn).unwrap().state = match protected {
            true => State::Unsync,
            false => State::Protected,
        };
        gfn
    };
    let faults = m.mmu.audit().unwrap_err().join("\n");
    assert!(faults.contains(&format!("table {gfn}")) && faults.contains("is listed"));
    std::mem::forget(m);
}

#[test]
#[should_panic(expected = "R37")]
fn r37_a_violation_ends_the_next_slow_fault() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU);
    m.map(AT + 0x1000, TARGET, PWU);
    m.page(AT, WRITE);
    let at = m.mmu.tables.lock().rmap.small(frame(TARGET))[0];
    m.mmu.tables.lock().pages[at.page].parents.clear();
    let _ = m.translate(AT + 0x1000, WRITE);
}

#[test]
fn a_small_range_holds_its_own_tables_and_no_neighbours() {
    let mut map = ShadowedMap::default();
    map.add(Gfn(0x305), PageId(0), State::Protected);
    assert!(map.any_in(Gfn(0x300), 6) && map.any_in(Gfn(0x305), 1));
    assert!(!map.any_in(Gfn(0x300), 5) && !map.any_in(Gfn(0x306), 16));
    assert!(map.any_in(Gfn(0x200), 512) && !map.any_in(Gfn(0x400), 512));
}
