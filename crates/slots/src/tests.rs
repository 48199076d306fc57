//! Tests of the map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::*;

fn ram(len: u64) -> Arc<RamRegion> {
    RamRegion::new(RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    })
    .unwrap()
}

fn space() -> Arc<AddressSpace> {
    AddressSpace::new(Options::default())
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

const LOGGED: Flags = Flags {
    read_only: false,
    dirty_log: true,
};

fn add(space: &AddressSpace, start: u64, len: u64, flags: Flags) -> SlotId {
    space
        .update("add", |e| e.add_ram(Gpa(start), ram(len), 0, len, flags))
        .unwrap()
        .wait()
}

#[test]
fn a_range_is_never_empty_and_never_wraps() {
    assert!(GpaRange::new(Gpa(0), 0).is_none());
    assert!(GpaRange::new(Gpa(1 << 52), 1).is_none());
    assert!(GpaRange::new(Gpa((1 << 52) - 1), 2).is_none());
    assert!(GpaRange::new(Gpa(u64::MAX), u64::MAX).is_none());
    let top = range((1 << 52) - 0x1000, 0x1000);
    assert_eq!(top.last(), Gpa((1 << 52) - 1));
    assert_eq!(top.len(), 0x1000);
}

#[test]
fn an_address_resolves_to_what_is_there() {
    let space = space();
    let slot = add(&space, 0x1000, 0x3000, Flags::default());
    space
        .update("window", |e| e.add_io(range(0x10, 0x20), IoId(9)))
        .unwrap()
        .wait();
    let map = space.load();
    let Target::Ram(ram) = map.resolve(Gpa(0x2010)) else {
        panic!("RAM");
    };
    assert_eq!(ram.slot.id(), slot);
    assert_eq!((ram.offset, ram.remaining), (0x1010, 0x1ff0));
    assert!(matches!(
        map.resolve(Gpa(0x2f)),
        Target::Io {
            id: IoId(9),
            offset: 0x1f,
            remaining: 1
        }
    ));
    assert!(matches!(map.resolve(Gpa(0x30)), Target::Nothing));
    assert!(matches!(map.resolve(Gpa(0x4000)), Target::Nothing));
    assert_eq!(map.next_slot(Gpa(0x30)).unwrap().id(), slot);
}

#[test]
fn a_refused_change_changes_nothing_and_uses_no_number() {
    let space = space();
    let slot = add(&space, 0x10_0000, 0x4000, Flags::default());
    let generation = space.generation();
    type Edit = fn(&mut Editor, SlotId) -> Result<(), SlotError>;
    let edits: [(&str, Edit); 10] = [
        ("overlap", |e, _| {
            e.add_ram(Gpa(0x10_3000), ram(0x1000), 0, 0x1000, Flags::default())
                .map(drop)
        }),
        ("overlap of a window", |e, _| {
            e.add_io(range(0x10_3fff, 1), IoId(0)).map(drop)
        }),
        ("misaligned start", |e, _| {
            e.add_ram(Gpa(0x800), ram(0x1000), 0, 0x1000, Flags::default())
                .map(drop)
        }),
        ("misaligned length", |e, _| {
            e.add_ram(Gpa(0), ram(0x1000), 0, 0x800, Flags::default())
                .map(drop)
        }),
        ("misaligned offset", |e, _| {
            e.add_ram(Gpa(0), ram(0x2000), 0x800, 0x1000, Flags::default())
                .map(drop)
        }),
        ("empty", |e, _| {
            e.add_ram(Gpa(0), ram(0x1000), 0, 0, Flags::default())
                .map(drop)
        }),
        ("outside the region", |e, _| {
            e.add_ram(Gpa(0), ram(0x1000), 0x1000, 0x1000, Flags::default())
                .map(drop)
        }),
        ("overflow", |e, slot| {
            e.move_to(slot, Gpa((1 << 52) - 0x1000))
        }),
        ("resize beyond the region", |e, slot| e.resize(slot, 0x5000)),
        ("twice removed", |e, slot| {
            e.remove(slot)?;
            e.remove(slot)
        }),
    ];
    for (what, edit) in edits {
        assert!(space.update(what, |e| edit(e, slot)).is_err(), "{what}");
        assert_eq!(space.generation(), generation, "{what}");
        assert_eq!(space.load().slots().len(), 1, "{what}");
    }
}

#[test]
fn the_map_holds_no_more_slots_than_it_may() {
    let space = AddressSpace::new(Options {
        max_slots: 2,
        ..Options::default()
    });
    for i in 0..2 {
        space
            .update("window", |e| e.add_io(range(i * 16, 16), IoId(0)))
            .unwrap()
            .wait();
    }
    let third = space.update("window", |e| e.add_io(range(64, 16), IoId(0)));
    assert!(matches!(third, Err(SlotError::TooMany { max: 2 })));
}

#[test]
fn windows_have_no_flags_and_no_size_to_change() {
    let space = space();
    let window = space
        .update("window", |e| e.add_io(range(0, 16), IoId(0)))
        .unwrap()
        .wait();
    let flags = space.update("flags", |e| e.set_flags(window, LOGGED));
    assert!(matches!(flags, Err(SlotError::NotRam(_))));
    let resize = space.update("resize", |e| e.resize(window, 0x1000));
    assert!(matches!(resize, Err(SlotError::NotRam(_))));
    assert!(matches!(space.harvest(window), Err(SlotError::NotRam(_))));
}

#[test]
fn r5_every_publication_advances_the_generation_by_one() {
    let space = AddressSpace::new(Options {
        first_generation: Generation((1 << 19) - 2),
        ..Options::default()
    });
    let log = Arc::new(Mutex::new(Vec::new()));
    space.add_listener(Arc::new(Log(log.clone())));
    let slot = add(&space, 0, 0x2000, Flags::default());
    let _ = space.update("bad", |e| e.remove(SlotId(77))).unwrap_err();
    space
        .update("log", |e| e.set_flags(slot, LOGGED))
        .unwrap()
        .wait();
    space
        .update("move", |e| e.move_to(slot, Gpa(0x8000)))
        .unwrap()
        .wait();
    space.update("nothing", |_| Ok(())).unwrap().wait();
    space.update("delete", |e| e.remove(slot)).unwrap().wait();
    let first = (1 << 19) - 1;
    assert_eq!(*log.lock(), (first..first + 5).collect::<Vec<u64>>());
}

struct Log(Arc<Mutex<Vec<u64>>>);

impl Listener for Log {
    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        assert_eq!(change.new.generation().0, change.old.generation().0 + 1);
        swap();
        self.0.lock().push(change.new.generation().0);
    }
}

