//! Counters that all change: by locked instructions, and by plain ones under a lock. Every few rounds all begin
//! together, so that they really meet.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::{PROCESSORS, expect, mix, wait};
use crate::cpu;

const TIMES: u64 = 256;
/// Rounds from one common beginning to the next.
const TOGETHER: u64 = 4;

static ADDED: AtomicU64 = AtomicU64::new(0);
static EXCHANGED: AtomicU64 = AtomicU64::new(0);
static ARRIVED: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicBool = AtomicBool::new(false);
/// Under the lock: twice the same count, and a sum.
static GUARDED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

pub fn round(me: usize, round: u64) {
    if round.is_multiple_of(TOGETHER) {
        let all = PROCESSORS.load(SeqCst) * round / TOGETHER;
        ARRIVED.fetch_add(1, SeqCst);
        wait("all begin together", || ARRIVED.load(SeqCst) >= all, || ());
    }
    for time in 0..TIMES {
        // LOCK XADD: the old value is used.
        let old = ADDED.fetch_add(1, SeqCst);
        expect(
            "a locked counter went back",
            old + 1..=u64::MAX,
            ADDED.load(SeqCst),
        );
        // LOCK CMPXCHG, until nobody came in between.
        let mut seen = EXCHANGED.load(SeqCst);
        while let Err(now) = EXCHANGED.compare_exchange(seen, seen + 1, SeqCst, SeqCst) {
            seen = now;
        }
        locked(|| {
            // Loads and stores, no read-modify-write.
            let [first, second, sum] = [0, 1, 2].map(|at: usize| read(at));
            expect("counts under a lock", first..=first, second);
            write(0, first + 1);
            write(2, sum.wrapping_add(mix(me, round).wrapping_add(time)));
            write(1, second + 1);
        });
    }
}

fn read(at: usize) -> u64 {
    GUARDED[at].load(core::sync::atomic::Ordering::Relaxed)
}

fn write(at: usize, value: u64) {
    GUARDED[at].store(value, core::sync::atomic::Ordering::Relaxed);
}

fn locked(body: impl FnOnce()) {
    while LOCK.swap(true, SeqCst) {
        while LOCK.load(SeqCst) {
            cpu::pause();
        }
    }
    body();
    LOCK.store(false, core::sync::atomic::Ordering::Release);
}

pub fn totals() -> [(&'static str, u64); 4] {
    [
        ("added", ADDED.load(SeqCst)),
        ("exchanged", EXCHANGED.load(SeqCst)),
        ("guarded", read(0)),
        ("guarded_sum", read(2)),
    ]
}
