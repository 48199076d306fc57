//! A pair of queues at work, on a thread of its own.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use umbra_net::{FRAME_MAX, Header, Port, Sent};
use umbra_slots::{DmaMemory, DmaSpace};
use umbra_virtio::{Alarm, Chain, Event, Fault, Interrupt, Notifications, Queue, QueueError};

use super::control;
use super::shared::Shared;
use super::throttle::{self, Throttle};

/// Frames that are taken from a port before somebody else has a turn.
const TURN: usize = 256;

/// The queues of a pair, as far as the driver has set them up.
#[derive(Default)]
pub struct Queues {
    pub receive: Option<Queue>,
    pub transmit: Option<Queue>,
    /// Of the first pair.
    pub control: Option<Queue>,
}

impl Queues {
    pub fn is_empty(&self) -> bool {
        self.receive.is_none() && self.transmit.is_none() && self.control.is_none()
    }
}

/// A port, and what was taken from it and did not reach the driver.
pub struct Source {
    pub port: Box<dyn Port>,
    pub pending: Option<Vec<u8>>,
}

/// The pair.
pub struct Pair {
    index: usize,
    port: Box<dyn Port>,
    queues: Queues,
    /// The driver takes a frame in several buffers.
    merges: bool,
    shared: Arc<Shared>,
    memory: DmaSpace,
    interrupt: Arc<Interrupt>,
    input: Box<[u8]>,
    /// Bytes of a frame in `input` that waits for buffers.
    pending: Option<usize>,
    output: Box<[u8]>,
    state: State,
}

/// What the pair has to do, and waits for.
struct State {
    /// The port is of no use any more.
    gone: bool,
    /// There may be frames in the port.
    receive: bool,
    /// The driver has no buffers: nothing is received until it notifies.
    starved: bool,
    /// The limit of what is received.
    receive_throttle: Throttle,
    /// There may be frames to send.
    transmit: bool,
    /// The port has no room for the next one.
    blocked: bool,
    /// The limit of what is sent.
    transmit_throttle: Throttle,
    control: bool,
}

impl Pair {
    pub fn new(
        index: usize,
        source: Source,
        queues: Queues,
        merges: bool,
        shared: Arc<Shared>,
        memory: DmaSpace,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        let buffer = || vec![0; FRAME_MAX].into_boxed_slice();
        let mut input = buffer();
        let pending = source.pending.map(|frame| {
            input[..frame.len()].copy_from_slice(&frame);
            frame.len()
        });
        Self {
            index,
            port: source.port,
            queues,
            merges,
            shared,
            memory,
            interrupt,
            input,
            pending,
            output: buffer(),
            state: State {
                gone: false,
                receive: true,
                starved: false,
                receive_throttle: Throttle::default(),
                transmit: true,
                blocked: false,
                transmit_throttle: Throttle::default(),
                control: true,
            },
        }
    }

    /// Gives back what it was made of.
    pub fn dismantle(self) -> (usize, Source, impl Iterator<Item = Queue>) {
        let Queues {
            receive,
            transmit,
            control,
        } = self.queues;
        let queues = [receive, transmit, control].into_iter().flatten();
        let source = Source {
            port: self.port,
            pending: self.pending.map(|len| self.input[..len].to_vec()),
        };
        (self.index, source, queues)
    }

    /// Works until it is stopped, or the driver breaks the rules.
    pub fn run(mut self, stop: &Event) -> Self {
        let _alarm = Alarm(self.interrupt.clone());
        // Whoever was told to stop before this pair began wants it now.
        self.shared.wake(self.index).signal();
        loop {
            match self.wait(stop) {
                Ok(true) if !self.shared.is_failed() => {}
                Ok(_) => return self,
                Err(error) => {
                    self.fail(&error.into());
                    return self;
                }
            }
            if let Err(fault) = self.work() {
                self.fail(&fault);
                return self;
            }
        }
    }

    fn fail(&self, fault: &Fault) {
        fault.tell(&self.shared.name, &self.interrupt);
        self.shared.fail();
    }

    /// Tells whether frames come by this pair, and can be given to the driver, or dropped, now.
    fn listens(&self) -> bool {
        let state = &self.state;
        let held = state.starved || state.receive_throttle.waits();
        let used = self.queues.receive.is_some() && self.shared.is_active(self.index);
        !state.gone && used && !(held && self.shared.is_up())
    }

    /// Tells whether frames can be sent, or dropped, now.
    fn sends(&self) -> bool {
        let state = &self.state;
        let held = state.blocked || state.transmit_throttle.waits();
        state.transmit && !(held && self.shared.is_up())
    }

    /// Tells whether there is something to do without waiting.
    fn is_busy(&self) -> bool {
        self.state.receive && self.listens() || self.sends() || self.state.control
    }

