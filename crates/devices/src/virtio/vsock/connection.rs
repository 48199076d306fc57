//! One connection: a socket of the host, and what the guest is owed.
//!
//! ```text
//!   guest connects:  Connecting ── the host's program is there ──> Open, RESPONSE owed
//!   host connects:   Asked, REQUEST owed ── RESPONSE of the guest ──> Open, "OK PORT" is said
//!
//!   Open   guest ── data ──> backlog ──> socket      each direction ends for itself: SHUTDOWN of the guest,
//!          guest <── data ────────────── socket      the socket's end or an error of it
//!   over   both ended by the guest: RESET, and the socket is closed
//!          both ended by the host: SHUTDOWN, the socket is closed, and the guest resets when it has read all
//! ```
//!
//! What the guest has sent before it ended a connection still goes to the host (`Lingering`), where the guest
//! knows nothing of the connection any more.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::net::{Shutdown, shutdown};
use umbra_virtio::QueueError;

use super::credit::Credit;
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM};
use super::room::{Left, Room};
use super::socket::send_some;

/// Bytes of the longest packet to the guest.
const PACKET_MAX: usize = 0x1_0000;

/// The ports of a connection, by which packets find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest wants it, and the host's program is too busy to take it.
    Connecting,
    /// The host wants it, and the guest has not answered.
    Asked,
    /// Bytes go.
    Open,
    /// The guest is done with it; the host gets the rest.
    Lingering,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest is told.
    Reset,
    /// It is over, and the guest knows that or has not heard of it.
    Over,
}

/// What one side of a connection still does.
#[derive(Clone, Copy, Debug)]
struct Side {
    sends: bool,
    receives: bool,
}

impl Side {
    const OPEN: Self = Self {
        sends: true,
        receives: true,
    };

    fn is_done(self) -> bool {
        !self.sends && !self.receives
    }

    /// What it does no more, as flags of a packet.
    fn ended(self) -> u32 {
        let flag = |does: bool, flag| if does { 0 } else { flag };
        flag(self.receives, SHUTDOWN_RECEIVE) | flag(self.sends, SHUTDOWN_SEND)
    }
}

/// Packets that the guest is to get whatever else is so.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    /// The first of all.
    opening: Option<Op>,
    /// It has asked.
    credit_update: bool,
}

/// The connection.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    phase: Phase,
    socket: Option<OwnedFd>,
    credit: Credit,
    /// What the host's socket has not taken yet.
    backlog: VecDeque<u8>,
    guest: Side,
    host: Side,
    /// What the guest was told that the host does no more.
    told: u32,
    owed: Owed,
    /// The socket may have bytes, or its end.
    readable: bool,
    /// Nobody has the other end of the socket any more.
    hung_up: bool,
    /// The guest was asked for more room, and has given none since.
    asked_for_room: bool,
    /// When it has to be open, if it is not.
    pub until: Option<Instant>,
    /// It is in the queue of those that may have something for the guest.
    pub queued: bool,
    /// What the socket is watched for, if it is not only what it always is.
    pub watched: EventFlags,
}

impl Connection {
    fn new(ports: Ports, phase: Phase) -> Self {
        Self {
            ports,
            phase,
            socket: None,
            credit: Credit::default(),
            backlog: VecDeque::new(),
            guest: Side::OPEN,
            host: Side::OPEN,
            told: 0,
            owed: Owed::default(),
            // Whatever came before is not told of again.
            readable: true,
            hung_up: false,
            asked_for_room: false,
            until: None,
            queued: false,
            watched: EventFlags::empty(),
        }
    }

    /// Makes one that the guest has asked for.
    pub fn wanted_by_guest(ports: Ports, request: &Header) -> Self {
        let mut connection = Self::new(ports, Phase::Connecting);
        connection.credit.hear(request);
        connection
    }

    /// Makes one that a program of the host has asked for.
    pub fn wanted_by_host(ports: Ports, socket: OwnedFd) -> Self {
        let mut connection = Self::new(ports, Phase::Asked);
        connection.socket = Some(socket);
        connection.owed.opening = Some(Op::Request);
        connection
    }

    /// Gives the guest the host's program that it wanted.
    pub fn open(&mut self, socket: OwnedFd) {
        self.phase = Phase::Open;
        self.socket = Some(socket);
        self.owed.opening = Some(Op::Response);
    }

