//! How other threads get a processor's attention.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Thread;
use std::time::Duration;

use parking_lot::Mutex;

/// One word that the processor looks at before each block, and the means to wake it from HLT.
#[derive(Default)]
pub struct Waker {
    attention: AtomicU32,
    kicked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Waker {
    /// Asks the processor to look at its requests. Never blocks for longer than another `poke`.
    pub fn poke(&self) {
        self.attention.store(1, Ordering::SeqCst);
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
        self.attention.load(Ordering::Relaxed) != 0
    }

    /// Address of the word that is not zero while somebody wants attention.
    pub fn word(&self) -> u64 {
        std::ptr::from_ref(&self.attention) as u64
    }

    /// Takes the request; what was asked for before is visible afterwards.
    pub fn take(&self) -> bool {
        self.attention.swap(0, Ordering::SeqCst) != 0
    }

    /// Asks for attention from the processor's own thread.
    #[inline(always)]
    pub fn want(&self) {
        self.attention.store(1, Ordering::Relaxed);
    }

    /// Declares that the calling thread runs the processor from now on.
    pub fn adopt(&self) {
        *self.thread.lock() = Some(std::thread::current());
    }

    /// Sleeps until poked or `timeout`. Returns at once when attention is wanted already.
    pub fn sleep(&self, timeout: Option<Duration>) {
        if self.attention.load(Ordering::SeqCst) != 0 {
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