    /// How long to wait, if nothing happens; for ever if there is no end.
    fn patience(&self) -> Option<Duration> {
        if self.is_busy() {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let State {
            receive_throttle,
            transmit_throttle,
            ..
        } = &self.state;
        let both = [receive_throttle, transmit_throttle];
        let limits = both.iter().filter_map(|throttle| throttle.patience(now));
        let due = self.due().map(|due| due.saturating_duration_since(now));
        limits.chain(due).min()
    }

    /// When the port has something by itself, if that can be given to the driver.
    fn due(&self) -> Option<Instant> {
        self.port.due().filter(|_| self.listens())
    }

    /// Waits for something to do; `false` if it is time to stop.
    fn wait(&mut self, stop: &Event) -> io::Result<bool> {
        let patience = self.patience();
        let mut on_port = PollFlags::empty();
        if self.listens() {
            on_port |= PollFlags::IN;
        }
        if !self.state.gone && (self.state.blocked || self.port.has_unsent()) {
            on_port |= PollFlags::OUT;
        }
        let wake = self.shared.wake(self.index);
        let Queues {
            receive,
            transmit,
            control,
        } = &self.queues;
        let events = [receive, transmit, control].map(|queue| queue.as_ref().map(Queue::event));
        let mut watched = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
        ];
        watched.extend(
            events
                .iter()
                .flatten()
                .map(|event| PollFd::new(&***event, PollFlags::IN)),
        );
        let port = self.port.fd();
        if !on_port.is_empty() {
            // An error on the port is heard of without being asked for, and by nobody who waits for
            // nothing.
            watched.push(PollFd::new(&port, on_port));
        }
        // Longer than a timespec can say is for ever.
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let on_port = match on_port.is_empty() {
            true => PollFlags::empty(),
            false => watched.last().map_or(PollFlags::empty(), PollFd::revents),
        };
        drop(watched);
        if stop.take() {
            return Ok(false);
        }
        let [received, transmitted, controlled] =
            events.map(|event| event.is_some_and(|e| e.take()));
        if wake.take() {
            self.switch();
        }
        let failed = on_port.intersects(PollFlags::ERR | PollFlags::HUP);
        let state = &mut self.state;
        state.receive |= failed || on_port.contains(PollFlags::IN) || received;
        state.starved &= !received;
        state.blocked &= !failed && !on_port.contains(PollFlags::OUT);
        state.transmit |= transmitted;
        state.control |= controlled;
        if patience.is_some() {
            // In this order: what is due now has been by then.
            let due = self.due();
            let now = Instant::now();
            let state = &mut self.state;
            state.receive |= due.is_some_and(|due| due <= now);
            state.receive_throttle.expire(now);
            state.transmit_throttle.expire(now);
        }
        Ok(true)
    }

    /// Follows a change of how many pairs are used, of a limit, or of the link.
    fn switch(&mut self) {
        let on = self.shared.is_active(self.index);
        if !self.state.gone
            && let Err(error) = self.port.enable(on)
        {
            self.lose(&error);
        }
        let state = &mut self.state;
        state.receive = on;
        state.receive_throttle.wake();
        state.transmit_throttle.wake();
    }

    fn work(&mut self) -> Result<(), Fault> {
        // Dropped before the next wait: who takes memory away finds nobody that keeps it.
        let memory = self.memory.memory();
        if std::mem::take(&mut self.state.control) {
            self.control(&memory)?;
        }
        if !self.state.gone
            && let Err(error) = self.port.flush()
        {
            self.lose(&error);
        }
        if self.sends() {
            self.transmit(&memory)?;
        }
        if self.state.receive && self.listens() {
            self.receive(&memory)?;
        }
        Ok(())
    }

    fn control(&mut self, memory: &DmaMemory) -> Result<(), Fault> {
        let Some(queue) = &mut self.queues.control else {
            return Ok(());
        };
        let served = queue.serve(memory, &self.interrupt, |chain| {
            control::obey(&self.shared, chain).map(Some)
        })?;
        self.state.control = served != umbra_virtio::Served::All;
        Ok(())
    }

    /// Sends what the driver has made available, one round at most.
    fn transmit(&mut self, memory: &DmaMemory) -> Result<(), Fault> {
        let Some(mut queue) = self.queues.transmit.take() else {
            self.state.transmit = false;
            return Ok(());
        };
        let interrupt = self.interrupt.clone();
        let served = queue.serve(memory, &interrupt, |chain| self.send(chain));
        self.queues.transmit = Some(queue);
        self.state.transmit = served? != umbra_virtio::Served::All;
        Ok(())
    }

