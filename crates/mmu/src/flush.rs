//! Tells processors to drop translations that they have cached, and knows when they have.
//!
//! ```text
//!   poster                                     processor
//!   push on every port, number it              loop { … guest code …
//!   ── fence ──                                  if pending() { take_flushes(drop them) }  acks
//!   wake                                       }
//!   wait(number): until each port has          leave(): outside; nobody waits for it
//!     acknowledged it or is outside            enter(), then pending(): sees what was posted
//! ```
//!
//! `enter` against `post` is a pair of the Dekker kind: the processor stores *inside* and then
//! looks at its queue, the poster fills the queue and then looks for *inside*; one of the two sees
//! the other. So is an acknowledgement, or leaving, against going to sleep: store, fence, look.
//! The fences do it, whatever the orders of the accesses say: a model checker can follow fences.
//! Whoever waits counts as outside itself, so no two processors wait for each other.
//! Nobody waits with a lock held.
//!
//! A queue keeps RAM alive that left the map, until its processor has dropped the addresses.

use std::sync::Arc;
use std::time::Duration;

use umbra_slots::{Gfn, Snapshot};
use umbra_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use umbra_sync::{Condvar, Mutex, SPINS, spin, this_thread};

/// What a processor must drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Every cached translation.
    All,
    /// Cached translations that allow writes to this frame.
    Writers(Gfn),
}

/// The number of a flush; flushes are numbered from 1 in the order of posting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// Sets the processor's poll flag.
pub(crate) type Wake = Box<dyn Fn() + Send + Sync>;

/// A queue that grew beyond this is cheaper served by one flush of everything.
const QUEUE_MAX: usize = 64;

#[derive(Default)]
struct Queue {
    flushes: Vec<Flush>,
    /// RAM that left the map.
    keep: Vec<Arc<Snapshot>>,
}

impl Queue {
    fn push(&mut self, flush: Flush, keep: Option<&Arc<Snapshot>>) {
        if flush == Flush::All || self.flushes.len() >= QUEUE_MAX {
            self.flushes.clear();
            self.flushes.push(Flush::All);
        } else if self.flushes.first() != Some(&Flush::All) {
            self.flushes.push(flush);
        }
        self.keep.extend(keep.cloned());
    }
}

/// One processor's end.
pub(crate) struct Port {
    queue: Mutex<Queue>,
    posted: AtomicU64,
    acked: AtomicU64,
    inside: AtomicBool,
    /// The thread that entered last.
    thread: AtomicU64,
    wake: Wake,
    /// Accesses answered from the processor's last MMIO translation; it alone writes here.
    record_hits: AtomicU64,
}

impl Port {
    pub fn count_record_hit(&self) {
        let hits = self.record_hits.load(Ordering::Relaxed);
        self.record_hits.store(hits + 1, Ordering::Relaxed);
    }

    /// Tells whether something was posted that is not acknowledged.
    pub fn pending(&self) -> bool {
        self.posted.load(Ordering::Acquire) != self.acked.load(Ordering::Relaxed)
    }

    fn done(&self, ticket: Ticket) -> bool {
        // A port that was attached later never had it posted.
        self.acked.load(Ordering::Acquire) >= ticket.0 || !self.inside.load(Ordering::Acquire)
    }

    pub fn is_inside(&self) -> bool {
        self.inside.load(Ordering::Relaxed)
    }
}

struct Ports {
    last: u64,
    all: Vec<Arc<Port>>,
    /// Of processors that are gone.
    record_hits: u64,
}

/// All processors of a machine.
pub(crate) struct Hub {
    ports: Mutex<Ports>,
    waiters: AtomicUsize,
    sleep: Mutex<()>,
    changed: Condvar,
}

