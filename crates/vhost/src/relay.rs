//! The thread between a guest's queues and those of a back end.
//!
//! ```text
//!   guest's ring ── pop, check ──> requests ── lend ──> our ring ──> back end
//!   guest's ring <── push, interrupt ── mark what was written <── take back ──┘
//! ```
//! The back end never sees the guest's rings. It works on rings of the monitor's own, which lead to the
//! guest's buffers, and so:
//!
//! * **What is written is followed.** The software processor keeps decoded code and shadow page tables, and a
//!   write that comes from another process is seen by nobody. Here it is known which buffers a request may
//!   write, and all of them are marked before the guest hears that the request is done. The same marks are the
//!   dirty log's.
//! * **A back end that dies loses nothing.** What it had is known here and is lent to the next one again, in the
//!   order in which the guest had made it available. A request that was done, but not yet reported, is done
//!   twice: for a disk that is the same as once, since the guest does not touch a sector that it is waiting
//!   for.
//! * **Neither end can break the other one's rings.** The guest's are checked as for every device; a back
//!   end's answers are checked against what it was lent.
//!
//! It costs one more thread on the way. Every connection gets rings in new memory: a back end that was given up
//! may still write into the old ones.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use umbra_slots::{DmaMemory, DmaSpace};
use umbra_virtio::{
    Alarm, ChainBuffer, Event, Fault, Features, Interrupt, Notifications, Queue, QueueError,
};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryError};

use crate::back_end::BackEnd;
use crate::gate::{Gate, LOOK};
use crate::link::{Link, Started};
use crate::ring::{Ring, RingFeatures, RingMemory};
use crate::session::{Fate, Session, scatter};
use crate::table::is_within_reach;
use crate::{BackEndError, RingError};

/// A request that the guest has made, and that is not done.
#[derive(Clone, Debug)]
pub struct Request {
    head: u16,
    buffers: Vec<ChainBuffer>,
    /// Bytes that may be written.
    room: u64,
}

/// Requests of one queue that are not done, in their order.
pub type Requests = Vec<Request>;

/// What the thread leaves behind.
#[derive(Debug, Default)]
pub struct Left {
    /// The queues.
    pub queues: Vec<Queue>,
    /// What is not done, by queue.
    pub requests: BTreeMap<u16, Requests>,
    /// What was between driver and back end.
    pub session: Option<Session>,
}

/// What the loss of the back end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// There will be another one, and somebody looks for it.
    IsWaitedOut,
    /// Its queues are lost: the driver has to reset the device.
    NeedsReset,
}

/// Why the thread ends.
enum End {
    Stopped,
    /// The back end is lost, and that is told.
    Lost,
}

/// What the thread works with.
pub struct Relay<B: ?Sized> {
    link: Arc<Link<B>>,
    /// What the driver has accepted, as far as it concerns the back end.
    features: Features,
    memory: DmaSpace,
    interrupt: Arc<Interrupt>,
    lanes: Vec<Lane>,
    /// What is between the driver and the back end that is there.
    session: Session,
    loss: Loss,
    /// The connection on which the rings are.
    on: Option<Arc<B>>,
}

/// A queue of the guest's, and what is behind it.
struct Lane {
    gate: Arc<Gate>,
    queue: Queue,
    ring: Option<Ring>,
    kick: Arc<Event>,
    call: Arc<Event>,
    /// What was taken from the guest, by its turn.
    requests: BTreeMap<usize, Request>,
    next: usize,
    /// What of it is not lent yet.
    waiting: VecDeque<usize>,
    is_due: bool,
}

/// Why a lane does not go on.
enum Stop {
    Guest(QueueError),
    BackEnd(RingError),
}

impl From<QueueError> for Stop {
    fn from(error: QueueError) -> Self {
        Self::Guest(error)
    }
}

impl From<RingError> for Stop {
    fn from(error: RingError) -> Self {
        Self::BackEnd(error)
    }
}

impl<B: BackEnd + ?Sized> Relay<B> {
    /// Makes one for queues, and what is left of them from before; the session is a new one unless one is left.
    ///
    /// # Errors
    /// If the host refuses events.
    pub fn new(
        link: Arc<Link<B>>,
        (session, loss): (Session, Loss),
        (features, memory): (Features, DmaSpace),
        interrupt: Arc<Interrupt>,
        mut left: Left,
    ) -> io::Result<Self> {
        let queues = std::mem::take(&mut left.queues);
        let lanes = queues.into_iter().map(|queue| {
            let requests = left.requests.remove(&queue.index());
            Lane::new(link.gate().clone(), queue, requests.unwrap_or_default())
        });
        Ok(Self {
            session: left.session.take().unwrap_or(session),
            lanes: lanes.collect::<io::Result<_>>()?,
            loss,
            link,
            features,
            memory,
            interrupt,
            on: None,
        })
    }

