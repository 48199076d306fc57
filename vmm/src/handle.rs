//! What other threads may do with a machine that runs.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::{Condvar, Mutex};
use umbra_devices::Serial;

use crate::policy::{Event, Outcome};

/// Ends a machine from outside. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) events: Sender<Event>,
    pub(crate) input: ConsoleInput,
}

impl Handle {
    /// Makes the machine end with [`Outcome::Stopped`], unless it is ending already. Never blocks;
    /// before [`Machine::run`](crate::Machine::run) it makes that end at once.
    pub fn stop(&self) {
        // A machine that has ended hears nothing more.
        let _ = self.events.send(Event::End(Outcome::Stopped));
    }

    /// Returns the guest's console input.
    pub fn console(&self) -> ConsoleInput {
        self.input.clone()
    }
}

/// The machine has ended: nobody reads its console any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has ended")]
pub struct ConsoleClosed;

#[derive(Default)]
struct Gate {
    /// Counts how often room appeared.
    room: u64,
    closed: bool,
}

/// Sends input to the guest's console. Cheap to clone.
#[derive(Clone)]
pub struct ConsoleInput {
    serial: Arc<Serial>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl ConsoleInput {
    pub(crate) fn new(serial: Arc<Serial>) -> Self {
        let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
        let theirs = Arc::clone(&gate);
        // Called under the port's lock: the gate's lock comes after it, and is never held while
        // the port is called.
        serial.on_space(move || {
            theirs.0.lock().room += 1;
            theirs.1.notify_all();
        });
        Self { serial, gate }
    }

    /// Sends all of `bytes`; blocks while the guest does not read.
    ///
    /// # Errors
    ///
    /// If the machine ends before the guest has taken everything.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), ConsoleClosed> {
        let (gate, changed) = &*self.gate;
        loop {
            let room = {
                let gate = gate.lock();
                if gate.closed {
                    return Err(ConsoleClosed);
                }
                gate.room
            };
            bytes = &bytes[self.serial.input(bytes)..];
            if bytes.is_empty() {
                return Ok(());
            }
            let mut gate = gate.lock();
            while gate.room == room && !gate.closed {
                changed.wait(&mut gate);
            }
        }
    }

    /// Sends as many of `bytes` as there is room for, and returns how many. Never blocks.
    #[must_use = "bytes that were not taken have to be sent again"]
    pub fn try_send(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    pub(crate) fn close(&self) {
        self.gate.0.lock().closed = true;
        self.gate.1.notify_all();
    }
}