#[test]
fn r25_several_edits_are_one_publication() {
    let space = space();
    let window = space
        .update("open", |e| e.add_io(range(0x100, 16), IoId(1)))
        .unwrap()
        .wait();
    let before = space.generation().0;
    let updated = space
        .update("bar move", |e| {
            e.move_to(window, Gpa(0x200))?;
            e.add_ram(Gpa(0x1000), ram(0x1000), 0, 0x1000, Flags::default())
        })
        .unwrap();
    assert_eq!(updated.generation.0, before + 1);
    updated.stale.wait();
    let map = space.load();
    assert!(matches!(map.resolve(Gpa(0x100)), Target::Nothing));
    assert!(matches!(map.resolve(Gpa(0x200)), Target::Io { .. }));
}

#[test]
fn r23_writers_do_not_lose_each_others_changes() {
    let space = space();
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let space = &space;
            scope.spawn(move || {
                for i in 0..50 {
                    let at = range((writer * 100 + i) * 16, 16);
                    space
                        .update("window", |e| e.add_io(at, IoId(0)))
                        .unwrap()
                        .wait();
                }
            });
        }
    });
    assert_eq!(space.load().slots().len(), 200);
    assert_eq!(space.generation(), Generation(200));
}

#[test]
fn the_ram_epoch_changes_exactly_when_ram_leaves_or_moves() {
    let space = space();
    let epoch = || space.load().ram_epoch();
    let mut last = epoch();
    let mut expect = |changes: bool, what: &str| {
        assert_eq!(epoch() != last, changes, "{what}");
        last = epoch();
    };
    let region = ram(0x4000);
    let updated = space.update("add", |e| {
        e.add_ram(Gpa(0), region, 0, 0x2000, Flags::default())
    });
    let slot = updated.unwrap().wait();
    expect(false, "add");
    space
        .update("grow", |e| e.resize(slot, 0x4000))
        .unwrap()
        .wait();
    expect(false, "grow");
    space
        .update("flags", |e| e.set_flags(slot, LOGGED))
        .unwrap()
        .wait();
    expect(false, "flags");
    space
        .update("there and back", |e| {
            e.move_to(slot, Gpa(0x8000))?;
            e.move_to(slot, Gpa(0))
        })
        .unwrap()
        .wait();
    expect(false, "no move at all");
    space
        .update("shrink", |e| e.resize(slot, 0x1000))
        .unwrap()
        .wait();
    expect(true, "shrink");
    space
        .update("move", |e| e.move_to(slot, Gpa(0x8000)))
        .unwrap()
        .wait();
    expect(true, "move");
    space.update("delete", |e| e.remove(slot)).unwrap().wait();
    expect(true, "delete");
}

