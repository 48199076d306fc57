//! Waiting for the time, a key or a signal, whichever comes first.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};

/// Ctrl-C and Ctrl-D, as a terminal in raw mode gives them.
const QUIT: [u8; 4] = [b'q', b'Q', 0x03, 0x04];

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// The time.
    Time,
    /// Somebody wants to see no more.
    Quit,
    /// This signal, which ends the process.
    Signal(i32),
    /// Another size of the terminal, or its foreground.
    Redraw,
}

/// Listens to keys, if there are any, and signals.
pub struct Waiter {
    wake: UnixStream,
    ending: Arc<AtomicUsize>,
    keys: bool,
}

impl Waiter {
    /// Begins to listen to signals.
    pub fn new() -> io::Result<Self> {
        let (wake, theirs) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let ending = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            // First: who is woken finds it.
            signal_hook::flag::register_usize(signal, ending.clone(), signal as usize)?;
            signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
        }
        for signal in [SIGWINCH, SIGCONT] {
            signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
        }
        Ok(Self {
            wake,
            ending,
            keys: false,
        })
    }

    /// Listens to the keys of a terminal in raw mode, too.
    pub fn keys(&mut self) {
        self.keys = true;
    }

    /// Waits until it is time.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn until(&mut self, due: Instant) -> Result<Came> {
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let (signal, key) = self.look(left)?;
            if signal {
                // What it says is elsewhere.
                let _ = self.wake.read(&mut [0; 64]);
                return Ok(match self.ending.load(Ordering::Relaxed) {
                    0 => Came::Redraw,
                    signal => Came::Signal(signal as i32),
                });
            }
            if key && self.asked_to_quit()? {
                return Ok(Came::Quit);
            }
            if Instant::now() >= due {
                return Ok(Came::Time);
            }
        }
    }

    /// Waits so long for a signal or a key; tells which of them is there.
    fn look(&self, left: Duration) -> Result<(bool, bool)> {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if self.keys {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let timeout = Timespec::try_from(left)?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let there = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        Ok((there(0), there(1)))
    }

    /// Reads keys; those of a terminal that has gone end it, too.
    fn asked_to_quit(&mut self) -> Result<bool> {
        let mut keys = [0; 64];
        match read(io::stdin(), &mut keys) {
            Ok(0) => Ok(true),
            Ok(count) => Ok(keys[..count].iter().any(|key| QUIT.contains(key))),
            Err(Errno::INTR | Errno::AGAIN) => Ok(false),
            Err(_) => Ok(true),
        }
    }
}
