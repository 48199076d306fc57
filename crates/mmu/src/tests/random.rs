//! Random guests, random changes of the map, a tag of two bits: the oracle answers every access
//! too, and everything is audited on the way (R15, R37, R40).

use proptest::prelude::*;
use umbra_slots::{Flags, Generation, Gpa, GpaRange, IoId, SlotId};
use umbra_x86::{Gva, cr0, cr4, pte};

use super::guest::*;
use crate::{Access, AccessKind, Config, Scope, Unsync};

/// What a test does next.
#[derive(Clone, Debug)]
enum Step {
    /// Access one of 16 pages.
    Access { page: u64, access: Access },
    /// Write a leaf entry: which page, to what, with which flags.
    Leaf { page: u64, to: usize, flags: u64 },
    /// Write a directory entry: a leaf table, absent, or large.
    Directory { which: u64, form: u8 },
    /// Create, delete, move, shorten or re-flag the second slot, open or close a window.
    Map(u8),
    /// Publish without a change.
    Publish(u8),
    /// Change CR0 and CR4 bits.
    Control(u8),
    /// Flush.
    Flush { page: u64, all: bool },
}

const BASE: u64 = 0x4000_0000;
const SECOND: Gpa = Gpa(0x80_0000_0000 >> 8);

/// Frames that entries refer to: RAM, the second slot's three possible places, the tables
/// themselves, holes, and an address with a reserved bit.
fn targets(m: &Machine) -> Vec<u64> {
    let cr3 = m.regs.cr3;
    let second = SECOND.0;
    vec![
        0x60_0000,
        0x60_1000,
        second,
        second + 0x1000,
        second + 0x10_0000,
        cr3,
        cr3 + 0x1000,
        cr3 + 0x2000,
        cr3 + 0x3000,
        cr3 + 0x4000,
        HOLE.0,
        1 << 50,
    ]
}

fn access() -> impl Strategy<Value = Access> {
    let kind = prop_oneof![
        Just(AccessKind::Read),
        Just(AccessKind::Write),
        Just(AccessKind::Fetch)
    ];
    (kind, any::<bool>(), any::<bool>()).prop_map(|(kind, user, ac)| Access { kind, user, ac })
}

fn flags() -> impl Strategy<Value = u64> {
    let bit = |b: u64| any::<bool>().prop_map(move |on| if on { b } else { 0 });
    (
        bit(pte::RW),
        bit(pte::US),
        bit(pte::XD),
        bit(pte::A | pte::D),
        bit(pte::G),
        0..8u32,
    )
        .prop_map(|(w, u, x, ad, g, absent)| {
            let present = if absent == 0 { 0 } else { pte::P };
            present | w | u | x | ad | g
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..16u64, access()).prop_map(|(page, access)| Step::Access { page, access }),
        3 => (0..16u64, 0..12usize, flags())
            .prop_map(|(page, to, flags)| Step::Leaf { page, to, flags }),
        1 => (0..4u64, 0..4u8).prop_map(|(which, form)| Step::Directory { which, form }),
        2 => (0..8u8).prop_map(Step::Map),
        1 => (1..6u8).prop_map(Step::Publish),
        1 => any::<u8>().prop_map(Step::Control),
        1 => (0..16u64, any::<bool>()).prop_map(|(page, all)| Step::Flush { page, all }),
    ]
}

/// Page `page`: four directory entries, four leaves below each.
fn address(page: u64) -> u64 {
    BASE + ((page / 4) << 21) + ((page % 4) << 12)
}

struct Random {
    m: Machine,
    second: Option<SlotId>,
    window: Option<SlotId>,
    leaf_tables: Vec<u64>,
}

