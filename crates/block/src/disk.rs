//! What a disk is.

use std::io;
use std::os::fd::BorrowedFd;

use crate::Buffers;

/// Bytes of a sector, the unit of virtio; whatever the disk's own blocks are.
pub const SECTOR: u64 = 512;

/// A disk of a whole number of sectors.
///
/// Its calls block, and may be made by any number of threads at a time. The caller has checked that a
/// request lies within the disk; one that does not is an error, and nothing worse.
pub trait Disk: Send + Sync {
    /// Returns the number of bytes, a multiple of [`SECTOR`].
    fn len(&self) -> u64;

    /// Tells whether it has no sector.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether it refuses what would change it.
    fn is_read_only(&self) -> bool;

    /// Returns what its blocks are.
    fn topology(&self) -> Topology;

    /// Returns a name for log messages, a path where there is one.
    fn name(&self) -> String;

    /// Fills `to` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If the host fails; some bytes may have been stored.
    fn read(&self, offset: u64, to: &Buffers) -> io::Result<()>;

    /// Writes all of `from` at `offset`. It need not last before a [`flush`](Self::flush).
    ///
    /// # Errors
    /// If the host fails; some bytes may have been written.
    fn write(&self, offset: u64, from: &Buffers) -> io::Result<()>;

    /// Makes all that was written before last.
    ///
    /// # Errors
    /// If the host fails.
    fn flush(&self) -> io::Result<()>;

    /// Says that bytes are not needed any more. What they read as afterwards is not promised; a disk
    /// that cannot do anything with it has succeeded.
    ///
    /// # Errors
    /// If the host fails.
    fn discard(&self, extent: Extent) -> io::Result<()>;

    /// Makes bytes read as zeros.
    ///
    /// # Errors
    /// If the host fails.
    fn write_zeroes(&self, extent: Extent, unmap: Unmap) -> io::Result<()>;

    /// Looks how large it is now, and returns that.
    ///
    /// # Errors
    /// If the host does not say.
    fn refresh_len(&self) -> io::Result<u64>;

    /// Returns the file whose bytes are the disk's, if an engine may read and write it by itself.
    fn plain_file(&self) -> Option<PlainFile<'_>> {
        None
    }
}

/// A part of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// Whether room that holds only zeros may be given back to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmap {
    /// It may.
    Allowed,
    /// It stays taken, so that a later write finds it.
    Forbidden,
}

/// What a disk's blocks are, in bytes. A request that is no multiple of them works, only slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The smallest block that is read or written as such: a power of two, [`SECTOR`] at least.
    pub logical_block: u32,
    /// The smallest block that is written without reading it first: a power of two, no smaller.
    pub physical_block: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            logical_block: SECTOR as u32,
            physical_block: 4096,
        }
    }
}

/// A file whose bytes are a disk's.
#[derive(Clone, Copy, Debug)]
pub struct PlainFile<'a> {
    /// The file.
    pub fd: BorrowedFd<'a>,
    /// What offsets, lengths and addresses have to be multiples of; others go through the disk.
    pub alignment: u32,
}
