//! Edges: empty maps and lengths, ends of logs, what values say of themselves, a host that refuses.

use std::sync::Arc;

use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::{Bitmap, NewBitmap};

use crate::*;

const LOGGED: Flags = Flags {
    read_only: false,
    dirty_log: true,
};

fn options(len: u64, huge: HugePages) -> RamOptions {
    RamOptions {
        len,
        huge,
        prefault: false,
    }
}

fn ram(len: u64) -> Arc<RamRegion> {
    RamRegion::new(options(len, HugePages::No)).unwrap()
}

/// A map with one logged slot of three pages at 0x5000, and a window.
fn space() -> (Arc<AddressSpace>, SlotId) {
    let space = AddressSpace::new(Options::default());
    let window = GpaRange::new(Gpa(0x9000), 0x10).unwrap();
    let added = space.update("start", |e| {
        e.add_io(window, IoId(3))?;
        e.add_ram(Gpa(0x5000), ram(0x3000), 0, 0x3000, LOGGED)
    });
    (space, added.unwrap().wait())
}

#[test]
fn an_editor_shows_the_slots_as_they_stand_by_address() {
    let (space, slot) = space();
    let seen = space.update("look", |e| {
        e.move_to(slot, Gpa(0xa000))?;
        Ok(e.slots()
            .iter()
            .map(|s| s.range().start().0)
            .collect::<Vec<_>>())
    });
    assert_eq!(seen.unwrap().wait(), [0x9000, 0xa000]);
}

#[test]
fn guest_memory_is_the_ram_and_nothing_else() {
    let empty = AddressSpace::new(Options::default());
    assert_eq!(empty.load().guest_memory().num_regions(), 0);
    let (space, _) = space();
    let memory = space.load().guest_memory();
    assert_eq!(memory.num_regions(), 1);
    assert_eq!(memory.last_addr().0, 0x7fff);
}

#[test]
fn r39_a_harvest_says_which_pages_in_words_of_64() {
    let (space, slot) = space();
    space.load().write(Gpa(0x6fff), &[1, 2]).unwrap();
    let pages = space.harvest(slot).unwrap();
    assert_eq!((pages.first(), pages.words()), (Gfn(5), &[0b110][..]));
    assert!(pages.iter().eq([Gfn(6), Gfn(7)]));
    assert_eq!((pages.count(), pages.is_empty()), (2, false));
}

#[test]
fn a_log_marks_nothing_for_no_bytes_and_nothing_past_its_end() {
    let log = DirtyLog::with_len(0x2000);
    log.mark_dirty(0, 0);
    assert!(!log.dirty_at(0));
    // The log is kept in words of 64 pages: what lies past the last one is dropped.
    log.mark_dirty(0x1000, 0x100_0000);
    assert!(!log.dirty_at(0) && log.dirty_at(0x1000));
    assert!(!log.dirty_at(64 << 12));
    let taken = log.take(0, 1000);
    assert_eq!(taken[0], u64::MAX - 1);
    assert!(taken[1..].iter().all(|word| *word == 0));
    assert!(!DirtyLog::default().dirty_at(0));
}

#[test]
fn a_listener_need_do_nothing() {
    struct Idle;
    impl Listener for Idle {}
    let (space, slot) = space();
    space.add_listener(Arc::new(Idle));
    space.load().write(Gpa(0x5000), &[1]).unwrap();
    assert_eq!(space.harvest(slot).unwrap().count(), 1);
    let updated = space.update("close", |e| e.remove(slot)).unwrap();
    assert!(updated.stale.is_empty());
}

#[test]
fn values_say_what_they_are() {
    let (space, _) = space();
    assert_eq!(space.generation().to_string(), "1");
    let range = GpaRange::new(Gpa(0x1000), 0x1000).unwrap();
    assert_eq!(range.to_string(), "0x1000..=0x1fff");
    assert!(format!("{space:?}").starts_with("AddressSpace("));
    assert_eq!(
        format!("{:?}", DirtyLog::with_len(65 << 12)),
        "DirtyLog(2 words)"
    );
    let updated = space.update("nothing", |_| Ok(())).unwrap();
    assert_eq!(format!("{:?}", updated.stale), "Stale(0 waits)");
}

#[test]
fn more_ram_than_the_host_can_map_is_refused_before_its_log_is_made() {
    // Two petabytes: more than a process can address, in any page size.
    let len = (1 << 51) - (1 << 21);
    for huge in [HugePages::No, HugePages::Hugetlbfs] {
        let error = RamRegion::new(options(len, huge)).unwrap_err();
        assert!(
            matches!(error, RamError::Host { .. } | RamError::Map { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn huge_pages_that_the_host_has_not_are_refused_and_no_signal_later() {
    // A terabyte can be addressed, but nobody has reserved it.
    let error = RamRegion::new(options(1 << 40, HugePages::Hugetlbfs)).unwrap_err();
    assert!(
        matches!(error, RamError::Host { .. } | RamError::Map { .. }),
        "{error:?}"
    );
}
