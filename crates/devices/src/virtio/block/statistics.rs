//! What a device counts, and how it tells of failures of the host without flooding the log.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::request::Kind;

/// What a device has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests that read, and succeeded.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Requests that wrote, and succeeded.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards that succeeded.
    pub discards: u64,
    /// Writes of zeros that succeeded.
    pub zero_writes: u64,
    /// Requests that were wrong, or unknown.
    pub refused: u64,
    /// Requests that the host failed to do.
    pub errors: u64,
    /// Requests that had to wait for a limit.
    pub throttled: u64,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    zero_writes: AtomicU64,
    refused: AtomicU64,
    errors: AtomicU64,
    throttled: AtomicU64,
    /// Kinds of failures that the log has told of.
    told: Mutex<BTreeSet<(Kind, Option<i32>)>>,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Counters {
    pub fn snapshot(&self) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Statistics {
            reads: read(&self.reads),
            read_bytes: read(&self.read_bytes),
            writes: read(&self.writes),
            written_bytes: read(&self.written_bytes),
            flushes: read(&self.flushes),
            discards: read(&self.discards),
            zero_writes: read(&self.zero_writes),
            refused: read(&self.refused),
            errors: read(&self.errors),
            throttled: read(&self.throttled),
        }
    }

    pub fn done(&self, kind: Kind, bytes: u64) {
        match kind {
            Kind::In => {
                add(&self.reads, 1);
                add(&self.read_bytes, bytes);
            }
            Kind::Out => {
                add(&self.writes, 1);
                add(&self.written_bytes, bytes);
            }
            Kind::Flush => add(&self.flushes, 1),
            Kind::Discard => add(&self.discards, 1),
            Kind::WriteZeroes => add(&self.zero_writes, 1),
            Kind::GetId | Kind::Other => {}
        }
    }

    pub fn refused(&self) {
        add(&self.refused, 1);
    }

    pub fn throttled(&self) {
        add(&self.throttled, 1);
    }

    /// Counts a failure of the host; the log tells of the first of each kind.
    pub fn failed(&self, disk: &str, kind: Kind, error: &io::Error) {
        add(&self.errors, 1);
        if self.is_new(kind, error) {
            tracing::warn!(
                disk, request = ?kind, %error,
                "a disk fails: the guest gets an I/O error; more of this kind are only counted"
            );
        }
    }

    /// Tells whether it is the first of its kind.
    fn is_new(&self, kind: Kind, error: &io::Error) -> bool {
        self.told.lock().insert((kind, error.raw_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_each_kind_is_told() {
        let counters = Counters::default();
        let table = [
            (Kind::Out, libc::ENOSPC, true),
            (Kind::Out, libc::ENOSPC, false),
            (Kind::Out, libc::EIO, true),
            (Kind::In, libc::EIO, true),
            (Kind::In, libc::EIO, false),
        ];
        for (kind, number, new) in table {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(counters.is_new(kind, &error), new, "{kind:?} {error}");
        }
    }
}
