//! Where the time of processors goes, found by looking.
//!
//! ```text
//!   processor ── says what it does, when that changes ──> Gauge <── looks, a thousand times a second ── the meter's thread
//!                                                           └── nanoseconds, by what it did ──> statistics
//! ```
//! A processor says what it does in a byte of its own, with one store, and only where it is slow anyway: on the way into
//! translated code and out of it, around a walk of page tables, a call of a device, a wait. Nobody reads a clock for that.
//! All time between two looks is taken to be of what the second one sees; what is shorter than that is right on the
//! average only. It is the time of a clock on the wall: a processor whose thread does not get the host's goes on
//! doing what it did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_cpu::Statistics;

/// Between two looks: no multiple of a guest's tick.
const PERIOD: Duration = Duration::from_micros(1009);

/// What a processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// Its thread is somewhere else: the machine has not begun, or stands still.
    Nothing,
    /// Translated code executes.
    Translated,
    /// The interpreter does, or the loop around all: interrupts, exceptions, code that was written.
    Interpreting,
    /// Code is made.
    Translating,
    /// A page is looked for, or a write to a page table is taken over.
    Paging,
    /// A device is called.
    Devices,
    /// It waits for an interrupt.
    Halted,
}

const KINDS: usize = 7;

/// How times are listed.
const NAMES: [&str; KINDS] = [
    "sampled ms not running",
    "sampled ms in translated code",
    "sampled ms interpreting",
    "sampled ms translating",
    "sampled ms paging",
    "sampled ms in devices",
    "sampled ms halted",
];

/// What a processor did before it did something else; it goes back to it.
#[must_use]
pub struct Was(u8);

/// What one processor does, and has done.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Gauge {
    doing: AtomicU8,
    nanos: [AtomicU64; KINDS],
}

impl Gauge {
    /// Says what it does from now on. Only its own thread says so.
    #[inline(always)]
    pub fn set(&self, doing: Doing) {
        self.doing.store(doing as u8, Ordering::Relaxed);
    }

    /// The same, for a while.
    #[inline(always)]
    pub fn begin(&self, doing: Doing) -> Was {
        let was = Was(self.doing.load(Ordering::Relaxed));
        self.set(doing);
        was
    }

    /// The while is over.
    #[inline(always)]
    pub fn end(&self, was: Was) {
        self.doing.store(was.0, Ordering::Relaxed);
    }

    fn add(&self, time: Duration) {
        let doing = usize::from(self.doing.load(Ordering::Relaxed));
        let nanos = time.as_nanos() as u64;
        self.nanos[doing].fetch_add(nanos, Ordering::Relaxed);
    }

    /// Lists the times.
    pub fn statistics(&self) -> Statistics {
        let nanos = self.nanos.iter().map(|nanos| nanos.load(Ordering::Relaxed));
        let times = nanos.map(|nanos| nanos / 1_000_000);
        NAMES.into_iter().zip(times).collect()
    }
}

/// Looks at the processors of a machine. It has a thread, which ends with it.
pub struct Meter {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    gauges: Vec<Arc<Gauge>>,
    over: bool,
}

impl Meter {
    /// Begins to look. Where the host gives no thread, that is logged, and no time is counted.
    pub fn start() -> Arc<Self> {
        let inner = Arc::new(Inner::default());
        let looks = inner.clone();
        let thread = std::thread::Builder::new().name("meter".into());
        let thread = thread.spawn(move || looks.run());
        let failed = |error| tracing::error!(%error, "no thread that looks where time goes");
        Arc::new(Self {
            inner,
            thread: thread.map_err(failed).ok(),
        })
    }

    /// Looks at another processor.
    pub(crate) fn attach(&self, gauge: Arc<Gauge>) {
        self.inner.state.lock().gauges.push(gauge);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.inner.state.lock().over = true;
        self.inner.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has nothing that could panic, and nothing else to wait for.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn run(&self) {
        let mut state = self.state.lock();
        let mut last = Instant::now();
        while !state.over {
            self.changed.wait_for(&mut state, PERIOD);
            let now = Instant::now();
            let time = now - std::mem::replace(&mut last, now);
            state.gauges.iter().for_each(|gauge| gauge.add(time));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(gauge: &Gauge, doing: Doing) -> u64 {
        gauge.statistics()[doing as usize].1
    }

    #[test]
    fn time_goes_to_what_is_done() {
        let meter = Meter::start();
        let gauge = Arc::new(Gauge::default());
        meter.attach(gauge.clone());
        gauge.set(Doing::Translated);
        let was = gauge.begin(Doing::Devices);
        while time(&gauge, Doing::Devices) < 5 {
            std::thread::yield_now();
        }
        gauge.end(was);
        while time(&gauge, Doing::Translated) < 5 {
            std::thread::yield_now();
        }
        assert_eq!(time(&gauge, Doing::Halted), 0);
        drop(meter);
        assert_eq!(Arc::strong_count(&gauge), 1);
    }

    #[test]
    fn every_kind_has_a_name() {
        assert_eq!(Doing::Halted as usize, KINDS - 1);
        assert_eq!(NAMES[Doing::Paging as usize], "sampled ms paging");
    }
}
