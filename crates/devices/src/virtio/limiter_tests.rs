//! Limits on a clock that the tests turn.

use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn bucket(size: u64, one_time_burst: u64, milliseconds: u64) -> Option<Bucket> {
    Some(Bucket {
        size,
        one_time_burst,
        refill_time: Duration::from_millis(milliseconds),
    })
}

fn bandwidth(bucket: Option<Bucket>, now: Instant) -> Limiter {
    let limits = Limits {
        bandwidth: bucket,
        operations: None,
    };
    Limiter::new(limits, now)
}

#[test]
fn without_limits_everything_goes() {
    let now = Instant::now();
    for bucket in [None, bucket(0, 0, 1000), bucket(5, 0, 0)] {
        let limiter = bandwidth(bucket, now);
        for _ in 0..100 {
            assert_eq!(limiter.take(u64::MAX, now), Ok(()));
        }
    }
}

#[test]
fn tokens_come_back_evenly_and_never_more_than_the_size() {
    let now = Instant::now();
    let limiter = bandwidth(bucket(1000, 0, 1000), now);
    assert_eq!(limiter.take(1000, now), Ok(()));
    assert_eq!(limiter.take(100, now), Err(SECOND / 10));
    assert_eq!(limiter.take(100, now + SECOND / 20), Err(SECOND / 20));
    assert_eq!(limiter.take(100, now + SECOND / 10), Ok(()));
    let later = now + 1000 * SECOND;
    assert_eq!(limiter.take(1000, later), Ok(()));
    assert_eq!(limiter.take(1, later), Err(SECOND / 1000));
}

#[test]
fn a_burst_is_used_first_and_once() {
    let now = Instant::now();
    let limiter = bandwidth(bucket(10, 100, 1000), now);
    assert_eq!(limiter.take(105, now), Ok(()), "100 and 5 of 10");
    assert_eq!(limiter.take(5, now), Ok(()));
    assert_eq!(limiter.take(1, now), Err(SECOND / 10));
    let later = now + 100 * SECOND;
    assert_eq!(limiter.take(10, later), Ok(()));
    assert_eq!(
        limiter.take(10, later),
        Err(SECOND),
        "it does not come back"
    );
}

#[test]
fn more_than_the_size_waits_for_a_full_bucket_and_leaves_a_debt() {
    let now = Instant::now();
    let limiter = bandwidth(bucket(10, 0, 1000), now);
    assert_eq!(limiter.take(1, now), Ok(()));
    assert_eq!(limiter.take(30, now), Err(SECOND / 10));
    let full = now + SECOND / 10;
    assert_eq!(limiter.take(30, full), Ok(()));
    assert_eq!(limiter.take(1, full), Err(SECOND * 21 / 10), "20 are owed");
    assert_eq!(limiter.take(1, full + SECOND * 21 / 10), Ok(()));
}

#[test]
fn what_one_bucket_refuses_takes_nothing_from_the_other() {
    let now = Instant::now();
    let limits = Limits {
        bandwidth: bucket(100, 0, 1000),
        operations: bucket(2, 0, 1000),
    };
    let limiter = Limiter::new(limits, now);
    assert_eq!(limiter.take(90, now), Ok(()));
    assert_eq!(limiter.take(20, now), Err(SECOND / 10));
    assert_eq!(limiter.take(10, now), Ok(()), "the second operation");
    assert_eq!(limiter.take(0, now), Err(SECOND / 2), "no third one");
}

#[test]
fn new_limits_are_full_and_time_that_goes_back_is_none() {
    let now = Instant::now();
    let limiter = bandwidth(bucket(10, 0, 1000), now + SECOND);
    assert_eq!(limiter.take(10, now + SECOND), Ok(()));
    assert_eq!(limiter.take(10, now), Err(SECOND));
    let limits = Limits {
        bandwidth: bucket(20, 0, 1000),
        operations: None,
    };
    limiter.replace(limits, now);
    assert_eq!(limiter.take(20, now), Ok(()));
    limiter.replace(Limits::default(), now);
    assert_eq!(limiter.take(u64::MAX, now), Ok(()));
}

#[test]
fn a_bucket_that_stays_the_same_is_as_full_as_it_was() {
    let now = Instant::now();
    let both = Limits {
        bandwidth: bucket(100, 0, 1000),
        operations: bucket(2, 0, 1000),
    };
    let limiter = Limiter::new(both, now);
    assert_eq!(limiter.take(100, now), Ok(()));
    let other = Limits {
        bandwidth: bucket(200, 0, 1000),
        ..both
    };
    limiter.replace(other, now);
    assert_eq!(limiter.limits(), other);
    assert_eq!(limiter.take(200, now), Ok(()), "a new bucket is full");
    assert_eq!(
        limiter.take(0, now),
        Err(SECOND / 2),
        "two operations were done"
    );
}

#[test]
fn what_is_only_looked_at_stays_there_and_what_was_done_is_owed() {
    let now = Instant::now();
    let limiter = bandwidth(bucket(10, 5, 1000), now);
    for _ in 0..3 {
        assert_eq!(limiter.check(15, now), Ok(()));
    }
    limiter.charge(15);
    limiter.charge(10);
    assert_eq!(limiter.check(1, now), Err(SECOND * 11 / 10));
    limiter.replace(Limits::default(), now);
    limiter.charge(u64::MAX);
    assert_eq!(limiter.check(u64::MAX, now), Ok(()));
}

proptest! {
    /// Whatever is asked for: the wait that is told is enough, and the average is kept.
    #[test]
    fn who_waits_as_told_is_served_and_never_gets_more_than_the_limit(
        size in 1..u64::MAX,
        burst in any::<u64>(),
        nanoseconds in 1..u64::MAX,
        requests in proptest::collection::vec(any::<u64>(), 1..20),
    ) {
        let begin = Instant::now();
        let small = requests.iter().map(|tokens| tokens % size.saturating_mul(3).max(1));
        let bucket = Bucket {
            size,
            one_time_burst: burst % size,
            refill_time: Duration::from_nanos(nanoseconds % (1 << 50) + 1),
        };
        let limiter = bandwidth(Some(bucket), begin);
        let (mut now, mut taken, mut last) = (begin, 0u128, 0u128);
        for tokens in small {
            if let Err(wait) = limiter.take(tokens, now) {
                prop_assert!(!wait.is_zero());
                now += wait;
                prop_assert_eq!(limiter.take(tokens, now), Ok(()));
            }
            taken += u128::from(tokens);
            last = tokens.into();
        }
        let passed = (now - begin).as_nanos();
        let refill = bucket.refill_time.as_nanos();
        // What the last request owes is paid by the next one.
        let allowed = u128::from(bucket.one_time_burst) + u128::from(size) + last
            + u128::from(size) * passed / refill + 1;
        prop_assert!(taken <= allowed, "{} of {}", taken, allowed);
    }
}
