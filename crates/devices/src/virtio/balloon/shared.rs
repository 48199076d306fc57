//! What registers, thread and owner of a balloon all know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_slots::{Discarded, RamError};
use umbra_virtio::{Event, Interrupt};

use super::hints::{HintingError, HintingStatus, Hints};
use super::pages::PAGE;
use super::statistics::{BalloonStatistics, Polling};
use crate::virtio::news::News;

/// Bytes of the configuration (5.5.4).
const CONFIG_LEN: usize = 16;
/// Where the command for free-page hints is.
const HINT_COMMAND: usize = 8;
/// Where the driver writes how many pages it has lent, and what it poisons free pages with.
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// A target that no guest can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a balloon of {bytes} bytes is larger than {max}; make it smaller")]
pub struct TargetError {
    /// What was asked for.
    pub bytes: u64,
    /// The most.
    pub max: u64,
}

/// The state of a device. Of its locks none is taken while another one is held, but for the configuration's under
/// that of hints.
pub struct Shared {
    pub name: String,
    /// The device has free-page hints.
    hinting: bool,
    pub hints: Mutex<Hints>,
    config: Mutex<Config>,
    polling: Mutex<Polling>,
    active: Mutex<Option<Active>>,
    told: Told,
    pub counters: Counters,
}

#[derive(Default)]
struct Config {
    /// Pages that the guest shall lend.
    num_pages: u32,
    /// Pages that it says it has lent.
    actual: u32,
    poison: u32,
    hint_command: u32,
    news: News,
}

/// Whom to tell of changes.
struct Active {
    interrupt: Arc<Interrupt>,
    /// Has the thread look at the statistics queue, if there is one.
    wake: Option<Arc<Event>>,
}

/// What the log was told already.
#[derive(Default)]
struct Told {
    ignored: AtomicBool,
    failed: AtomicBool,
}

/// Counts of bytes since the device was made.
#[derive(Default)]
pub struct Counters {
    pub inflated: AtomicU64,
    pub deflated: AtomicU64,
    pub reported: AtomicU64,
    pub hinted: AtomicU64,
    freed: AtomicU64,
    ignored: AtomicU64,
}

impl Config {
    fn bytes(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        let mut put =
            |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, self.num_pages);
        put(ACTUAL, self.actual);
        put(HINT_COMMAND, self.hint_command);
        put(POISON, self.poison);
        bytes
    }
}

fn pages(bytes: u64) -> Result<u32, TargetError> {
    u32::try_from(bytes / PAGE).map_err(|_| TargetError {
        bytes,
        max: u64::from(u32::MAX) * PAGE,
    })
}

impl Shared {
    pub fn new(name: String, target: u64, hinting: bool) -> Result<Self, TargetError> {
        let config = Config {
            num_pages: pages(target)?,
            ..Config::default()
        };
        Ok(Self {
            name,
            hinting,
            hints: Mutex::default(),
            config: Mutex::new(config),
            polling: Mutex::default(),
            active: Mutex::new(None),
            told: Told::default(),
            counters: Counters::default(),
        })
    }

    pub fn config(&self) -> [u8; CONFIG_LEN] {
        self.config.lock().bytes()
    }

    /// Takes what a driver writes to the configuration, as far as it is the driver's.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config.lock();
        let mut bytes = config.bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|at| bytes.get_mut(at..));
        for (to, from) in rest.unwrap_or_default().iter_mut().zip(data) {
            *to = *from;
        }
        let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        config.actual = field(ACTUAL);
        config.poison = field(POISON);
    }

    pub fn generation(&self) -> u32 {
        self.config.lock().news.generation()
    }

    /// Returns what the driver poisons free pages with.
    pub fn poison(&self) -> u32 {
        self.config.lock().poison
    }

    pub fn begin(&self, interrupt: Arc<Interrupt>, wake: Option<Arc<Event>>) {
        *self.active.lock() = Some(Active { interrupt, wake });
        // What has changed while the device stood still.
        self.announce();
    }

    pub fn end(&self) {
        *self.active.lock() = None;
    }

    pub fn reset(&self) {
        // Held until the command is none in the configuration, too.
        let mut hints = self.hints.lock();
        hints.reset();
        let mut config = self.config.lock();
        // The next driver reads all of it.
        config.news.take();
        *config = Config {
            num_pages: config.num_pages,
            news: config.news,
            ..Config::default()
        };
        drop(config);
        drop(hints);
        self.polling.lock().reset();
    }

    /// Takes what the driver says about hints.
    pub fn hear_hints(&self, said: u32) {
        let mut hints = self.hints.lock();
        let command = hints.hear(said);
        let changed = command.map(|command| self.publish(command)).is_some();
        drop(hints);
        if changed {
            self.announce();
        }
    }

    /// Puts a command for hints into the configuration; whoever does so holds the lock of hints.
    fn publish(&self, command: u32) {
        let mut config = self.config.lock();
        config.hint_command = command;
        config.news.change();
    }

    /// Changes the command for hints, and tells the driver.
    fn command_hints(
        &self,
        change: impl FnOnce(&mut Hints) -> Result<u32, HintingError>,
    ) -> Result<u32, HintingError> {
        if !self.hinting {
            return Err(HintingError::Off);
        }
        let mut hints = self.hints.lock();
        let command = change(&mut hints)?;
        self.publish(command);
        drop(hints);
        self.announce();
        Ok(command)
    }

    /// Interrupts the driver if there is one that has not heard of the configuration as it is.
    fn announce(&self) {
        let active = self.active.lock();
        let interrupt = active.as_ref().map(|active| active.interrupt.clone());
        drop(active);
        let Some(interrupt) = interrupt else { return };
        let news = self.config.lock().news.take();
        if news {
            interrupt.config_changed();
        }
    }

    /// Looks at the statistics, or changes when the driver is asked for them.
    pub fn polling<T>(&self, look: impl FnOnce(&mut Polling) -> T) -> T {
        look(&mut self.polling.lock())
    }

    /// Has the thread look at the statistics queue.
    fn wake(&self) {
        let active = self.active.lock();
        if let Some(event) = active.as_ref().and_then(|active| active.wake.as_ref()) {
            event.signal();
        }
    }

    /// Counts what became of pages.
    pub fn count(&self, result: Result<Discarded, RamError>) {
        match result {
            Ok(Discarded { freed, ignored }) => {
                self.counters.freed.fetch_add(freed, Ordering::Relaxed);
                self.ignore(ignored);
            }
            Err(error) => {
                if !self.told.failed.swap(true, Ordering::Relaxed) {
                    let device = &*self.name;
                    tracing::warn!(device, %error, "the host does not take back memory of a balloon");
                }
            }
        }
    }

    /// Counts bytes that are no RAM which the guest may write.
    pub fn ignore(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.counters.ignored.fetch_add(bytes, Ordering::Relaxed);
        if !self.told.ignored.swap(true, Ordering::Relaxed) {
            let device = &*self.name;
            tracing::debug!(device, bytes, "a driver lends what is no memory of its own");
        }
    }
}

