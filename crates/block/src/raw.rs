//! Raw disks: a regular file or a block device whose bytes are the disk's.
//!
//! With direct I/O (`O_DIRECT`) the host's page cache is passed by. Then the kernel wants offsets, lengths
//! and addresses to be multiples of something. A request that is not goes through a bounce buffer, a
//! piece at a time; where it begins or ends inside a block, that block is read before it is written.
//! Two such writes exclude each other. One that overlaps another write in flight has no defined order
//! with it, and neither have sectors of the same block: the guest was told the block size.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, SeekFrom, StatxFlags};

use crate::zeroes::{self, Zeroes};
use crate::{Buffers, Disk, Extent, OpenError, PlainFile, SECTOR, Topology, Unmap, sys};

/// Bytes of a bounce buffer, at most.
const BOUNCE: u64 = 1 << 20;
/// The largest logical block that a disk has for its guest.
const LOGICAL_MAX: u32 = 4096;
/// What direct I/O is assumed to want where the host does not say.
const ALIGNMENT: u32 = 4096;

/// A raw disk.
pub(crate) struct Raw {
    file: File,
    path: PathBuf,
    read_only: bool,
    /// What direct I/O wants; 1 without.
    alignment: u32,
    topology: Topology,
    len: AtomicU64,
    /// Held by a write that has to read a block first.
    partial: Mutex<()>,
    zeroes: Zeroes,
}

impl Raw {
    /// Makes a disk of a file that is open, and locked.
    pub fn new(file: File, path: &Path, read_only: bool, direct: bool) -> Result<Self, OpenError> {
        let alignment = if direct { direct_alignment(&file) } else { 1 };
        let raw = Self {
            topology: topology(&file, alignment),
            file,
            path: path.to_owned(),
            read_only,
            alignment,
            len: AtomicU64::new(0),
            partial: Mutex::new(()),
            zeroes: Zeroes::default(),
        };
        raw.refresh_len().map_err(|source| OpenError::Size {
            path: path.to_owned(),
            source,
        })?;
        Ok(raw)
    }

    fn is_aligned(&self, offset: u64, buffers: &Buffers) -> bool {
        self.alignment == 1
            || offset.is_multiple_of(self.alignment.into()) && buffers.is_aligned(self.alignment)
    }

    /// Calls `each` with the place in the request, and where in a bounce buffer for whole blocks it
    /// belongs, for one piece after the other.
    fn bounce(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(Bounce<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let block = u64::from(self.alignment);
        let mut done = 0;
        while done < len {
            let at = offset
                .checked_add(done as u64)
                .ok_or(io::ErrorKind::InvalidInput)?;
            let begin = at - at % block;
            let skip = (at - begin) as usize;
            let piece = (BOUNCE as usize - skip).min(len - done);
            let whole = (skip + piece).next_multiple_of(block as usize);
            let memory = Buffers::host(whole, block as usize);
            each(Bounce {
                memory: &memory,
                begin,
                skip,
                done,
                piece,
            })?;
            done += piece;
        }
        Ok(())
    }
}

/// One piece of a request that goes through a buffer.
struct Bounce<'a> {
    memory: &'a Buffers,
    /// Where the buffer's bytes are on the disk.
    begin: u64,
    /// Where in the buffer the piece begins.
    skip: usize,
    /// Where in the request it begins.
    done: usize,
    /// Bytes of the piece.
    piece: usize,
}

impl Bounce<'_> {
    /// Some of the buffer is not the request's.
    fn is_partial(&self) -> bool {
        self.piece != self.memory.len()
    }
}

impl Disk for Raw {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        self.topology
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn read(&self, offset: u64, to: &Buffers) -> io::Result<()> {
        if self.is_aligned(offset, to) {
            return sys::read(self.file.as_fd(), offset, to);
        }
        let mut bytes = Vec::new();
        self.bounce(offset, to.len(), |bounce| {
            sys::read(self.file.as_fd(), bounce.begin, bounce.memory)?;
            bytes.resize(bounce.piece, 0);
            bounce.memory.copy_to(bounce.skip, &mut bytes);
            to.copy_from(bounce.done, &bytes);
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: &Buffers) -> io::Result<()> {
        if self.is_aligned(offset, from) {
            return sys::write(self.file.as_fd(), offset, from);
        }
        let mut bytes = Vec::new();
        self.bounce(offset, from.len(), |bounce| {
            let _one = bounce.is_partial().then(|| self.partial.lock());
            if bounce.is_partial() {
                sys::read(self.file.as_fd(), bounce.begin, bounce.memory)?;
            }
            bytes.resize(bounce.piece, 0);
            from.copy_to(bounce.done, &mut bytes);
            bounce.memory.copy_from(bounce.skip, &bytes);
            sys::write(self.file.as_fd(), bounce.begin, bounce.memory)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, extent: Extent) -> io::Result<()> {
        self.zeroes.discard(&self.file, extent)
    }

    fn write_zeroes(&self, extent: Extent, unmap: Unmap) -> io::Result<()> {
        if self.zeroes.write(&self.file, extent, unmap)? {
            return Ok(());
        }
        zeroes::write_by_hand(self, extent, self.alignment as usize)
    }

    fn refresh_len(&self) -> io::Result<u64> {
        // The end of a block device, too. Nothing else uses the position of this open file.
        let end = rustix::fs::seek(&self.file, SeekFrom::End(0))?;
        let len = end - end % SECTOR.max(self.alignment.into());
        if len != end {
            tracing::warn!(
                disk = %self.path.display(), bytes = end, used = len,
                "the size of a disk is no multiple of its blocks: the rest is not used"
            );
        }
        self.len.store(len, Ordering::Release);
        Ok(len)
    }

    fn plain_file(&self) -> Option<PlainFile<'_>> {
        Some(PlainFile {
            fd: self.file.as_fd(),
            alignment: self.alignment,
        })
    }
}

/// What direct I/O wants offsets, lengths and addresses to be multiples of.
fn direct_alignment(file: &File) -> u32 {
    let stat = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let said = stat.ok().and_then(|stat| {
        let both = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
        both.is_power_of_two().then_some(both)
    });
    said.or_else(|| rustix::fs::ioctl_blksszget(file).ok())
        .filter(|alignment| alignment.is_power_of_two() && u64::from(*alignment) <= BOUNCE)
        .unwrap_or(ALIGNMENT)
        .max(SECTOR as u32)
}

fn topology(file: &File, alignment: u32) -> Topology {
    // Regular files do not answer, and have pages.
    let asked = |answer: rustix::io::Result<u32>, otherwise: u32| {
        let good = |size: &u32| size.is_power_of_two() && (512..=1 << 20).contains(size);
        answer.ok().filter(good).unwrap_or(otherwise)
    };
    let logical = asked(rustix::fs::ioctl_blksszget(file), SECTOR as u32).max(alignment);
    let physical = asked(rustix::fs::ioctl_blkpbszget(file), 4096).max(logical);
    Topology {
        // Guests take no block that is larger than their pages.
        logical_block: logical.min(LOGICAL_MAX),
        physical_block: physical,
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
pub(crate) mod tests;
