//! How other threads get a processor's attention.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::gate::Gate;

/// What the processor looks at before each block, and the means to wake it from HLT.
#[derive(Default)]
pub struct Waker {
    gate: Gate,
    kicked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Waker {
    /// Asks the processor to look at its requests. Never blocks for longer than another `poke`.
    pub fn poke(&self) {
        self.gate.close();
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }

    /// Makes the current or the next run end.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.poke();
    }

    /// Tells whether there is a kick to take.
    pub fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::Relaxed)
    }

    /// Takes a kick.
    pub fn take_kick(&self) -> bool {
        self.kicked.load(Ordering::Relaxed) && self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Tells whether somebody wants attention: one plain load.
    #[inline(always)]
    pub fn wanted(&self) -> bool {
        self.gate.wanted()
    }

    /// What translated code looks at.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Takes the request; what was asked for before is visible afterwards.
    pub fn take(&self) -> bool {
        self.gate.take()
    }

    /// Asks for attention from the processor's own thread.
    pub fn want(&self) {
        self.gate.close();
    }

    /// Declares that the calling thread runs the processor from now on.
    pub fn adopt(&self) {
        *self.thread.lock() = Some(std::thread::current());
    }

    /// Sleeps until poked or `timeout`. Returns at once when attention is wanted already.
    pub fn sleep(&self, timeout: Option<Duration>) {
        if self.gate.wanted_by_now() {
            return;
        }
        match timeout {
            Some(timeout) => std::thread::park_timeout(timeout),
            None => std::thread::park(),
        }
    }
}

impl umbra_cpu::Kick for Waker {
    fn kick(&self) {
        Waker::kick(self);
    }
}
