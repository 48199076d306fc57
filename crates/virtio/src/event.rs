//! An event descriptor: what a notification signals and a worker waits for.
//!
//! **One of another process** may block who reads or writes it: whether it does is a property of the description,
//! which is shared, and to change it would be seen over there. So a read asks not to wait by itself (RWF_NOWAIT),
//! and a write, for which eventfds have no such way, looks first whether it can be written. Another process that
//! fills the count just then, which is of no use to anybody, has the writer wait until it is read.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Where a descriptor without a position is read.
const HERE: u64 = u64::MAX;

/// A Linux eventfd that nobody blocks on by reading. Signals that were not taken yet are one.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
    /// It is another process's, and who reads or writes it may have to wait.
    may_block: bool,
}

impl Event {
    /// Makes one that is not signalled.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            fd,
            may_block: false,
        })
    }

    /// Takes one that another process has made, and signals. Whether it is signalled already is forgotten: who
    /// begins to wait for an event has to look first at what it tells of.
    ///
    /// # Errors
    /// If it cannot be read without waiting: it is no eventfd, or not open for reading.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let event = Self::to_signal(fd);
        match event.read() {
            Ok(()) | Err(Errno::AGAIN) => Ok(event),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one that another process has made, and waits for; here it is only signalled.
    pub fn to_signal(fd: OwnedFd) -> Self {
        Self {
            fd,
            may_block: true,
        }
    }

    fn read(&self) -> Result<(), Errno> {
        let mut count = [0; 8];
        rustix::io::retry_on_intr(|| match self.may_block {
            false => rustix::io::read(&self.fd, &mut count),
            true => {
                let mut into = [IoSliceMut::new(&mut count)];
                preadv2(&self.fd, &mut into, HERE, ReadWriteFlags::NOWAIT)
            }
        })
        .map(drop)
    }

    /// Signals it. Never blocks, but see the module for one of another process.
    pub fn signal(&self) {
        // A count that is at its end cannot be added to, and then it is signalled.
        if !self.may_block || self.is_writable() {
            let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    fn is_writable(&self) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut watched = [PollFd::new(&self.fd, PollFlags::OUT)];
        let ready = poll(&mut watched, Some(&now));
        ready.is_ok() && watched[0].revents().contains(PollFlags::OUT)
    }

    /// Tells whether it was signalled, and takes that away.
    pub fn take(&self) -> bool {
        self.read().is_ok()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_were_not_taken_are_one() {
        let event = Event::new().unwrap();
        assert!(!event.take());
        event.signal();
        event.signal();
        assert!(event.take() && !event.take());
    }

    #[test]
    fn one_that_would_block_its_reader_does_not_when_it_is_adopted() {
        let theirs = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let event = Event::adopt(theirs.try_clone().unwrap()).unwrap();
        assert!(!event.take());
        rustix::io::write(&theirs, &3u64.to_ne_bytes()).unwrap();
        assert!(event.take() && !event.take());
        let flags = rustix::fs::fcntl_getfl(&theirs).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }

    #[test]
    fn one_whose_count_is_at_its_end_holds_nobody_up() {
        let theirs = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let event = Event::to_signal(theirs);
        event.signal();
        assert!(event.take());
    }

    #[test]
    fn what_is_no_event_is_not_adopted() {
        let file = std::fs::File::options().write(true).open("/dev/null");
        assert!(Event::adopt(file.unwrap().into()).is_err());
        let directory = std::fs::File::open("/").unwrap();
        assert!(Event::adopt(directory.into()).is_err());
    }
}
