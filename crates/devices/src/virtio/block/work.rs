//! What a queue's thread does.
//!
//! ```text
//!   poll(stop, queue's event, engine's event, time when tokens are there)
//!     complete   for all that the engine has done: status, used ring
//!     take       pop, plan, take tokens, submit: until the queue is empty, too much is in flight,
//!                or a request has to wait for tokens; that one goes back into the queue
//!     interrupt  once, if the driver wants it
//! ```
//!
//! As many requests are in flight as the queue has descriptors; a driver that offers more, by offering
//! a chain twice, waits. So does everything while the disk is replaced.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use umbra_block::{Completion, Durability, Engine, Job};
use umbra_slots::{DmaMemory, Gpa};
use umbra_virtio::{Alarm, Chain, Event, Fault, Notifications, Queue, QueueError};
use vm_memory::{Bytes, GuestAddress};

use super::config::{FLUSH, QUEUE_SIZE};
use super::exchange::Pass;
use super::overdue::LONG;
use super::request::{ID_LEN, Kind, Plan, Request, Rules, Status};
use super::{Cache, Setting, Shared};

/// How long requests in flight are waited for when a device stops. Tests have less of it.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 1000 } else { 10_000 });

/// How long requests stay in the queue, at most, after a disk was replaced.
const RETRY: Duration = Duration::from_millis(20);

/// Tells all queues of a device to take no more.
#[derive(Debug, Default)]
pub struct Halt {
    deadline: OnceLock<Instant>,
    broken: AtomicBool,
}

impl Halt {
    /// The device stops.
    pub fn begin(&self) {
        self.deadline();
    }

    fn deadline(&self) -> Instant {
        *self.deadline.get_or_init(|| Instant::now() + PATIENCE)
    }

    fn is_on(&self) -> bool {
        self.deadline.get().is_some() || self.broken.load(Ordering::Acquire)
    }
}

/// A request that the engine has.
struct Flight {
    head: u16,
    status: Gpa,
    kind: Kind,
    bytes: u64,
    begun: Instant,
    /// Bytes that are told of if it succeeds, and if it fails.
    written: [u32; 2],
    /// The disk is not replaced under it.
    _pass: Pass,
}

/// A queue, and what its thread needs.
pub struct Work {
    shared: Arc<Shared>,
    queue: Queue,
    engine: Engine,
    /// Which disk the engine is for, and what the log calls it.
    number: u64,
    name: String,
    halt: Arc<Halt>,
    setting: Setting,
    /// By tag.
    flights: Vec<Option<Flight>>,
    /// Numbers of `flights` that are none.
    free: Vec<usize>,
    turn: Turn,
    pushed: bool,
    /// When it is looked whether the host takes long.
    look_at: Instant,
}

/// When the queue is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// When the driver notifies, or something completes.
    Signalled,
    Now,
    /// A request waits for tokens until then.
    At(Instant),
}

impl Work {
    pub fn new(
        shared: Arc<Shared>,
        queue: Queue,
        halt: Arc<Halt>,
        setting: Setting,
    ) -> io::Result<Self> {
        let most = usize::from(QUEUE_SIZE.min(queue.state().size));
        let (disk, number) = {
            let current = shared.current.lock();
            (current.disk.clone(), current.number)
        };
        Ok(Self {
            name: disk.name(),
            engine: Engine::start(disk, shared.engine)?,
            number,
            shared,
            queue,
            halt,
            setting,
            flights: (0..most).map(|_| None).collect(),
            free: (0..most).collect(),
            turn: Turn::Now,
            pushed: false,
            look_at: Instant::now(),
        })
    }

    /// Works until it is stopped. Returns the queue.
    pub fn run(mut self, stop: &Event) -> Queue {
        let alarm = Alarm(self.setting.interrupt.clone());
        let fault = self.work(stop).err();
        if let Some(fault) = &fault {
            self.halt.broken.store(true, Ordering::Release);
            fault.tell(&self.name, &self.setting.interrupt);
        }
        self.drain(fault.is_some());
        drop(alarm);
        self.finish()
    }

