//! Rate limits: token buckets for operations and for bytes, with the numbers that Firecracker has for them.
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

use std::sync::atomic::{AtomicBool, Ordering};
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

/// Says when a request may go. Shared by all queues of a device that it limits.
#[derive(Debug)]
pub struct Limiter {
    /// Without a limit nobody needs the lock.
    limits_something: AtomicBool,
    levels: Mutex<Levels>,
}

#[derive(Debug, Default)]
struct Levels {
    limits: Limits,
    bandwidth: Option<Level>,
    operations: Option<Level>,
}

impl Limiter {
    /// Makes one whose buckets are full.
    pub fn new(limits: Limits, now: Instant) -> Self {
        let this = Self {
            limits_something: AtomicBool::new(false),
            levels: Mutex::default(),
        };
        this.replace(limits, now);
        this
    }

    /// Replaces the limits. A bucket that is another one than before is full; one that is the same is as
    /// full as it was.
    pub fn replace(&self, limits: Limits, now: Instant) {
        let mut levels = self.levels.lock();
        levels.replace(limits, now);
        let some = levels.bandwidth.is_some() || levels.operations.is_some();
        self.limits_something.store(some, Ordering::Relaxed);
    }

    /// Returns what was set last.
    pub fn limits(&self) -> Limits {
        self.levels.lock().limits
    }

    /// Takes the tokens of one request of that many bytes, or nothing.
    ///
    /// # Errors
    /// With the time after which it is worth to ask again, never zero.
    pub fn take(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.with_levels(Ok(()), |levels| {
            levels.check(bytes, now)?;
            levels.charge(bytes);
            Ok(())
        })
    }

    /// Tells whether the tokens of such a request are there, and takes none: for who may find afterwards
    /// that it cannot be done. If it was, [`charge`](Self::charge) takes them.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn check(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.with_levels(Ok(()), |levels| levels.check(bytes, now))
    }

    /// Takes the tokens of a request that was done. What was taken by somebody else meanwhile is owed.
    pub fn charge(&self, bytes: u64) {
        self.with_levels((), |levels| levels.charge(bytes));
    }

    fn with_levels<T>(&self, unlimited: T, with: impl FnOnce(&mut Levels) -> T) -> T {
        // Who reads this while the limits are replaced goes by either the old or the new ones.
        match self.limits_something.load(Ordering::Relaxed) {
            true => with(&mut self.levels.lock()),
            false => unlimited,
        }
    }
}

impl Levels {
    fn replace(&mut self, limits: Limits, now: Instant) {
        let old = std::mem::replace(&mut self.limits, limits);
        let change = |level: &mut Option<Level>, old, new: Option<Bucket>| {
            if old != new {
                *level = new.filter(Bucket::is_limit).map(|b| Level::new(b, now));
            }
        };
        change(&mut self.bandwidth, old.bandwidth, limits.bandwidth);
        change(&mut self.operations, old.operations, limits.operations);
    }

    /// Each bucket that limits something, and the tokens of a request in it.
    fn tokens(&mut self, bytes: u64) -> impl Iterator<Item = (&mut Level, u64)> {
        let both = [(&mut self.operations, 1), (&mut self.bandwidth, bytes)];
        both.into_iter()
            .filter_map(|(level, tokens)| Some((level.as_mut()?, tokens)))
    }

    fn check(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let waits = self
            .tokens(bytes)
            .filter_map(|(level, n)| level.wait(n, now));
        waits.max().map_or(Ok(()), Err)
    }

    fn charge(&mut self, bytes: u64) {
        self.tokens(bytes).for_each(|(level, n)| level.take(n));
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
