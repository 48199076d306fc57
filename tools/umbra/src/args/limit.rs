//! Limits, as `--disk` and `--net` have them: `SIZE[:MILLISECONDS[:BURST]]`, a second if no time is said.

use std::time::Duration;

use umbra_vmm::{Bucket, Limits};

use super::list::{number, set};
use crate::size;

/// Where a key sets a bucket, if it does: `bandwidth` or `ops` behind a prefix.
pub fn read(limits: &mut Limits, prefix: &str, key: &str, value: &str) -> Result<bool, String> {
    let count = |text: &str| number(key, text);
    match key.strip_prefix(prefix) {
        Some("bandwidth") => set(&mut limits.bandwidth, key, bucket(key, value, size::parse)?)?,
        Some("ops") => set(&mut limits.operations, key, bucket(key, value, count)?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads a limit of bytes that stands alone.
pub fn bandwidth(value: &str) -> Result<Bucket, String> {
    bucket("serial-limit", value, size::parse)
}

fn bucket(
    key: &str,
    value: &str,
    amount: impl Fn(&str) -> Result<u64, String>,
) -> Result<Bucket, String> {
    let mut parts = value.splitn(3, ':');
    let size = amount(parts.next().unwrap_or_default())?;
    let milliseconds = parts.next().map_or(Ok(1000), |text| number(key, text))?;
    let one_time_burst = parts.next().map_or(Ok(0), &amount)?;
    if size == 0 || milliseconds == 0 {
        return Err(format!("{key}={value:?} limits nothing; leave it out"));
    }
    Ok(Bucket {
        size,
        one_time_burst,
        refill_time: Duration::from_millis(milliseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<(bool, Limits), String> {
        let mut limits = Limits::default();
        read(&mut limits, "rx-", key, value).map(|found| (found, limits))
    }

    #[test]
    fn a_bucket_is_a_size_a_time_and_a_burst() {
        let bucket = |size, milliseconds, one_time_burst| {
            Some(Bucket {
                size,
                one_time_burst,
                refill_time: Duration::from_millis(milliseconds),
            })
        };
        let table = [
            ("10M", bucket(10 << 20, 1000, 0)),
            ("64K:100", bucket(64 << 10, 100, 0)),
            ("1G:60000:2G", bucket(1 << 30, 60_000, 2 << 30)),
        ];
        for (text, bandwidth) in table {
            let limits = Limits {
                bandwidth,
                operations: None,
            };
            assert_eq!(one("rx-bandwidth", text), Ok((true, limits)), "{text}");
        }
        let limits = Limits {
            bandwidth: None,
            operations: bucket(100, 50, 7),
        };
        assert_eq!(one("rx-ops", "100:50:7"), Ok((true, limits)));
        for key in ["ops", "tx-ops", "rx-", "rx-size"] {
            assert_eq!(one(key, "1"), Ok((false, Limits::default())), "{key}");
        }
    }

    #[test]
    fn what_limits_nothing_is_refused() {
        let table = [
            ("rx-bandwidth", "", "\"\" is no size"),
            ("rx-bandwidth", "0", "limits nothing"),
            ("rx-bandwidth", "1M:0", "limits nothing"),
            ("rx-bandwidth", "1M:x", "rx-bandwidth=\"x\""),
            ("rx-bandwidth", "1M:1:x", "\"x\" is no size"),
            ("rx-ops", "1M", "rx-ops=\"1M\""),
            ("rx-ops", "1:1:1:1", "rx-ops=\"1:1\""),
        ];
        for (key, value, why) in table {
            let refused = one(key, value).unwrap_err();
            assert!(refused.contains(why), "{value}: {refused}");
        }
        let mut limits = Limits::default();
        read(&mut limits, "", "ops", "1").unwrap();
        let twice = read(&mut limits, "", "ops", "1").unwrap_err();
        assert!(twice.contains("one too many"), "{twice}");
    }
}
