//! An event descriptor: what a notification signals and a worker waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// A Linux eventfd that nobody blocks on by reading. Signals that were not taken yet are one.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// Makes one that is not signalled.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// Signals it. Never blocks.
    pub fn signal(&self) {
        // Fails only if the count is at its end, and then it is signalled.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Tells whether it was signalled, and takes that away.
    pub fn take(&self) -> bool {
        let mut count = [0; 8];
        loop {
            match rustix::io::read(&self.0, &mut count) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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
}