#[test]
fn a_change_tells_what_left_and_what_was_restricted() {
    struct See(Mutex<Vec<(Vec<GpaRange>, Vec<GpaRange>)>>);
    impl Listener for See {
        fn published(&self, change: &Change) -> Option<Wait> {
            self.0.lock().push((
                change.removed_ram().collect(),
                change.restricted_ram().collect(),
            ));
            None
        }
    }
    let space = space();
    let slot = add(&space, 0, 0x4000, Flags::default());
    let see = Arc::new(See(Mutex::default()));
    space.add_listener(see.clone());
    space
        .update("shrink", |e| e.resize(slot, 0x1000))
        .unwrap()
        .wait();
    space
        .update("log", |e| e.set_flags(slot, LOGGED))
        .unwrap()
        .wait();
    space
        .update("stop", |e| e.set_flags(slot, Flags::default()))
        .unwrap()
        .wait();
    space
        .update("move", |e| e.move_to(slot, Gpa(0x8000)))
        .unwrap()
        .wait();
    let seen = see.0.lock();
    assert_eq!(seen[0], (vec![range(0x1000, 0x3000)], vec![]));
    assert_eq!(seen[1], (vec![], vec![range(0, 0x1000)]));
    assert_eq!(seen[2], (vec![], vec![]));
    assert_eq!(seen[3], (vec![range(0, 0x1000)], vec![]));
}

