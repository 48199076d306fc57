//! The memory device (virtio 1.3, 5.15): memory that the guest takes and gives back in blocks, while it runs.
//!
//! ```text
//!   MemControl ── requested size ──> Shared ── configuration interrupt ──> driver
//!   driver ── plug, unplug, unplug all, state ──> queue ──> Work (the device's thread)
//!                 the size and what is plugged allow it? ──┤
//!                 GuestMap: blocks enter the guest's map, or leave it <──┘
//! ```
//!
//! A block that is plugged is RAM of the map, and one that is not is nothing: each request that changes something
//! is one change of the map, and so of its generation. Whoever makes the device says how ([`GuestMap`]); it knows
//! nothing of what blocks are made of.
//!
//! **A hostile driver** can plug no more than was requested, and touch nothing that is not plugged: that is
//! neither readable nor writable (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE; a driver that does not accept it finds
//! the same). Runs of blocks that it leaves in between cost slots of the map, of which there are only so many; an
//! answer is VIRTIO_MEM_RESP_BUSY then.
//!
//! **What stays plugged.** A driver's reset leaves the blocks where they are, as the specification wants it:
//! the guest works in them. The next driver may take all of them out at once.
//!
//! Not here: a node of its own (VIRTIO_MEM_F_ACPI_PXM), as there is one; a usable region that is smaller than the
//! whole, as the requested size bounds what is plugged; VIRTIO_MEM_F_PERSISTENT_SUSPEND, as no sleep is offered.

mod request;
mod runs;
mod shared;
mod work;

use std::sync::Arc;

use umbra_slots::{GpaRange, SlotError};
use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, QueueWorker, read_config};

use shared::Shared;
use work::Work;

pub use shared::{MemControl, SizeError};

/// Bytes stay inaccessible as long as their block is not plugged (5.15.3).
const UNPLUGGED_INACCESSIBLE: Features = Features::bit(1);

/// Puts blocks into the guest's map, and takes them out: whole ones, within the device's range. Called on the
/// device's thread, and must not wait for a processor.
pub trait GuestMap: Send + 'static {
    /// Shows blocks of which none is there.
    ///
    /// # Errors
    /// If the map does not take them; it is as before then.
    fn plug(&mut self, range: GpaRange) -> Result<(), SlotError>;

    /// Takes blocks away of which all are there. What they held is lost.
    ///
    /// # Errors
    /// If the map does not let them go; it is as before then.
    fn unplug(&mut self, range: GpaRange) -> Result<(), SlotError>;
}

/// How a device is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemOptions {
    /// What the log calls it.
    pub name: String,
    /// Where blocks are: begin and length are multiples of a block's.
    pub range: GpaRange,
    /// Bytes of a block: a power of two, [`Mem::MIN_BLOCK`] at least.
    pub block: u64,
    /// How many bytes the guest shall take from the beginning.
    pub requested: u64,
}

/// The device.
pub struct Mem {
    shared: Arc<Shared>,
    worker: Option<QueueWorker>,
}

impl Mem {
    /// Its device type.
    pub const ID: u32 = 24;
    /// The smallest block: a large page of the processor's, so that a block is mapped by one entry.
    pub const MIN_BLOCK: u64 = 2 << 20;
    /// Descriptors of its queue: Linux has one request at a time.
    const QUEUE_SIZE: u16 = 64;

    /// Makes a device none of whose blocks is plugged, and what changes it while it runs.
    ///
    /// # Errors
    /// If no guest could take what is requested.
    ///
    /// # Panics
    /// If the range is not made of such blocks.
    pub fn new(options: MemOptions, map: impl GuestMap) -> Result<(Self, MemControl), SizeError> {
        let shared = Arc::new(Shared::new(options, Box::new(map))?);
        let device = Self {
            shared: shared.clone(),
            worker: None,
        };
        Ok((device, MemControl(shared)))
    }
}

impl Device for Mem {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        Features::RINGS.with(UNPLUGGED_INACCESSIBLE)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[Self::QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config(), offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = activation.interrupt.clone();
        let work = Work::new(self.shared.clone());
        self.worker = Some(QueueWorker::start("virtio-mem", activation, work)?);
        self.shared.begin(interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.shared.end();
        self.worker
            .take()
            .map(QueueWorker::stop)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
