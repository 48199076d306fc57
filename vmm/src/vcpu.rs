//! The thread of one processor: run, and leave when told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use umbra_cpu::{Exit, Io, Kick, Vcpu};

use crate::error::RunError;
use crate::policy::{Event, Outcome};

/// Counters, named, for people to read.
pub type Statistics = Vec<(&'static str, u64)>;

/// A processor's thread, seen from the driver.
pub struct VcpuThread {
    kick: Arc<dyn Kick>,
    leave: Arc<AtomicBool>,
    thread: JoinHandle<Statistics>,
}

impl VcpuThread {
    /// Starts the thread of processor `id`.
    pub fn start(
        id: u32,
        mut vcpu: Box<dyn Vcpu>,
        io: Arc<dyn Io + Send + Sync>,
        events: Sender<Event>,
    ) -> Result<Self, RunError> {
        let kick = vcpu.kick_handle();
        let leave = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&leave);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let mut last_words = LastWords {
                    id,
                    events,
                    said: false,
                };
                last_words.say(run(id, &mut *vcpu, &*io, &told));
                tracing::debug!(id, state = ?vcpu.state(), "processor left");
                vcpu.statistics()
            })
            .map_err(|source| RunError::Thread { id, source })?;
        Ok(Self {
            kick,
            leave,
            thread,
        })
    }

    /// Makes the processor leave its loop soon. Never blocks.
    pub fn leave(&self) {
        // Release: set before the kick that makes the thread look at it.
        self.leave.store(true, Ordering::Release);
        self.kick.kick();
    }

    /// Waits for the thread; it must have been told to leave.
    pub fn join(self) -> Statistics {
        // A thread that panicked has said so in its last words.
        self.thread.join().unwrap_or_default()
    }
}

/// Runs until the processor is told to leave, or cannot go on.
fn run(id: u32, vcpu: &mut dyn Vcpu, io: &dyn Io, leave: &AtomicBool) -> Event {
    while !leave.load(Ordering::Acquire) {
        match vcpu.run(io) {
            Ok(Exit::Kicked) => {}
            Ok(Exit::Shutdown(crash)) => return Event::End(Outcome::Crash(crash)),
            Err(source) => return Event::Failed(RunError::Cpu { id, source }),
        }
    }
    Event::Left
}

/// Tells the driver why the thread ends, whatever the reason.
struct LastWords {
    id: u32,
    events: Sender<Event>,
    said: bool,
}

impl LastWords {
    fn say(&mut self, event: Event) {
        self.said = true;
        // A driver that has gone needs no news.
        let _ = self.events.send(event);
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if !self.said {
            self.say(Event::Failed(RunError::Panicked { id: self.id }));
        }
    }
}
