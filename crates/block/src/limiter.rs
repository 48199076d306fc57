//! Rate limits: token buckets for operations and for bytes.
//!
//! A bucket begins full. Each request takes tokens; they come back evenly, `size` of them in
//! `refill_time`, and never more than `size` are there. Besides, a one-time burst is used up first, and
//! does not come back. So a guest gets `one_time_burst` at once, `size` at once after a rest, and
//! `size / refill_time` on the average.
//!
//! A request that needs more than the bucket can ever hold waits until it is full, and leaves a debt,
//! which the next ones wait for: large requests are neither stuck nor cheaper than small ones.
//!
//! Time is whatever the caller says: there is no clock in here. A level is counted in parts of a token
//! so small that a nanosecond brings a whole number of them, so nothing is lost by rounding.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A limit: `size` tokens in `refill_time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that a full bucket holds.
    pub size: u64,
    /// Tokens that are there once, besides.
    pub one_time_burst: u64,
    /// How long an empty bucket takes to be full.
    pub refill_time: Duration,
}

impl Bucket {
    /// Tells whether it limits anything; without size or time it does not.
    fn is_limit(&self) -> bool {
        self.size != 0 && !self.refill_time.is_zero()
    }
}

/// The limits of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens are bytes.
    pub bandwidth: Option<Bucket>,
    /// Tokens are requests.
    pub operations: Option<Bucket>,
}

/// Says when a request may go. Shared by all queues of a device.
#[derive(Debug)]
pub struct Limiter(Mutex<Levels>);

#[derive(Debug, Default)]
struct Levels {
    bandwidth: Option<Level>,
    operations: Option<Level>,
}

impl Limiter {
    /// Makes one whose buckets are full.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self(Mutex::new(Levels::new(limits, now)))
    }

    /// Replaces the limits. The new buckets are full.
    pub fn replace(&self, limits: Limits, now: Instant) {
        *self.0.lock() = Levels::new(limits, now);
    }

    /// Takes the tokens of one request of that many bytes, or nothing.
    ///
    /// # Errors
    /// With the time after which it is worth to ask again, never zero.
    pub fn take(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut levels = self.0.lock();
        let Levels {
            bandwidth,
            operations,
        } = &mut *levels;
        let mut both = [(operations, 1), (bandwidth, bytes)];
        let wait = both
            .iter_mut()
            .filter_map(|(level, tokens)| level.as_mut()?.wait(*tokens, now))
            .max();
        if let Some(wait) = wait {
            return Err(wait);
        }
        for (level, tokens) in both {
            if let Some(level) = level {
                level.take(tokens);
            }
        }
        Ok(())
    }
}

impl Levels {
    fn new(limits: Limits, now: Instant) -> Self {
        let level = |bucket: Option<Bucket>| {
            let bucket = bucket.filter(Bucket::is_limit)?;
            Some(Level::new(bucket, now))
        };
        Self {
            bandwidth: level(limits.bandwidth),
            operations: level(limits.operations),
        }
    }
}

/// How full a bucket is.
#[derive(Debug)]
struct Level {
    size: i128,
    burst: u64,
    /// Parts of a token: as many as the refill time has nanoseconds.
    parts: i128,
    /// In parts; below zero it is a debt.
    level: i128,
    filled: Instant,
}

impl Level {
    fn new(bucket: Bucket, now: Instant) -> Self {
        // Less than 2^64 tokens of less than 2^62 parts: nothing here reaches 2^127.
        let nanoseconds = bucket.refill_time.as_nanos().min(1 << 62);
        let (size, parts) = (i128::from(bucket.size), nanoseconds as i128);
        Self {
            size,
            burst: bucket.one_time_burst,
            parts,
            level: size * parts,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_nanos();
        // Longer than any bucket takes, and short enough to be multiplied.
        let passed = passed.min(1 << 62) as i128;
        self.filled = self.filled.max(now);
        let gained = self.level.saturating_add(self.size * passed);
        self.level = gained.min(self.size * self.parts);
    }

    /// Returns how long these tokens are not there; `None` if they are.
    fn wait(&mut self, tokens: u64, now: Instant) -> Option<Duration> {
        self.fill(now);
        let rest = tokens.saturating_sub(self.burst);
        let needed = i128::from(rest).min(self.size) * self.parts;
        let missing = needed - self.level;
        if missing <= 0 {
            return None;
        }
        // At least one nanosecond, as something is missing.
        let wait = (missing + self.size - 1) / self.size;
        Some(Duration::from_nanos(
            u64::try_from(wait).unwrap_or(u64::MAX),
        ))
    }

    fn take(&mut self, tokens: u64) {
        let from_burst = tokens.min(self.burst);
        self.burst -= from_burst;
        let rest = i128::from(tokens - from_burst) * self.parts;
        self.level = self.level.saturating_sub(rest);
    }
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
