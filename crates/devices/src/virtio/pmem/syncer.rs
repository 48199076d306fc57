//! The thread that waits for the host's disk.
//!
//! It does one flush after the other. Only the last one that was asked for is kept while it is busy: whoever
//! asked for the one before has been stopped since, for a device has one queue, which asks and then waits.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_virtio::Event;

use super::Flush;

/// How long a device that goes waits for a flush.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a flush; nothing yet while it is empty.
pub type Outcome = Arc<OnceLock<Flushed>>;

/// How a flush has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// What was written before it began lasts.
    Lasts,
    /// The host could not make it last.
    Failed,
}

struct Wanted {
    outcome: Outcome,
    event: Arc<Event>,
}

#[derive(Default)]
struct State {
    wanted: Option<Wanted>,
    /// It shall end.
    ending: bool,
    /// It has ended.
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The thread. Dropping it waits for it, but not for ever.
pub struct Syncer {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts it.
    pub fn start(name: &str, flush: Flush) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let name = name.to_owned();
        let work = Thread {
            name: name.clone(),
            shared: shared.clone(),
            flush,
            failed: false,
        };
        let builder = thread::Builder::new().name("pmem-flush".into());
        let thread = builder.spawn(move || work.run())?;
        Ok(Self {
            name,
            shared,
            thread: Some(thread),
        })
    }

    /// Asks for a flush of all that was written before. When it is over `event` is signalled.
    pub fn ask(&self, event: Arc<Event>) -> Outcome {
        let outcome = Outcome::default();
        self.shared.state.lock().wanted = Some(Wanted {
            outcome: outcome.clone(),
            event,
        });
        self.shared.changed.notify_all();
        outcome
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock();
        state.ending = true;
        self.shared.changed.notify_all();
        while !state.ended {
            if self
                .shared
                .changed
                .wait_until(&mut state, until)
                .timed_out()
            {
                tracing::warn!(
                    device = self.name,
                    "a flush of persistent memory hangs; its file stays open until the host is done"
                );
                return;
            }
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Thread {
    name: String,
    shared: Arc<Shared>,
    flush: Flush,
    /// The log knows that a flush failed.
    failed: bool,
}

impl Thread {
    fn run(mut self) {
        while let Some(wanted) = self.next() {
            let flushed = self.flush();
            // It is set once: each wish has its own.
            let _ = wanted.outcome.set(flushed);
            wanted.event.signal();
        }
    }

    fn next(&self) -> Option<Wanted> {
        let mut state = self.shared.state.lock();
        loop {
            if state.ending {
                return None;
            }
            if let Some(wanted) = state.wanted.take() {
                return Some(wanted);
            }
            self.shared.changed.wait(&mut state);
        }
    }

    fn flush(&mut self) -> Flushed {
        match (self.flush)() {
            Ok(()) => Flushed::Lasts,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(device = self.name, %error, "persistent memory cannot be flushed");
                }
                Flushed::Failed
            }
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_all();
    }
}