#[test]
fn waits_run_after_the_locks_are_released() {
    struct Waits(Arc<AtomicU32>, std::sync::Weak<AddressSpace>);
    impl Listener for Waits {
        fn published(&self, _: &Change) -> Option<Wait> {
            let (count, space) = (self.0.clone(), self.1.clone());
            Some(Box::new(move || {
                drop(space.upgrade().unwrap().hold()); // the writer lock is free
                count.fetch_add(1, Ordering::Relaxed);
            }))
        }
    }
    let space = space();
    let count = Arc::new(AtomicU32::new(0));
    let waits = Waits(count.clone(), Arc::downgrade(&space));
    space.add_listener(Arc::new(waits));
    let updated = space.update("nothing", |_| Ok(())).unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert!(!updated.stale.is_empty());
    updated.wait();
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn listeners_nest_around_one_swap() {
    struct Around(&'static str, Arc<Mutex<Vec<String>>>);
    impl Listener for Around {
        fn publish(&self, _: &Change, swap: &mut dyn FnMut()) {
            self.1.lock().push(format!("{} before", self.0));
            swap();
            self.1.lock().push(format!("{} after", self.0));
        }
    }
    let space = space();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for name in ["a", "b"] {
        space.add_listener(Arc::new(Around(name, seen.clone())));
    }
    space.update("nothing", |_| Ok(())).unwrap().wait();
    assert_eq!(*seen.lock(), ["a before", "b before", "b after", "a after"]);
}

#[test]
fn bytes_are_read_and_written_across_slots() {
    let space = space();
    add(&space, 0, 0x1000, Flags::default());
    add(&space, 0x1000, 0x1000, Flags::default());
    let map = space.load();
    map.write(Gpa(0xffc), b"abcdefgh").unwrap();
    let mut back = [0; 8];
    map.read(Gpa(0xffc), &mut back).unwrap();
    assert_eq!(&back, b"abcdefgh");
    assert_eq!(
        map.write(Gpa(0x1ffe), b"1234"),
        Err(AccessError::NotRam(Gpa(0x2000)))
    );
    map.read(Gpa(0x1ffe), &mut back[..2]).unwrap();
    assert_eq!(back[..2], [0, 0], "nothing was written");
}

#[test]
fn parts_of_one_region_are_seen_by_every_way_to_it() {
    let space = space();
    let region = ram(0x4000);
    let (low, high) = (region.clone(), region.clone());
    space
        .update("two parts", |e| {
            e.add_ram(Gpa(0), low, 0, 0x1000, LOGGED)?;
            e.add_ram(Gpa(0x10_0000), high, 0x1000, 0x3000, LOGGED)
        })
        .unwrap()
        .wait();
    let map = space.load();
    let memory = map.guest_memory();
    memory
        .write_slice(b"hello", GuestAddress(0x10_1008))
        .unwrap();
    let mut back = [0; 5];
    map.read(Gpa(0x10_1008), &mut back).unwrap();
    assert_eq!(&back, b"hello");
    assert_eq!(memory.num_regions(), 2);
    let slot = map.slot_at(Gpa(0x10_0000)).unwrap().id();
    let dirty = space.harvest(slot).unwrap();
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [Gfn(0x101)]);
}

#[test]
fn r39_a_harvest_gives_each_written_page_once() {
    let space = space();
    let slot = add(&space, 0x10_0000, 0x10_0000, LOGGED);
    let map = space.load();
    for page in [0u64, 1, 63, 64, 65, 255] {
        map.write(Gpa(0x10_0000 + page * 0x1000), &[1]).unwrap();
    }
    map.write(Gpa(0x10_9fff), &[1, 2]).unwrap();
    let part = space
        .harvest_range(slot, range(0x10_0000, 0x2_0000))
        .unwrap();
    let found: Vec<u64> = part.iter().map(|g| g.0 - 0x100).collect();
    assert_eq!(found, [0, 1, 9, 10]);
    let rest: Vec<u64> = space
        .harvest(slot)
        .unwrap()
        .iter()
        .map(|g| g.0 - 0x100)
        .collect();
    assert_eq!(rest, [63, 64, 65, 255]);
    assert!(space.harvest(slot).unwrap().is_empty());
    let outside = space.harvest_range(slot, range(0, 0x1000));
    assert!(matches!(outside, Err(SlotError::BadRange { .. })));
}

#[test]
fn r39_a_log_that_is_turned_on_starts_clean() {
    let space = space();
    let slot = add(&space, 0, 0x4000, Flags::default());
    space.load().write(Gpa(0), &[1]).unwrap();
    space
        .update("log", |e| e.set_flags(slot, LOGGED))
        .unwrap()
        .wait();
    assert_eq!(space.harvest(slot).unwrap().count(), 0);
}

#[test]
fn r19_memory_lives_as_long_as_somebody_holds_a_map_with_it() {
    let space = space();
    let region = ram(0x1000);
    let weak = Arc::downgrade(&region);
    let added = space.update("add", |e| {
        e.add_ram(Gpa(0), region, 0, 0x1000, Flags::default())
    });
    let slot = added.unwrap().wait();
    let reader = space.load_full();
    let updated = space.update("delete", |e| e.remove(slot)).unwrap();
    reader.write(Gpa(0), &[1]).unwrap();
    drop(reader);
    assert!(weak.upgrade().is_some(), "until it was waited for");
    updated.wait();
    assert!(weak.upgrade().is_none());
}

#[test]
fn ram_is_a_file_that_can_be_shared() {
    use std::os::unix::fs::FileExt;
    let region = ram(0x2000);
    let space = space();
    let shared = region.clone();
    space
        .update("add", |e| {
            e.add_ram(Gpa(0), shared, 0, 0x2000, Flags::default())
        })
        .unwrap()
        .wait();
    region.file().write_all_at(b"file", 0x1000).unwrap();
    let mut back = [0; 4];
    space.load().read(Gpa(0x1000), &mut back).unwrap();
    assert_eq!(&back, b"file");
}

#[test]
fn ram_of_an_impossible_size_is_refused() {
    for (len, huge) in [
        (0, HugePages::No),
        (0x800, HugePages::No),
        (0x1000, HugePages::Hugetlbfs),
        (!0xfff, HugePages::No),
    ] {
        let made = RamRegion::new(RamOptions {
            len,
            huge,
            prefault: false,
        });
        assert!(matches!(made, Err(RamError::BadLength { .. })), "{len:#x}");
    }
}

#[test]
fn ram_can_be_taken_at_once() {
    use std::os::unix::fs::MetadataExt;
    let region = RamRegion::new(RamOptions {
        len: 0x10_0000,
        huge: HugePages::Transparent,
        prefault: true,
    })
    .unwrap();
    assert!(region.file().metadata().unwrap().blocks() * 512 >= 0x10_0000);
}

/// A reader never sees half a change: the window is at one of its places, with the generation of
/// that place.
#[test]
fn r6_and_r27_a_window_that_moves_is_always_at_exactly_one_place() {
    let space = space();
    let window = space
        .update("open", |e| e.add_io(range(0x1000, 16), IoId(1)))
        .unwrap()
        .wait();
    let first = space.generation().0;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut last = 0;
            while last < first + 2000 {
                let map = space.load();
                let even = matches!(map.resolve(Gpa(0x1000)), Target::Io { .. });
                let odd = matches!(map.resolve(Gpa(0x2000)), Target::Io { .. });
                assert_ne!(even, odd);
                let moves = map.generation().0 - first;
                assert_eq!(even, moves.is_multiple_of(2));
                assert!(map.generation().0 >= last);
                last = map.generation().0;
            }
        });
        for i in 0..2000u64 {
            let to = Gpa(if i % 2 == 0 { 0x2000 } else { 0x1000 });
            space
                .update("move", |e| e.move_to(window, to))
                .unwrap()
                .wait();
        }
        reader.join().unwrap();
    });
}

