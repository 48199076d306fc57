//! A host that takes long: the log says once that it does, and once that it goes on.
//!
//! A queue's thread looks at what is in flight from time to time, so that a request costs no more than the time
//! of its beginning. All queues of a device tell of it together.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// A request that the host takes longer for is told of. Tests have less patience.
pub const LONG: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5000 });

const QUIET: u8 = 0;
const TOLD: u8 = 1;
const OVER: u8 = 2;

/// What the log has been told of a device.
#[derive(Debug, Default)]
pub struct Overdue(AtomicU8);

impl Overdue {
    /// Tells whether slow requests are still to be looked for.
    pub fn is_looked_for(&self) -> bool {
        self.0.load(Ordering::Relaxed) == QUIET
    }

    /// Some requests have been in flight for so long.
    pub fn tell(&self, disk: &str, requests: usize) {
        if self.becomes(QUIET, TOLD) {
            tracing::warn!(
                disk,
                requests,
                seconds = LONG.as_secs(),
                "a disk is slow: the host has not completed these requests for so long, and the guest waits \
                 for them; it is told of once"
            );
        }
    }

    /// One that began then has completed.
    pub fn completed(&self, disk: &str, begun: Instant) {
        if self.0.load(Ordering::Relaxed) == TOLD {
            let after = begun.elapsed();
            if after >= LONG && self.becomes(TOLD, OVER) {
                tracing::info!(disk, ?after, "a disk that was slow has completed a request");
            }
        }
    }

    fn becomes(&self, from: u8, to: u8) -> bool {
        let order = Ordering::Relaxed;
        self.0.compare_exchange(from, to, order, order).is_ok()
    }
}