impl Hub {
    pub fn new() -> Self {
        Self {
            ports: Mutex::new(Ports {
                last: 0,
                all: Vec::new(),
                record_hits: 0,
            }),
            waiters: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    pub fn attach(&self, wake: Wake) -> Arc<Port> {
        let mut ports = self.ports.lock();
        let port = Arc::new(Port {
            queue: Mutex::default(),
            posted: AtomicU64::new(ports.last),
            acked: AtomicU64::new(ports.last),
            inside: AtomicBool::new(false),
            thread: AtomicU64::new(0),
            wake,
            record_hits: AtomicU64::new(0),
        });
        ports.all.push(port.clone());
        port
    }

    pub fn detach(&self, port: &Arc<Port>) {
        let mut ports = self.ports.lock();
        ports.all.retain(|p| !Arc::ptr_eq(p, port));
        ports.record_hits += port.record_hits.load(Ordering::Relaxed);
        drop(ports);
        self.leave(port);
    }

    /// How many accesses were answered by processors' last MMIO translations.
    pub fn record_hits(&self) -> u64 {
        let ports = self.ports.lock();
        let live = ports.all.iter();
        let hits = live.map(|port| port.record_hits.load(Ordering::Relaxed));
        hits.sum::<u64>() + ports.record_hits
    }

    /// Posts a flush to every port. `keep` lives until each has acknowledged.
    pub fn post(&self, flush: Flush, keep: Option<&Arc<Snapshot>>) -> Ticket {
        let mut ports = self.ports.lock();
        ports.last += 1;
        let number = ports.last;
        for port in &ports.all {
            port.queue.lock().push(flush, keep);
            port.posted.store(number, Ordering::Release);
        }
        fence(Ordering::SeqCst); // queue before `inside`, see the module's head
        for port in &ports.all {
            (port.wake)();
        }
        Ticket(number)
    }

    /// Tells whether every processor but `except` has dropped what the ticket names, or will
    /// before it uses anything.
    pub fn is_done(&self, ticket: Ticket, except: Option<&Arc<Port>>) -> bool {
        let ports = self.ports.lock();
        ports
            .all
            .iter()
            .filter(|p| !except.is_some_and(|e| Arc::ptr_eq(e, p)))
            .all(|p| p.done(ticket))
    }

    /// Blocks until every processor but the caller's has dropped what the ticket names. No lock
    /// may be held.
    pub fn wait(&self, ticket: Ticket) {
        let me = this_thread();
        let own: Option<Arc<Port>> = {
            let ports = self.ports.lock();
            let mut inside = ports.all.iter().filter(|p| p.is_inside());
            inside
                .find(|p| p.thread.load(Ordering::Relaxed) == me)
                .cloned()
        };
        if let Some(port) = &own {
            self.leave(port);
        }
        self.wait_for_others(ticket, own.as_ref());
        if let Some(port) = &own {
            self.enter(port);
        }
    }

    fn wait_for_others(&self, ticket: Ticket, own: Option<&Arc<Port>>) {
        for _ in 0..SPINS {
            if self.is_done(ticket, own) {
                return;
            }
            spin();
        }
        self.waiters.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst); // `waiters` before `is_done`, see the module's head
        let mut guard = self.sleep.lock();
        while !self.is_done(ticket, own) {
            // The timeout is only a net: every acknowledgement notifies.
            self.changed
                .wait_for(&mut guard, Duration::from_millis(100));
        }
        drop(guard);
        self.waiters.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives everything posted to `drop_cached`, then acknowledges.
    pub fn take(&self, port: &Port, mut drop_cached: impl FnMut(Flush)) {
        let (taken, number) = {
            let mut queue = port.queue.lock();
            // Posting fills the queue before it raises the number: whatever is counted is here.
            let number = port.posted.load(Ordering::Acquire);
            (std::mem::take(&mut *queue), number)
        };
        for flush in taken.flushes {
            drop_cached(flush);
        }
        port.acked.store(number, Ordering::Release);
        drop(taken.keep);
        self.notify();
    }

    pub fn enter(&self, port: &Port) {
        port.thread.store(this_thread(), Ordering::Relaxed);
        port.inside.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // `inside` before the queue, see the module's head
    }

    pub fn leave(&self, port: &Port) {
        port.inside.store(false, Ordering::Release);
        self.notify();
    }

    fn notify(&self) {
        fence(Ordering::SeqCst); // what was stored before `waiters`, see the module's head
        if self.waiters.load(Ordering::Relaxed) != 0 {
            let _guard = self.sleep.lock();
            self.changed.notify_all();
        }
    }
}
