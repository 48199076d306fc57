//! What is asked of a disk, and who does it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Once};

use crate::pool::Pool;
use crate::uring::Uring;
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
    /// The host's io_uring. Disks that are no plain files, and hosts that have none or refuse it, get
    /// threads; the log says once why.
    #[default]
    IoUring,
    /// A few threads that call the disk.
    Threads,
}

/// Serves requests for one disk, in any order. Belongs to the thread that submits.
///
/// Dropping it waits for what is in flight.
#[derive(Debug)]
pub struct Engine(Inner);

#[derive(Debug)]
enum Inner {
    Uring(Box<Uring>),
    Pool(Pool),
}

impl Engine {
    /// Starts one.
    ///
    /// # Errors
    /// If the host refuses what it needs.
    pub fn start(disk: Arc<dyn Disk>, kind: EngineKind) -> io::Result<Self> {
        let ring = match kind {
            EngineKind::IoUring => ring(&disk),
            EngineKind::Threads => None,
        };
        Ok(Self(match ring {
            Some(ring) => Inner::Uring(Box::new(ring)),
            None => Inner::Pool(Pool::new(disk)?),
        }))
    }

    /// Returns what serves, which may be another kind than was asked for.
    pub fn kind(&self) -> EngineKind {
        match &self.0 {
            Inner::Uring(_) => EngineKind::IoUring,
            Inner::Pool(_) => EngineKind::Threads,
        }
    }

    /// Takes a request. Does not block.
    pub fn submit(&mut self, job: Job) {
        match &mut self.0 {
            Inner::Uring(ring) => ring.submit(job),
            Inner::Pool(pool) => pool.submit(job),
        }
    }

    /// Has all that was submitted begun. Does not block.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn kick(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Uring(ring) => ring.kick(),
            Inner::Pool(_) => Ok(()),
        }
    }

    /// Returns what becomes readable when something has completed.
    pub fn event(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Inner::Uring(ring) => ring.event(),
            Inner::Pool(pool) => pool.event(),
        }
    }

    /// Returns all that has completed since the last call. Does not block.
    pub fn completed(&mut self) -> Vec<Completion> {
        match &mut self.0 {
            Inner::Uring(ring) => ring.completed(),
            Inner::Pool(pool) => pool.completed(),
        }
    }

    /// Ends requests that were not begun, with an error of the kind `Interrupted`, and returns at
    /// once. Those that were begun complete when they do.
    pub fn cancel(&mut self) {
        match &mut self.0 {
            Inner::Uring(ring) => ring.cancel(),
            Inner::Pool(pool) => pool.cancel(),
        }
    }
}

/// Makes a ring, or tells the log why there is none.
fn ring(disk: &Arc<dyn Disk>) -> Option<Uring> {
    static TOLD: Once = Once::new();
    match Uring::new(disk) {
        Ok(ring) => ring,
        Err(error) => {
            TOLD.call_once(
                || tracing::warn!(%error, "no io_uring here: disks are served by threads"),
            );
            None
        }
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
