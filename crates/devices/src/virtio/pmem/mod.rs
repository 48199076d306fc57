//! The persistent-memory device (virtio 1.3, 5.19): tells the driver where in guest memory a file of the host
//! is shown, and makes what was written there last.
//!
//! ```text
//!   guest ── loads and stores ──> a slot of the map ──> the file's pages       no device is asked
//!   driver ── flush ──> queue ──> Work (the device's thread) ──> Syncer (another one): fdatasync
//!                        <── answer to all that came before it began ────────────┘
//! ```
//!
//! The device neither maps the file nor puts it into the map: whoever makes the device has done so before, and
//! takes the slot away when the device has gone. It only says where.
//!
//! A flush may take as long as the host's disk likes. So requests stay in the queue until it is over, and are
//! answered together: a pause or a reset meanwhile waits for nothing, and what was not answered is flushed
//! once more when the device goes on. Many requests that come during one flush cost one more.
//!
//! With limits a flush waits for tokens: one operation, and as many bytes as the memory has, for nobody knows how
//! many of them were written. Stores pass no limit.
//!
//! Not there: VIRTIO_PMEM_F_SHMEM_REGION, a place that is found by a shared memory region. Linux takes the place
//! from the configuration.

mod syncer;
mod work;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use umbra_slots::GpaRange;
use umbra_virtio::{
    ActivateError, Activation, Device, Event, Features, Queue, QueueWorker, read_config,
};

use super::limiter::{Limiter, Limits};
use syncer::Syncer;
use work::Work;

/// Makes all bytes last that were written to the memory before it was called.
///
/// Called on a thread of the device; may block as long as it has to.
pub type Flush = Box<dyn Fn() -> io::Result<()> + Send>;

/// The device.
pub struct Pmem {
    range: GpaRange,
    syncer: Arc<Syncer>,
    shared: Arc<Shared>,
    worker: Option<QueueWorker>,
}

/// What device and control have in common.
struct Shared {
    limiter: Limiter,
    /// Has the thread look at the queue, while the device is active.
    wake: Mutex<Option<Arc<Event>>>,
}

impl Pmem {
    /// Its device type.
    pub const ID: u32 = 27;
    /// What begin and length of the memory are multiples of: Linux maps no less at a time
    /// (`memremap_compat_align`).
    pub const ALIGNMENT: u64 = 2 << 20;
    /// Descriptors of its queue: Linux has one request at a time for each flush of its file system.
    const QUEUE_SIZE: u16 = 128;

    /// Makes a device for the memory at `range`, which `name` is called in the log, without limits.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub fn new(name: &str, range: GpaRange, flush: Flush) -> io::Result<Self> {
        Ok(Self {
            range,
            syncer: Arc::new(Syncer::start(name, flush)?),
            shared: Arc::new(Shared {
                limiter: Limiter::new(Limits::default(), Instant::now()),
                wake: Mutex::new(None),
            }),
            worker: None,
        })
    }

    /// Returns what the machine keeps of it when a transport owns it.
    pub fn control(&self) -> PmemControl {
        PmemControl(self.shared.clone())
    }
}

impl Device for Pmem {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        Features::RINGS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[Self::QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let fields = [self.range.start().0, self.range.len()];
        let bytes = fields.map(u64::to_le_bytes);
        read_config(bytes.as_flattened(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let work = Work::new(self.syncer.clone(), self.shared.clone(), self.range.len());
        let event = activation.queues.first().map(|queue| queue.event().clone());
        self.worker = Some(QueueWorker::start("virtio-pmem", activation, work)?);
        *self.shared.wake.lock() = event;
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        *self.shared.wake.lock() = None;
        self.worker
            .take()
            .map(QueueWorker::stop)
            .unwrap_or_default()
    }
}

/// A device of persistent memory as the machine sees it, whoever owns the device. Any thread may use it; cheap to
/// clone.
#[derive(Clone)]
pub struct PmemControl(Arc<Shared>);

impl PmemControl {
    /// Returns the limits of flushes.
    pub fn limits(&self) -> Limits {
        self.0.limiter.limits()
    }

    /// Replaces the limits. A flush that waits for the old ones is looked at again. A bucket that is the same as
    /// before stays as full as it is.
    pub fn set_limits(&self, limits: Limits) {
        self.0.limiter.replace(limits, Instant::now());
        if let Some(event) = &*self.0.wake.lock() {
            event.signal();
        }
    }
}

#[cfg(test)]
mod tests;
