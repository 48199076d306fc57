//! How long things are waited for.

use std::time::Duration;

/// So many milliseconds; a hundredth of that where a fuzzer has back ends fall silent and come back over and over.
pub const fn millis(ms: u64) -> Duration {
    match cfg!(fuzzing) {
        true => Duration::from_micros(10 * ms),
        false => Duration::from_millis(ms),
    }
}
