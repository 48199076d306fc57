//! The switchboard: all connections, by their ports and by the numbers under which epoll knows their sockets.
//! It lives as long as the device, and works while the device does.
//!
//! ```text
//!   Listener ─> Handshakes ─"CONNECT PORT"─> Connection ─────────┐
//!   REQUEST of the guest ─> Listener::connect ─> Connection ─────┤ ready: one packet a turn, round and round
//!   packet of nobody ─> refusals ────────────────────────────────┴─> next(room) ─> the guest
//! ```
//!
//! *Bounds.* Programs and connections are [`CONNECTIONS`] together, each with at most
//! [`BUF_ALLOC`](super::credit::BUF_ALLOC) bytes that wait for the host. Answers that need no connection wait
//! for the guest in a queue; the guest is heard no more while that is long (virtio 1.3, 5.10.6.1).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use umbra_virtio::QueueError;

use super::Id;
use super::connection::{Connection, Fate, Phase, Ports};
use super::handshake::{Handshakes, Said};
use super::packet::{HOST_CID, Header, Op, STREAM};
use super::room::Room;
use super::socket::Listener;

/// Connections, and programs that will have one, of a device.
pub const CONNECTIONS: usize = 4096;
/// Answers that wait for the guest before it is heard no more.
const REFUSALS: usize = 1024;
/// How long either side may take to grant a connection.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// After what time a program that was too busy is asked again.
const RETRY: Duration = Duration::from_millis(10);
/// How long nobody is taken after the host has refused one.
const PAUSE: Duration = Duration::from_millis(100);
/// How many programs are taken before somebody else has a turn.
const TURN: usize = 64;
/// The first port that is given to a program. The last one is the one before twice that.
const FIRST_PORT: u32 = 1 << 30;
/// The first number of a socket; those below are the worker's.
const FIRST_ID: Id = 16;
/// The number of the listener.
pub const LISTENER: Id = 15;

/// What every socket of a connection is watched for.
const ALWAYS: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// The switchboard.
pub struct Switch {
    guest_cid: u64,
    /// The driver knows sockets that are streams.
    pub streams: bool,
    /// What the log calls the device.
    name: String,
    epoll: OwnedFd,
    listener: Listener,
    /// Whether the listener is watched.
    listens: bool,
    /// When it is watched again after the host has refused.
    listens_at: Option<Instant>,
    handshakes: Handshakes,
    connections: HashMap<Id, Connection>,
    ids: HashMap<Ports, Id>,
    /// When those have to be open that are not.
    deadlines: BTreeSet<(Instant, Id)>,
    /// Those whose program is too busy.
    connecting: BTreeSet<Id>,
    retry_at: Option<Instant>,
    /// Those that may have something for the guest.
    ready: VecDeque<Id>,
    /// How many of them are no more.
    stale: usize,
    refusals: VecDeque<Header>,
    next_id: Id,
    next_port: u32,
    /// The log knows that the host refuses.
    told: bool,
}

