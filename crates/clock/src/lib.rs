//! The guest's time base: one monotonic counter of nanoseconds since the machine was made.
//!
//! Everything in a machine that counts time (time-stamp counter, APIC timer, 8254, PM timer,
//! CMOS clock, kvmclock) derives from one [`Clock`], so none can drift against another. The guest's
//! time-stamp counter *is* this counter: it runs at exactly 1 GHz on every host, which spares the
//! guest all calibration and makes a saved machine's time portable: its clock goes on from where
//! it stood ([`ClockState`]), and the guest sees no time between. The wall clock is always the host's.
//!
//! This crate must not know who asks.
//!
//! ```
//! use umbra_clock::Clock;
//!
//! let clock = Clock::starting_at(5_000_000_000);
//! let state = clock.save();
//! // Elsewhere, later: time has stood still in between.
//! let resumed = Clock::resume(&state);
//! assert!(resumed.now() >= state.nanoseconds && state.nanoseconds >= 5_000_000_000);
//! ```
#![forbid(unsafe_code)]

mod state;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use state::ClockState;

/// Frequency of the guest's time-stamp counter, in Hz.
pub const TSC_HZ: u64 = 1_000_000_000;

/// A monotonic nanosecond counter. Cheap to copy; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// What it read at `start`.
    from: u64,
}

impl Clock {
    /// Starts a clock at zero.
    pub fn start() -> Self {
        Self::starting_at(0)
    }

    /// Starts a clock that reads `nanos` now.
    pub fn starting_at(nanos: u64) -> Self {
        Self {
            start: Instant::now(),
            from: nanos,
        }
    }

    /// Returns what this clock reads, and when that is in the world.
    pub fn save(&self) -> ClockState {
        ClockState {
            nanoseconds: self.now(),
            // 2^64 ns since 1970 are over in 2554.
            wall_ns: Self::wall().as_nanos() as u64,
        }
    }

    /// Starts a clock that goes on from where another stood when it was saved.
    pub fn resume(state: &ClockState) -> Self {
        Self::starting_at(state.nanoseconds)
    }

    /// Returns the nanoseconds since [`Clock::start`], or since the clock from which this one goes on
    /// was started. Never blocks; does not enter the kernel where the host has a vDSO clock.
    #[inline]
    pub fn now(&self) -> u64 {
        // 2^64 ns are 584 years: neither the truncation nor the sum's end can be seen, unless a
        // clock was made to start there.
        self.from
            .wrapping_add(self.start.elapsed().as_nanos() as u64)
    }

    /// Returns the instant at which this clock reads `nanos`; where that was before it was started or
    /// resumed, the instant of that.
    pub fn instant_at(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos.saturating_sub(self.from))
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

    #[test]
    fn a_resumed_clock_goes_on_from_where_it_stood() {
        let saved = Clock::starting_at(7_000_000_000).save();
        assert!((7_000_000_000..8_000_000_000).contains(&saved.nanoseconds));
        assert!(Clock::wall().as_nanos() as u64 - saved.wall_ns < 1_000_000_000);
        let resumed = Clock::resume(&saved);
        let now = resumed.now();
        assert!((saved.nanoseconds..saved.nanoseconds + 1_000_000_000).contains(&now));
        let second = resumed.instant_at(saved.nanoseconds + 1_000_000_000);
        assert_eq!(second - resumed.start, Duration::from_secs(1));
        assert_eq!(resumed.instant_at(0), resumed.start);
    }

    #[test]
    fn a_saved_clock_survives_json() {
        let saved = Clock::starting_at(u64::MAX - 1_000_000_000_000).save();
        let text = serde_json::to_string(&saved).unwrap();
        assert_eq!(serde_json::from_str::<ClockState>(&text).unwrap(), saved);
        assert!(serde_json::from_str::<ClockState>("{\"nanoseconds\":1}").is_err());
    }
}