/// What a balloon has done since it was made, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonCounters {
    /// The driver has lent.
    pub inflated: u64,
    /// It has taken back.
    pub deflated: u64,
    /// It has reported as free.
    pub reported: u64,
    /// It has hinted as free when it was asked.
    pub hinted: u64,
    /// The host has got, of what was lent and reported.
    pub freed: u64,
    /// No RAM that the guest may write.
    pub ignored: u64,
}

/// Changes a balloon while the machine runs, and says what it is like. May be used from any thread; cheap to
/// clone.
#[derive(Clone)]
pub struct BalloonControl(pub(super) Arc<Shared>);

impl BalloonControl {
    /// Wants the guest to lend so many bytes, rounded down to pages. Never blocks: the guest does what it
    /// can, in its own time, see [`actual`](Self::actual).
    ///
    /// A guest that lends more than it can spare ends its own processes, unless it may deflate the balloon
    /// then (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
    ///
    /// # Errors
    /// If no guest has so much.
    pub fn set_target(&self, bytes: u64) -> Result<(), TargetError> {
        let num_pages = pages(bytes)?;
        let mut config = self.0.config.lock();
        if config.num_pages != num_pages {
            config.num_pages = num_pages;
            config.news.change();
        }
        drop(config);
        self.0.announce();
        Ok(())
    }

    /// Returns how many bytes the guest shall lend.
    pub fn target(&self) -> u64 {
        u64::from(self.0.config.lock().num_pages) * PAGE
    }

    /// Returns how many bytes the guest says it has lent.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.config.lock().actual) * PAGE
    }

    /// Asks the guest for all of its free pages, which the host has then until the guest uses them; returns the
    /// number of the run. A run that is under way ends with its hints unread. With `acknowledge` the run is done when
    /// the guest has no more; without, the guest keeps its free pages for [`stop_hinting`](Self::stop_hinting). Never
    /// blocks for the guest.
    ///
    /// # Errors
    /// If the balloon was made without hints, or no driver gives any.
    pub fn start_hinting(&self, acknowledge: bool) -> Result<u32, HintingError> {
        self.0.command_hints(|hints| hints.start(acknowledge))
    }

    /// Ends the run: the guest may use its free pages again. No hint is acted upon when this returns, which waits
    /// for the one that is.
    ///
    /// # Errors
    /// As [`start_hinting`](Self::start_hinting).
    pub fn stop_hinting(&self) -> Result<(), HintingError> {
        self.0.command_hints(Hints::stop).map(drop)
    }

    /// Says how far hints are; `None` for a balloon without.
    pub fn hinting(&self) -> Option<HintingStatus> {
        self.0.hinting.then(|| self.0.hints.lock().status())
    }

    /// Asks the guest for statistics at an interval, counted from its last answer; 100 ms at the least. No
    /// interval is never, which is so at the beginning.
    pub fn set_polling(&self, interval: Option<Duration>) {
        self.0.polling(|polling| polling.set_interval(interval));
        self.0.wake();
    }

    /// Asks the guest for statistics once, now. Does not wait for them; their time tells them from others.
    pub fn request_statistics(&self) {
        self.0.polling(Polling::want);
        self.0.wake();
    }

    /// Returns what the guest has said last; nothing before a driver has said something.
    pub fn statistics(&self) -> Option<BalloonStatistics> {
        self.0.polling(|polling| polling.latest())
    }

    /// Returns how old that is.
    pub fn age(&self) -> Option<Duration> {
        let latest = self.statistics()?;
        Some(Instant::now().saturating_duration_since(latest.at))
    }

    /// Returns what the balloon has done.
    pub fn counters(&self) -> BalloonCounters {
        let counters = &self.0.counters;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BalloonCounters {
            inflated: get(&counters.inflated),
            deflated: get(&counters.deflated),
            reported: get(&counters.reported),
            hinted: get(&counters.hinted),
            freed: get(&counters.freed),
            ignored: get(&counters.ignored),
        }
    }
}
