//! One thread for all queues of a device: waits for notifications and has the work done.
//!
//! ```text
//!   poll(stop, event of queue 0, …, time to try again)
//!     stop        the queues are given back
//!     event       Handler::serve(queue) with memory as the map is now
//!                   Idle: wait   More: once more, when the others had their turn   Retry: later
//!                   error: DEVICE_NEEDS_RESET, and the thread ends
//! ```
//!
//! Between two runs over a queue it always looks whether it shall stop, so a driver that makes
//! buffers available without end holds nobody up.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use umbra_slots::{DmaMemory, DmaSpace};

use crate::{ActivateError, Activation, Event, Interrupt, Queue, QueueError, Served, Worker};

/// Does the work of a device's queues, on the thread of a [`QueueWorker`].
pub trait Handler: Send + 'static {
    /// Does what a queue has, at most once around its ring ([`Queue::serve`]). `memory` is not kept.
    ///
    /// # Errors
    /// If the device cannot go on.
    fn serve(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        interrupt: &Interrupt,
    ) -> Result<Next, Fault>;
}

/// When a queue is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// When the driver notifies.
    Idle,
    /// At once.
    More,
    /// After this time, or when the driver notifies.
    Retry(Duration),
}

impl Next {
    /// What follows from how far a queue was served; a chain that was kept is looked at after `pause`.
    pub fn after(served: Served, pause: Duration) -> Self {
        match served {
            Served::All => Self::Idle,
            Served::More => Self::More,
            Served::Kept => Self::Retry(pause),
        }
    }
}

/// Why a device cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The driver did something wrong.
    #[error(transparent)]
    Driver(#[from] QueueError),
    /// The host failed.
    #[error("the host failed")]
    Host(#[from] io::Error),
}

impl Fault {
    /// Logs it for a device, and tells the driver that the device needs a reset.
    pub fn tell(&self, device: &str, interrupt: &Interrupt) {
        match self {
            Self::Driver(error) => tracing::debug!(device, %error, "a virtio device needs a reset"),
            Self::Host(error) => tracing::warn!(device, %error, "a virtio device cannot go on"),
        }
        interrupt.needs_reset();
    }
}

/// The thread. Stops when it is dropped.
#[derive(Debug)]
pub struct QueueWorker(Worker<Vec<Queue>>);

impl QueueWorker {
    /// Starts it; `name` is the thread's. Every queue is served once at the beginning.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn start(
        name: &str,
        activation: Activation,
        handler: impl Handler,
    ) -> Result<Self, ActivateError> {
        let Activation {
            queues,
            memory,
            interrupt,
            ..
        } = activation;
        let crew = Crew {
            name: name.to_owned(),
            turns: vec![Turn::Now; queues.len()],
            queues,
            memory,
            interrupt,
            handler,
        };
        Worker::start(name, move |stop| crew.run(stop))
            .map(Self)
            .map_err(|source| ActivateError::Host {
                what: "a thread",
                source,
            })
    }

    /// Stops it; see [`Device::deactivate`](crate::Device::deactivate).
    pub fn stop(self) -> Vec<Queue> {
        self.0.stop().unwrap_or_default()
    }
}

/// When a queue is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Now,
    At(Instant),
    Notified,
}

struct Crew<H> {
    name: String,
    queues: Vec<Queue>,
    turns: Vec<Turn>,
    memory: DmaSpace,
    interrupt: Arc<Interrupt>,
    handler: H,
}

impl<H: Handler> Crew<H> {
    fn run(mut self, stop: &Event) -> Vec<Queue> {
        let _alarm = Alarm(self.interrupt.clone());
        loop {
            match self.wait(stop) {
                Ok(true) => {}
                Ok(false) => return self.queues,
                Err(error) => return self.fail(&error.into()),
            }
            if let Err(fault) = self.serve() {
                return self.fail(&fault);
            }
        }
    }

    fn fail(self, fault: &Fault) -> Vec<Queue> {
        fault.tell(&self.name, &self.interrupt);
        self.queues
    }

    /// Waits until some queue has its turn; `false` if it is time to stop.
    fn wait(&mut self, stop: &Event) -> io::Result<bool> {
        let timeout = self.patience().map(|patience| Timespec {
            // Patience is never more than minutes.
            tv_sec: patience.as_secs() as i64,
            tv_nsec: i64::from(patience.subsec_nanos()),
        });
        let events = self.queues.iter().map(|queue| &**queue.event());
        let mut watched: Vec<_> = std::iter::once(stop)
            .chain(events)
            .map(|event| PollFd::new(event, PollFlags::IN))
            .collect();
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if stop.take() {
            return Ok(false);
        }
        let now = Instant::now();
        for (queue, turn) in self.queues.iter().zip(&mut self.turns) {
            if queue.event().take() || matches!(turn, Turn::At(at) if *at <= now) {
                *turn = Turn::Now;
            }
        }
        Ok(true)
    }

    /// How long there is nothing to do without a notification.
    fn patience(&self) -> Option<Duration> {
        let left = |turn: &Turn| match turn {
            Turn::Now => Some(Duration::ZERO),
            Turn::At(at) => Some(at.saturating_duration_since(Instant::now())),
            Turn::Notified => None,
        };
        self.turns.iter().filter_map(left).min()
    }

    fn serve(&mut self) -> Result<(), Fault> {
        // Dropped before the next wait: who takes memory away finds nobody that keeps it.
        let memory = self.memory.memory();
        for (queue, turn) in self.queues.iter_mut().zip(&mut self.turns) {
            if *turn != Turn::Now {
                continue;
            }
            *turn = match self.handler.serve(queue, &memory, &self.interrupt)? {
                Next::Idle => Turn::Notified,
                Next::More => Turn::Now,
                Next::Retry(pause) => Turn::At(Instant::now() + pause),
            };
        }
        Ok(())
    }
}

/// Tells the driver of a worker that panics: its device does nothing more. Kept by the worker's thread
/// as long as it runs.
#[derive(Debug)]
pub struct Alarm(pub Arc<Interrupt>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.needs_reset();
        }
    }
}

#[cfg(test)]
#[path = "queue_worker_tests.rs"]
mod tests;
