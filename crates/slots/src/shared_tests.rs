//! Tests of memory that another process has made.

use std::sync::Arc;

use crate::*;

const MIB: u64 = 1 << 20;
const AT: Gpa = Gpa(1 << 32);

fn theirs() -> Arc<RamRegion> {
    let options = RamOptions {
        len: MIB,
        huge: HugePages::No,
        prefault: false,
    };
    RamRegion::new(options).unwrap()
}

fn show(region: &Arc<RamRegion>) -> Arc<AddressSpace> {
    let space = AddressSpace::new(Options::default());
    let added = space.update("shared", |map| {
        map.add_ram(AT, region.clone(), 0, region.len(), Flags::default())
    });
    added.unwrap().wait();
    space
}

fn shared(theirs: &RamRegion, offset: u64, len: u64) -> Result<Arc<RamRegion>, RamError> {
    RamRegion::shared(theirs.file().try_clone().unwrap(), offset, len)
}

#[test]
fn both_processes_see_what_either_writes() {
    let theirs = theirs();
    let ours = shared(&theirs, 0x3000, 0x2000).unwrap();
    let (theirs, ours) = (show(&theirs), show(&ours));
    theirs.load().write(Gpa(AT.0 + 0x3ffe), b"theirs").unwrap();
    ours.load().write(Gpa(AT.0 + 0x1800), b"ours").unwrap();
    let mut found = [0; 6];
    ours.load().read(Gpa(AT.0 + 0xffe), &mut found).unwrap();
    assert_eq!(&found, b"theirs");
    let mut found = [0; 4];
    theirs.load().read(Gpa(AT.0 + 0x4800), &mut found).unwrap();
    assert_eq!(&found, b"ours");
}

#[test]
fn a_part_that_is_discarded_is_that_part_of_the_file() {
    let theirs = theirs();
    let ours = shared(&theirs, 0x3000, 0x2000).unwrap();
    let theirs = show(&theirs);
    for page in 3..6 {
        theirs
            .load()
            .write(Gpa(AT.0 + page * 0x1000), b"x")
            .unwrap();
    }
    ours.discard(0x1000, 0x1000).unwrap();
    let left = (3..6).map(|page| {
        let mut byte = [0];
        theirs
            .load()
            .read(Gpa(AT.0 + page * 0x1000), &mut byte)
            .unwrap();
        byte[0]
    });
    assert_eq!(left.collect::<Vec<_>>(), [b'x', 0, b'x']);
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let theirs = theirs();
    let table = [
        (0, 0, "BadLength"),
        (0, 0x1001, "BadLength"),
        (0x800, 0x1000, "BadOffset"),
        (0, MIB + 0x1000, "FileTooShort"),
        (MIB - 0x1000, 0x2000, "FileTooShort"),
        (MIB, 0x1000, "FileTooShort"),
        (u64::MAX - 0xfff, 0x1000, "FileTooShort"),
    ];
    for (offset, len, why) in table {
        let refused = shared(&theirs, offset, len).unwrap_err();
        assert!(
            format!("{refused:?}").starts_with(why),
            "{offset:#x} {len:#x}: {refused:?}"
        );
    }
}

#[test]
fn memory_made_here_is_sealed_and_a_plain_file_is_not() {
    let ours = shared(&theirs(), 0, 0x1000).unwrap();
    assert!(ours.is_sealed());
    assert!(ours.file().set_len(0).is_err());
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1000).unwrap();
    assert!(!RamRegion::shared(file, 0, 0x1000).unwrap().is_sealed());
}

#[test]
fn nothing_is_kept_of_what_is_written() {
    let ours = shared(&theirs(), 0, MIB).unwrap();
    let space = show(&ours);
    space.load().write(AT, b"x").unwrap();
    let slot = space.load().slots()[0].id();
    assert!(space.harvest(slot).unwrap().is_empty());
}

#[test]
fn memory_is_mapped_until_nobody_holds_a_map_with_it() {
    let ours = shared(&theirs(), 0, MIB).unwrap();
    let watch = ours.watch();
    let space = show(&ours);
    let slot = space.load().slots()[0].id();
    drop(ours);
    let old = space.load_full();
    space.update("gone", |map| map.remove(slot)).unwrap().wait();
    assert!(watch.is_mapped());
    drop(old);
    assert!(!watch.is_mapped());
}