impl Switch {
    /// Makes one without connections.
    pub fn new(name: String, guest_cid: u64, listener: Listener) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = EventData::new_u64(LISTENER);
        epoll::add(&epoll, listener.socket(), data, EventFlags::IN)?;
        Ok(Self {
            guest_cid,
            streams: true,
            name,
            epoll,
            listener,
            listens: true,
            listens_at: None,
            handshakes: Handshakes::default(),
            connections: HashMap::new(),
            ids: HashMap::new(),
            deadlines: BTreeSet::new(),
            connecting: BTreeSet::new(),
            retry_at: None,
            ready: VecDeque::new(),
            stale: 0,
            refusals: VecDeque::new(),
            next_id: FIRST_ID,
            next_port: FIRST_PORT,
            told: false,
        })
    }

    /// Returns what the log calls the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns where all sockets are watched.
    pub fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Drops all connections. Nobody is told: the guest's driver begins anew, or has failed.
    pub fn clear(&mut self) {
        self.handshakes.clear();
        self.connections.clear();
        self.ids.clear();
        self.deadlines.clear();
        self.connecting.clear();
        self.ready.clear();
        self.stale = 0;
        self.refusals.clear();
        self.retry_at = None;
    }

    /// Gives everybody more time: the device did not work for so long.
    pub fn delay(&mut self, time: Duration) {
        self.handshakes.delay(time);
        self.deadlines.clear();
        for (id, connection) in &mut self.connections {
            if let Some(until) = &mut connection.until {
                *until += time;
                self.deadlines.insert((*until, *id));
            }
        }
    }

    /// Returns when there is something to do, though nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        let all = [
            first,
            self.handshakes.deadline(),
            self.retry_at,
            self.listens_at,
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is to be done by now.
    pub fn expire(&mut self, now: Instant) {
        self.handshakes.expire(now);
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.disarm(id);
            let fate = self.connections.get(&id).map(Connection::give_up);
            self.settle(id, fate.unwrap_or(Fate::Over));
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry();
        }
        if self.listens_at.is_some_and(|at| at <= now) {
            self.listens_at = None;
        }
        self.listen();
    }

    /// Asks programs again that were too busy: each until it is again.
    fn retry(&mut self) {
        self.retry_at = None;
        let mut busy = HashSet::new();
        for id in std::mem::take(&mut self.connecting) {
            let Some(port) = self.connections.get(&id).map(|c| c.ports().host) else {
                continue;
            };
            if busy.contains(&port) {
                self.connecting.insert(id);
            } else {
                self.connect(id);
                if self.connecting.contains(&id) {
                    busy.insert(port);
                }
            }
        }
    }

    /// Watches the listener if one more may come.
    fn listen(&mut self) {
        let wanted = self.listens_at.is_none() && self.has_place();
        if wanted == self.listens {
            return;
        }
        let events = match wanted {
            true => EventFlags::IN,
            false => EventFlags::empty(),
        };
        let data = EventData::new_u64(LISTENER);
        match epoll::modify(&self.epoll, self.listener.socket(), data, events) {
            Ok(()) => self.listens = wanted,
            Err(error) => self.complain(&error.into()),
        }
    }

    fn has_place(&self) -> bool {
        self.connections.len() + self.handshakes.len() < CONNECTIONS
    }

    /// Hears what has happened to a socket.
    pub fn notice(&mut self, id: Id, events: EventFlags) {
        if id == LISTENER {
            return self.accept();
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            let fate = connection.notice(events);
            return self.settle(id, fate);
        }
        let ended = events.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        match self.handshakes.look(id, ended) {
            Some(Said::Port(socket, port)) if self.streams => {
                self.connect_guest(id, socket, port, events);
            }
            _ => {}
        }
    }

    /// Takes programs that want to speak with the guest.
    fn accept(&mut self) {
        for _ in 0..TURN {
            if !self.has_place() {
                return self.listen();
            }
            let watched = match self.listener.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => self.watch_new(socket),
                Err(error) => Err(error),
            };
            match watched {
                Ok((id, socket)) => self.handshakes.add(id, socket, Instant::now()),
                Err(error) => {
                    self.complain(&error);
                    self.listens_at = Some(Instant::now() + PAUSE);
                    return self.listen();
                }
            }
        }
    }

    /// Watches a socket under a new number.
    fn watch_new(&mut self, socket: OwnedFd) -> io::Result<(Id, OwnedFd)> {
        let id = self.new_id();
        self.watch(id, socket).map(|socket| (id, socket))
    }

    fn watch(&self, id: Id, socket: OwnedFd) -> io::Result<OwnedFd> {
        epoll::add(&self.epoll, &socket, EventData::new_u64(id), ALWAYS)?;
        Ok(socket)
    }

    fn new_id(&mut self) -> Id {
        let id = self.next_id;
        // One a nanosecond is done after five hundred years.
        self.next_id += 1;
        id
    }

    /// Logs once that the host refuses, until it does not.
    fn complain(&mut self, error: &io::Error) {
        let device = &*self.name;
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(device, %error, "the host refuses connections of a vsock device; \
                raise the limit of open files if that is why");
        }
    }

    /// Asks the guest for a connection. The program may have gone already, as the events tell.
    fn connect_guest(&mut self, id: Id, socket: OwnedFd, port: u32, events: EventFlags) {
        self.told = false;
        let ports = Ports {
            host: self.new_port(port),
            guest: port,
        };
        let mut connection = Connection::wanted_by_host(ports, socket);
        let fate = connection.notice(events);
        self.add(id, connection);
        self.settle(id, fate);
    }

    /// Finds a port for a program; there are many more than connections.
    fn new_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = match host + 1 {
                end if end == 2 * FIRST_PORT => FIRST_PORT,
                next => next,
            };
            if !self.ids.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn add(&mut self, id: Id, connection: Connection) {
        self.ids.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.arm(id);
    }

    /// A connection has to be open in a while.
    fn arm(&mut self, id: Id) {
        self.disarm(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            let until = Instant::now() + PATIENCE;
            connection.until = Some(until);
            self.deadlines.insert((until, id));
        }
    }

    fn disarm(&mut self, id: Id) {
        let connection = self.connections.get_mut(&id);
        if let Some(until) = connection.and_then(|c| c.until.take()) {
            self.deadlines.remove(&(until, id));
        }
    }

    /// The guest asks for a connection.
    fn connect_host(&mut self, ports: Ports, request: &Header) {
        if !self.has_place() {
            return self.refuse(request);
        }
        let id = self.new_id();
        self.add(id, Connection::wanted_by_guest(ports, request));
        self.connect(id);
    }

    /// Connects to the program that the guest wants, now or a little later.
    fn connect(&mut self, id: Id) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let port = connection.ports().host;
        let connected = self.listener.connect(port);
        match connected.and_then(|socket| self.watch(id, socket)) {
            Ok(socket) => {
                self.told = false;
                self.disarm(id);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.open(socket);
                }
                self.settle(id, Fate::Lives);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.connecting.insert(id);
                let at = Instant::now() + RETRY;
                self.retry_at = Some(self.retry_at.map_or(at, |other| other.min(at)));
            }
            Err(error) => {
                match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        tracing::debug!(
                            device = self.name,
                            port,
                            "nobody serves what the guest wants"
                        );
                    }
                    _ => self.complain(&error),
                }
                self.settle(id, Fate::Reset);
            }
        }
    }

    /// Does what follows for a connection to which something has happened.
    fn settle(&mut self, id: Id, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if fate != Fate::Lives {
            return self.end(id, fate);
        }
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(id);
        }
        let wanted = match connection.is_behind() {
            true => EventFlags::OUT,
            false => EventFlags::empty(),
        };
        if let Some(socket) = connection.socket()
            && connection.watched != wanted
        {
            let data = EventData::new_u64(id);
            match epoll::modify(&self.epoll, socket, data, ALWAYS | wanted) {
                Ok(()) => connection.watched = wanted,
                Err(error) => {
                    self.complain(&error.into());
                    self.end(id, Fate::Reset);
                }
            }
        }
    }

    /// Ends a connection. What the host has not taken yet it still gets, if the guest meant that.
    fn end(&mut self, id: Id, fate: Fate) {
        self.disarm(id);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let (ports, was) = (connection.ports(), connection.phase());
        let queued = std::mem::take(&mut connection.queued);
        let lingers = was != Phase::Lingering && connection.linger();
        if !lingers {
            self.connections.remove(&id);
        }
        if was == Phase::Lingering {
            return;
        }
        self.ids.remove(&ports);
        self.connecting.remove(&id);
        self.forget_ready(queued);
        if fate == Fate::Reset {
            self.refusals.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind: STREAM,
                op: Op::Reset.number(),
                ..Header::default()
            });
        }
    }

    /// One more among those that may have something is no more, if it was among them.
    fn forget_ready(&mut self, was_queued: bool) {
        self.stale += usize::from(was_queued);
        // Rarely enough that it costs nothing, and soon enough that it needs no memory.
        if self.stale > REFUSALS + self.connections.len() {
            let connections = &self.connections;
            let lives = |id: &Id| connections.get(id).is_some_and(|c| c.queued);
            self.ready.retain(lives);
            self.stale = 0;
        }
    }

    /// Tells whether no packet of the guest can be taken now: its answer might have no place.
    pub fn is_full(&self) -> bool {
        self.refusals.len() >= REFUSALS
    }

    fn refuse(&mut self, header: &Header) {
        self.refusals.push_back(header.refusal(self.guest_cid));
    }

    /// Takes a packet of the guest; for `data` see [`Connection::hear`].
    pub fn hear(&mut self, header: &Header, data: &[u8]) {
        let op = Op::of(header.op);
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let ours = header.dst_cid == HOST_CID && header.src_cid == self.guest_cid;
        let ours = ours && self.streams && header.kind == STREAM;
        let id = self.ids.get(&ports).copied().filter(|_| ours);
        match (op, id) {
            // Nobody answers a reset.
            (Some(Op::Reset), None) => {}
            (Some(Op::Reset), Some(id)) => self.end(id, Fate::Over),
            (Some(Op::Request), None) if ours => self.connect_host(ports, header),
            (None | Some(Op::Request), Some(id)) => self.end(id, Fate::Reset),
            (_, None) => self.refuse(header),
            (Some(op), Some(id)) => {
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                let fate = connection.hear(op, header, data);
                if connection.phase() == Phase::Open {
                    self.disarm(id);
                }
                self.settle(id, fate);
            }
        }
    }

    /// Tells whether there may be something for the guest.
    pub fn has_packet(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet for the guest into a room; returns its length, or `None` if there is none.
    pub fn next(&mut self, room: &Room<'_>) -> Result<Option<usize>, QueueError> {
        if let Some(refusal) = self.refusals.pop_front() {
            room.put(&refusal);
            return Ok(Some(Header::LEN));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id).filter(|c| c.queued) else {
                self.stale = self.stale.saturating_sub(1);
                continue;
            };
            connection.queued = false;
            let len = connection.next(self.guest_cid, room)?;
            if connection.phase() == Phase::Asked {
                // It was asked just now.
                self.arm(id);
            }
            self.settle(id, Fate::Lives);
            if len.is_some() {
                return Ok(len);
            }
        }
        Ok(None)
    }
}
