//! What is asked of a disk, and who does it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::pool::Pool;
use crate::{Buffers, Disk, Extent, Unmap};

/// One request.
#[derive(Debug)]
pub enum Operation {
    /// Fills memory from the disk.
    Read {
        /// Where on the disk, in bytes.
        offset: u64,
        /// The memory; marked as written when it completes.
        to: Buffers,
    },
    /// Writes memory to the disk.
    Write {
        /// Where on the disk, in bytes.
        offset: u64,
        /// The memory.
        from: Buffers,
    },
    /// Makes what was written last.
    Flush,
    /// Gives room back.
    Discard(Vec<Extent>),
    /// Makes bytes zero.
    WriteZeroes(Vec<(Extent, Unmap)>),
}

/// When a request that changes the disk has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the host knows of it.
    Cached,
    /// When it will outlast a loss of power.
    Durable,
}

/// A request, with a number by which its completion is known.
#[derive(Debug)]
pub struct Job {
    /// Any number that no other request in flight has.
    pub tag: u64,
    /// What is to be done.
    pub operation: Operation,
    /// When it is done.
    pub durability: Durability,
}

/// What became of a request. Its memory is not used any more.
#[derive(Debug)]
pub struct Completion {
    /// Its number.
    pub tag: u64,
    /// How it ended. A request of several parts ends with the first one that fails.
    pub result: io::Result<()>,
}

/// Which engine serves a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// A few threads that call the disk.
    #[default]
    Threads,
}

/// Serves requests for one disk, in any order. Belongs to the thread that submits.
///
/// Dropping it waits for what is in flight.
#[derive(Debug)]
pub struct Engine(Pool);

impl Engine {
    /// Starts one.
    ///
    /// # Errors
    /// If the host refuses what it needs.
    pub fn start(disk: Arc<dyn Disk>, kind: EngineKind) -> io::Result<Self> {
        match kind {
            EngineKind::Threads => Pool::new(disk).map(Self),
        }
    }

    /// Takes a request. Does not block.
    pub fn submit(&mut self, job: Job) {
        self.0.submit(job);
    }

    /// Has all that was submitted begun. Does not block.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Returns what becomes readable when something has completed.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.0.event()
    }

    /// Returns all that has completed since the last call. Does not block.
    pub fn completed(&mut self) -> Vec<Completion> {
        self.0.completed()
    }

    /// Ends requests that were not begun, with an error of the kind `Interrupted`, and returns at
    /// once. Those that were begun complete when they do.
    pub fn cancel(&mut self) {
        self.0.cancel();
    }
}

/// Does a request on this thread.
pub(crate) fn execute(disk: &dyn Disk, job: &Job) -> io::Result<()> {
    match &job.operation {
        Operation::Read { offset, to } => {
            let result = disk.read(*offset, to);
            // Also if it has failed: some bytes may have come.
            to.mark_dirty();
            return result;
        }
        Operation::Write { offset, from } => disk.write(*offset, from)?,
        Operation::Flush => return disk.flush(),
        Operation::Discard(extents) => {
            for extent in extents {
                disk.discard(*extent)?;
            }
        }
        Operation::WriteZeroes(extents) => {
            for (extent, unmap) in extents {
                disk.write_zeroes(*extent, *unmap)?;
            }
        }
    }
    match job.durability {
        Durability::Cached => Ok(()),
        Durability::Durable => disk.flush(),
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
