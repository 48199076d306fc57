//! The block device (virtio 1.3, 5.2): a disk of the host, with one or more queues.
//!
//! ```text
//!   BlockControl ── another disk, limits … ──> Shared: disk, configuration, limiter, counters
//!                                                   ^  ^
//!   queue 0 ── thread: pop, plan, wait for tokens ──'  │      Engine ──> disk
//!                      completions: status, used ring  │  <── event
//!   queue n ── the same, with an engine of its own ────'
//! ```
//!
//! **One thread per queue**, each with an engine of its own. A driver has several queues to have several
//! processors submit without a common lock; one thread for all would be that lock again, and a queue
//! with a large backlog would hold up the others. A thread never waits for the disk: it submits,
//! and completes whatever the engine has done, in any order (5.2.6.2 lets it). A flush covers the
//! writes that had completed when it was submitted, which is all that the specification asks for.
//!
//! **Memory of requests in flight** stays mapped until they have completed ([`umbra_block::Buffers`]), so
//! RAM may be taken away meanwhile: the bytes then go nowhere. The rings and the status are looked up in
//! the map as it is at the end.
//!
//! **Caches.** Without VIRTIO_BLK_F_FLUSH a driver expects that what was written lasts (5.2.6.2), so each
//! write does, except with [`Cache::Unsafe`], where no flush is ever offered. With it, and
//! VIRTIO_BLK_F_CONFIG_WCE, the driver chooses; with it alone, the option does.
//!
//! **The end.** A reset, or taking a queue away, waits for the requests in flight, which are completed as
//! ever: nothing is lost if the device only pauses. A host that hangs is waited for
//! ten seconds, for all queues together. Then the guest's requests are given up: their
//! memory stays mapped, and a thread of its own waits for them. The device is not active again before
//! they have ended, as they could still write into the guest's memory.
//!
//! **Errors.** Requests that are wrong are answered (`request`); failures of the host are
//! VIRTIO_BLK_S_IOERR for the guest, one line a kind in the log, and a count. A host that takes long for a request
//! is told of once, while the guest waits.
//!
//! **Another disk** may take the place of the one that is there (`exchange`): requests in flight end on the old
//! one. The driver hears of a configuration that has changed. What it keeps of the old disk in caches is its own
//! affair.
//!
//! Not here: lifetime, secure erase, zones, geometry.

mod config;
mod exchange;
mod overdue;
mod ranges;
mod request;
mod statistics;
mod work;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_block::{Disk, Engine, EngineKind, SECTOR};
use umbra_virtio::{
    ActivateError, Activation, Device, Event, Features, Interrupt, Queue, Worker, read_config,
};

use super::limiter::{Limiter, Limits};
use super::news::News;
use config::Config;
use exchange::{Current, Gate};
use overdue::Overdue;
use request::ID_LEN;
pub use statistics::Statistics;
use work::{Halt, Work};

/// What becomes of writes in the host's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// They last after a flush of the guest.
    #[default]
    Writeback,
    /// They last when they complete; the guest may choose otherwise.
    Writethrough,
    /// They last if the host does not lose power: no flush is offered.
    Unsafe,
}

/// How a block device is made.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// What GET_ID returns: 20 bytes at most; an empty one is none.
    pub serial: String,
    /// What becomes of writes.
    pub cache: Cache,
    /// Number of queues, 1 to [`Block::QUEUES_MAX`].
    pub queues: u16,
    /// Most buffers of one request's data, 1 to [`Block::SEGMENTS_MAX`]. Whoever makes queues has them two
    /// descriptors larger: Linux counts on this number, whatever the size of its queue is.
    pub segments: u16,
    /// What serves the disk.
    pub engine: EngineKind,
    /// Limits for all queues together.
    pub limits: Limits,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            cache: Cache::default(),
            queues: 1,
            segments: Block::SEGMENTS_MAX,
            engine: EngineKind::default(),
            limits: Limits::default(),
        }
    }
}

/// Options that no device can be made with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// Too few or many queues.
    #[error("a block device has 1 to {max} queues, not {queues}", max = Block::QUEUES_MAX)]
    Queues {
        /// How many were asked for.
        queues: u16,
    },
    /// Requests of no buffers, or of more than a queue has room for.
    #[error("a request has 1 to {max} buffers, not {segments}", max = Block::SEGMENTS_MAX)]
    Segments {
        /// How many were asked for.
        segments: u16,
    },
    /// The serial number does not fit.
    #[error("the serial number {serial:?} is longer than {ID_LEN} bytes; shorten it")]
    Serial {
        /// Which.
        serial: String,
    },
}

