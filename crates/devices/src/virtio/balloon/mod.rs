//! The traditional memory balloon (virtio 1.3, 5.5): the guest lends pages to the host and takes them back.
//!
//! ```text
//!   BalloonControl ── target ──> Shared: num_pages ── configuration interrupt ──> driver
//!                  <── actual ──         actual    <── configuration write ───
//!                  <── statistics ──     latest    <── statsq, asked for at an interval
//!
//!   inflateq       page numbers  ──┐  joined to ranges
//!   reporting_vq   free buffers  ──┤
//!   free_page_vq   hints         ──┴────────────> DmaMemory::discard: the host has the memory, zeros are read
//!   deflateq       page numbers  ──> counted: a page comes back with its first touch
//! ```
//!
//! **Free-page reporting** (5.5.6.7) needs no target: the guest says which pages it does not use just now, and
//! may use them again at any time. Where the driver poisons free pages (VIRTIO_BALLOON_F_PAGE_POISON) they may
//! only be discarded if the poison is zero, as that is what they read as then.
//!
//! **Numbers of queues.** 5.5.2 numbers them 0 to 4, whichever there are. Linux, and QEMU with it, leaves no
//! gaps: without free-page hints, reports come by queue 3 there. So with
//! statistics agreed on both 3 and 4 take reports, and without, 2 does, too: no driver that goes by the
//! specification uses those for anything else. With hints all are as the specification has them; a driver without
//! gaps is, too, if it has agreed on statistics, as Linux does.
//!
//! **What is no RAM** that the guest may write is left alone: a wrong page number makes no difference to
//! anybody. The log tells of the first one (at `debug`), and so it does of the first refusal of the host.
//!
//! **Free-page hints** (`hints`) are reports that the host asks for: it gets all that the guest does not use, once.
//!
//! Not here: MUST_TELL_HOST, as a page that is used again needs nothing of the host.

mod hints;
mod pages;
mod shared;
mod statistics;
mod work;

use std::sync::Arc;
use std::time::Duration;

use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, QueueWorker, read_config};

use shared::Shared;
use work::Work;

pub use hints::{HintingError, HintingStatus};
pub use shared::{BalloonControl, BalloonCounters, TargetError};
pub use statistics::BalloonStatistics;

/// Feature bits (5.5.3).
mod feature {
    use umbra_virtio::Features;

    pub const STATS_VQ: Features = Features::bit(1);
    pub const DEFLATE_ON_OOM: Features = Features::bit(2);
    pub const FREE_PAGE_HINT: Features = Features::bit(3);
    pub const PAGE_POISON: Features = Features::bit(4);
    pub const PAGE_REPORTING: Features = Features::bit(5);
}

/// How a balloon is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonOptions {
    /// What the log calls it.
    pub name: String,
    /// How many bytes the guest shall lend from the beginning, rounded down to pages.
    pub target: u64,
    /// The guest may take pages back rather than end a process when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest may report free pages.
    pub free_page_reporting: bool,
    /// The guest may be asked for its free pages.
    pub free_page_hinting: bool,
    /// How often the guest is asked for statistics from the beginning; never if there is no interval.
    pub polling: Option<Duration>,
}

/// The device.
pub struct Balloon {
    shared: Arc<Shared>,
    deflate_on_oom: bool,
    free_page_reporting: bool,
    free_page_hinting: bool,
    worker: Option<QueueWorker>,
}

impl Balloon {
    /// Its device type.
    pub const ID: u32 = 5;
    /// Descriptors of a queue. Linux reports 32 pieces at a time, and takes no smaller queue for that.
    const QUEUE_SIZE: u16 = 128;

    /// Makes a device, and what changes it while it runs.
    ///
    /// # Errors
    /// If the target is larger than any guest.
    pub fn new(options: BalloonOptions) -> Result<(Self, BalloonControl), TargetError> {
        let hinting = options.free_page_hinting;
        let shared = Arc::new(Shared::new(options.name, options.target, hinting)?);
        shared.polling(|polling| polling.set_interval(options.polling));
        let balloon = Self {
            shared: shared.clone(),
            deflate_on_oom: options.deflate_on_oom,
            free_page_reporting: options.free_page_reporting,
            free_page_hinting: options.free_page_hinting,
            worker: None,
        };
        Ok((balloon, BalloonControl(shared)))
    }
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        let mut features = Features::RINGS.with(feature::STATS_VQ);
        if self.deflate_on_oom {
            features = features.with(feature::DEFLATE_ON_OOM);
        }
        if self.free_page_reporting {
            features = features.with(feature::PAGE_REPORTING);
        }
        if self.free_page_hinting {
            features = features.with(feature::FREE_PAGE_HINT);
        }
        if self.free_page_reporting || self.free_page_hinting {
            features = features.with(feature::PAGE_POISON);
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        const SIZES: [u16; 5] = [Balloon::QUEUE_SIZE; 5];
        match (self.free_page_reporting, self.free_page_hinting) {
            (true, _) => &SIZES,
            (false, true) => &SIZES[..4],
            (false, false) => &SIZES[..3],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.shared.write_config(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let interrupt = activation.interrupt.clone();
        let statistics = activation.queues.iter().find(|queue| {
            work::role(queue.index(), activation.features) == Some(work::Role::Statistics)
        });
        let wake = statistics.map(|queue| queue.event().clone());
        let agreed = activation.features.has(feature::FREE_PAGE_HINT);
        self.shared.hints.lock().agreed = agreed;
        let work = Work::new(self.shared.clone(), activation.features);
        self.worker = Some(QueueWorker::start("virtio-balloon", activation, work)?);
        self.shared.begin(interrupt, wake);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.shared.end();
        self.worker
            .take()
            .map(QueueWorker::stop)
            .unwrap_or_default()
    }

    fn reset(&mut self) {
        self.shared.reset();
    }
}

#[cfg(test)]
mod tests;
