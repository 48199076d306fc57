//! What an engine signals when something has completed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A Linux eventfd that nobody blocks on. Signals that were not taken yet are one.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    pub fn signal(&self) {
        // Fails only if the count is at its end, and then it is signalled.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn take(&self) {
        let mut count = [0; 8];
        // Nothing to take is no failure.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut count));
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
