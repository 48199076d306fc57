//! The local APIC's timer: one-shot, periodic, TSC-deadline (SDM vol. 3, 11.5.4).
//!
//! Its input clock runs at 1 GHz, so one count before the divider is one nanosecond of
//! [`umbra_clock::Clock`]. All times here are host nanoseconds; only the deadline register holds
//! guest TSC values, which are host nanoseconds plus an offset.

/// Shortest period that is honoured. A guest that asks for less is served at this rate, so that it
/// cannot keep a host processor busy with nothing but its own timer.
const MIN_PERIOD: u64 = 20_000;

/// What the LVT timer entry selects (bits 17 and 18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Counts down once.
    OneShot,
    /// Reloads the initial count.
    Periodic,
    /// Fires when the time-stamp counter reaches IA32_TSC_DEADLINE.
    Deadline,
}

impl Mode {
    /// Decodes the LVT timer entry. The reserved encoding 3 behaves as one-shot.
    pub fn from_lvt(entry: u32) -> Self {
        match entry >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::Deadline,
            _ => Self::OneShot,
        }
    }
}

/// The timer's registers and its next expiry.
#[derive(Clone, Debug)]
pub struct Timer {
    mode: Mode,
    initial: u32,
    divide: u32,
    /// IA32_TSC_DEADLINE, zero when disarmed.
    deadline: u64,
    /// Guest TSC minus host nanoseconds.
    tsc_offset: i64,
    /// When it fires next.
    expires: Option<u64>,
}

impl Timer {
    /// The timer after reset: stopped, one-shot, dividing by two. The TSC offset is the
    /// processor's and survives.
    pub fn new(tsc_offset: i64) -> Self {
        Self {
            mode: Mode::OneShot,
            initial: 0,
            divide: 0,
            deadline: 0,
            tsc_offset,
            expires: None,
        }
    }

    /// A timer whose current count was `current` at `at`, zero if it did not run. A periodic one that
    /// was started always runs: with a count of zero, it is about to begin its next period.
    pub fn counting(mode: Mode, divide: u32, initial: u32, current: u32, at: u64) -> Self {
        let mut timer = Self {
            mode,
            initial,
            divide,
            ..Self::new(0)
        };
        let left = match mode {
            Mode::Deadline => 0,
            Mode::Periodic if current == 0 => timer.period(),
            _ => u64::from(current) * timer.divisor(),
        };
        timer.expires = (left != 0).then(|| at.saturating_add(left));
        timer
    }

    /// Returns what is left of a count, rounded up: unlike the current-count register it is zero
    /// only when the timer does not run, or has expired.
    pub fn remaining(&self, now: u64) -> u32 {
        match (self.mode, self.expires) {
            (Mode::Deadline, _) | (_, None) => 0,
            (_, Some(at)) => {
                let left = at.saturating_sub(now).div_ceil(self.divisor());
                u32::try_from(left).unwrap_or(u32::MAX)
            }
        }
    }

