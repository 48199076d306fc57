//! All engines, from one source.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::raw::tests::scratch;
use crate::testing::MemoryDisk;
use crate::{DiskOptions, SECTOR, open};

const KINDS: [EngineKind; 2] = [EngineKind::IoUring, EngineKind::Threads];

fn job(tag: u64, operation: Operation) -> Job {
    Job {
        tag,
        operation,
        durability: Durability::Cached,
    }
}

/// Memory with one byte everywhere.
fn memory(byte: u8, len: usize) -> Buffers {
    let memory = Buffers::host(len, 512);
    memory.copy_from(0, &vec![byte; len]);
    memory
}

/// Waits until `count` requests have completed.
fn wait(engine: &mut Engine, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    engine.kick().unwrap();
    while all.len() < count {
        let timeout = Timespec::try_from(Duration::from_secs(10)).unwrap();
        let event = engine.event();
        let ready = poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "{} of {count} completed", all.len());
        all.extend(engine.completed());
    }
    all.sort_by_key(|completion| completion.tag);
    all
}

#[test]
fn what_is_written_is_read_by_whichever_engine() {
    for (kind, direct) in KINDS
        .into_iter()
        .flat_map(|kind| [(kind, false), (kind, true)])
    {
        let file = scratch();
        file.as_file().set_len(64 * SECTOR).unwrap();
        let options = DiskOptions {
            direct,
            ..DiskOptions::default()
        };
        let disk = open(file.path(), &options).unwrap();
        let mut engine = Engine::start(disk, kind).unwrap();
        for tag in 0..64 {
            let (offset, from) = (tag * SECTOR, memory(tag as u8 + 1, 512));
            engine.submit(job(tag, Operation::Write { offset, from }));
        }
        for (tag, completion) in wait(&mut engine, 64).into_iter().enumerate() {
            assert_eq!(completion.tag, tag as u64);
            completion.result.unwrap();
        }
        let mut durable = job(64, Operation::Flush);
        durable.durability = Durability::Durable;
        engine.submit(durable);
        let whole = Extent {
            offset: 0,
            len: SECTOR,
        };
        let zeroes = vec![(whole, Unmap::Forbidden)];
        engine.submit(job(65, Operation::WriteZeroes(zeroes)));
        for completion in wait(&mut engine, 2) {
            completion.result.unwrap();
        }
        drop(engine);
        let bytes = std::fs::read(file.path()).unwrap();
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let expected = if sector == 0 { 0 } else { sector as u8 + 1 };
            assert!(
                bytes.iter().all(|byte| *byte == expected),
                "{kind:?} {sector}"
            );
        }
    }
}

/// Tells whether the host has io_uring; without it the tests of both engines try the other one twice.
fn has_ring() -> bool {
    let file = scratch();
    let disk = open(file.path(), &DiskOptions::default()).unwrap();
    let kind = Engine::start(disk, EngineKind::IoUring).unwrap().kind();
    if kind != EngineKind::IoUring {
        eprintln!("SKIPPED: this host refuses io_uring");
        assert!(
            std::env::var_os("UMBRA_ALLOW_SKIP").is_some(),
            "skipped; set UMBRA_ALLOW_SKIP=1 where there is no io_uring"
        );
    }
    kind == EngineKind::IoUring
}

#[test]
fn a_plain_file_gets_the_ring_and_any_other_disk_gets_threads() {
    if has_ring() {
        let memory = MemoryDisk::shared(vec![0; 512]);
        let engine = Engine::start(memory, EngineKind::IoUring).unwrap();
        assert_eq!(engine.kind(), EngineKind::Threads);
    }
}

#[test]
fn more_than_the_ring_holds_and_pieces_without_end_complete() {
    for kind in KINDS {
        let file = scratch();
        file.as_file().set_len(4096 * SECTOR).unwrap();
        let disk = open(file.path(), &DiskOptions::default()).unwrap();
        let mut engine = Engine::start(disk, kind).unwrap();
        for tag in 0..1000 {
            let (offset, from) = (tag * SECTOR, memory(tag as u8 | 1, 512));
            engine.submit(Job {
                tag,
                operation: Operation::Write { offset, from },
                durability: Durability::Durable,
            });
        }
        assert!(wait(&mut engine, 1000).iter().all(|c| c.result.is_ok()));
        // 2048 pieces: more than the kernel takes at a time.
        let (memory, space) = crate::memory::guest(0x10_0000);
        let ranges: Vec<_> = (0..2048)
            .map(|n| (umbra_slots::Gpa(n * 256), 250))
            .collect();
        let to = Buffers::guest(&memory, &ranges, crate::Access::Write).unwrap();
        engine.submit(job(0, Operation::Read { offset: 0, to }));
        wait(&mut engine, 1).remove(0).result.unwrap();
        let mut last = [0; 250];
        space
            .load()
            .read(umbra_slots::Gpa(2047 * 256), &mut last)
            .unwrap();
        let sector = 2047 * 250 / 512;
        assert_eq!(last[0], (sector as u8) | 1, "{kind:?}");
    }
}

