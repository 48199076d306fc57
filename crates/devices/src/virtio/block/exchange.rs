//! Another disk in the place of the one that is there, while the device is in use.
//!
//! ```text
//!   queues: a pass for each request ──> Gate            replace:
//!           none while it is held,      │                 1. hold the gate
//!           so requests stay in the     │                 2. wait until nobody has a pass
//!           queue for a moment          │                 3. flush the old disk, start engines for the new one
//!   who enters looks which disk it is <─┘ Current <────── 4. exchange the disks, tell the driver, let go
//! ```
//! So all that was in flight ends on the old disk, in all queues, and what comes later is for the new one. A
//! request whose host hangs keeps its pass, and the old disk its place.
//!
//! A queue's engine belongs to its thread, which takes a new one before its next request. They are made by whoever
//! replaces the disk, so that a host that refuses them fails the exchange and not the device; and who replaces it
//! waits until the threads have let the old disk go, so that somebody else may have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_block::{Disk, Engine};

/// The disk, and which one it is in the row of those that the device has had.
pub struct Current {
    pub disk: Arc<dyn Disk>,
    pub number: u64,
    /// For the threads that have not begun with it yet.
    pub engines: Vec<Engine>,
    /// How many threads still have the disk before it.
    pub behind: usize,
}

impl Current {
    /// The first one.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            number: 0,
            engines: Vec::new(),
            behind: 0,
        }
    }
}

/// The bit that says that nobody may enter; the others count passes.
const HELD: u64 = 1 << 63;

/// Counts requests in flight, and lets no more begin while it is held.
#[derive(Default)]
pub struct Gate {
    state: AtomicU64,
    lock: Mutex<()>,
    quiet: Condvar,
}

impl Gate {
    /// Lets a request begin; `None` while the gate is held.
    pub fn enter(self: &Arc<Self>) -> Option<Pass> {
        // Sequentially consistent, as all here: either the pass is seen by who holds, or the hold by who enters.
        let before = self.state.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self.clone());
        (before & HELD == 0).then_some(pass)
    }

    /// Lets nobody in until the result is dropped. One at a time.
    pub fn hold(&self) -> Held<'_> {
        self.state.fetch_or(HELD, Ordering::SeqCst);
        Held(self)
    }
}

/// A gate that is held.
pub struct Held<'a>(&'a Gate);

impl Held<'_> {
    /// Waits until nobody is inside; `false` if that takes longer than `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut lock = self.0.lock.lock();
        while self.0.state.load(Ordering::SeqCst) != HELD {
            if self.0.quiet.wait_until(&mut lock, until).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!HELD, Ordering::SeqCst);
    }
}

/// A request that is in flight, until it is dropped.
pub struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::SeqCst) == HELD | 1 {
            // Not between the look of who waits and its sleep.
            drop(self.0.lock.lock());
            self.0.quiet.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn nobody_enters_a_gate_that_is_held_and_who_holds_waits_for_who_is_inside() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter().unwrap();
        let held = gate.hold();
        assert!(gate.enter().is_none());
        assert!(!held.wait(Duration::from_millis(10)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                drop(pass);
            });
            assert!(held.wait(Duration::from_secs(10)));
        });
        drop(held);
        assert!(gate.enter().is_some());
    }

    #[test]
    fn nobody_is_inside_while_the_gate_is_quiet() {
        let gate = Arc::new(Gate::default());
        let (quiet, over) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let pass = gate.enter();
                        assert!(pass.is_none() || !quiet.load(Ordering::SeqCst));
                    }
                });
            }
            for _ in 0..200 {
                let held = gate.hold();
                assert!(held.wait(Duration::from_secs(10)));
                quiet.store(true, Ordering::SeqCst);
                std::thread::yield_now();
                quiet.store(false, Ordering::SeqCst);
                drop(held);
            }
            over.store(true, Ordering::SeqCst);
        });
    }
}
