//! Between the relay and a back end that is about to be stopped: what it has is waited for, and it gets no more.
//!
//! A back end that is told to stop working on a queue has to finish what it has first. Not every one does: QEMU's
//! disks answer at once, go on with what they have, in memory that may be taken away from them a moment later, and
//! end the connection when they want to tell of it. So a disk is stopped when it has nothing. Others are not waited
//! for: a network interface has buffers for frames all the time.
//!
//! ```text
//!   relay   enter, lend ... take back, leave; at its own end it takes back until it is empty, too
//!   Link    close: waits until all have left ── stop, change, start ── open
//! ```

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::pace::millis;

/// How long what a back end has is waited for: longer than a disk takes, and short for whoever changes the map.
const WAIT: Duration = millis(1000);
/// How long is waited between two looks.
pub const LOOK: Duration = Duration::from_micros(50);

/// See the module.
#[derive(Debug)]
pub struct Gate {
    /// Requests end by themselves, and soon.
    waits: bool,
    closed: AtomicBool,
    /// Requests that the back end has.
    inside: AtomicUsize,
}

impl Gate {
    /// Makes one that is open.
    pub fn new(waits: bool) -> Self {
        Self {
            waits,
            closed: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
        }
    }

    /// Lets a request in, unless it is closed.
    pub fn enter(&self) -> bool {
        // First here, then the look: whoever closes looks the other way round.
        self.inside.fetch_add(1, Ordering::SeqCst);
        let is_open = !self.closed.load(Ordering::SeqCst);
        if !is_open {
            self.leave();
        }
        is_open
    }

    /// A request is back.
    pub fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// There is nobody any more who has requests.
    pub fn clear(&self) {
        self.inside.store(0, Ordering::SeqCst);
    }

    /// Closes it, and waits until there is nothing inside, or for a second. The relay must be able to work meanwhile.
    pub fn close(&self) {
        if !self.waits {
            return;
        }
        self.closed.store(true, Ordering::SeqCst);
        let begin = Instant::now();
        while self.is_waited_for(begin) {
            std::thread::sleep(LOOK);
        }
    }

    /// Tells whether something is inside that is waited for since `begin`.
    pub fn is_waited_for(&self, begin: Instant) -> bool {
        self.waits && self.inside.load(Ordering::SeqCst) != 0 && begin.elapsed() < WAIT
    }

    /// Opens it. Who waits before it has to be woken.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_inside_is_waited_for_and_nothing_more_comes_in() {
        let gate = Arc::new(Gate::new(true));
        assert!(gate.enter() && gate.enter());
        let other = gate.clone();
        let relay = std::thread::spawn(move || {
            while other.enter() {
                other.leave();
            }
            other.leave();
            let still = other.inside.load(Ordering::SeqCst);
            other.leave();
            still
        });
        gate.close();
        assert_eq!(gate.inside.load(Ordering::SeqCst), 0);
        assert_eq!(relay.join().unwrap(), 1);
        assert!(!gate.enter());
        gate.open();
        assert!(gate.enter());
    }

    #[test]
    fn what_does_not_end_is_not_waited_for_without_end() {
        let gate = Gate::new(true);
        assert!(gate.enter());
        gate.close();
        assert!(!gate.enter());
        gate.clear();
        assert!(!gate.is_waited_for(Instant::now()));
        gate.close();
    }

    #[test]
    fn where_requests_do_not_end_nobody_waits() {
        let gate = Gate::new(false);
        assert!(gate.enter());
        assert!(!gate.is_waited_for(Instant::now()));
        gate.close();
        assert!(gate.enter());
    }
}