#[test]
fn an_engine_that_is_dropped_has_completed_everything() {
    for kind in KINDS {
        let file = scratch();
        file.as_file().set_len(256 * SECTOR).unwrap();
        let disk = open(file.path(), &DiskOptions::default()).unwrap();
        let mut engine = Engine::start(disk, kind).unwrap();
        for tag in 0..256 {
            let (offset, from) = (tag * SECTOR, memory(0x5a, 512));
            engine.submit(job(tag, Operation::Write { offset, from }));
        }
        engine.kick().unwrap();
        drop(engine);
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0x5a), "{kind:?}");
    }
}

#[test]
fn a_read_fills_memory_that_others_hold_too() {
    for kind in KINDS {
        let disk = MemoryDisk::shared((0..=255).cycle().take(4096).collect());
        let mut engine = Engine::start(disk, kind).unwrap();
        let (memory, guest) = crate::memory::guest(0x2000);
        let ranges = [
            (umbra_slots::Gpa(0x100), 100),
            (umbra_slots::Gpa(0x1000), 412),
        ];
        let to = Buffers::guest(&memory, &ranges, crate::Access::Write).unwrap();
        engine.submit(job(7, Operation::Read { offset: 512, to }));
        wait(&mut engine, 1).remove(0).result.unwrap();
        let mut bytes = [0; 512];
        let (first, second) = bytes.split_at_mut(100);
        guest.load().read(umbra_slots::Gpa(0x100), first).unwrap();
        guest.load().read(umbra_slots::Gpa(0x1000), second).unwrap();
        let expected: Vec<u8> = (0..=255).cycle().take(512).collect();
        assert_eq!(&bytes[..], expected, "{kind:?}");
    }
}

#[test]
fn past_the_end_of_the_file_is_an_error() {
    for kind in KINDS {
        let file = scratch();
        file.as_file().set_len(1024).unwrap();
        let disk = open(file.path(), &DiskOptions::default()).unwrap();
        file.as_file().set_len(512).unwrap();
        let mut engine = Engine::start(disk, kind).unwrap();
        let to = memory(0, 1024);
        engine.submit(job(1, Operation::Read { offset: 0, to }));
        let error = wait(&mut engine, 1).remove(0).result.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{kind:?}");
    }
}

#[test]
fn a_write_that_shall_last_is_flushed() {
    let disk = MemoryDisk::shared(vec![0; 512]);
    let mut engine = Engine::start(disk.clone(), EngineKind::Threads).unwrap();
    for (durability, flushes) in [(Durability::Cached, 0), (Durability::Durable, 1)] {
        let from = memory(1, 512);
        engine.submit(Job {
            tag: 0,
            operation: Operation::Write { offset: 0, from },
            durability,
        });
        wait(&mut engine, 1).remove(0).result.unwrap();
        assert_eq!(disk.flushes(), flushes);
    }
}

#[test]
fn errors_of_the_host_and_panics_end_one_request_only() {
    let disk = MemoryDisk::read_only(vec![0; 512]);
    let mut engine = Engine::start(disk.clone(), EngineKind::Threads).unwrap();
    disk.fail(Some(libc::ENOSPC));
    engine.submit(job(0, Operation::Flush));
    let error = wait(&mut engine, 1).remove(0).result.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    disk.fail(None);
    // Such a disk panics if it is written.
    let from = memory(1, 512);
    engine.submit(job(1, Operation::Write { offset: 0, from }));
    assert!(wait(&mut engine, 1).remove(0).result.is_err());
    engine.submit(job(2, Operation::Flush));
    wait(&mut engine, 1).remove(0).result.unwrap();
}

#[test]
fn what_was_not_begun_can_be_cancelled() {
    let disk = MemoryDisk::shared(vec![0; 512]);
    disk.hold(true);
    let mut engine = Engine::start(disk.clone(), EngineKind::Threads).unwrap();
    for tag in 0..20 {
        engine.submit(job(tag, Operation::Flush));
    }
    engine.cancel();
    let cancelled = engine.completed().len();
    assert!((16..=20).contains(&cancelled), "{cancelled}");
    disk.hold(false);
    wait(&mut engine, 20 - cancelled);
}
