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
//! Not there: VIRTIO_PMEM_F_SHMEM_REGION, a place that is found by a shared memory region. Linux takes the place
//! from the configuration.

mod syncer;
mod work;

use std::io;
use std::sync::Arc;

use umbra_slots::GpaRange;
use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, QueueWorker, read_config};

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
    worker: Option<QueueWorker>,
}

impl Pmem {
    /// Its device type.
    pub const ID: u32 = 27;
    /// What begin and length of the memory are multiples of: Linux maps no less at a time
    /// (`memremap_compat_align`).
    pub const ALIGNMENT: u64 = 2 << 20;
    /// Descriptors of its queue: Linux has one request at a time for each flush of its file system.
    const QUEUE_SIZE: u16 = 128;

    /// Makes a device for the memory at `range`, which `name` is called in the log.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub fn new(name: &str, range: GpaRange, flush: Flush) -> io::Result<Self> {
        Ok(Self {
            range,
            syncer: Arc::new(Syncer::start(name, flush)?),
            worker: None,
        })
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
        let work = Work::new(self.syncer.clone());
        self.worker = Some(QueueWorker::start("virtio-pmem", activation, work)?);
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
