//! The engine of io_uring: reads, writes and flushes of a plain file are given to the kernel, and no
//! thread waits for them.
//!
//! ```text
//!   submit ─> entry in the ring ── kick ──> kernel ──> completed
//!        │                                    │ fewer bytes than asked for, or not in this way
//!        └─> pool <───────────────────────────'
//!            whatever is no single call: discards, zeros, what direct I/O has no alignment for
//! ```
//! Ring and pool signal one event. A read or a write that comes back short is done again by the pool,
//! from the beginning, until all bytes are there or it is known why not. A flush never is: the host
//! tells of a failure once.
//!
//! Unsafe because the kernel works on the memory of a request after the call has returned. It is
//! sound because a job stays in `jobs` from the moment its entry is in the ring until the kernel has
//! completed it; dropping the engine waits for that, and if the host does not even let it wait, leaves
//! the memory for ever.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use crate::pool::Pool;
use crate::sys::PIECES_MAX;
use crate::{Completion, Disk, Durability, Job, Operation, PlainFile};

/// Entries of the ring. What does not fit goes to the pool.
const ENTRIES: u32 = 256;
/// The number of a cancellation, which is no job's.
const CANCEL: u64 = u64::MAX;
/// How long a kernel without memory is left alone.
const PAUSE: Duration = Duration::from_millis(1);

/// The engine.
pub(crate) struct Uring {
    ring: IoUring,
    /// The file is open as long as this is held.
    disk: Arc<dyn Disk>,
    pool: Pool,
    /// What the kernel has, by the number of its entry.
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
}

impl Uring {
    /// Makes one; `None` if the disk is no plain file.
    ///
    /// # Errors
    /// If the host has no io_uring, or not for us.
    pub fn new(disk: &Arc<dyn Disk>) -> io::Result<Option<Self>> {
        if disk.plain_file().is_none() {
            return Ok(None);
        }
        let ring = IoUring::new(ENTRIES)?;
        let pool = Pool::new(disk.clone())?;
        ring.submitter()
            .register_eventfd(pool.event().as_raw_fd())?;
        Ok(Some(Self {
            ring,
            disk: disk.clone(),
            pool,
            jobs: (0..ENTRIES).map(|_| None).collect(),
            free: (0..ENTRIES as usize).collect(),
        }))
    }

    pub fn submit(&mut self, job: Job) {
        let Some((slot, entry)) = self.entry(&job) else {
            self.pool.submit(job);
            return;
        };
        self.jobs[slot] = Some(job);
        // SAFETY: 1. the file is open as long as `disk` is held; 2. pieces and the list of them belong
        // to the job, whose `Buffers` keep them in place and mapped, and which stays in `jobs` until
        // the kernel has completed it, also if `self` is dropped; 3. the memory is under no reference.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => {
                self.free.pop();
            }
            // The kernel has not seen it.
            Err(_) => self
                .pool
                .submit(self.jobs[slot].take().expect("it was put there")),
        }
    }

    /// Makes the ring's entry of a job, and says which; `None` if the ring cannot do it.
    fn entry(&self, job: &Job) -> Option<(usize, Entry)> {
        let slot = *self.free.last()?;
        let file = self.disk.plain_file()?;
        let fd = types::Fd(file.fd.as_raw_fd());
        let entry = match &job.operation {
            Operation::Read { offset, to } if fits(&file, *offset, to) => {
                opcode::Readv::new(fd, to.pieces().as_ptr(), to.pieces().len() as u32)
                    .offset(*offset)
                    .build()
            }
            Operation::Write { offset, from } if fits(&file, *offset, from) => {
                let flags = match job.durability {
                    Durability::Cached => 0,
                    Durability::Durable => libc::RWF_DSYNC,
                };
                opcode::Writev::new(fd, from.pieces().as_ptr(), from.pieces().len() as u32)
                    .offset(*offset)
                    .rw_flags(flags)
                    .build()
            }
            Operation::Flush => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            _ => return None,
        };
        Some((slot, entry.user_data(slot as u64)))
    }

    pub fn kick(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) if is_for_now(&error) => {
                std::thread::sleep(PAUSE);
                self.pool.wake();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub fn event(&self) -> BorrowedFd<'_> {
        self.pool.event()
    }

    pub fn completed(&mut self) -> Vec<Completion> {
        let mut done = self.pool.completed();
        self.reap(&mut done);
        done
    }

    /// Takes what the kernel has completed.
    fn reap(&mut self, done: &mut Vec<Completion>) {
        let ended: Vec<_> = self
            .ring
            .completion()
            .filter(|entry| entry.user_data() != CANCEL)
            .map(|entry| (entry.user_data() as usize, entry.result()))
            .collect();
        for (slot, result) in ended {
            let job = self.jobs[slot].take().expect("it completes once");
            self.free.push(slot);
            match outcome(&job, result) {
                Some(result) => done.push(Completion {
                    tag: job.tag,
                    result,
                }),
                None => self.pool.submit(job),
            }
        }
    }

    pub fn cancel(&mut self) {
        self.pool.cancel();
        for slot in (0..self.jobs.len()).filter(|slot| self.jobs[*slot].is_some()) {
            let entry = opcode::AsyncCancel::new(slot as u64).build();
            // SAFETY: a cancellation has no memory.
            let _ = unsafe { self.ring.submission().push(&entry.user_data(CANCEL)) };
        }
        // Those that could not be cancelled complete by themselves.
        let _ = self.ring.submit();
    }
}