/// Why a disk was not replaced. The old one is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// A driver was told once and for all whether it may write.
    #[error(
        "the disk can{} be written, and the one that is there can{}; replace a disk by one of its kind",
        not(*.read_only), not(!.read_only)
    )]
    ReadOnly {
        /// The new disk is read-only.
        read_only: bool,
    },
    /// Requests to the old disk do not end.
    #[error(
        "the host has not completed the requests to the old disk for {seconds} seconds; try again when it has"
    )]
    Busy {
        /// How long they were waited for.
        seconds: u64,
    },
    /// What was written to the old disk cannot be made to last.
    #[error("the old disk cannot be flushed")]
    Flush(#[source] io::Error),
    /// Nothing can serve the new disk.
    #[error("the host has not what it takes to serve the new disk")]
    Engine(#[source] io::Error),
}

fn not(is_not: bool) -> &'static str {
    if is_not { "not" } else { "" }
}

/// How long requests to the old disk are waited for. Tests have less of it.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 10_000 });

/// How long it is waited for that all threads let the old disk go.
const LET_GO: Duration = Duration::from_secs(1);

/// The device.
pub struct Block {
    shared: Arc<Shared>,
    sizes: Vec<u16>,
    segments: u16,
    /// What the driver accepted when it was activated last.
    agreed: Features,
    crew: Option<Crew>,
}

/// The threads, while the device is active.
struct Crew {
    halt: Arc<Halt>,
    workers: Vec<Worker<Queue>>,
}

/// What queues and control have in common.
struct Shared {
    current: Mutex<Current>,
    /// A thread has let an old disk go.
    let_go: Condvar,
    /// Which disk it is; changes only while the gate is held and nobody inside.
    number: AtomicU64,
    gate: Arc<Gate>,
    /// Whoever replaces the disk, or looks how large it is.
    replacing: Mutex<()>,
    read_only: bool,
    cache: Cache,
    engine: EngineKind,
    serial: [u8; ID_LEN],
    limiter: Limiter,
    counters: statistics::Counters,
    overdue: Overdue,
    size: Mutex<Size>,
    writeback: AtomicBool,
    active: Mutex<Option<Active>>,
    /// Engines that still wait for requests which were given up.
    lost: Arc<AtomicUsize>,
}

/// The part of the configuration that changes by itself.
#[derive(Clone, Copy, Debug)]
struct Size {
    sectors: u64,
    news: News,
}

/// Whom to tell of changes.
struct Active {
    interrupt: Arc<Interrupt>,
    events: Vec<Arc<Event>>,
}

impl Block {
    /// Its device type.
    pub const ID: u32 = 2;
    /// Most queues of a device; each has a thread.
    pub const QUEUES_MAX: u16 = 64;
    /// Most bytes of a serial number (virtio 1.3, 5.2.6).
    pub const SERIAL_MAX: usize = ID_LEN;

    /// Most buffers of one request's data.
    pub const SEGMENTS_MAX: u16 = config::SEGMENTS_MAX;

