//! Discards and zeros in a file: `fallocate` where the host has it, and written zeros where it has not.
//!
//! File systems and devices differ in what they support, and only trying tells. What was refused once
//! is not tried again.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::{Buffers, Disk, Extent, Unmap};

/// Bytes of zeros that are written at a time.
const PIECE: u64 = 1 << 20;

/// What a file does not support, as far as it was tried.
#[derive(Debug, Default)]
pub(crate) struct Zeroes {
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
}

impl Zeroes {
    /// Gives room back, if the host takes it.
    pub fn discard(&self, file: &File, extent: Extent) -> io::Result<()> {
        self.punch(file, extent).map(drop)
    }

    /// Makes bytes zero; tells whether the host can do that by itself.
    pub fn write(&self, file: &File, extent: Extent, unmap: Unmap) -> io::Result<bool> {
        if unmap == Unmap::Allowed && self.punch(file, extent)? {
            return Ok(true);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        attempt(&self.no_zero_range, file, flags, extent)
    }

    fn punch(&self, file: &File, extent: Extent) -> io::Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        attempt(&self.no_punch, file, flags, extent)
    }
}

/// Tells whether it was done; an error is one of a host that could.
fn attempt(
    refused: &AtomicBool,
    file: &File,
    flags: FallocateFlags,
    extent: Extent,
) -> io::Result<bool> {
    if extent.len == 0 {
        return Ok(true);
    }
    if refused.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let call = || fallocate(file, flags, extent.offset, extent.len);
    match rustix::io::retry_on_intr(call) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            refused.store(true, Ordering::Relaxed);
            Ok(false)
        }
        // Not at this place: a device wants multiples of its blocks.
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes zeros, from memory at a multiple of `alignment`.
pub(crate) fn write_by_hand(disk: &dyn Disk, extent: Extent, alignment: usize) -> io::Result<()> {
    let mut zeros = Buffers::host(extent.len.min(PIECE) as usize, alignment);
    let mut done = 0;
    while done < extent.len {
        let len = (extent.len - done).min(PIECE) as usize;
        if len != zeros.len() {
            zeros = Buffers::host(len, alignment);
        }
        let at = extent.offset.checked_add(done);
        disk.write(at.ok_or(io::ErrorKind::InvalidInput)?, &zeros)?;
        done += len as u64;
    }
    Ok(())
}