    /// Works until it is stopped.
    pub fn run(mut self, stop: &Event) -> Left {
        let _alarm = Alarm(self.interrupt.clone());
        let end = self.work(stop);
        match &end {
            Ok(End::Stopped) => {}
            Ok(End::Lost) => self.interrupt.needs_reset(),
            Err(fault) => fault.tell(self.link.name(), &self.interrupt),
        }
        if let Ok(End::Stopped) = end {
            self.drain();
        }
        self.link.stop();
        if let Ok(End::Stopped) = end {
            self.finish();
        }
        self.link.gate().clear();
        let mut left = Left {
            session: Some(self.session),
            ..Left::default()
        };
        for lane in self.lanes {
            let requests: Vec<_> = lane.requests.into_values().collect();
            left.requests.insert(lane.queue.index(), requests);
            left.queues.push(lane.queue);
        }
        left
    }

    /// Waits for what the back end has, where that is done before it is stopped; see [`Gate`]. The guest gets it.
    fn drain(&mut self) {
        let begin = Instant::now();
        while self.link.gate().is_waited_for(begin)
            && same(self.on.as_ref(), self.link.channel().as_ref())
        {
            self.finish();
            std::thread::sleep(LOOK);
        }
    }

    /// Gives the guest what was done until the back end stopped.
    fn finish(&mut self) {
        let memory = self.memory.memory();
        for lane in &mut self.lanes {
            if let Err(Stop::Guest(error)) = lane.collect(&memory, &self.interrupt) {
                tracing::debug!(%error, "a stopping device cannot complete a request");
            }
        }
    }

    fn work(&mut self, stop: &Event) -> Result<End, Fault> {
        loop {
            self.connect()?;
            if self.loss == Loss::NeedsReset && self.is_lost() {
                return Ok(End::Lost);
            }
            self.serve()?;
            if self.wait(stop)? {
                return Ok(End::Stopped);
            }
        }
    }

    /// Tells whether the back end is gone, or says that it cannot go on, after which it is.
    fn is_lost(&self) -> bool {
        if let Some(on) = &self.on
            && self.link.fault().take()
        {
            self.link.lose(on, &BackEndError::Faulted);
        }
        self.link.channel().is_none()
    }

    /// Waits until there is something to do; `true` if it is time to stop.
    fn wait(&mut self, stop: &Event) -> io::Result<bool> {
        let mut watched = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(self.link.news(), PollFlags::IN),
        ];
        for lane in &self.lanes {
            watched.push(PollFd::new(&**lane.queue.event(), PollFlags::IN));
            watched.push(PollFd::new(&*lane.call, PollFlags::IN));
        }
        if self.loss == Loss::NeedsReset {
            watched.push(PollFd::new(&**self.link.fault(), PollFlags::IN));
        }
        let now = rustix::event::Timespec::default();
        let is_due = self.lanes.iter().any(|lane| lane.is_due);
        match poll(&mut watched, is_due.then_some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let signalled: Vec<_> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        // Each take is a system call: most have nothing to take.
        for (lane, signalled) in self.lanes.iter_mut().zip(signalled[2..].chunks(2)) {
            if signalled[0] {
                lane.queue.event().take();
            }
            if signalled[1] {
                lane.call.take();
            }
            lane.is_due |= signalled[0] | signalled[1];
        }
        if signalled[1] {
            self.link.news().take();
        }
        Ok(signalled[0] && stop.take())
    }

    /// Begins anew if there is another connection than that on which the rings are.
    fn connect(&mut self) -> Result<(), QueueError> {
        let channel = self.link.channel();
        if same(self.on.as_ref(), channel.as_ref()) {
            return Ok(());
        }
        if self.on.take().is_some() {
            self.lost()?;
        }
        if let Some(channel) = channel {
            self.on = Some(channel.clone());
            if let Err(error) = self.start(&channel) {
                // Unless it is the keeper that knows already.
                self.link.lose(&channel, &error);
            }
        }
        Ok(())
    }

    /// The back end is gone: the driver is told what it has to know.
    fn lost(&mut self) -> Result<(), QueueError> {
        self.session.lost();
        self.link.gate().clear();
        let memory = self.memory.memory();
        for lane in &mut self.lanes {
            lane.ring = None;
            lane.tell(&memory, &self.interrupt, &mut self.session)?;
            lane.is_due = true;
        }
        Ok(())
    }

