//! Descriptors of this process.

use std::time::{Duration, Instant};

/// How long the last ones may take to go: the map may let go of memory a moment later.
const PATIENCE: Duration = Duration::from_secs(5);

/// Counts them.
pub fn descriptors() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("the host has /proc");
    all.count()
}

/// Waits until there are no more than there were before.
///
/// # Panics
/// If some are left.
pub fn none_is_left(before: usize) {
    let begin = Instant::now();
    while descriptors() > before {
        let now = descriptors();
        assert!(
            begin.elapsed() < PATIENCE,
            "{now} descriptors, and there were {before}"
        );
        std::thread::yield_now();
    }
}