proptest! {
    /// `resolve` is what a scan of all slots says.
    #[test]
    fn resolve_agrees_with_a_scan(
        windows in proptest::collection::vec((0..500u64, 1..40u64), 1..30),
        asked in proptest::collection::vec(0..600u64, 50),
    ) {
        let space = space();
        for (start, len) in windows {
            let _ = space.update("window", |e| e.add_io(range(start, len), IoId(0)));
        }
        let map = space.load();
        for gpa in asked.into_iter().map(Gpa) {
            let scanned = map.slots().iter().find(|s| s.range().contains(gpa));
            prop_assert_eq!(map.slot_at(gpa).map(Slot::id), scanned.map(Slot::id));
            let next = map.slots().iter().find(|s| s.range().start() > gpa);
            prop_assert_eq!(map.next_slot(gpa).map(Slot::id), next.map(Slot::id));
        }
    }
}

/// Refuses, or fails to follow, while told to.
#[derive(Default)]
struct Weak {
    refuses: std::sync::atomic::AtomicBool,
    fails: std::sync::atomic::AtomicBool,
    heard: Mutex<Vec<(u64, usize)>>,
}

impl Listener for Weak {
    fn prepare(&self, _: &Change) -> Result<(), SlotError> {
        match self.refuses.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(SlotError::TooManyPieces { max: 1, needed: 2 }),
            false => Ok(()),
        }
    }

    fn followed(&self) -> Result<(), SlotError> {
        match self.fails.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(SlotError::Host {
                call: "mirror",
                range: range(0, 0x1000),
                source: std::io::ErrorKind::OutOfMemory.into(),
            }),
            false => Ok(()),
        }
    }

    fn published(&self, change: &Change) -> Option<Wait> {
        let new = &change.new;
        self.heard
            .lock()
            .push((new.generation().0, new.slots().len()));
        None
    }
}

#[test]
fn r5_a_change_that_a_listener_could_not_follow_is_taken_back_under_a_number_of_its_own() {
    use std::sync::atomic::Ordering;

    let space = space();
    add(&space, 0, 0x2000, Flags::default());
    let listener = Arc::new(Weak::default());
    space.add_listener(listener.clone());
    let before = space.load_full();

    listener.refuses.store(true, Ordering::Relaxed);
    let window = |space: &AddressSpace| {
        space.update("window", |e| {
            e.add_io(range(0x10_0000 + space.generation().0 * 16, 16), IoId(1))
        })
    };
    assert!(matches!(
        window(&space),
        Err(SlotError::TooManyPieces { .. })
    ));
    assert_eq!(space.generation(), before.generation());
    assert!(listener.heard.lock().is_empty());

    listener.refuses.store(false, Ordering::Relaxed);
    listener.fails.store(true, Ordering::Relaxed);
    assert!(matches!(window(&space), Err(SlotError::Host { .. })));
    let (at, after) = (before.generation().0, space.load_full());
    assert_eq!(after.generation().0, at + 2, "the number is not used again");
    assert_eq!(after.slots().len(), before.slots().len());
    assert_eq!(*listener.heard.lock(), [(at + 1, 2), (at + 2, 1)]);

    listener.fails.store(false, Ordering::Relaxed);
    window(&space).unwrap().wait();
    assert_eq!(space.generation().0, at + 3);
}

#[test]
fn marks_that_a_listener_keeps_are_part_of_a_harvest() {
    struct Keeper;
    impl Listener for Keeper {
        fn collect(&self, slot: &Slot, part: GpaRange) -> Result<(), SlotError> {
            let Backing::Ram { region, offset, .. } = slot.backing() else {
                panic!("only RAM is asked for");
            };
            use vm_memory::bitmap::Bitmap;
            let at = offset + part.start().0 - slot.range().start().0;
            region.dirty().mark_dirty(at as usize, 1);
            Ok(())
        }
    }
    let space = space();
    let slot = add(&space, 0x8000, 0x4000, LOGGED);
    space.add_listener(Arc::new(Keeper));
    let pages = space.harvest_range(slot, range(0xa000, 0x1000)).unwrap();
    assert_eq!(pages.iter().collect::<Vec<_>>(), [Gfn(0xa)]);
    let pages = space.harvest(slot).unwrap();
    assert_eq!(pages.iter().collect::<Vec<_>>(), [Gfn(0x8)]);
}
