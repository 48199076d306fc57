//! What interrupts translated code when a timer is due.
//!
//! The interpreter reads the clock as it goes; translated code only hears who wants its attention. So a thread of the
//! machine sleeps until the earliest time that any processor asked for, and pokes it. It is started by
//! the first processor that asks, and ends with the machine.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use umbra_clock::Clock;

use crate::wake::Waker;

/// Wakes processors at a time of theirs.
pub struct Alarm {
    inner: Arc<Inner>,
    clock: Clock,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By processor: when, and whom.
    due: Vec<(u64, Option<Arc<Waker>>)>,
    /// When the thread will look next; `u64::MAX` while it waits to be told.
    next: u64,
    started: bool,
    over: bool,
}

impl Alarm {
    /// Nobody has asked.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    next: u64::MAX,
                    ..State::default()
                }),
                changed: Condvar::new(),
            }),
            clock,
            thread: Mutex::default(),
        })
    }

    /// Says who processor `id` is.
    pub fn attach(&self, id: u32, waker: Arc<Waker>) {
        let mut state = self.inner.state.lock();
        let id = id as usize;
        if state.due.len() <= id {
            state.due.resize(id + 1, (u64::MAX, None));
        }
        state.due[id] = (u64::MAX, Some(waker));
    }

    /// Processor `id` is to be poked at `due`, in nanoseconds of the clock; `u64::MAX` is never. What it
    /// asked for before is forgotten.
    pub fn set(&self, id: u32, due: u64) {
        let mut state = self.inner.state.lock();
        let Some(entry) = state.due.get_mut(id as usize) else {
            return;
        };
        entry.0 = due;
        if due == u64::MAX {
            return;
        }
        if !state.started {
            state.started = true;
            let (inner, clock) = (self.inner.clone(), self.clock);
            let thread = std::thread::Builder::new().name("alarm".into());
            match thread.spawn(move || inner.run(clock)) {
                Ok(thread) => *self.thread.lock() = Some(thread),
                // Timers are then seen whenever the processor leaves translated code.
                Err(error) => {
                    tracing::error!(%error, "no thread for the timers of the processors");
                }
            }
        } else if due < state.next {
            self.inner.changed.notify_one();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.inner.state.lock().over = true;
        self.inner.changed.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // It has nothing that could panic, and nothing else to wait for.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn run(&self, clock: Clock) {
        let mut state = self.state.lock();
        while !state.over {
            let now = clock.now();
            for (due, waker) in &mut state.due {
                if *due <= now {
                    *due = u64::MAX;
                    if let Some(waker) = waker {
                        waker.poke();
                    }
                }
            }
            let next = state.due.iter().map(|(due, _)| *due).min();
            state.next = next.unwrap_or(u64::MAX);
            if state.next == u64::MAX {
                self.changed.wait(&mut state);
            } else {
                let wait = Duration::from_nanos(state.next - now);
                self.changed.wait_for(&mut state, wait);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_poked_when_it_is_due() {
        let clock = Clock::start();
        let alarm = Alarm::new(clock);
        let waker = Arc::new(Waker::default());
        alarm.attach(1, waker.clone());
        let due = clock.now() + 2_000_000;
        alarm.set(1, due);
        while !waker.wanted() {
            std::thread::yield_now();
        }
        assert!(clock.now() >= due);
    }

    #[test]
    fn an_earlier_time_replaces_a_later_one() {
        let clock = Clock::start();
        let alarm = Alarm::new(clock);
        let waker = Arc::new(Waker::default());
        alarm.attach(0, waker.clone());
        alarm.set(0, clock.now() + 3_600_000_000_000);
        std::thread::sleep(Duration::from_millis(5));
        alarm.set(0, clock.now() + 1_000_000);
        while !waker.wanted() {
            std::thread::yield_now();
        }
    }
}
