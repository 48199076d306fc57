//! Tests of files of the host as guest memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use vm_memory::GuestMemoryBackend;

use crate::*;

const MIB: u64 = 1 << 20;
const AT: Gpa = Gpa(1 << 32);
const READ_ONLY: Flags = Flags {
    read_only: true,
    dirty_log: false,
};

fn file(len: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    file.write_all(b"host").unwrap();
    file
}

fn region(path: &Path, len: u64, access: FileAccess) -> Arc<RamRegion> {
    let file = File::options()
        .read(true)
        .write(access == FileAccess::ReadWrite)
        .open(path);
    RamRegion::of_file(file.unwrap(), len, access).unwrap()
}

fn show(region: &Arc<RamRegion>, flags: Flags) -> (Arc<AddressSpace>, SlotId) {
    let space = AddressSpace::new(Options::default());
    let added = space.update("file", |map| {
        map.add_ram(AT, region.clone(), 0, region.len(), flags)
    });
    (space, added.unwrap().wait())
}

#[test]
fn what_is_written_is_in_the_file_and_in_the_dirty_log() {
    let mut file = file(MIB);
    let region = region(file.path(), MIB, FileAccess::ReadWrite);
    let flags = Flags {
        read_only: false,
        dirty_log: true,
    };
    let (space, slot) = show(&region, flags);
    let mut found = [0; 4];
    space.load().read(AT, &mut found).unwrap();
    assert_eq!(&found, b"host");
    space.load().write(Gpa(AT.0 + 0x2ffe), b"guest").unwrap();
    let pages = space.harvest(slot).unwrap();
    assert_eq!(
        pages.iter().collect::<Vec<_>>(),
        [Gfn(AT.gfn().0 + 2), Gfn(AT.gfn().0 + 3)]
    );
    drop((space, region));
    let mut bytes = [0; 5];
    file.seek(SeekFrom::Start(0x2ffe)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"guest");
}

#[test]
fn a_part_of_a_file_is_that_part() {
    let file = file(MIB);
    let region = region(file.path(), MIB, FileAccess::ReadWrite);
    let (space, slot) = show(&region, Flags::default());
    space
        .update("less", |map| map.resize(slot, 0x4000))
        .unwrap()
        .wait();
    space.load().write(Gpa(AT.0 + 0x3ffc), b"last").unwrap();
    let memory = space.load().guest_memory();
    assert_eq!(memory.num_regions(), 1);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(
        (&bytes[..4], &bytes[0x3ffc..0x4000]),
        (&b"host"[..], &b"last"[..])
    );
}

#[test]
fn a_file_that_is_only_read_is_written_by_nobody() {
    let file = file(MIB);
    let region = region(file.path(), MIB, FileAccess::Read);
    assert!(region.is_read_only());
    let (space, slot) = show(&region, READ_ONLY);
    let map = space.load();
    let mut found = [0; 4];
    map.read(AT, &mut found).unwrap();
    assert_eq!(&found, b"host");
    assert_eq!(map.write(AT, b"x"), Err(AccessError::ReadOnly(AT)));
    assert_eq!(map.guest_memory().num_regions(), 0);
    drop(map);
    let refused = space.update("flags", |map| map.set_flags(slot, Flags::default()));
    assert!(matches!(refused, Err(SlotError::ReadOnlyRegion)));
    let refused = space.update("again", |map| {
        map.add_ram(Gpa(0), region.clone(), 0, 0x1000, Flags::default())
    });
    assert!(matches!(refused, Err(SlotError::ReadOnlyRegion)));
}

#[test]
fn a_length_that_the_file_does_not_have_is_refused() {
    let file = file(0x1800);
    let open = || File::open(file.path()).unwrap();
    let short = RamRegion::of_file(open(), 0x2000, FileAccess::Read).unwrap_err();
    let RamError::FileTooShort { len, file_len } = short else {
        panic!("{short}");
    };
    assert_eq!((len, file_len), (0x2000, 0x1800));
    for len in [0, 0x800, 0x1800, u64::MAX] {
        let refused = RamRegion::of_file(open(), len, FileAccess::Read).unwrap_err();
        assert!(matches!(refused, RamError::BadLength { .. }), "{refused}");
    }
    RamRegion::of_file(open(), 0x1000, FileAccess::Read).unwrap();
    // Not opened for writing.
    let refused = RamRegion::of_file(open(), 0x1000, FileAccess::ReadWrite).unwrap_err();
    assert!(matches!(refused, RamError::Map { .. }), "{refused}");
}