    fn work(&mut self, stop: &Event) -> Result<(), Fault> {
        loop {
            self.serve()?;
            if self.wait(stop)? {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to do; `true` if it is time to stop.
    fn wait(&mut self, stop: &Event) -> io::Result<bool> {
        let patience = match self.turn {
            Turn::Signalled => None,
            Turn::Now => Some(Duration::ZERO),
            Turn::At(at) => Some(at.saturating_duration_since(Instant::now())),
        };
        let patience = [patience, self.look()].into_iter().flatten().min();
        let (queue, engine) = (&**self.queue.event(), self.engine.event());
        let mut watched = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(queue, PollFlags::IN),
            PollFd::new(&engine, PollFlags::IN),
        ];
        sleep(&mut watched, patience)?;
        // Each take is a system call: most have nothing to take.
        let [stops, notified, _] = watched.map(|fd| !fd.revents().is_empty());
        if notified {
            queue.take();
        }
        Ok(stops && stop.take())
    }

    /// Looks whether the host takes long for something, and says when to look again; `None` if that is of no
    /// interest.
    fn look(&mut self) -> Option<Duration> {
        if self.is_idle() || !self.shared.overdue.is_looked_for() {
            return None;
        }
        let now = Instant::now();
        let left = self.look_at.saturating_duration_since(now);
        if !left.is_zero() {
            return Some(left);
        }
        let ends = self.flights.iter().flatten().map(|f| f.begun + LONG);
        let overdue = ends.clone().filter(|end| *end <= now).count();
        if overdue != 0 {
            self.shared.overdue.tell(&self.name, overdue);
            return None;
        }
        self.look_at = ends.min().unwrap_or(now + LONG);
        Some(self.look_at - now)
    }

    /// Completes what is done, and takes what there is.
    fn serve(&mut self) -> Result<(), Fault> {
        // Dropped before the next wait. What is in flight holds its own.
        let memory = self.setting.memory.memory();
        self.complete(&memory)?;
        self.take(&memory)?;
        self.engine.kick()?;
        Ok(self.interrupt(&memory)?)
    }

    fn interrupt(&mut self, memory: &DmaMemory) -> Result<(), QueueError> {
        if std::mem::take(&mut self.pushed) && self.queue.needs_interrupt(memory)? {
            self.setting.interrupt.used_buffers(self.queue.index());
        }
        Ok(())
    }

    /// Gives what the engine has done to the driver. What the engine has said is said once: a driver that
    /// has broken its rings is told of nothing more, but every flight has ended.
    fn complete(&mut self, memory: &DmaMemory) -> Result<(), QueueError> {
        let mut told = Ok(());
        for completion in self.engine.completed() {
            let (flight, result) = self.land(completion);
            if told.is_ok() {
                told = self.tell(memory, &flight, result);
            }
        }
        told
    }

    /// Takes a request that the engine has done out of those in flight.
    fn land(&mut self, Completion { tag, result }: Completion) -> (Flight, io::Result<()>) {
        let slot = usize::try_from(tag).ok();
        let flight = slot.and_then(|slot| self.flights.get_mut(slot)?.take());
        let flight = flight.expect("an engine completes what it was given, once");
        self.free.push(tag as usize);
        (flight, result)
    }

    /// Tells the driver how a request has ended.
    fn tell(
        &mut self,
        memory: &DmaMemory,
        flight: &Flight,
        result: io::Result<()>,
    ) -> Result<(), QueueError> {
        let name = &self.name;
        self.shared.overdue.completed(name, flight.begun);
        let [done, failed] = flight.written;
        let (status, written) = match result {
            Ok(()) => {
                self.shared.counters.done(flight.kind, flight.bytes);
                (Status::Ok, done)
            }
            Err(error) => {
                self.shared.counters.failed(name, flight.kind, &error);
                (Status::IoErr, failed)
            }
        };
        self.answer(memory, flight.head, flight.status, status, written)
    }

    fn answer(
        &mut self,
        memory: &DmaMemory,
        head: u16,
        at: Gpa,
        status: Status,
        written: u32,
    ) -> Result<(), QueueError> {
        memory
            .write_obj(status as u8, GuestAddress(at.0))
            .map_err(|source| QueueError::Memory { head, source })?;
        self.queue.push(memory, head, written)?;
        self.pushed = true;
        Ok(())
    }

    /// Takes an engine for the disk that there is now, if it is another one than before. Whoever calls has a pass,
    /// and nothing is in flight.
    fn renew(&mut self) -> io::Result<()> {
        if self.number == self.shared.number.load(Ordering::Acquire) {
            return Ok(());
        }
        debug_assert!(
            self.is_idle(),
            "a disk is replaced when nothing is in flight"
        );
        let mut current = self.shared.current.lock();
        let engine = match current.engines.pop() {
            Some(engine) => engine,
            // For a thread that began while the disk was replaced.
            None => Engine::start(current.disk.clone(), self.shared.engine)?,
        };
        self.name = current.disk.name();
        let old = std::mem::replace(&mut self.number, current.number);
        drop(current);
        // The old one goes, and its disk with it, before anybody is told.
        self.engine = engine;
        self.shared.lets_go(old);
        Ok(())
    }

    /// Takes requests, at most once around the ring.
    fn take(&mut self, memory: &DmaMemory) -> Result<(), Fault> {
        let waited = matches!(self.turn, Turn::At(_));
        self.turn = Turn::Signalled;
        self.queue.expect(memory, Notifications::Unwanted)?;
        for _ in 0..self.flights.len() {
            // What completes is a reason to look again.
            if self.free.is_empty() || self.halt.is_on() {
                return Ok(());
            }
            let Some(pass) = self.shared.gate.enter() else {
                self.turn = Turn::At(Instant::now() + RETRY);
                return Ok(());
            };
            self.renew()?;
            let Some(chain) = self.queue.pop(memory)? else {
                if self.queue.expect(memory, Notifications::Wanted)? {
                    self.turn = Turn::Now;
                }
                return Ok(());
            };
            if let Err(wait) = self.begin(&chain, memory, pass)? {
                self.queue.unpop();
                if !waited {
                    self.shared.counters.throttled();
                }
                self.turn = Turn::At(Instant::now() + wait);
                return Ok(());
            }
        }
        self.turn = Turn::Now;
        Ok(())
    }

    /// Begins a request, or says how long it has to wait for tokens.
    fn begin(
        &mut self,
        chain: &Chain<'_>,
        memory: &DmaMemory,
        pass: Pass,
    ) -> Result<Result<(), Duration>, QueueError> {
        let request = Request::read(chain, memory)?;
        let rules = Rules {
            capacity: self.shared.size.lock().sectors,
            read_only: self.shared.read_only,
            features: self.setting.features,
        };
        let status = match request.plan(memory, &rules)? {
            Plan::Ask { operation, bytes } => {
                if let Err(wait) = self.shared.limiter.take(bytes, Instant::now()) {
                    return Ok(Err(wait));
                }
                self.submit(&request, (operation, bytes), pass);
                return Ok(Ok(()));
            }
            Plan::Name(room) => {
                room.copy_from(0, &self.shared.serial[..room.len().min(ID_LEN)]);
                room.mark_dirty();
                Status::Ok
            }
            Plan::Answer(status) => {
                self.shared.counters.refused();
                status
            }
        };
        let written = request.written(status);
        self.answer(memory, request.head, request.status, status, written)?;
        Ok(Ok(()))
    }

    fn submit(
        &mut self,
        request: &Request,
        (operation, bytes): (umbra_block::Operation, u64),
        pass: Pass,
    ) {
        let slot = self.free.pop().expect("there is one, or nothing is taken");
        self.flights[slot] = Some(Flight {
            head: request.head,
            status: request.status,
            kind: request.kind,
            bytes,
            begun: Instant::now(),
            written: [Status::Ok, Status::IoErr].map(|status| request.written(status)),
            _pass: pass,
        });
        self.engine.submit(Job {
            tag: slot as u64,
            operation,
            durability: self.durability(),
        });
    }

    fn durability(&self) -> Durability {
        let flushes = self.setting.features.has(FLUSH);
        let cached = flushes && self.shared.writeback.load(Ordering::Relaxed);
        match cached || self.setting.cache == Cache::Unsafe {
            true => Durability::Cached,
            false => Durability::Durable,
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len()
    }

    /// Waits for what is in flight, as long as there is patience. The driver hears of it, unless it
    /// has broken its queue.
    fn drain(&mut self, broken: bool) {
        let deadline = match broken {
            true => Instant::now() + PATIENCE,
            false => self.halt.deadline(),
        };
        let mut cancelled = false;
        while !self.is_idle() {
            // A fault may have come between a request and its beginning, or the host has put it off.
            if let Err(error) = self.engine.kick() {
                tracing::debug!(%error, "a stopping device cannot begin its last requests");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && std::mem::replace(&mut cancelled, true) {
                return;
            }
            if left.is_zero() {
                self.engine.cancel();
            }
            let engine = self.engine.event();
            let watched = &mut [PollFd::new(&engine, PollFlags::IN)];
            if sleep(watched, Some(left.max(Duration::from_millis(1)))).is_err() {
                return;
            }
            self.complete_last(broken);
        }
    }

    fn complete_last(&mut self, broken: bool) {
        if broken {
            for completion in self.engine.completed() {
                let _ = self.land(completion);
            }
            return;
        }
        let memory = self.setting.memory.memory();
        let told = self.complete(&memory);
        if let Err(error) = told.and_then(|()| self.interrupt(&memory)) {
            tracing::debug!(%error, "a stopping device cannot complete a request");
        }
    }

    /// Ends the engine, elsewhere if the host hangs. Returns the queue.
    fn finish(self) -> Queue {
        let hung = !self.is_idle();
        let Self {
            queue,
            engine,
            shared,
            flights,
            name,
            number,
            ..
        } = self;
        if !hung {
            drop(engine);
            shared.lets_go(number);
            return queue;
        }
        let count = flights.iter().flatten().count();
        tracing::error!(
            disk = name,
            requests = count,
            "the host does not complete requests: they are given up, and the device cannot be used \
             until they have ended"
        );
        let lost = Lost::new(&shared);
        let wait = move || {
            drop(engine);
            // Not before: the disk is not replaced under them.
            drop(flights);
            drop(lost);
        };
        // Without a thread the engine is dropped here, which waits: better late than memory that is
        // written to by nobody knows whom.
        if let Err(error) = thread::Builder::new().name("block-lost".into()).spawn(wait) {
            tracing::warn!(%error, "no thread to wait for a disk that hangs");
        }
        queue
    }
}

/// An engine that was given up; the device is not used again as long as there is one.
struct Lost(Arc<std::sync::atomic::AtomicUsize>);

impl Lost {
    fn new(shared: &Shared) -> Self {
        shared.lost.fetch_add(1, Ordering::AcqRel);
        Self(shared.lost.clone())
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Sleeps until something is ready, or time has passed; also if a signal comes.
fn sleep(watched: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<()> {
    // Longer than a timespec can say is for ever.
    let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
    match poll(watched, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
