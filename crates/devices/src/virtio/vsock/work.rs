//! The device's thread: one epoll for the queues, the listener and all sockets.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use umbra_slots::{DmaMemory, DmaSpace};
use umbra_virtio::{
    Alarm, Chain, Event, Fault, Interrupt, Notifications, Queue, QueueError, Served,
};

use super::Id;
use super::credit::BUF_ALLOC;
use super::packet::Header;
use super::room::Room;
use super::switch::Switch;

/// Numbers of what is waited for, besides sockets.
const STOP: Id = 0;
const RECEIVE: Id = 1;
const TRANSMIT: Id = 2;

/// Events that are taken at a time.
const EVENTS: usize = 256;
/// Packets that the guest gets before somebody else has a turn.
const TURN: usize = 256;

/// The queues, as far as the driver has set them up.
#[derive(Default)]
pub struct Queues {
    pub receive: Option<Queue>,
    pub transmit: Option<Queue>,
    /// Nothing happens that a driver would hear of by this one.
    pub event: Option<Queue>,
}

impl Queues {
    pub fn sort(queues: Vec<Queue>) -> Self {
        let mut sorted = Self::default();
        for queue in queues {
            match queue.index() {
                0 => sorted.receive = Some(queue),
                1 => sorted.transmit = Some(queue),
                _ => sorted.event = Some(queue),
            }
        }
        sorted
    }

    pub fn all(self) -> Vec<Queue> {
        let all = [self.receive, self.transmit, self.event];
        all.into_iter().flatten().collect()
    }
}

/// What the thread works with.
pub struct Work {
    switch: Switch,
    queues: Queues,
    memory: DmaSpace,
    interrupt: Arc<Interrupt>,
    /// The data of a packet.
    data: Box<[u8]>,
    /// There may be packets of the guest.
    transmit: bool,
    /// The driver has no buffers for packets: it gets none until it notifies.
    starved: bool,
}

impl Work {
    pub fn new(
        switch: Switch,
        queues: Queues,
        memory: DmaSpace,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        Self {
            starved: queues.receive.is_none(),
            transmit: queues.transmit.is_some(),
            switch,
            queues,
            memory,
            interrupt,
            data: vec![0; BUF_ALLOC as usize].into_boxed_slice(),
        }
    }

    /// Gives back what it was made of.
    pub fn dismantle(self) -> (Switch, Vec<Queue>) {
        (self.switch, self.queues.all())
    }

    /// Works until it is stopped, or the driver breaks the rules.
    pub fn run(mut self, stop: &Event) -> Self {
        let _alarm = Alarm(self.interrupt.clone());
        let result = self.watch(stop).and_then(|()| self.work(stop));
        self.unwatch(stop);
        if let Err(fault) = result {
            fault.tell(self.switch.name(), &self.interrupt);
            // Nothing of them can go on.
            self.switch.clear();
        }
        self
    }

    fn watch(&self, stop: &Event) -> Result<(), Fault> {
        let add = |id, event: &Event| {
            let data = EventData::new_u64(id);
            epoll::add(self.switch.epoll(), event, data, EventFlags::IN).map_err(io::Error::from)
        };
        add(STOP, stop)?;
        for (id, queue) in [
            (RECEIVE, &self.queues.receive),
            (TRANSMIT, &self.queues.transmit),
        ] {
            if let Some(queue) = queue {
                add(id, queue.event())?;
            }
        }
        Ok(())
    }

    /// The events live on, and their next owner watches them.
    fn unwatch(&self, stop: &Event) {
        let queues = [&self.queues.receive, &self.queues.transmit];
        let events = queues.into_iter().flatten().map(|queue| &**queue.event());
        for event in events.chain([stop]) {
            // One that is not watched need not be.
            let _ = epoll::delete(self.switch.epoll(), event);
        }
    }