/// Tells whether the kernel takes a request as it is.
fn fits(file: &PlainFile<'_>, offset: u64, memory: &crate::Buffers) -> bool {
    let aligned = file.alignment == 1
        || offset.is_multiple_of(file.alignment.into()) && memory.is_aligned(file.alignment);
    aligned && !memory.is_empty() && memory.pieces().len() <= PIECES_MAX
}

/// Tells whether it is worth to try again later.
fn is_for_now(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    matches!(number, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// How a job has ended; `None` if it has to be done in another way.
fn outcome(job: &Job, result: i32) -> Option<io::Result<()>> {
    let wanted = match &job.operation {
        Operation::Read { to, .. } => {
            to.mark_dirty();
            to.len()
        }
        Operation::Write { from, .. } => from.len(),
        _ => 0,
    };
    match result {
        moved if moved >= 0 => (moved as usize == wanted).then_some(Ok(())),
        negative if negative == -libc::ECANCELED => Some(Err(io::ErrorKind::Interrupted.into())),
        negative => {
            let number = -negative;
            let refused = [libc::EINTR, libc::EAGAIN, libc::EINVAL, libc::EOPNOTSUPP];
            if wanted != 0 && refused.contains(&number) {
                return None;
            }
            Some(Err(io::Error::from_raw_os_error(number)))
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.jobs.iter().any(Option::is_some) {
            match self.ring.submit_and_wait(1) {
                Ok(_) => self.reap(&mut Vec::new()),
                Err(error) if is_for_now(&error) => std::thread::sleep(PAUSE),
                Err(error) => {
                    tracing::error!(%error, "memory of disk requests is lost: nobody can wait for them");
                    std::mem::forget(std::mem::take(&mut self.jobs));
                }
            }
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.jobs.iter().flatten().count();
        write!(f, "Uring({count} in the ring, {:?})", self.pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Buffers;

    #[test]
    fn what_the_kernel_says_decides_who_goes_on() {
        let job = |operation| Job {
            tag: 0,
            operation,
            durability: Durability::Cached,
        };
        let write = |len| {
            job(Operation::Write {
                offset: 0,
                from: Buffers::host(len, 1),
            })
        };
        assert!(outcome(&write(512), 512).unwrap().is_ok());
        for again in [0, 511, -libc::EAGAIN, -libc::EINVAL, -libc::EOPNOTSUPP] {
            assert!(outcome(&write(512), again).is_none(), "{again}");
        }
        for number in [libc::EIO, libc::ENOSPC] {
            let error = outcome(&write(512), -number).unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(number));
            let error = outcome(&job(Operation::Flush), -number);
            assert_eq!(error.unwrap().unwrap_err().raw_os_error(), Some(number));
        }
        // The host tells of a failed flush once: it is not tried again.
        let flush = outcome(&job(Operation::Flush), -libc::EINTR);
        assert!(flush.unwrap().is_err());
        assert!(outcome(&job(Operation::Flush), 0).unwrap().is_ok());
        let cancelled = outcome(&write(512), -libc::ECANCELED).unwrap();
        assert_eq!(cancelled.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
