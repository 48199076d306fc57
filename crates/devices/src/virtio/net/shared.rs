//! What the pairs of a device, its registers and its owner all know.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

use std::time::Instant;

use parking_lot::Mutex;
use umbra_net::Mac;
use umbra_virtio::{Event, Interrupt};

use super::NetOptions;
use crate::virtio::limiter::{Limiter, Limits};

/// The state of a device.
pub struct Shared {
    pub name: String,
    /// The address it was made with, and the one that the driver has set.
    first_mac: Mac,
    mac: Mutex<Mac>,
    /// Whether the owner wants the link to be up.
    wanted: AtomicBool,
    /// A port has gone: the link is down for good.
    gone: AtomicBool,
    /// How many pairs the driver uses.
    active: AtomicU16,
    /// The driver broke the rules: nobody does anything until the reset.
    failed: AtomicBool,
    pub generation: AtomicU32,
    /// Wakes each pair to look at this.
    wake: Vec<Event>,
    interrupt: Mutex<Option<Arc<Interrupt>>>,
    pub receive_limiter: Limiter,
    pub transmit_limiter: Limiter,
    pub counters: Counters,
}

/// Counts since the device was made.
#[derive(Default)]
pub struct Counters {
    pub received: Count,
    pub sent: Count,
    pub dropped_in: AtomicU64,
    pub dropped_out: AtomicU64,
    pub throttled_in: AtomicU64,
    pub throttled_out: AtomicU64,
}

/// Frames, and bytes without headers of virtio.
#[derive(Default)]
pub struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    pub fn add(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What a device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStatistics {
    /// Frames that the driver has received.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that the driver has sent.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that did not reach the driver: empty, too large for its buffers, or the link was down.
    pub dropped_in: u64,
    /// Frames that the host did not take.
    pub dropped_out: u64,
    /// Frames for the driver that had to wait for a limit.
    pub throttled_in: u64,
    /// Frames of the driver that had to.
    pub throttled_out: u64,
}

impl Shared {
    pub fn new(options: &NetOptions, pairs: usize) -> io::Result<Self> {
        let wake = (0..pairs).map(|_| Event::new());
        let limiter = |limits| Limiter::new(limits, Instant::now());
        Ok(Self {
            name: options.name.clone(),
            first_mac: options.mac,
            mac: Mutex::new(options.mac),
            wanted: AtomicBool::new(true),
            gone: AtomicBool::new(false),
            active: AtomicU16::new(1),
            failed: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            wake: wake.collect::<io::Result<_>>()?,
            interrupt: Mutex::new(None),
            receive_limiter: limiter(options.receive),
            transmit_limiter: limiter(options.transmit),
            counters: Counters::default(),
        })
    }

    pub fn begin(&self, interrupt: &Arc<Interrupt>) {
        *self.interrupt.lock() = Some(interrupt.clone());
    }

    pub fn end(&self) {
        *self.interrupt.lock() = None;
    }

    pub fn reset(&self) {
        *self.mac.lock() = self.first_mac;
        self.active.store(1, Ordering::Release);
        self.failed.store(false, Ordering::Release);
    }

    pub fn mac(&self) -> Mac {
        *self.mac.lock()
    }

    pub fn set_mac(&self, mac: Mac) {
        *self.mac.lock() = mac;
    }

    pub fn is_up(&self) -> bool {
        self.wanted.load(Ordering::Acquire) && !self.gone.load(Ordering::Acquire)
    }

    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Makes all pairs stop.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
        self.wake_all();
    }

    /// Makes all pairs look at this.
    fn wake_all(&self) {
        self.wake.iter().for_each(Event::signal);
    }

    pub fn wake(&self, pair: usize) -> &Event {
        &self.wake[pair]
    }

    pub fn pairs(&self) -> usize {
        self.wake.len()
    }

    pub fn is_active(&self, pair: usize) -> bool {
        pair < usize::from(self.active.load(Ordering::Acquire))
    }

    /// Lets so many pairs be used.
    pub fn use_pairs(&self, count: u16) {
        self.active.store(count, Ordering::Release);
        self.wake_all();
    }

    /// A port is of no use any more. True for the first one that says so.
    pub fn lose(&self) -> bool {
        let first = !self.gone.swap(true, Ordering::AcqRel);
        if first {
            self.changed();
        }
        first
    }

    /// Tells the driver that the configuration is another one.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(interrupt) = &*self.interrupt.lock() {
            interrupt.config_changed();
        }
    }
}

/// Changes a device while it runs, and says what it has done. Cheap to clone.
#[derive(Clone)]
pub struct NetControl(pub(super) Arc<Shared>);

impl NetControl {
    /// Plugs the cable in, or pulls it: the driver is told, and frames are dropped while it is out. Never blocks.
    /// A link whose host has gone stays down.
    pub fn set_link(&self, up: bool) {
        if self.0.wanted.swap(up, Ordering::AcqRel) != up {
            self.0.changed();
            self.0.wake_all();
        }
    }

    /// Returns the limits of what the driver receives.
    pub fn receive_limits(&self) -> Limits {
        self.0.receive_limiter.limits()
    }

    /// Replaces the limits of what the driver receives. A frame that waits for the old ones is looked at again. A
    /// bucket that is the same as before stays as full as it is.
    pub fn set_receive_limits(&self, limits: Limits) {
        self.0.receive_limiter.replace(limits, Instant::now());
        self.0.wake_all();
    }

    /// Returns the limits of what the driver sends.
    pub fn transmit_limits(&self) -> Limits {
        self.0.transmit_limiter.limits()
    }

    /// Replaces the limits of what the driver sends, as
    /// [`set_receive_limits`](Self::set_receive_limits) does.
    pub fn set_transmit_limits(&self, limits: Limits) {
        self.0.transmit_limiter.replace(limits, Instant::now());
        self.0.wake_all();
    }

    /// Tells whether the link is up: wanted to be, and no port has gone.
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Returns the address that the device has now.
    pub fn mac(&self) -> Mac {
        self.0.mac()
    }

    /// Returns what it has done.
    pub fn statistics(&self) -> NetStatistics {
        let Counters {
            received,
            sent,
            dropped_in,
            dropped_out,
            throttled_in,
            throttled_out,
        } = &self.0.counters;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        NetStatistics {
            received_frames: get(&received.frames),
            received_bytes: get(&received.bytes),
            sent_frames: get(&sent.frames),
            sent_bytes: get(&sent.bytes),
            dropped_in: get(dropped_in),
            dropped_out: get(dropped_out),
            throttled_in: get(throttled_in),
            throttled_out: get(throttled_out),
        }
    }
}
