//! Raw disks, with and without direct I/O.

use std::io::{Read, Seek, Write};

use super::*;

/// A file beside the test program: /tmp may be a file system without direct I/O.
pub fn scratch() -> tempfile::NamedTempFile {
    let program = std::env::current_exe().unwrap();
    tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap()
}

fn raw(bytes: &[u8], direct: bool) -> (Raw, tempfile::NamedTempFile) {
    let mut file = scratch();
    file.write_all(bytes).unwrap();
    let options = crate::DiskOptions {
        direct,
        ..Default::default()
    };
    let open = crate::open::open_file(file.path(), &options).unwrap();
    let raw = Raw::new(open, file.path(), false, direct).unwrap();
    (raw, file)
}

fn contents(file: &mut tempfile::NamedTempFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 + at) as u8).collect()
}

#[test]
fn any_offset_and_address_works_with_direct_i_o() {
    for (offset, len, at) in [
        (0, 4096, 0),
        (512, 512, 0),
        (512, 8192, 1),
        (4096, 4096, 3),
        (3584, 5120, 512),
    ] {
        let before = pattern(16384);
        let (mut disk, mut file) = raw(&before, true);
        // Whatever this file system wants, the largest is the hardest.
        disk.alignment = 4096;
        let memory = Buffers::host(len + at, 4096);
        let part = shifted(&memory, at, len);
        disk.read(offset, &part).unwrap();
        let mut bytes = vec![0; len];
        part.copy_to(0, &mut bytes);
        assert_eq!(
            bytes,
            before[offset as usize..][..len],
            "{offset} {len} {at}"
        );

        part.copy_from(0, &vec![0xee; len]);
        disk.write(offset, &part).unwrap();
        let mut expected = before;
        expected[offset as usize..][..len].fill(0xee);
        assert!(contents(&mut file) == expected, "{offset} {len} {at}");
    }
}

/// Memory that begins `at` bytes after a block.
fn shifted(memory: &Buffers, at: usize, len: usize) -> Buffers {
    Buffers::of_parts(memory.part(at, len).collect())
}

#[test]
fn a_request_larger_than_the_bounce_buffer_is_done_in_pieces() {
    let before = pattern(3 << 20);
    let (mut disk, mut file) = raw(&before, true);
    disk.alignment = 4096;
    let memory = Buffers::host((2 << 20) + 512, 512);
    disk.read(512, &memory).unwrap();
    let mut bytes = vec![0; memory.len()];
    memory.copy_to(0, &mut bytes);
    assert!(bytes == before[512..][..bytes.len()]);
    disk.write(1024, &memory).unwrap();
    let mut expected = before;
    expected[1024..][..bytes.len()].copy_from_slice(&bytes);
    assert!(contents(&mut file) == expected);
}

#[test]
fn the_size_is_whole_sectors_and_can_be_looked_at_again() {
    let (disk, file) = raw(&[0; 1025], false);
    assert_eq!((disk.len(), disk.is_empty()), (1024, false));
    file.as_file().set_len(4096 + 511).unwrap();
    assert_eq!(disk.len(), 1024, "nobody has looked");
    assert_eq!(disk.refresh_len().unwrap(), 4096);
    assert_eq!(disk.len(), 4096);
}

#[test]
fn blocks_are_those_of_direct_i_o_as_far_as_guests_take_them() {
    let (_, file) = raw(&[0; 512], false);
    let table = [
        (1, 512, 4096),
        (512, 512, 4096),
        (4096, 4096, 4096),
        (65536, 4096, 65536),
    ];
    for (alignment, logical_block, physical_block) in table {
        let expected = Topology {
            logical_block,
            physical_block,
        };
        assert_eq!(topology(file.as_file(), alignment), expected, "{alignment}");
    }
}

#[test]
fn zeros_and_discards_stay_within_their_extent() {
    for unmap in [Unmap::Allowed, Unmap::Forbidden] {
        let before = pattern(16384);
        let (disk, mut file) = raw(&before, false);
        let extent = Extent {
            offset: 512,
            len: 8192,
        };
        disk.write_zeroes(extent, unmap).unwrap();
        let mut expected = before;
        expected[512..8704].fill(0);
        assert!(contents(&mut file) == expected, "{unmap:?}");
        disk.discard(Extent {
            offset: 12288,
            len: 4096,
        })
        .unwrap();
        let after = contents(&mut file);
        assert!(after[..12288] == expected[..12288]);
        assert_eq!(after.len(), 16384);
    }
}

#[test]
fn zeros_are_written_where_the_host_cannot_make_them() {
    for direct in [false, true] {
        let before = pattern((2 << 20) + 4096);
        let (disk, mut file) = raw(&before, direct);
        let (offset, len) = (1024, (1 << 20) + 1536);
        let extent = Extent { offset, len };
        zeroes::write_by_hand(&disk, extent, disk.alignment as usize).unwrap();
        let mut expected = before;
        expected[offset as usize..][..len as usize].fill(0);
        assert!(contents(&mut file) == expected, "direct {direct}");
    }
}

#[test]
fn a_full_host_says_so() {
    // A file may not grow past this process's limit in the same way as on a full file system; the
    // device that is always full needs no preparation.
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    let memory = Buffers::host(512, 1);
    let error = sys::write(file.as_fd(), 0, &memory).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}
