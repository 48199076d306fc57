//! From any table to any other.

use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;
use umbra_slots::{AddressSpace, FileAccess, Flags, HugePages, Options, RamOptions};

/// Two memories, so that the same place can hold different ones.
static MEMORIES: LazyLock<[Arc<RingMemory>; 2]> =
    LazyLock::new(|| [(); 2].map(|()| RingMemory::new(&[], 0).unwrap()));

fn piece(file: usize, start: u64, len: u64, offset: u64) -> Piece {
    Piece {
        offset,
        ..Piece::rings(MEMORIES[file].clone(), start, len)
    }
}

/// A map of ten places, in each of which there is nothing, or memory of either file.
fn wanted() -> impl Strategy<Value = Vec<Piece>> {
    let place = prop_oneof![1 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))];
    proptest::collection::vec(place, 10).prop_map(|places| {
        let mut pieces: Vec<Piece> = Vec::new();
        for (at, file) in (0..).zip(places) {
            let Some(file) = file else { continue };
            let next = piece(file, at, 1, at);
            match pieces.last_mut() {
                Some(last) if last.is_followed_by(&next) => last.len += 1,
                _ => pieces.push(next),
            }
        }
        pieces
    })
}

/// What is at each place.
fn memory(pieces: &[Piece]) -> Vec<Option<(bool, u64)>> {
    let at = |at: u64| {
        let mut there = pieces.iter().filter(|p| p.start <= at && at < p.end());
        let found = there.next().map(|piece| {
            let first = piece.memory.is(&Memory::Rings(MEMORIES[0].clone()));
            (first, piece.offset + at - piece.start)
        });
        assert!(there.next().is_none(), "pieces overlap: {pieces:?}");
        found
    };
    (0..10).map(at).collect()
}

proptest! {
    #[test]
    fn any_step_leads_where_it_should(maps in proptest::collection::vec(wanted(), 1..12), max in 1..8usize) {
        let mut has = Vec::new();
        for wanted in maps {
            let Ok(step) = step(&has, &wanted, max) else {
                prop_assert!(wanted.len() > max);
                continue;
            };
            let after = step.apply(&has);
            prop_assert_eq!(memory(&after), memory(&wanted));
            prop_assert!(after.len() <= max);
            if !step.stopped {
                // What comes is taken before anything goes, and what stays is left alone.
                prop_assert!(has.len() + step.add.len() <= max);
                for gone in &step.remove {
                    let before = memory(std::slice::from_ref(gone));
                    let now = memory(&wanted);
                    let lost = before.iter().zip(now).all(|(old, new)| old.is_none() || *old != new);
                    prop_assert!(lost, "{gone:?} is still there");
                }
            }
            has = after;
        }
    }
}

#[test]
fn memory_that_grows_keeps_its_piece_and_one_that_is_cut_stands_still() {
    let has = [piece(0, 0, 4, 0)];
    let grown = step(&has, &[piece(0, 0, 6, 0)], 8).unwrap();
    assert_eq!(grown.add, [piece(0, 4, 2, 4)]);
    assert!(grown.remove.is_empty() && !grown.stopped);
    let cut = step(&has, &[piece(0, 0, 1, 0), piece(0, 2, 2, 2)], 8).unwrap();
    assert_eq!((cut.remove.len(), cut.add.len()), (1, 2));
    assert!(cut.stopped);
    let gone = step(&has, &[], 8).unwrap();
    assert!(!gone.stopped && gone.add.is_empty());
    assert!(step(&has, &has, 8).unwrap().is_nothing());
}

#[test]
fn too_many_pieces_are_joined_and_too_many_holes_refused() {
    let has: Vec<_> = (0..4).map(|at| piece(0, at, 1, at)).collect();
    let joined = step(&has, &[piece(0, 0, 5, 0)], 4).unwrap();
    assert!(joined.stopped);
    assert_eq!(joined.apply(&has), [piece(0, 0, 5, 0)]);
    let holes: Vec<_> = (0..5).map(|at| piece(0, 2 * at, 1, 2 * at)).collect();
    assert_eq!(step(&[], &holes, 4), Err(5));
}

#[test]
fn only_the_guests_own_memory_that_it_may_write_is_shared() {
    let space = AddressSpace::new(Options::default());
    let ram = RamRegion::new(RamOptions {
        len: 0x3000,
        huge: HugePages::No,
        prefault: false,
    });
    let ram = ram.unwrap();
    let file = |access| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        RamRegion::of_file(file, 0x1000, access).unwrap()
    };
    let read_only = Flags {
        read_only: true,
        dirty_log: false,
    };
    let added = space.update("test", |map| {
        map.add_ram(Gpa(0x0000), ram.clone(), 0, 0x1000, Flags::default())?;
        map.add_ram(Gpa(0x1000), ram.clone(), 0x1000, 0x1000, Flags::default())?;
        map.add_ram(Gpa(0x2000), ram.clone(), 0x2000, 0x1000, read_only)?;
        map.add_ram(Gpa(0x4000), ram.clone(), 0, 0x1000, Flags::default())?;
        map.add_ram(Gpa(0x5000), file(FileAccess::Read), 0, 0x1000, read_only)?;
        let writable = file(FileAccess::ReadWrite);
        map.add_ram(Gpa(0x6000), writable, 0, 0x1000, Flags::default())
    });
    added.unwrap().wait();
    let map = space.load();
    let pieces = pieces_of(&map);
    let places: Vec<_> = pieces.iter().map(|p| (p.start, p.len, p.offset)).collect();
    assert_eq!(places, [(0, 0x2000, 0), (0x4000, 0x1000, 0)]);
    for (at, len, within) in [
        (0, 0x2000, true),
        (0x1fff, 1, true),
        (0x1fff, 2, false),
        (0x3000, 1, false),
        (0x4000, 0x1000, true),
        (0x4fff, 2, false),
        (0x6000, 1, false),
        (0x9000, 0, true),
        (u64::MAX, 1, false),
        (u64::MAX, u64::MAX, false),
    ] {
        assert_eq!(
            is_within_reach(&map, Gpa(at), len),
            within,
            "{at:#x} {len:#x}"
        );
    }
}