    /// Makes a device for a disk.
    ///
    /// # Errors
    /// If the options do not fit.
    pub fn new(disk: Arc<dyn Disk>, options: BlockOptions) -> Result<Self, BlockError> {
        let queues = options.queues;
        if !(1..=Self::QUEUES_MAX).contains(&queues) {
            return Err(BlockError::Queues { queues });
        }
        let segments = options.segments;
        if !(1..=Self::SEGMENTS_MAX).contains(&segments) {
            return Err(BlockError::Segments { segments });
        }
        let mut serial = [0; ID_LEN];
        match serial.get_mut(..options.serial.len()) {
            Some(front) => front.copy_from_slice(options.serial.as_bytes()),
            None => {
                return Err(BlockError::Serial {
                    serial: options.serial,
                });
            }
        }
        let size = Size {
            sectors: disk.len() / SECTOR,
            news: News::default(),
        };
        let shared = Shared {
            read_only: disk.is_read_only(),
            current: Mutex::new(Current::new(disk)),
            let_go: Condvar::new(),
            number: AtomicU64::new(0),
            gate: Arc::default(),
            replacing: Mutex::new(()),
            cache: options.cache,
            engine: options.engine,
            serial,
            limiter: Limiter::new(options.limits, Instant::now()),
            counters: statistics::Counters::default(),
            overdue: Overdue::default(),
            size: Mutex::new(size),
            writeback: AtomicBool::new(options.cache == Cache::Writeback),
            active: Mutex::new(None),
            lost: Arc::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            sizes: vec![config::QUEUE_SIZE; queues.into()],
            segments,
            agreed: Features::NONE,
            crew: None,
        })
    }

    /// Returns what the machine keeps of it when a transport owns it.
    pub fn control(&self) -> BlockControl {
        BlockControl(self.shared.clone())
    }

    fn config(&self) -> Config {
        Config {
            capacity: self.shared.size.lock().sectors,
            topology: self.shared.current.lock().disk.topology(),
            queues: self.sizes.len() as u16,
            segments: self.segments,
            writeback: self.shared.writeback.load(Ordering::Relaxed),
        }
    }

    /// Sets the cache up as it is before the driver says anything else (5.2.5).
    fn begin_cache(&self, agreed: Features) {
        let lasts = agreed.has(config::CONFIG_WCE) && !agreed.has(config::FLUSH);
        let writeback = self.shared.cache == Cache::Writeback && !lasts;
        self.shared.writeback.store(writeback, Ordering::Relaxed);
    }

    fn start(&self, queue: Queue, crew: &Crew, activation: &Setting) -> io::Result<Worker<Queue>> {
        let name = format!("virtio-blk-{}", queue.index());
        let work = Work::new(
            self.shared.clone(),
            queue,
            crew.halt.clone(),
            activation.clone(),
        )?;
        Worker::start(&name, move |stop| work.run(stop))
    }
}

/// What all queues work with.
#[derive(Clone)]
struct Setting {
    features: Features,
    cache: Cache,
    memory: umbra_slots::DmaSpace,
    interrupt: Arc<Interrupt>,
}

impl Device for Block {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        let mut features = Features::RINGS
            .with(config::SEG_MAX)
            .with(config::BLK_SIZE)
            .with(config::TOPOLOGY);
        if self.sizes.len() > 1 {
            features = features.with(config::MQ);
        }
        if self.shared.read_only {
            return features.with(config::RO);
        }
        features = features.with(config::DISCARD).with(config::WRITE_ZEROES);
        match self.shared.cache {
            Cache::Unsafe => features,
            _ => features.with(config::FLUSH).with(config::CONFIG_WCE),
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config().bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let chosen = config::WRITEBACK
            .checked_sub(offset)
            .and_then(|at| data.get(usize::try_from(at).ok()?));
        let free = config::FLUSH.with(config::CONFIG_WCE);
        if let Some(value @ (0 | 1)) = chosen
            && self.agreed.has(free)
        {
            self.shared.writeback.store(*value == 1, Ordering::Relaxed);
        }
    }

    fn config_generation(&self) -> u32 {
        self.shared.size.lock().news.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let refused = |what| move |source| ActivateError::Host { what, source };
        if self.shared.lost.load(Ordering::Acquire) != 0 {
            let source = io::ErrorKind::TimedOut.into();
            return Err(refused("to end requests from before the last reset")(
                source,
            ));
        }
        let setting = Setting {
            features: activation.features,
            cache: self.shared.cache,
            memory: activation.memory,
            interrupt: activation.interrupt.clone(),
        };
        if self.agreed != setting.features {
            self.agreed = setting.features;
            self.begin_cache(self.agreed);
        }
        let events = activation.queues.iter().map(|queue| queue.event().clone());
        let active = Active {
            interrupt: activation.interrupt,
            events: events.collect(),
        };
        let mut crew = Crew {
            halt: Arc::default(),
            workers: Vec::new(),
        };
        for queue in activation.queues {
            let worker = self.start(queue, &crew, &setting);
            crew.workers.push(worker.map_err(refused("a thread"))?);
        }
        *self.shared.active.lock() = Some(active);
        self.shared.tell();
        self.crew = Some(crew);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        *self.shared.active.lock() = None;
        let Some(Crew { halt, workers }) = self.crew.take() else {
            return Vec::new();
        };
        halt.begin();
        // One that panicked has nothing to give back.
        let queues = workers.into_iter().filter_map(Worker::stop).collect();
        self.shared.current.lock().engines.clear();
        queues
    }

    fn reset(&mut self) {
        self.agreed = Features::NONE;
        self.begin_cache(Features::NONE);
        // The next driver reads it anyway.
        self.shared.size.lock().news.take();
    }
}

/// A block device as the machine sees it, whoever owns the device. Any thread may use it.
#[derive(Clone)]
pub struct BlockControl(Arc<Shared>);

