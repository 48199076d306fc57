//! The front end's dirty log: one bit a 4 KiB page of the guest, in a file that both have mapped
//! (VHOST_USER_SET_LOG_BASE, "Migration" in QEMU's `docs/interop/vhost-user.rst`).
//!
//! A page is marked after its bytes are in memory, as everywhere here. The front end, which takes bits by an
//! atomic exchange and copies the page then, finds the store or another mark.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use umbra_slots::{Gpa, GpaRange};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::Error;

/// The bits.
#[derive(Debug)]
pub(crate) struct Log(MmapRegion<()>);

impl Log {
    /// Maps `len` bytes of the front end's file.
    pub fn map(file: File, offset: u64, len: u64) -> Result<Self, Error> {
        map(file, offset, len, "the dirty log").map(Self)
    }

    /// Checks that there is a bit for every page below `end`.
    pub fn covers(&self, end: Gpa) -> Result<(), Error> {
        let (have, needed) = (self.0.size() as u64, end.0.div_ceil(0x1000).div_ceil(8));
        if have < needed {
            return Err(Error::Log { have, needed });
        }
        Ok(())
    }

    /// Marks the pages of a range.
    pub fn mark(&self, range: GpaRange) {
        for page in range.first_gfn().0..=range.last_gfn().0 {
            let at = usize::try_from(page / 8).ok();
            // RAM ends below the log's end.
            let Some(Ok(byte)) = at.map(|at| self.0.get_atomic_ref::<AtomicU8>(at)) else {
                return;
            };
            byte.fetch_or(1 << (page % 8), Ordering::AcqRel);
        }
    }
}

/// Maps a part of a file that the front end has made.
pub(crate) fn map(
    file: File,
    offset: u64,
    len: u64,
    what: &'static str,
) -> Result<MmapRegion<()>, Error> {
    let refused = |source| Error::File {
        what,
        len,
        offset,
        source,
    };
    let size = usize::try_from(len).map_err(|_| refused(io::ErrorKind::InvalidInput.into()))?;
    // The host maps what is not there as well, and who touches it gets SIGBUS.
    let there = file.metadata().map_err(refused)?.len();
    if offset.checked_add(len).is_none_or(|end| end > there) {
        return Err(refused(io::ErrorKind::UnexpectedEof.into()));
    }
    let file = FileOffset::new(file, offset);
    MmapRegion::from_file(file, size).map_err(|error| refused(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(len: u64) -> (File, Log) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let log = Log::map(file.try_clone().unwrap(), 0, len).unwrap();
        (file, log)
    }

    #[test]
    fn every_page_that_a_range_touches_is_marked() {
        let table: [(u64, u64, &[u8]); 5] = [
            (0, 1, &[1, 0, 0]),
            (0xfff, 2, &[3, 0, 0]),
            (0x7000, 0x1001, &[0x80, 1, 0]),
            (0, 0x18000, &[0xff, 0xff, 0xff]),
            (0x17fff, 0x10_0000, &[0, 0, 0x80]),
        ];
        for (at, len, expected) in table {
            let (file, log) = log(0x1000);
            log.mark(GpaRange::new(Gpa(at), len).unwrap());
            let mut found = [0; 3];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).unwrap();
            assert_eq!(found, expected, "{at:#x} {len:#x}");
        }
    }

    #[test]
    fn a_log_that_is_too_short_for_the_guest_is_refused() {
        let (_, log) = log(0x1000);
        assert!(log.covers(Gpa(0x1000 * 8 * 0x1000)).is_ok());
        assert!(log.covers(Gpa(0x1000 * 8 * 0x1000 + 1)).is_err());
    }

    #[test]
    fn a_file_that_is_shorter_than_it_is_said_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        let table = [
            (0, 0x1001),
            (0x1000, 1),
            (1, 0xfff),
            (0, u64::MAX),
            (u64::MAX, 1),
        ];
        for (offset, len) in table {
            let file = file.try_clone().unwrap();
            assert!(Log::map(file, offset, len).is_err(), "{offset:#x} {len:#x}");
        }
    }
}
