//! How long answers of a back end are waited for: so long, all of them together.
//!
//! Time that was waited comes back ten times as slowly. So one that answers everything at the last moment holds
//! up nobody longer than one that does not answer. What is answered [promptly](PROMPT) is not counted, or memory
//! that comes and goes all the time would use up all of it.

use std::time::{Duration, Instant};

use crate::pace::millis;

/// How long answers are waited for at most.
pub const PATIENCE: Duration = millis(if cfg!(test) { 500 } else { 5000 });

/// An answer that takes no longer is not late.
const PROMPT: Duration = millis(20);

/// What is left of it.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    /// When that was.
    at: Instant,
}

impl Patience {
    /// Begins with all of it.
    pub fn new(now: Instant) -> Self {
        Self {
            left: PATIENCE,
            at: now,
        }
    }

    /// Begins to wait: says for how long at most.
    pub fn begin(&mut self, now: Instant) -> Duration {
        let rested = self.left + (now - self.at) / 10;
        self.left = rested.min(PATIENCE);
        self.at = now;
        self.left
    }

    /// Has waited.
    pub fn end(&mut self, now: Instant) {
        let late = (now - self.at).saturating_sub(PROMPT);
        self.left = self.left.saturating_sub(late);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits so long, so often, without a rest; returns what is left.
    fn after(each: Duration, count: u32) -> Duration {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        for _ in 0..count {
            patience.begin(now);
            now += each;
            patience.end(now);
        }
        patience.begin(now)
    }

    #[test]
    fn prompt_answers_cost_nothing_however_many_they_are() {
        assert_eq!(after(PROMPT, 1_000_000), PATIENCE);
    }

    #[test]
    fn late_answers_use_it_up_together() {
        let late = PATIENCE / 4 + PROMPT;
        assert_eq!(after(late, 1), PATIENCE * 3 / 4);
        assert_eq!(after(late, 4), Duration::ZERO);
        assert_eq!(after(late, 5), Duration::ZERO);
    }

    #[test]
    fn it_comes_back_slowly_and_not_beyond_what_it_was() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        patience.begin(now);
        now += PATIENCE + PROMPT;
        patience.end(now);
        now += PATIENCE;
        assert_eq!(patience.begin(now), PATIENCE / 10);
        now += PATIENCE * 100;
        assert_eq!(patience.begin(now), PATIENCE);
    }
}