    fn work(&mut self, stop: &Event) -> Result<(), Fault> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.wait(&mut events)?;
            for event in events.drain(..) {
                match event.data.u64() {
                    STOP => {}
                    RECEIVE => self.starved &= !notified(&self.queues.receive),
                    TRANSMIT => self.transmit |= notified(&self.queues.transmit),
                    id => self.switch.notice(id, event.flags),
                }
            }
            if stop.take() {
                return Ok(());
            }
            self.switch.expire(Instant::now());
            // Dropped before the next wait: who takes memory away finds nobody that keeps it.
            let memory = self.memory.memory();
            self.transmit(&memory)?;
            self.receive(&memory)?;
        }
    }

    /// Tells whether there is something to do without waiting.
    fn is_busy(&self) -> bool {
        let hears = self.transmit && !self.switch.is_full();
        hears || !self.starved && self.switch.has_packet()
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let timeout = match self.is_busy() {
            true => Some(Timespec::default()),
            false => self.switch.deadline().map(until),
        };
        match epoll::wait(
            self.switch.epoll(),
            spare_capacity(events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what the driver has made available, one round at most.
    fn transmit(&mut self, memory: &DmaMemory) -> Result<(), Fault> {
        let Some(queue) = self.queues.transmit.as_mut().filter(|_| self.transmit) else {
            return Ok(());
        };
        let (switch, data) = (&mut self.switch, &mut self.data);
        let served = queue.serve(memory, &self.interrupt, |chain| hear(switch, data, chain))?;
        self.transmit = served != Served::All;
        Ok(())
    }

    /// Gives the driver what there is for it.
    fn receive(&mut self, memory: &DmaMemory) -> Result<(), Fault> {
        let Some(queue) = self.queues.receive.as_mut().filter(|_| !self.starved) else {
            return Ok(());
        };
        if !self.switch.has_packet() {
            return Ok(());
        }
        // Buffers that are added need no notification, but where none are left.
        queue.expect(memory, Notifications::Unwanted)?;
        let mut pushed = false;
        for _ in 0..TURN {
            if !self.switch.has_packet() {
                break;
            }
            let Some(chain) = queue.pop(memory)? else {
                if queue.expect(memory, Notifications::Wanted)? {
                    continue;
                }
                self.starved = true;
                break;
            };
            let room = Room::of(&chain, memory)?;
            let Some(len) = self.switch.next(&room)? else {
                queue.unpop();
                break;
            };
            queue.push(memory, chain.head(), len as u32)?;
            pushed = true;
        }
        if pushed && queue.needs_interrupt(memory)? {
            self.interrupt.used_buffers(queue.index());
        }
        Ok(())
    }
}

/// Takes a notification.
fn notified(queue: &Option<Queue>) -> bool {
    queue.as_ref().is_some_and(|queue| queue.event().take())
}

/// How long it is until then, in milliseconds that are not too few.
fn until(at: Instant) -> Timespec {
    let left = at.saturating_duration_since(Instant::now());
    let left = left.as_millis() as i64 + 1;
    Timespec {
        tv_sec: left / 1000,
        tv_nsec: left % 1000 * 1_000_000,
    }
}

/// Takes the packet of a chain; `None` if it has to wait.
fn hear(switch: &mut Switch, data: &mut [u8], chain: &Chain<'_>) -> Result<Option<u32>, Fault> {
    if switch.is_full() {
        return Ok(None);
    }
    let short = || QueueError::Short { head: chain.head() };
    let mut reader = chain.reader()?;
    let mut header = [0; Header::LEN];
    reader.read_exact(&mut header).map_err(|_| short())?;
    let header = Header::of(&header);
    let len = header.len as usize;
    if reader.available_bytes() < len {
        return Err(short().into());
    }
    // More than any connection may send is refused without being looked at.
    let data = data.get_mut(..len).unwrap_or_default();
    reader.read_exact(data)?;
    switch.hear(&header, data);
    Ok(Some(0))
}
