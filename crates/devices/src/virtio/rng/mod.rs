//! The entropy device (virtio 1.3, 5.4): one queue; whatever the driver lets it write is filled with
//! random bytes of the host.
//!
//! A request gets 64 KiB at most, and at least one byte (5.4.6.1): where the host has none yet, the
//! request waits, and the driver may give up by a reset. Buffers that could only be read are no fault,
//! and get nothing. With limits a request waits for the tokens of all that it gets at most.

mod work;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, QueueWorker};

use super::limiter::{Limiter, Limits};
use work::Work;

/// Where random bytes come from: fills the front of what it is given, and says how much.
///
/// Called on the device's thread; must not block. `WouldBlock` and `Interrupted` mean later; any other
/// error ends the device until it is reset.
pub type Source = Arc<dyn Fn(&mut [u8]) -> io::Result<usize> + Send + Sync>;

/// The device.
pub struct Rng {
    source: Source,
    limiter: Arc<Limiter>,
    worker: Option<QueueWorker>,
}

impl Rng {
    /// Its device type.
    pub const ID: u32 = 4;
    /// Descriptors of its queue: a driver rarely has more than one request.
    const QUEUE_SIZE: u16 = 64;

    /// Makes a device that gives the host's random bytes.
    pub fn new() -> Self {
        Self::with_source(Arc::new(work::host_bytes))
    }

    /// Makes one that takes its bytes from elsewhere.
    pub fn with_source(source: Source) -> Self {
        Self {
            source,
            limiter: Arc::new(Limiter::new(Limits::default(), Instant::now())),
            worker: None,
        }
    }

    /// Limits how much the driver gets; the buckets are full.
    #[must_use]
    pub fn limited(self, limits: Limits) -> Self {
        self.limiter.replace(limits, Instant::now());
        self
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Device for Rng {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        Features::RINGS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[Self::QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let work = Work::new(self.source.clone(), self.limiter.clone());
        self.worker = Some(QueueWorker::start("virtio-rng", activation, work)?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.worker
            .take()
            .map(QueueWorker::stop)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