impl Random {
    fn new(config: Config, first: u64) -> Self {
        let mut m = Machine::at(config, Generation(first));
        let leaf_tables = (0..4)
            .map(|which| m.entry_at(address(which * 4), 1) & !0xfff)
            .collect();
        Self {
            m,
            second: None,
            window: None,
            leaf_tables,
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Access { page, access } => drop(self.m.translate(address(page), access)),
            Step::Leaf { page, to, flags } => {
                let to = targets(&self.m)[to];
                let at = self.leaf_tables[page as usize / 4] + page % 4 * 8;
                self.store(at, to | flags);
            }
            Step::Directory { which, form } => {
                let at = self.m.entry_at(address(which * 4), 2);
                let table = self.leaf_tables[which as usize];
                let other = self.leaf_tables[(which as usize + 1) % 4];
                self.store(
                    at,
                    match form {
                        0 => table | PWU,
                        1 => other | pte::P | pte::US,
                        2 => (SECOND.0 & !0x1f_ffff) | PWU | pte::PS,
                        _ => 0x60_0000 | PWU | pte::PS,
                    },
                );
            }
            Step::Map(what) => self.change(what),
            Step::Publish(times) => self.m.publish(times.into()),
            Step::Control(bits) => self.control(bits),
            Step::Flush { page, all } => self.m.vcpu.guest_flush(if all {
                Scope::All
            } else {
                Scope::Page(Gva(address(page)))
            }),
        }
    }

    /// Stores as the guest does, and flushes as a careful guest does.
    fn store(&mut self, at: u64, value: u64) {
        self.m.store(at, value);
    }

    fn change(&mut self, what: u8) {
        let (second, window) = (self.second, self.window);
        let space = self.m.space.clone();
        let flagged = |read_only, dirty_log| Flags {
            read_only,
            dirty_log,
        };
        match (what, second) {
            (0 | 1, None) => {
                let added = space.update("create", |e| {
                    e.add_ram(SECOND, ram(0x20_0000), 0, 0x20_0000, Flags::default())
                });
                self.second = Some(added.unwrap().wait());
            }
            (0, Some(slot)) => {
                space.update("delete", |e| e.remove(slot)).unwrap().wait();
                self.second = None;
            }
            (1, Some(slot)) => space
                .update("move", |e| e.move_to(slot, Gpa(SECOND.0 + 0x10_0000)))
                .unwrap()
                .wait(),
            (2, Some(slot)) => space
                .update("move back", |e| e.move_to(slot, SECOND))
                .unwrap()
                .wait(),
            (3, Some(slot)) => space
                .update("resize", |e| e.resize(slot, 0x1000))
                .unwrap()
                .wait(),
            (4, Some(slot)) => space
                .update("log", |e| e.set_flags(slot, flagged(false, true)))
                .unwrap()
                .wait(),
            (5, Some(slot)) => space
                .update("rom", |e| e.set_flags(slot, flagged(true, false)))
                .unwrap()
                .wait(),
            (6, Some(slot)) => drop(space.harvest(slot).unwrap()),
            _ => {
                self.window = match window {
                    Some(slot) => {
                        space.update("close", |e| e.remove(slot)).unwrap().wait();
                        None
                    }
                    None => {
                        let range = GpaRange::new(HOLE, 0x1000).unwrap();
                        let opened = space.update("open", |e| e.add_io(range, IoId(1)));
                        Some(opened.unwrap().wait())
                    }
                };
            }
        }
    }

    fn control(&mut self, bits: u8) {
        let m = &mut self.m;
        let choose = |value: &mut u64, bit: u64, on: bool| {
            *value = if on { *value | bit } else { *value & !bit };
        };
        choose(&mut m.regs.cr0, cr0::WP, bits & 1 != 0);
        choose(&mut m.regs.cr4, cr4::SMEP, bits & 2 != 0);
        choose(&mut m.regs.cr4, cr4::SMAP, bits & 4 != 0);
        choose(&mut m.regs.efer, umbra_x86::efer::NXE, bits & 8 != 0);
        choose(&mut m.regs.cr0, cr0::PG, bits & 0xf0 != 0);
        choose(&mut m.regs.efer, umbra_x86::efer::LMA, bits & 0xf0 != 0);
        m.load_regs();
    }
}

fn play(config: Config, first: u64, steps: &[Step]) {
    let mut random = Random::new(config, first);
    for step in steps {
        random.run(step);
        random.m.audit();
    }
}

fn configs() -> impl Strategy<Value = Config> {
    (any::<bool>(), any::<bool>(), 0..4u32).prop_map(|(large_pages, last_mmio, unsync)| Config {
        tag_bits: 2,
        large_pages,
        last_mmio,
        unsync: match unsync {
            0 => Unsync::Never,
            n => Unsync::After(n),
        },
        ..checked()
    })
}

proptest! {

    #[test]
    fn r40_every_answer_of_a_random_machine_is_the_oracles(
        config in configs(),
        first in 0..4u64,
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        play(config, first, &steps);
    }
}
