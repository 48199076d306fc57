//! The auditor and the oracle notice what is planted (R37, R40).

use umbra_slots::Gfn;
use umbra_x86::Gva;

use super::guest::*;
use crate::entry::{Entry, Leaf, Mmio, Tag};
use crate::page::{EntryAt, PageId};
use crate::rights::Rights;
use crate::{Config, Kind};

const AT: u64 = 0x4000_0000;
const TARGET: u64 = 0x60_0000;

fn machine() -> Machine {
    let mut m = Machine::new(Config::default());
    m.map(AT, TARGET, PWU);
    m.map(AT + 0x1000, HOLE.0, PWU);
    m.page(AT, WRITE);
    m.kind(AT + 0x1000, WRITE);
    m.audit();
    m
}

/// The leaf entry for AT, and the MMIO entry after it.
fn leaf(m: &Machine) -> (EntryAt, Leaf) {
    let tables = m.mmu.tables.lock();
    let at = tables.rmap.small(frame(TARGET))[0];
    let Entry::Leaf(leaf) = tables.pages[at.page].entry(at.index.into()) else {
        panic!("a leaf");
    };
    (at, leaf)
}

fn plant(m: &Machine, at: EntryAt, entry: Entry) {
    m.mmu.tables.lock().pages[at.page].set(at.index.into(), entry);
}

fn complaint(m: &Machine) -> String {
    m.mmu.audit().unwrap_err().join("\n")
}

#[test]
fn r37_a_leaf_outside_the_reverse_map_is_noticed() {
    let m = machine();
    let (at, leaf) = leaf(&m);
    let other = EntryAt {
        index: at.index + 9,
        ..at
    };
    plant(&m, other, Entry::Leaf(leaf));
    assert!(complaint(&m).contains("reverse map"));
}

#[test]
fn r37_an_entry_that_vanished_from_under_the_reverse_map_is_noticed() {
    let m = machine();
    let (at, _) = leaf(&m);
    plant(&m, at, Entry::Absent);
    assert!(complaint(&m).contains("the reverse map of"));
}

#[test]
fn r37_mmio_in_place_of_a_leaf_is_noticed() {
    let m = machine();
    let (at, _) = leaf(&m);
    let mmio = Mmio {
        gfn: Gfn(0xfee00),
        rights: Rights::WRITE_USER,
        tag: Tag(0),
    };
    plant(&m, at, Entry::Mmio(mmio));
    assert!(complaint(&m).contains("the reverse map of"));
}

#[test]
fn r37_valid_mmio_over_ram_is_noticed_and_stale_mmio_is_not() {
    let m = machine();
    let (at, _) = leaf(&m);
    let next = EntryAt {
        index: at.index + 1,
        ..at
    };
    let now = m.space.generation();
    let over_ram = |tag| {
        Entry::Mmio(Mmio {
            gfn: frame(TARGET),
            rights: Rights::WRITE_USER,
            tag,
        })
    };
    plant(&m, next, over_ram(Tag(Tag::of(now, 19).0 + 1)));
    m.audit();
    plant(&m, next, over_ram(Tag::of(now, 19)));
    assert!(complaint(&m).contains("valid MMIO over RAM"));
}

#[test]
fn r37_a_writable_leaf_to_a_table_is_noticed() {
    let mut m = machine();
    let entry = m.entry_at(AT, 1);
    m.map(AT + 0x2000, entry & !0xfff, PWU);
    assert_eq!(m.kind(AT + 0x2000, WRITE), Kind::Tracked);
    let at = m.mmu.tables.lock().rmap.small(frame(entry))[0];
    let Entry::Leaf(leaf) = m.mmu.tables.lock().pages[at.page].entry(at.index.into()) else {
        panic!("a leaf");
    };
    plant(
        &m,
        at,
        Entry::Leaf(Leaf {
            writable: true,
            ..leaf
        }),
    );
    assert!(complaint(&m).contains("writable"));
}

#[test]
fn r37_a_leaf_to_another_host_page_is_noticed() {
    let m = machine();
    let (at, leaf) = leaf(&m);
    plant(
        &m,
        at,
        Entry::Leaf(Leaf {
            host: leaf.host + 0x1000,
            ..leaf
        }),
    );
    assert!(complaint(&m).contains("another host page"));
}

#[test]
fn r37_a_link_that_the_child_does_not_know_is_noticed() {
    let m = machine();
    let child = leaf(&m).0.page;
    let parent = m.mmu.tables.lock().pages[child].parents[0];
    plant(
        &m,
        EntryAt {
            index: parent.index + 1,
            ..parent
        },
        Entry::Table(PageId(child.0)),
    );
    assert!(complaint(&m).contains("does not know its parent"));
}

#[test]
#[should_panic(expected = "R40")]
fn r40_a_wrong_frame_in_the_shadow_is_noticed() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, PWU);
    m.page(AT, WRITE);
    let (at, leaf) = leaf(&m);
    plant(
        &m,
        at,
        Entry::Leaf(Leaf {
            host: leaf.host + 0x1000,
            ..leaf
        }),
    );
    let _ = m.vcpu.translate(Gva(AT), READ);
}

#[test]
#[should_panic(expected = "R40")]
fn r40_a_right_too_many_in_the_shadow_is_noticed() {
    let mut m = Machine::new(checked());
    m.map(AT, TARGET, umbra_x86::pte::P);
    m.page(AT, READ);
    let (at, leaf) = leaf(&m);
    plant(
        &m,
        at,
        Entry::Leaf(Leaf {
            rights: Rights::ALL,
            ..leaf
        }),
    );
    let _ = m.vcpu.translate(Gva(AT), user(READ));
}

#[test]
#[should_panic(expected = "R40")]
fn r40_mmio_over_ram_is_noticed() {
    let mut m = Machine::new(checked());
    m.map(AT, HOLE.0, PWU);
    m.map(AT + 0x1000, TARGET, PWU);
    m.kind(AT, READ);
    m.page(AT + 0x1000, READ);
    let (at, _) = leaf(&m);
    let mmio = Mmio {
        gfn: frame(TARGET),
        rights: Rights::WRITE_USER,
        tag: Tag::of(m.space.generation(), 19),
    };
    m.mmu.tables.lock().clear(at);
    plant(&m, at, Entry::Mmio(mmio));
    let _ = m.vcpu.translate(Gva(AT + 0x1000), READ);
}
