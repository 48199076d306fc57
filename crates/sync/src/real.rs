//! What ships.

use std::cell::Cell;
use std::sync::Arc;

pub use parking_lot::{Condvar, Mutex, MutexGuard};
pub use std::hint::spin_loop as spin;

/// Atomic integers and fences.
pub mod atomic {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// How often to look before going to sleep.
pub const SPINS: u32 = 200;

/// A reader's hold on the value of a [`Swap`]. Cheap; not to be kept across a wait.
pub type Guard<T> = arc_swap::Guard<Arc<T>>;

/// A shared value that is replaced whole. Readers never block.
#[derive(Debug, Default)]
pub struct Swap<T>(arc_swap::ArcSwap<T>);

impl<T> Swap<T> {
    /// Makes a cell with a first value.
    pub fn new(value: T) -> Self {
        Self(arc_swap::ArcSwap::from_pointee(value))
    }

    /// Returns the current value.
    #[inline]
    pub fn load(&self) -> Guard<T> {
        self.0.load()
    }

    /// Returns the current value, to be kept.
    pub fn load_full(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Replaces the value.
    pub fn store(&self, value: Arc<T>) {
        self.0.store(value);
    }
}

/// A number for the calling thread, never 0.
pub fn this_thread() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    thread_local!(static NUMBER: Cell<u64> = const { Cell::new(0) });
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        }
        number.get()
    })
}
