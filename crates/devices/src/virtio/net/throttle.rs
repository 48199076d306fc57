//! One direction of a pair that waits for its limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use umbra_net::Header;

use crate::virtio::limiter::Limiter;

/// What a direction is limited by, and whether it waits for that.
#[derive(Default)]
pub struct Throttle {
    /// When the next frame is looked at again.
    until: Option<Instant>,
    /// That frame has been counted.
    counted: bool,
}

impl Throttle {
    /// Tells whether a frame may go; if not, when to ask again is remembered. `len` is with its header, and what
    /// is limited is without.
    pub fn admits(&mut self, limiter: &Limiter, len: usize, throttled: &AtomicU64) -> bool {
        let now = Instant::now();
        let Err(wait) = limiter.check(bytes(len), now) else {
            *self = Self::default();
            return true;
        };
        if !std::mem::replace(&mut self.counted, true) {
            throttled.fetch_add(1, Ordering::Relaxed);
        }
        // Less than 2^64 nanoseconds, which a clock has room for.
        self.until = Some(now + wait);
        false
    }

    /// Tells whether there is nothing to do but to wait.
    pub fn waits(&self) -> bool {
        self.until.is_some()
    }

    /// Returns how long that takes.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now))
    }

    /// Lets the frame be looked at again if it is time.
    pub fn expire(&mut self, now: Instant) {
        self.until = self.until.filter(|until| *until > now);
    }

    /// Lets the frame be looked at again: something has changed.
    pub fn wake(&mut self) {
        self.until = None;
    }
}

/// A frame has gone its way.
pub fn charge(limiter: &Limiter, len: usize) {
    limiter.charge(bytes(len));
}

fn bytes(len: usize) -> u64 {
    len.saturating_sub(Header::LEN) as u64
}