    fn start(&mut self, channel: &Arc<B>) -> Result<(), BackEndError> {
        let offered = channel.offer().features;
        let rings = RingFeatures {
            indirect: offered.has(Features::INDIRECT_DESC),
            event_idx: offered.has(Features::EVENT_IDX),
        };
        let theirs = |lane: &&mut Lane| !self.session.is_ours(lane.queue.index());
        let theirs: Vec<_> = self.lanes.iter_mut().filter(theirs).collect();
        let sizes: Vec<_> = theirs.iter().map(|lane| lane.size()).collect();
        let memory = RingMemory::new(&sizes, channel.offer().rings_at)?;
        let started: Vec<_> = theirs
            .into_iter()
            .enumerate()
            .map(|(at, lane)| {
                let fault = self.link.fault().clone();
                lane.begin(Ring::new(&memory, at, rings), fault)
            })
            .collect();
        let ring_bits = Features::INDIRECT_DESC.with(Features::EVENT_IDX);
        let features = self.features.with(offered.common(ring_bits));
        let map = self.memory.hold();
        let link = &self.link;
        link.start(&map, channel, features, (memory.piece(), started))
    }

    fn serve(&mut self) -> Result<(), Fault> {
        // Dropped before the next wait: who takes memory away finds nobody that keeps it.
        let memory = self.memory.memory();
        let mut broken = None;
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_due) {
            lane.is_due = false;
            match lane.serve(&memory, &self.interrupt, &mut self.session) {
                Ok(()) => {}
                Err(Stop::Guest(error)) => return Err(error.into()),
                Err(Stop::BackEnd(error)) => broken = Some(error),
            }
        }
        if let (Some(error), Some(on)) = (broken, &self.on) {
            self.link.lose(on, &error.into());
        }
        Ok(())
    }
}