impl BlockControl {
    /// Looks how large the disk is now, and tells the driver if that has changed. Returns the bytes.
    ///
    /// # Errors
    /// If the host does not say.
    pub fn refresh_size(&self) -> io::Result<u64> {
        let _replacing = self.0.replacing.lock();
        let disk = self.0.current.lock().disk.clone();
        let bytes = disk.refresh_len()?;
        self.0.size.lock().set(bytes / SECTOR);
        self.0.tell();
        Ok(bytes)
    }

    /// Puts another disk in the place of the one that is there. Requests in flight end on the old one, which is
    /// flushed and let go. The driver is told that the configuration has changed. Blocks for some ten seconds and
    /// what a flush takes at most; the guest's requests wait as long.
    ///
    /// # Errors
    /// If it cannot be done; the old disk is still there then, and nothing was lost.
    pub fn replace(&self, disk: Arc<dyn Disk>) -> Result<(), ReplaceError> {
        let shared = &self.0;
        let _replacing = shared.replacing.lock();
        let read_only = disk.is_read_only();
        if read_only != shared.read_only {
            return Err(ReplaceError::ReadOnly { read_only });
        }
        let held = shared.gate.hold();
        if !held.wait(PATIENCE) {
            let seconds = PATIENCE.as_secs();
            return Err(ReplaceError::Busy { seconds });
        }
        let old = shared.current.lock().disk.clone();
        if !read_only && shared.cache != Cache::Unsafe {
            old.flush().map_err(ReplaceError::Flush)?;
        }
        let threads = shared.active.lock().as_ref().map_or(0, |a| a.events.len());
        let engines = (0..threads).map(|_| Engine::start(disk.clone(), shared.engine));
        let engines = engines.collect::<io::Result<_>>();
        let engines = engines.map_err(ReplaceError::Engine)?;
        tracing::info!(old = %old.name(), new = %disk.name(), "a disk is replaced");
        shared.exchange(disk, engines);
        drop(held);
        drop(old);
        shared.wake();
        shared.tell();
        shared.wait_let_go();
        Ok(())
    }

    /// Returns the limits.
    pub fn limits(&self) -> Limits {
        self.0.limiter.limits()
    }

    /// Replaces the limits. Requests that wait for the old ones are looked at again. A bucket that is the same
    /// as before stays as full as it is.
    pub fn set_limits(&self, limits: Limits) {
        self.0.limiter.replace(limits, Instant::now());
        self.0.wake();
    }

    /// Returns what the device has done.
    pub fn statistics(&self) -> Statistics {
        self.0.counters.snapshot()
    }
}

impl Shared {
    /// Makes another disk the current one. The gate is held, and nobody inside.
    fn exchange(&self, disk: Arc<dyn Disk>, engines: Vec<Engine>) {
        {
            let mut size = self.size.lock();
            size.sectors = disk.len() / SECTOR;
            // Also if it is as large as the old one.
            size.news.change();
        }
        let mut current = self.current.lock();
        current.number += 1;
        current.disk = disk;
        current.behind = engines.len();
        current.engines = engines;
        self.number.store(current.number, Ordering::Release);
    }

    /// A thread that had the disk of this number has it no more.
    fn lets_go(&self, number: u64) {
        let mut current = self.current.lock();
        if number != current.number {
            // A thread that began in the middle of an exchange was not counted.
            current.behind = current.behind.saturating_sub(1);
            self.let_go.notify_all();
        }
    }

    /// Waits until all threads have let the old disk go, but not for one that broke down.
    fn wait_let_go(&self) {
        let until = Instant::now() + LET_GO;
        let mut current = self.current.lock();
        while current.behind != 0 {
            if self.let_go.wait_until(&mut current, until).timed_out() {
                tracing::debug!(threads = current.behind, "an old disk is still held");
                return;
            }
        }
    }

    /// Tells the driver that the configuration has changed, unless it knows, or when there is one.
    fn tell(&self) {
        // Held across the notification: a deactivation waits for it.
        let active = self.active.lock();
        if let Some(active) = active.as_ref()
            && self.size.lock().news.take()
        {
            active.interrupt.config_changed();
        }
    }

    /// Has all queues look what there is.
    fn wake(&self) {
        for event in self.active.lock().iter().flat_map(|a| &a.events) {
            event.signal();
        }
    }
}

impl Size {
    fn set(&mut self, sectors: u64) {
        if std::mem::replace(&mut self.sectors, sectors) != sectors {
            self.news.change();
        }
    }
}

#[cfg(test)]
mod tests;
