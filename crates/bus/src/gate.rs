//! Who is inside a device, and when nobody can be any more (rule R28).
//!
//! ```text
//!   caller                                   remover
//!   enter: count up, unless closed           unpublish: no later lookup finds the device
//!   … the device's handler …                 close:     who found it before is turned away
//!   leave: count down, wake the remover      wait:      until nobody is inside
//! ```
//!
//! Count and closed mark are one word, so a caller is either counted before the gate closes, and
//! waited for, or turned away. A call costs two atomic additions.

use std::time::Duration;

use umbra_sync::atomic::{AtomicUsize, Ordering};
use umbra_sync::{Condvar, Mutex};

/// Set in the count when nobody may enter any more.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// The calls that are inside one device.
pub(crate) struct Gate {
    inside: AtomicUsize,
    sleep: Mutex<()>,
    empty: Condvar,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            inside: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            empty: Condvar::new(),
        }
    }

    /// Counts a call until the result is dropped; `None` if the device is gone.
    pub fn enter(&self) -> Option<Inside<'_>> {
        let inside = Inside(self);
        let before = self.inside.fetch_add(1, Ordering::Acquire);
        (before & CLOSED == 0).then_some(inside)
    }

    /// Turns every later caller away.
    pub fn close(&self) {
        self.inside.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Blocks until nobody is inside. The gate is closed.
    pub fn wait(&self) {
        let mut guard = self.sleep.lock();
        while self.inside.load(Ordering::Acquire) != CLOSED {
            // The limit is only a net: the last one out notifies.
            self.empty.wait_for(&mut guard, Duration::from_millis(100));
        }
    }
}

/// One call that is inside, or was turned away and counts only until it has left.
pub(crate) struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // What the call did comes before what the remover does next.
        let before = self.0.inside.fetch_sub(1, Ordering::Release);
        if before == CLOSED | 1 {
            let _guard = self.0.sleep.lock();
            self.0.empty.notify_all();
        }
    }
}

/// A device that was taken out: its addresses hit nothing any more, and no new call reaches it,
/// but one may still be inside.
#[must_use = "a call may still be inside the device until this is waited for"]
pub struct Removed<D> {
    pub(crate) device: D,
    pub(crate) gate: std::sync::Arc<Gate>,
}

impl<D> Removed<D> {
    /// Blocks until no call is inside the device, and gives it back. None will be ever after,
    /// unless it is inserted anew.
    ///
    /// Must not be called from inside a handler of this device, which would wait for itself; hand
    /// the value to another thread instead.
    pub fn wait(self) -> D {
        self.gate.wait();
        self.device
    }
}

impl<D> std::fmt::Debug for Removed<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Removed")
    }
}
