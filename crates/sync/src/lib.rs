//! Locks, atomics and a cell that is swapped whole, which a model checker can take over.
//!
//! ```text
//!   ordinary build             parking_lot, std::sync::atomic, arc-swap: re-exported, no more
//!   --cfg umbra_loom (tests)   the same names over loom, which runs every interleaving
//! ```
//!
//! `slots`, `bus` and `mmu` take everything through which their threads meet from here, so the
//! models of `cargo xtask loom` run the code that ships and no copy of it.
//!
//! Under loom [`Swap`] is an atomic index into a list of all values: a load may see an older one,
//! as the memory model allows it. A wait with a time limit waits for ever, so that a wake-up
//! that gets lost is a deadlock, which loom reports. Reference counts stay those of `std`.
//!
//! ```
//! use std::sync::Arc;
//! use umbra_sync::Swap;
//!
//! let cell = Swap::new(vec![1]);
//! let old = cell.load_full();
//! cell.store(Arc::new(vec![1, 2]));
//! // A reader keeps what it has; whoever looks anew sees the new value.
//! assert_eq!((old.len(), cell.load().len()), (1, 2));
//! ```
#![forbid(unsafe_code)]

#[cfg(umbra_loom)]
mod model;
#[cfg(not(umbra_loom))]
mod real;

#[cfg(umbra_loom)]
pub use model::{
    Condvar, Guard, Mutex, MutexGuard, SPINS, Swap, atomic, spin, this_thread, word_at,
};
#[cfg(not(umbra_loom))]
pub use real::{Condvar, Guard, Mutex, MutexGuard, SPINS, Swap, atomic, spin, this_thread};