    pub fn ports(&self) -> Ports {
        self.ports
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// What becomes of it where the host gives up before it was open.
    pub fn give_up(&self) -> Fate {
        match self.owed.opening {
            // The guest has not even been asked.
            Some(Op::Request) => Fate::Over,
            _ => Fate::Reset,
        }
    }

    /// Tells whether the socket is waited for until it takes more.
    pub fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Takes a packet of the guest, which is none of [`Op::Request`] and [`Op::Reset`]. Of `data` there are
    /// as many bytes as the header says, or none if those are more than any guest may send.
    pub fn hear(&mut self, op: Op, header: &Header, data: &[u8]) -> Fate {
        self.credit.hear(header);
        if self.credit.room() > 0 {
            self.asked_for_room = false;
        }
        let is_answered = self.owed.opening.is_none();
        match (op, self.phase) {
            (Op::Response, Phase::Asked) if is_answered => self.answered(),
            (Op::Data, Phase::Open) if is_answered && self.guest.sends => {
                self.take(header.len, data)
            }
            (Op::Shutdown, Phase::Open) => self.shut_down(header.flags),
            (Op::CreditUpdate, Phase::Open) => Fate::Lives,
            (Op::CreditRequest, Phase::Open) => {
                self.owed.credit_update = true;
                Fate::Lives
            }
            _ => Fate::Reset,
        }
    }

    /// The guest takes the connection: the program hears of that.
    fn answered(&mut self) -> Fate {
        let line = format!("OK {}\n", self.ports.host);
        let socket = self.socket.as_ref();
        // It is the first that is sent, and there is room for it.
        let sent = socket.and_then(|socket| send_some(socket, line.as_bytes()).ok());
        if sent != Some(line.len()) {
            return Fate::Reset;
        }
        self.phase = Phase::Open;
        Fate::Lives
    }

    /// Takes data.
    fn take(&mut self, len: u32, data: &[u8]) -> Fate {
        if !self.credit.receive(len) {
            return Fate::Reset;
        }
        let mut rest = data;
        if self.backlog.is_empty() {
            let sent = self.send(rest);
            rest = &rest[sent.min(rest.len())..];
        }
        if self.host.receives {
            self.backlog.extend(rest);
        }
        Fate::Lives
    }

    /// Sends what the host takes of some bytes, and counts that. Whom nobody listens to has sent all.
    fn send(&mut self, bytes: &[u8]) -> usize {
        let sent = match &self.socket {
            Some(socket) if self.host.receives => send_some(socket, bytes),
            _ => Ok(bytes.len()),
        };
        let sent = sent.unwrap_or_else(|_| {
            self.lose_receiver();
            bytes.len()
        });
        self.credit.forward(sent as u32);
        sent
    }

    /// The host takes no more: what it should have got is gone.
    fn lose_receiver(&mut self) {
        self.host.receives = false;
        self.credit.forward(self.backlog.len() as u32);
        self.backlog = VecDeque::new();
    }

    /// Sends what has waited for the host.
    pub fn flush(&mut self) -> Fate {
        while !self.backlog.is_empty() {
            let mut backlog = std::mem::take(&mut self.backlog);
            let (front, _) = backlog.as_slices();
            let all = front.len();
            let sent = self.send(front);
            if self.host.receives {
                backlog.drain(..sent);
                self.backlog = backlog;
            } else {
                // What is behind it was never going to be sent.
                let lost = backlog.len() - all;
                self.credit.forward(lost as u32);
            }
            if sent < all {
                return Fate::Lives;
            }
        }
        // An empty one needs no memory.
        self.backlog = VecDeque::new();
        if !self.guest.sends {
            self.end_sending();
        }
        match self.phase {
            Phase::Lingering => Fate::Over,
            _ => Fate::Lives,
        }
    }

    /// Tells the program that nothing more will come.
    fn end_sending(&self) {
        if let Some(socket) = &self.socket {
            // Who has gone need not know.
            let _ = shutdown(socket, Shutdown::Write);
        }
    }

    /// The guest ends what the flags say.
    fn shut_down(&mut self, flags: u32) -> Fate {
        if flags & SHUTDOWN_SEND != 0 {
            self.guest.sends = false;
            if self.backlog.is_empty() {
                self.end_sending();
            }
        }
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest.receives {
            self.guest.receives = false;
            self.host.sends = false;
            if let Some(socket) = &self.socket {
                let _ = shutdown(socket, Shutdown::Read);
            }
        }
        match self.guest.is_done() {
            true => Fate::Reset,
            false => Fate::Lives,
        }
    }

    /// The guest is done with the connection. Tells whether the host has to get more.
    pub fn linger(&mut self) -> bool {
        self.phase = Phase::Lingering;
        !self.guest.sends && !self.backlog.is_empty()
    }

    /// Hears what has happened to the socket.
    pub fn notice(&mut self, events: EventFlags) -> Fate {
        let ended = events.intersects(EventFlags::HUP | EventFlags::ERR);
        self.readable |= ended || events.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.hung_up |= ended;
        if self.hung_up && self.phase == Phase::Asked {
            return self.give_up();
        }
        if self.hung_up && !self.host.sends && self.host.receives {
            self.lose_receiver();
        }
        match self.phase {
            _ if self.is_behind() => self.flush(),
            Phase::Lingering => Fate::Over,
            _ => Fate::Lives,
        }
    }

    /// Tells whether there may be something for the guest.
    pub fn has_packet(&self) -> bool {
        let known = matches!(self.phase, Phase::Asked | Phase::Open);
        let owes = self.owed.opening.is_some() || self.owed.credit_update;
        known && (owes || self.owes_end() || self.is_update_due() || self.may_read())
    }

    fn owes_end(&self) -> bool {
        self.phase == Phase::Open && self.host.ended() != self.told
    }

    /// Tells whether the guest waits for room, or will.
    fn is_update_due(&self) -> bool {
        self.phase == Phase::Open && self.guest.sends && self.credit.is_update_due()
    }

    /// Tells whether the socket is to be read, or the guest asked for room.
    fn may_read(&self) -> bool {
        let open = self.phase == Phase::Open && self.host.sends && self.guest.receives;
        open && self.readable && (self.credit.room() > 0 || !self.asked_for_room)
    }

    /// Puts the next packet for the guest into a room; returns its length, or `None` if there is none.
    pub fn next(&mut self, guest_cid: u64, room: &Room<'_>) -> Result<Option<usize>, QueueError> {
        let (op, len) = if let Some(op) = self.owed.opening.take() {
            (op, 0)
        } else if self.owes_end() {
            (Op::Shutdown, 0)
        } else if std::mem::take(&mut self.owed.credit_update) {
            (Op::CreditUpdate, 0)
        } else if self.may_read() && self.credit.room() == 0 {
            self.asked_for_room = true;
            (Op::CreditRequest, 0)
        } else {
            match self.read(room)? {
                0 if self.owes_end() => (Op::Shutdown, 0),
                // Data say it by the way.
                0 if self.is_update_due() => (Op::CreditUpdate, 0),
                0 => return Ok(None),
                len => (Op::Data, len),
            }
        };
        Ok(Some(self.put(guest_cid, room, op, len)))
    }

    /// Reads from the socket into a room, if there may be something.
    fn read(&mut self, room: &Room<'_>) -> Result<usize, QueueError> {
        let Some(socket) = self.socket.as_ref().filter(|_| self.may_read()) else {
            return Ok(0);
        };
        let limit = room.payload()?.min(PACKET_MAX);
        let (len, left) = room.fill(socket, limit.min(self.credit.room() as usize));
        self.credit.send(len as u32);
        self.readable = left == Left::More;
        if matches!(left, Left::End | Left::Broken) {
            self.host.sends = false;
            if left == Left::Broken || self.hung_up {
                self.lose_receiver();
            }
        }
        Ok(len)
    }

    /// Writes the header of a packet with `len` bytes of data; returns the length of both.
    fn put(&mut self, guest_cid: u64, room: &Room<'_>, op: Op, len: usize) -> usize {
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        let mut flags = 0;
        if op == Op::Shutdown {
            flags = self.host.ended();
            self.told = flags;
            if self.host.is_done() {
                // Nothing comes of it any more. The guest still has to answer.
                self.socket = None;
            }
        }
        room.put(&Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            kind: STREAM,
            op: op.number(),
            flags,
            buf_alloc,
            fwd_cnt,
        });
        Header::LEN + len
    }
}
