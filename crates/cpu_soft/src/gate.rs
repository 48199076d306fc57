//! What translated code reads to learn that somebody wants attention.
//!
//! Every check of an access compares the offset in the page with a *limit*. The limits are here, and whoever wants
//! attention sets them all to zero: *closes the gate*. Then every check fails, the interpreter executes that
//! instruction, and the code is left behind it. So code that accesses memory need not look at the word: only loops that
//! access none do.
//!
//! ```text
//!   anybody          attention := 1, then limits := 0, that of one byte last
//!   the processor    attention taken; where the limit of one byte is zero: limits := what they are,
//!                    a fence, and closed again if somebody has wanted attention since
//! ```
//! Who finds no attention behind the fence has opened before the other's first step, so all that the other does to the
//! limits is still to come. One who closes late, when his request was taken already, closes for nothing: the next check
//! fails, and the processor opens again before it goes on. As the limit of one byte is closed last, the processor never
//! takes a gate for open that is not.
//!
//! *Recent pages* (of the translator) have limits of their own, zero for a page that was forgotten. They are opened by
//! the code that finds a page, in the same steps.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Recent pages.
pub const RECENT: usize = 4;

/// Sizes of accesses that are told apart: powers of two.
const SIZES: usize = 9;

/// Longest access that is checked at once, in bytes.
pub const LONGEST: usize = 1 << (SIZES - 1);

/// One for each processor. Translated code knows its layout.
#[derive(Default)]
#[repr(C, align(64))]
pub struct Gate {
    attention: AtomicU32,
    limits: [AtomicU64; SIZES],
    /// Of short accesses to each recent page, and of long ones.
    recent: [[AtomicU64; 2]; RECENT],
}

impl Gate {
    /// Where the word is that is not zero while somebody wants attention, from the gate's address.
    pub const ATTENTION: u64 = offset_of!(Self, attention) as u64;

    /// Where the limit for accesses of `size` bytes is, from the gate's address; `size` is at most [`LONGEST`], and
    /// the limit that of the next power of two.
    pub fn limit(size: usize) -> u64 {
        debug_assert!((1..=LONGEST).contains(&size));
        let number = size.next_power_of_two().trailing_zeros() as usize;
        (offset_of!(Self, limits) + 8 * number) as u64
    }

    /// Where the limits of a recent page are, from the gate's address.
    pub fn recent(page: usize, long: bool) -> u64 {
        (offset_of!(Self, recent) + 16 * page + 8 * usize::from(long)) as u64
    }

    /// Asks for attention, and closes.
    #[inline]
    pub fn close(&self) {
        self.attention.store(1, Ordering::SeqCst);
        let (one, others) = self.limits.split_at(1);
        let all = self.recent.iter().flatten().chain(others).chain(one);
        for limit in all {
            // In this order.
            limit.store(0, Ordering::Release);
        }
    }

    /// Tells whether somebody wants attention: one plain load.
    #[inline(always)]
    pub fn wanted(&self) -> bool {
        self.attention.load(Ordering::Relaxed) != 0
    }

    /// The same; what was asked for before is visible afterwards.
    pub fn wanted_by_now(&self) -> bool {
        self.attention.load(Ordering::SeqCst) != 0
    }

    /// Takes the request; what was asked for before is visible afterwards. The gate stays closed.
    pub fn take(&self) -> bool {
        self.attention.swap(0, Ordering::SeqCst) != 0
    }

    /// Opens, unless it is open or somebody wants attention. By the processor's own thread.
    #[inline(always)]
    pub fn open(&self) {
        if self.limits[0].load(Ordering::Relaxed) == 0 && !self.wanted() {
            self.open_all();
        }
    }

    #[cold]
    fn open_all(&self) {
        for (limit, size) in self.limits.iter().zip(0..) {
            limit.store(0x1000 - (1 << size) + 1, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        if self.wanted_by_now() {
            self.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use super::*;

    fn limits(gate: &Gate) -> Vec<u64> {
        let limits = gate.limits.iter().chain(gate.recent.iter().flatten());
        limits.map(|limit| limit.load(Ordering::Relaxed)).collect()
    }

    #[test]
    fn an_access_that_fits_is_below_the_limit() {
        let gate = Gate::default();
        gate.open();
        for (number, limit) in limits(&gate)[..SIZES].iter().enumerate() {
            assert_eq!(limit + (1 << number), 0x1001);
        }
        assert_eq!(Gate::limit(1), Gate::limit(8) - 24);
        assert_eq!(Gate::limit(10), Gate::limit(16));
        assert_eq!(Gate::limit(LONGEST), Gate::recent(0, false) - 8);
    }

    #[test]
    fn it_stays_closed_until_the_request_was_taken() {
        let gate = Gate::default();
        gate.open();
        assert!(!gate.wanted());
        gate.close();
        assert!(gate.wanted() && limits(&gate).iter().all(|limit| *limit == 0));
        gate.open();
        assert_eq!(gate.limits[0].load(Ordering::Relaxed), 0);
        assert!(gate.take() && !gate.take());
        gate.open();
        assert_ne!(gate.limits[0].load(Ordering::Relaxed), 0);
    }

    /// Whoever closes while the processor opens: either it sees the request, or the gate is closed.
    #[test]
    fn no_request_is_lost_to_a_gate_that_is_opened() {
        const ROUNDS: u64 = 200_000;
        let gate = Gate::default();
        let (served, lost) = (AtomicU64::new(0), AtomicBool::new(false));
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    gate.close();
                    while served.load(Ordering::SeqCst) < round {
                        if lost.load(Ordering::Relaxed) {
                            return;
                        }
                        std::hint::spin_loop();
                    }
                }
            });
            while served.load(Ordering::SeqCst) < ROUNDS {
                gate.open();
                // What code does, with accesses of one size.
                let size = served.load(Ordering::Relaxed) as usize % SIZES;
                while gate.limits[size].load(Ordering::Relaxed) != 0 {
                    if start.elapsed() > Duration::from_secs(60) {
                        lost.store(true, Ordering::Relaxed);
                        return;
                    }
                    std::hint::spin_loop();
                }
                if gate.take() {
                    served.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        assert!(!lost.into_inner(), "{served:?} of {ROUNDS} were heard");
    }
}
