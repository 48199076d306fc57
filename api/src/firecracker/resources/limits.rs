//! Rate limits on the wire, and what a change of them means.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{Bucket, Limits};

/// A token bucket: `size` tokens, bytes or operations, in `refill_time` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that a full bucket holds; 0 is no limit.
    pub size: u64,
    /// Tokens that are there once, besides.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds until an empty bucket is full; 0 is no limit.
    pub refill_time: u64,
}

impl TokenBucket {
    /// The limit that it is, if it is one.
    pub fn bucket(self) -> Option<Bucket> {
        (self.size != 0 && self.refill_time != 0).then(|| Bucket {
            size: self.size,
            one_time_burst: self.one_time_burst.unwrap_or(0),
            refill_time: Duration::from_millis(self.refill_time),
        })
    }
}

/// The limits of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Tokens are bytes.
    #[serde(default)]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    #[serde(default)]
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// What it means for a device that had no limits.
    pub fn limits(self) -> Limits {
        self.over(Limits::default())
    }

    /// What it means for a device that has `old` ones: what is not mentioned stays, and a bucket without size or
    /// time takes its limit away.
    pub fn over(self, old: Limits) -> Limits {
        let change =
            |new: Option<TokenBucket>, old| new.map_or(old, |bucket: TokenBucket| bucket.bucket());
        Limits {
            bandwidth: change(self.bandwidth, old.bandwidth),
            operations: change(self.ops, old.operations),
        }
    }

    /// The same for what is remembered of it.
    pub fn merged(self, old: Option<Self>) -> Self {
        let old = old.unwrap_or_default();
        Self {
            bandwidth: self.bandwidth.or(old.bandwidth),
            ops: self.ops.or(old.ops),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, refill_time: u64) -> Option<TokenBucket> {
        Some(TokenBucket {
            size,
            one_time_burst: None,
            refill_time,
        })
    }

    #[test]
    fn a_change_leaves_what_it_does_not_mention_and_lifts_what_it_empties() {
        let first = RateLimiter {
            bandwidth: bucket(1000, 100),
            ops: bucket(10, 100),
        };
        let old = first.limits();
        assert_eq!(old.bandwidth.unwrap().size, 1000);
        let change = RateLimiter {
            bandwidth: None,
            ops: bucket(20, 50),
        };
        let new = change.over(old);
        assert_eq!(new.bandwidth, old.bandwidth);
        assert_eq!(new.operations.unwrap().size, 20);
        let lift = RateLimiter {
            bandwidth: bucket(0, 100),
            ops: bucket(5, 0),
        };
        assert_eq!(lift.over(new), Limits::default());
        assert_eq!(change.merged(Some(first)).bandwidth, first.bandwidth);
    }
}
