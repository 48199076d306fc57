//! Ends conversations that take too long.
//!
//! The `vhost` crate waits for an answer as long as there is a connection, and takes a time-out of the socket
//! for a reason to try again. So whoever asks [arms](Deadlines::arm) a deadline first, and one thread for all
//! connections of a machine shuts a socket down whose deadline has passed: then the wait ends, with the
//! connection.
//!
//! Most answers come in microseconds. Arming takes a lock, and wakes the thread only if it sleeps without end
//! or longer than that; disarming never wakes it.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The deadlines of a machine's connections.
#[derive(Debug)]
pub struct Deadlines {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// By time and a number.
    armed: BTreeMap<(Instant, u64), Arc<UnixStream>>,
    next: u64,
    /// Until when the thread sleeps, whenever somebody else has the lock; for ever if there is none.
    sleeps: Option<Instant>,
    ended: bool,
}

/// A deadline that has not been met yet.
#[derive(Debug)]
#[must_use]
pub struct Armed<'a> {
    shared: &'a Shared,
    key: (Instant, u64),
}

impl Deadlines {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the host refuses one.
    pub fn new() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("vhost-deadlines".into())
            .spawn(move || theirs.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Has a socket shut down unless this is disarmed before.
    pub fn arm(&self, socket: &Arc<UnixStream>, after: Duration) -> Armed<'_> {
        let at = Instant::now() + after;
        let mut state = self.shared.state.lock();
        state.next += 1;
        let key = (at, state.next);
        state.armed.insert(key, socket.clone());
        let in_time = state.sleeps.is_some_and(|until| until <= at);
        drop(state);
        if !in_time {
            self.shared.changed.notify_one();
        }
        Armed {
            shared: &self.shared,
            key,
        }
    }
}

impl Armed<'_> {
    /// Takes it back; `false` if it was too late.
    pub fn disarm(self) -> bool {
        self.shared.state.lock().armed.remove(&self.key).is_some()
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            let now = Instant::now();
            while let Some(first) = state.armed.first_entry()
                && first.key().0 <= now
            {
                // One that is not connected any more needs no end.
                let _ = first.remove().shutdown(Shutdown::Both);
            }
            let next = state.armed.first_key_value().map(|((at, _), _)| *at);
            state.sleeps = next;
            match next {
                Some(at) => {
                    self.changed.wait_until(&mut state, at);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_wait_ends_at_its_deadline_and_others_go_on() {
        let deadlines = Deadlines::new().unwrap();
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let [long, short, met] = [0, 1, 2].map(|i| Arc::new(pairs[i].0.try_clone().unwrap()));
        let long = deadlines.arm(&long, Duration::from_secs(100));
        let met = deadlines.arm(&met, Duration::from_millis(40));
        assert!(met.disarm());
        let armed = deadlines.arm(&short, Duration::from_millis(30));
        assert_eq!((&*short).read(&mut [0]).unwrap(), 0, "it was shut down");
        assert!(!armed.disarm());
        assert!(long.disarm());
        for (index, open) in [(0, true), (1, false), (2, true)] {
            pairs[index].1.set_nonblocking(true).unwrap();
            let read = (&pairs[index].1).read(&mut [0]);
            assert_eq!(read.is_err(), open, "{index}");
        }
    }
}
