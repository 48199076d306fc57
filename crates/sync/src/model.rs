//! The same names over loom.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};
use std::time::Duration;

use loom::cell::Cell;

use self::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use loom::hint::spin_loop as spin;

/// Atomic integers and fences.
pub mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// How often to look before going to sleep: a model has no time to lose.
pub const SPINS: u32 = 1;

/// A lock.
#[derive(Debug, Default)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

/// A lock that is held.
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    /// Makes a lock around a value.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(
            self.0.lock().expect("a model that panicked has ended"),
        ))
    }
}

const HELD: &str = "given away only while it waits";

impl<T> Mutex<T> {
    /// Tells whether somebody holds the lock.
    pub fn is_locked(&self) -> bool {
        self.0.try_lock().is_err()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(HELD)
    }
}

/// Something to sleep on.
#[derive(Debug)]
pub struct Condvar(loom::sync::Condvar);

impl Condvar {
    /// Makes one.
    #[expect(clippy::new_without_default, reason = "as the real one is used")]
    pub fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    /// Sleeps until notified; a time limit would hide a lost wake-up.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) {
        let held = guard.0.take().expect(HELD);
        guard.0 = Some(self.0.wait(held).expect("a model that panicked has ended"));
    }

    /// Wakes everybody.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A reader's hold on the value of a [`Swap`].
pub type Guard<T> = Arc<T>;

/// A shared value that is replaced whole: an atomic index into all values that there were.
///
/// A value that nobody holds any more is gone, as it is with the real one: who would have seen it
/// sees the current one.
#[derive(Debug)]
pub struct Swap<T> {
    current: AtomicUsize,
    values: std::sync::Mutex<Values<T>>,
}

#[derive(Debug)]
struct Values<T> {
    all: Vec<Weak<T>>,
    last: Arc<T>,
}

impl<T> Swap<T> {
    /// Makes a cell with a first value.
    pub fn new(value: T) -> Self {
        let last = Arc::new(value);
        let all = vec![Arc::downgrade(&last)];
        Self {
            current: AtomicUsize::new(0),
            values: std::sync::Mutex::new(Values { all, last }),
        }
    }

    /// Returns a value that the memory model allows this thread to see.
    pub fn load(&self) -> Guard<T> {
        let index = self.current.load(Ordering::Acquire);
        let values = self.values.lock().expect(HELD);
        let seen = values.all[index].upgrade();
        seen.unwrap_or_else(|| values.last.clone())
    }

    /// The same.
    pub fn load_full(&self) -> Arc<T> {
        self.load()
    }

    /// Replaces the value.
    pub fn store(&self, value: Arc<T>) {
        let mut values = self.values.lock().expect(HELD);
        values.all.push(Arc::downgrade(&value));
        let index = values.all.len() - 1;
        let old = std::mem::replace(&mut values.last, value);
        drop(values);
        self.current.store(index, Ordering::Release);
        drop(old);
    }
}

impl<T: Default> Default for Swap<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

loom::thread_local!(static NUMBER: Cell<u64> = Cell::new(0));
loom::lazy_static! {
    static ref NEXT: AtomicU64 = AtomicU64::new(1);
    static ref WORDS: std::sync::Mutex<HashMap<usize, &'static AtomicU64>> = Default::default();
}

/// A number for the calling thread, never 0.
pub fn this_thread() -> u64 {
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// The model's stand-in for eight bytes of guest memory: loom sees no access through an address.
/// It begins with what `first` says; the memory itself stays as it is. A word that several threads
/// use has to be there before they are: no lock is taken here, that would order them.
pub fn word_at(address: usize, first: impl FnOnce() -> u64) -> &'static AtomicU64 {
    let known = WORDS.lock().expect(HELD).get(&address).copied();
    known.unwrap_or_else(|| {
        // Leaked: a model runs for seconds, and its words have to live as long as anything.
        let word: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(first())));
        *WORDS.lock().expect(HELD).entry(address).or_insert(word)
    })
}