    /// Returns when the timer fires next.
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// Follows a write to the LVT entry. Entering or leaving TSC-deadline mode disarms.
    pub fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode && (mode == Mode::Deadline || self.mode == Mode::Deadline) {
            self.initial = 0;
            self.deadline = 0;
            self.expires = None;
        }
        self.mode = mode;
    }

    /// Returns the initial-count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial-count register, which starts the timer or, with zero, stops it.
    /// Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == Mode::Deadline {
            return;
        }
        self.initial = count;
        self.expires = (count != 0).then(|| now.saturating_add(self.period()));
    }

    /// Returns the current-count register.
    pub fn current(&self, now: u64) -> u32 {
        match (self.mode, self.expires) {
            (Mode::Deadline, _) | (_, None) => 0,
            // It has reloaded itself, though nobody has looked yet.
            (Mode::Periodic, Some(at)) if at <= now => {
                let period = self.period().max(1);
                ((period - (now - at) % period) / self.divisor()) as u32
            }
            (_, Some(at)) => (at.saturating_sub(now) / self.divisor()) as u32,
        }
    }

    /// Returns the divide-configuration register.
    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide-configuration register; what remains of a running count is kept.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        let remaining = u64::from(self.current(now));
        self.divide = value & 0b1011;
        if self.mode != Mode::Deadline && self.expires.is_some() {
            self.expires = Some(now.saturating_add(remaining * self.divisor()));
        }
    }

    /// Returns IA32_TSC_DEADLINE: zero outside the mode and after it fired.
    pub fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Writes IA32_TSC_DEADLINE. Ignored outside TSC-deadline mode; zero disarms.
    pub fn set_deadline(&mut self, tsc: u64) {
        if self.mode == Mode::Deadline {
            self.deadline = tsc;
            self.expires = (tsc != 0).then(|| self.host_time(tsc));
        }
    }

    /// Tells what must be added to host nanoseconds to get the guest's TSC.
    pub fn set_tsc_offset(&mut self, offset: i64) {
        self.tsc_offset = offset;
        if self.deadline != 0 {
            self.expires = Some(self.host_time(self.deadline));
        }
    }

    /// Returns that offset.
    pub fn tsc_offset(&self) -> i64 {
        self.tsc_offset
    }

    /// Lets time pass up to `now`; true when the timer has fired since. Periods that were missed
    /// altogether are merged into one.
    pub fn fire(&mut self, now: u64) -> bool {
        let Some(at) = self.expires.filter(|at| *at <= now) else {
            return false;
        };
        self.expires = match self.mode {
            Mode::Periodic => {
                let period = self.period().max(MIN_PERIOD);
                Some(at + ((now - at) / period + 1) * period)
            }
            Mode::OneShot => None,
            Mode::Deadline => {
                self.deadline = 0;
                None
            }
        };
        true
    }

    /// A deadline in the past, even before the host's zero, is due at once.
    fn host_time(&self, tsc: u64) -> u64 {
        let host = i128::from(tsc) - i128::from(self.tsc_offset);
        host.clamp(0, i128::from(u64::MAX - 1)) as u64
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// Bits 0, 1 and 3 encode 2, 4, 8, … 128, and 1 for 0b1011.
    fn divisor(&self) -> u64 {
        let encoded = self.divide & 3 | (self.divide & 8) >> 1;
        1 << ((encoded + 1) & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(mode: Mode, divide: u32, initial: u32) -> Timer {
        let mut timer = Timer::new(0);
        timer.set_mode(mode);
        timer.set_divide(divide, 0);
        timer.set_initial(initial, 0);
        timer
    }

    #[test]
    fn the_divide_register_encodes_one_to_128() {
        let table = [
            (0, 2),
            (1, 4),
            (2, 8),
            (3, 16),
            (8, 32),
            (9, 64),
            (10, 128),
            (11, 1),
        ];
        for (register, divisor) in table {
            let timer = counting(Mode::OneShot, register, 1000);
            assert_eq!(
                timer.expires(),
                Some(1000 * divisor),
                "divide register {register}"
            );
        }
    }

    #[test]
    fn a_periodic_count_starts_over_though_nobody_looked() {
        let timer = counting(Mode::Periodic, 11, 100_000);
        let at = |now| timer.current(now);
        assert_eq!((at(99_999), at(100_001), at(250_000)), (1, 99_999, 50_000));
    }

    #[test]
    fn one_shot_fires_once() {
        let mut timer = counting(Mode::OneShot, 0b1011, 100);
        assert_eq!(timer.current(40), 60);
        assert!(!timer.fire(99));
        assert!(timer.fire(100));
        assert!(!timer.fire(1000));
        assert_eq!(timer.current(1000), 0);
    }

    #[test]
    fn periodic_keeps_its_phase_and_merges_what_was_missed() {
        let mut timer = counting(Mode::Periodic, 0b1011, 100_000);
        assert!(timer.fire(100_000));
        assert!(timer.fire(450_000));
        assert_eq!(timer.expires(), Some(500_000));
    }

    #[test]
    fn a_period_below_the_minimum_is_served_at_the_minimum() {
        let mut timer = counting(Mode::Periodic, 0b1011, 1);
        assert!(timer.fire(1));
        assert_eq!(timer.expires(), Some(1 + MIN_PERIOD));
    }

    #[test]
    fn a_deadline_is_guest_time_and_reads_zero_after_it_fired() {
        let mut timer = Timer::new(-500);
        timer.set_deadline(9999);
        assert_eq!(timer.deadline(), 0, "not in the mode");
        timer.set_mode(Mode::Deadline);
        timer.set_deadline(1000);
        assert_eq!(timer.expires(), Some(1500));
        assert!(timer.fire(1500));
        assert_eq!(timer.deadline(), 0);
        timer.set_tsc_offset(i64::MAX);
        timer.set_deadline(1);
        assert!(timer.fire(0), "long past in guest time");
    }

    #[test]
    fn leaving_deadline_mode_disarms() {
        let mut timer = Timer::new(0);
        timer.set_mode(Mode::Deadline);
        timer.set_deadline(1000);
        timer.set_mode(Mode::OneShot);
        assert_eq!(timer.expires(), None);
        assert_eq!(timer.deadline(), 0);
    }

    #[test]
    fn one_shot_and_periodic_change_into_each_other_without_a_stop() {
        let mut timer = counting(Mode::OneShot, 0b1011, 100_000);
        timer.set_mode(Mode::Periodic);
        assert!(timer.fire(100_000));
        assert_eq!(timer.expires(), Some(200_000));
    }
}