    /// Sends the frame of a chain; `None` if there is no room for it now.
    fn send(&mut self, chain: &Chain<'_>) -> Result<Option<u32>, Fault> {
        let mut reader = chain.reader()?;
        let len = reader.available_bytes();
        if len < Header::LEN {
            return Err(QueueError::Short { head: chain.head() }.into());
        }
        let counters = &self.shared.counters;
        let empty = len == Header::LEN;
        if empty || len > FRAME_MAX || self.state.gone || !self.shared.is_up() {
            counters.dropped_out.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(0));
        }
        let limiter = &self.shared.transmit_limiter;
        let throttle = &mut self.state.transmit_throttle;
        if !throttle.admits(limiter, len, &counters.throttled_out) {
            return Ok(None);
        }
        let frame = &mut self.output[..len];
        reader.read_exact(frame)?;
        let sent = self.port.send(frame);
        if !matches!(sent, Ok(Sent::Later)) {
            throttle::charge(limiter, len);
        }
        match sent {
            Ok(Sent::Done) => counters.sent.add(len - Header::LEN),
            Ok(Sent::Later) => {
                self.state.blocked = true;
                return Ok(None);
            }
            Ok(Sent::Dropped) => {
                counters.dropped_out.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                counters.dropped_out.fetch_add(1, Ordering::Relaxed);
                self.lose(&error);
            }
        }
        Ok(Some(0))
    }

    /// Gives the driver what the port has.
    fn receive(&mut self, memory: &DmaMemory) -> Result<(), Fault> {
        let Some(mut queue) = self.queues.receive.take() else {
            return Ok(());
        };
        let result = self.receive_into(&mut queue, memory);
        self.queues.receive = Some(queue);
        result
    }

    fn receive_into(&mut self, queue: &mut Queue, memory: &DmaMemory) -> Result<(), Fault> {
        // Buffers that are added need no notification, but where none are left.
        queue.expect(memory, Notifications::Unwanted)?;
        let mut pushed = false;
        for _ in 0..TURN {
            let Some(len) = self.take_frame() else {
                self.state.receive = false;
                break;
            };
            let counters = &self.shared.counters;
            if !self.is_wanted(len) {
                counters.dropped_in.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let limiter = &self.shared.receive_limiter;
            let throttle = &mut self.state.receive_throttle;
            if !throttle.admits(limiter, len, &counters.throttled_in) {
                self.pending = Some(len);
                break;
            }
            match self.deliver(queue, memory, len)? {
                Delivery::Done => {
                    pushed = true;
                    throttle::charge(&self.shared.receive_limiter, len);
                    self.shared.counters.received.add(len - Header::LEN);
                }
                Delivery::Dropped => {
                    let dropped = &self.shared.counters.dropped_in;
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
                Delivery::NoBuffers => {
                    self.pending = Some(len);
                    self.state.starved = true;
                    break;
                }
            }
        }
        if pushed && queue.needs_interrupt(memory)? {
            self.interrupt.used_buffers(queue.index());
        }
        Ok(())
    }

    /// The next frame, in `input`; `None` if there is none.
    fn take_frame(&mut self) -> Option<usize> {
        if let Some(len) = self.pending.take() {
            return Some(len);
        }
        match self.port.receive(&mut self.input) {
            Ok(len) => len,
            Err(error) => {
                self.lose(&error);
                None
            }
        }
    }

    /// Tells whether the driver is to have a frame of that length.
    fn is_wanted(&self, len: usize) -> bool {
        // The other end may send frames without a byte, and behind them good ones.
        (Header::LEN + 1..=FRAME_MAX).contains(&len) && self.shared.is_up()
    }

    fn deliver(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        len: usize,
    ) -> Result<Delivery, Fault> {
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < len {
            let Some(chain) = queue.pop(memory)? else {
                // Asked before the others are given back: they have been notified of, and do not help.
                if queue.expect(memory, Notifications::Wanted)? {
                    continue;
                }
                chains.iter().for_each(|_| queue.unpop());
                return Ok(Delivery::NoBuffers);
            };
            let writer = chain.writer()?;
            let more = writer.available_bytes();
            if more == 0 || chains.is_empty() && more < Header::LEN {
                return Err(QueueError::Short { head: chain.head() }.into());
            }
            room += more;
            chains.push((chain, writer));
            if !self.merges && room < len {
                queue.unpop();
                return Ok(Delivery::Dropped);
            }
        }
        let count = chains.len() as u16;
        let frame = &mut self.input[..len];
        frame[Header::BUFFERS..Header::LEN].copy_from_slice(&count.to_le_bytes());
        let mut rest = &frame[..];
        let mut used = Vec::with_capacity(chains.len());
        for (chain, mut writer) in chains {
            let (piece, behind) = rest.split_at(rest.len().min(writer.available_bytes()));
            writer.write_all(piece)?;
            used.push((chain.head(), piece.len() as u32));
            rest = behind;
        }
        queue.push_all(memory, &used)?;
        Ok(Delivery::Done)
    }

    /// The port is of no use any more.
    fn lose(&mut self, error: &io::Error) {
        self.state.gone = true;
        self.state.blocked = false;
        if self.shared.lose() {
            let device = &*self.shared.name;
            tracing::warn!(device, %error, "a network device has lost its link to the host");
        }
    }
}

/// What became of a frame for the driver.
enum Delivery {
    Done,
    /// It is too large for a buffer.
    Dropped,
    NoBuffers,
}
