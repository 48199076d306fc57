//! The dirty log.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use crate::back::Back;
use crate::guest::{FEATURES, Guest, LOG_ALL, RAM};

fn log(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

fn set(guest: &Guest, file: &File, len: u64) -> vhost::Result<()> {
    let region = VhostUserDirtyLogRegion {
        mmap_size: len,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    guest.frontend.set_log_base(0, Some(region))
}

/// Takes the bits of all pages.
fn take(file: &File) -> Vec<usize> {
    let mut bytes = vec![0; RAM as usize >> 15];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&vec![0; bytes.len()], 0).unwrap();
    let pages = 0..RAM as usize >> 12;
    pages
        .filter(|page| bytes[page / 8] >> (page % 8) & 1 != 0)
        .collect()
}

fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    let pages = before.chunks(0x1000).zip(after.chunks(0x1000)).enumerate();
    pages
        .filter(|(_, (a, b))| a != b)
        .map(|(page, _)| page)
        .collect()
}

#[test]
fn every_page_that_the_device_writes_is_in_the_log() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.start(1);
    let file = log(0x1000);
    set(&guest, &file, 0x1000).unwrap();
    guest.echo(0, b"none");
    assert!(take(&file).is_empty(), "logging was not asked for");
    guest.frontend.set_features(FEATURES | LOG_ALL).unwrap();
    for round in 0..100u32 {
        let (ring, n) = (round as usize % 2, round as u16 % 4);
        let answer = guest.request(ring, n, &round.to_le_bytes());
        let before = guest.all();
        let used = guest.used(ring);
        guest.offer(ring, 2 * n);
        guest.kick(ring);
        crate::guest::wait("an answer", || guest.used(ring) != used);
        // Stopped, it has marked what it has written.
        guest.frontend.set_vring_enable(ring, false).unwrap();
        guest.frontend.set_vring_enable(ring, true).unwrap();
        let (changed, marked) = (changed(&before, &guest.all()), take(&file));
        let used_ring = Guest::place(ring)[2] as usize >> 12;
        assert!(marked.contains(&used_ring) && marked.contains(&(answer as usize >> 12)));
        // The driver's own writes are not in it.
        let available = Guest::place(ring)[1] as usize >> 12;
        for page in changed.into_iter().filter(|page| *page != available) {
            assert!(marked.contains(&page), "{page:#x} of {marked:x?}");
        }
    }
    guest.frontend.set_features(FEATURES).unwrap();
    take(&file);
    guest.echo(0, b"over");
    assert!(take(&file).is_empty(), "logging has ended");
}

#[test]
fn a_log_that_has_no_bit_for_some_memory_is_refused() {
    for (len, size) in [(1, 1), (0x1000, 0x2000), (RAM >> 15, (RAM >> 15) - 1)] {
        let back = Back::start();
        let guest = Guest::new(&back);
        assert!(set(&guest, &log(len), size).is_err(), "{len:#x} {size:#x}");
    }
    let back = Back::start();
    set(&Guest::new(&back), &log(RAM >> 15), RAM >> 15).unwrap();
}
