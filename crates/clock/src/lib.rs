//! The guest's time base: one monotonic counter of nanoseconds since the machine was made.
//!
//! Everything in a machine that counts time (time-stamp counter, APIC timer, 8254, PM timer,
//! CMOS clock, kvmclock) derives from one [`Clock`], so none can drift against another. The guest's
//! time-stamp counter *is* this counter: it runs at exactly 1 GHz on every host, which spares the
//! guest all calibration and makes a saved machine's time portable.
//!
//! This crate must not know who asks.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Frequency of the guest's time-stamp counter, in Hz.
pub const TSC_HZ: u64 = 1_000_000_000;

/// A monotonic nanosecond counter. Cheap to copy; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Starts a clock at zero.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Returns the nanoseconds since [`Clock::start`]. Never blocks; does not enter the kernel
    /// where the host has a vDSO clock.
    #[inline]
    pub fn now(&self) -> u64 {
        // 2^64 ns are 584 years: the truncation cannot be seen.
        self.start.elapsed().as_nanos() as u64
    }

    /// Returns the instant at which this clock reads `nanos`.
    pub fn instant_at(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos)
    }

    /// Returns the wall-clock time as time since 1970-01-01 UTC.
    pub fn wall() -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// A timer that does nothing by itself: its owner sleeps until the next event and then ticks it.
pub trait Timer: Send + Sync {
    /// Returns when [`Timer::tick`] is due, in nanoseconds of the machine's clock; `None` if never.
    fn next_event(&self) -> Option<u64>;

    /// Does what is due at `now`.
    fn tick(&self, now: u64);

    /// Sets who hears that [`Timer::next_event`] has changed; once. Called from any thread; it must
    /// not call the timer.
    fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_agree_and_do_not_run_backwards() {
        let clock = Clock::start();
        let copy = clock;
        let (a, b, c) = (clock.now(), copy.now(), clock.now());
        assert!(a <= b && b <= c);
    }

    #[test]
    fn an_instant_reads_back_as_its_nanoseconds() {
        let clock = Clock::start();
        let at = clock.instant_at(5_000_000_000);
        assert_eq!(at.duration_since(clock.start), Duration::from_secs(5));
    }
}