/// Tells whether both are the same connection, or none.
fn same<B: ?Sized>(one: Option<&Arc<B>>, other: Option<&Arc<B>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

impl Lane {
    fn new(gate: Arc<Gate>, queue: Queue, requests: Requests) -> io::Result<Self> {
        let next = requests.len();
        Ok(Self {
            gate,
            queue,
            ring: None,
            kick: Arc::new(Event::new()?),
            call: Arc::new(Event::new()?),
            requests: requests.into_iter().enumerate().collect(),
            next,
            waiting: VecDeque::new(),
            is_due: true,
        })
    }

    fn size(&self) -> u16 {
        self.queue.state().size
    }

    /// Takes a ring that nobody has used, and lends it everything that is not done.
    fn begin(&mut self, ring: Ring, fault: Arc<Event>) -> Started {
        let started = Started {
            index: self.queue.index(),
            place: ring.place(),
            kick: self.kick.clone(),
            call: self.call.clone(),
            fault,
        };
        self.ring = Some(ring);
        self.waiting = self.requests.keys().copied().collect();
        self.lend();
        self.is_due = true;
        started
    }

    /// Lends what waits, as far as there is room.
    fn lend(&mut self) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        let gate = &self.gate;
        while let Some(turn) = self.waiting.front()
            && gate.enter()
        {
            if !ring.lend(*turn, &self.requests[turn].buffers) {
                gate.leave();
                break;
            }
            self.waiting.pop_front();
        }
        if ring.publish() {
            self.kick.signal();
        }
    }

    fn serve(
        &mut self,
        memory: &DmaMemory,
        interrupt: &Interrupt,
        session: &mut Session,
    ) -> Result<(), Stop> {
        self.collect(memory, interrupt)?;
        // What came back has left room.
        self.lend();
        self.take(memory, interrupt, session)?;
        self.lend();
        if self.ring.as_mut().is_some_and(|ring| ring.expect(true)) {
            self.is_due = true;
        }
        Ok(())
    }

    /// Gives the guest what the back end has done.
    fn collect(&mut self, memory: &DmaMemory, interrupt: &Interrupt) -> Result<(), Stop> {
        let Some(ring) = &mut self.ring else {
            return Ok(());
        };
        ring.expect(false);
        let mut used = Vec::new();
        let ended = loop {
            let (turn, written) = match ring.take_back() {
                Ok(Some(done)) => done,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let request = self.requests.remove(&turn);
            let request = request.expect("what is lent is not done, and comes back once");
            self.gate.leave();
            request.mark(memory);
            let written = u64::from(written).min(request.room);
            used.push((request.head, written as u32));
        };
        // In one step, as the back end has done it: a frame may be in several chains, and a driver that sees some
        // of them drops it (virtio 1.3, 5.1.6.4).
        self.queue.push_all(memory, &used)?;
        self.interrupt(memory, interrupt, !used.is_empty())?;
        Ok(ended?)
    }

    /// Takes what the guest has made available, as long as no more than a ring full of it is not done.
    fn take(
        &mut self,
        memory: &DmaMemory,
        interrupt: &Interrupt,
        session: &mut Session,
    ) -> Result<(), QueueError> {
        self.queue.expect(memory, Notifications::Unwanted)?;
        let mut done = false;
        // At most once around the ring: what is answered here takes no room.
        for _ in 0..self.size() {
            // What comes back is a reason to look again.
            if self.requests.len() == usize::from(self.size()) {
                return self.interrupt(memory, interrupt, done);
            }
            let Some(chain) = self.queue.pop(memory)? else {
                self.is_due |= self.queue.expect(memory, Notifications::Wanted)?;
                return self.interrupt(memory, interrupt, done);
            };
            let request = Request::new(chain.head(), chain.buffers()?, memory)?;
            match request.fate(self.queue.index(), memory, session, self.ring.is_some())? {
                Fate::Done(written) => {
                    self.queue.push(memory, request.head, written)?;
                    done = true;
                }
                // A connection is a reason to look again.
                Fate::Waits => {
                    self.queue.unpop();
                    return self.interrupt(memory, interrupt, done);
                }
                Fate::Theirs => {
                    self.requests.insert(self.next, request);
                    self.waiting.push_back(self.next);
                    self.next += 1;
                }
            }
        }
        self.is_due = true;
        self.interrupt(memory, interrupt, done)
    }

    fn interrupt(
        &mut self,
        memory: &DmaMemory,
        interrupt: &Interrupt,
        done: bool,
    ) -> Result<(), QueueError> {
        if done && self.queue.needs_interrupt(memory)? {
            interrupt.used_buffers(self.queue.index());
        }
        Ok(())
    }

    /// Tells the driver what the end of the back end means for what is not done.
    fn tell(
        &mut self,
        memory: &DmaMemory,
        interrupt: &Interrupt,
        session: &mut Session,
    ) -> Result<(), QueueError> {
        let mut done = Vec::new();
        let mut news = session.news(self.queue.index());
        for (turn, request) in &self.requests {
            let written = match news.take() {
                Some(news) => Some(request.fill(memory, news)?),
                None => match request.fate(self.queue.index(), memory, session, false)? {
                    Fate::Done(written) => Some(written),
                    Fate::Theirs | Fate::Waits => None,
                },
            };
            done.extend(written.map(|written| (*turn, request.head, written)));
        }
        for (turn, head, written) in &done {
            self.requests.remove(turn);
            self.queue.push(memory, *head, *written)?;
        }
        self.interrupt(memory, interrupt, !done.is_empty())
    }
}

impl Request {
    /// Checks that all of it is memory that the back end has.
    fn new(
        head: u16,
        mut buffers: Vec<ChainBuffer>,
        memory: &DmaMemory,
    ) -> Result<Self, QueueError> {
        // Empty ones say nothing, and not every back end takes them.
        if buffers.iter().any(|buffer| buffer.len != 0) {
            buffers.retain(|buffer| buffer.len != 0);
        }
        for buffer in &buffers {
            if !is_within_reach(memory.map(), buffer.at, buffer.len.into()) {
                let source = GuestMemoryError::InvalidGuestAddress(GuestAddress(buffer.at.0));
                return Err(QueueError::Memory { head, source });
            }
        }
        let writable = buffers.iter().filter(|buffer| buffer.is_writable);
        let room = writable.map(|buffer| u64::from(buffer.len)).sum();
        Ok(Self {
            head,
            buffers,
            room,
        })
    }

    /// See [`Session::fate`].
    fn fate(
        &self,
        queue: u16,
        memory: &DmaMemory,
        session: &mut Session,
        connected: bool,
    ) -> Result<Fate, QueueError> {
        let fate = session.fate(queue, &self.buffers, memory, connected);
        fate.map_err(|source| self.out_of_reach(source))
    }

    /// Writes what it can be answered with.
    fn fill(&self, memory: &DmaMemory, bytes: &[u8]) -> Result<u32, QueueError> {
        scatter(&self.buffers, memory, bytes).map_err(|source| self.out_of_reach(source))
    }

    fn out_of_reach(&self, source: GuestMemoryError) -> QueueError {
        let head = self.head;
        QueueError::Memory { head, source }
    }

    /// Marks all that may have been written: a back end may write more than it tells of (virtio 1.3, 2.7.8.2).
    fn mark(&self, memory: &DmaMemory) {
        for buffer in self.buffers.iter().filter(|buffer| buffer.is_writable) {
            memory.mark_dirty(buffer.at.0 as usize, buffer.len as usize);
        }
    }
}
