//! TCP, by `smoltcp`, and the requests that come by it. IP packets go in, and come out.
//!
//! | bound | |
//! |---|---|
//! | connections | [`CONNECTIONS`]; for one more goes one that is over, or in which nothing has happened for longest |
//! | what a connection holds | a request, an answer, and two buffers of 12 KiB together |
//! | how long nothing may happen in one | [`IDLE`] |
//! | packets that wait | [`PACKETS`] each way; more are dropped, as networks may |

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::data::{Metadata, MetadataConfig};
use crate::http::{Parsed, REQUEST_MAX, Request, Response};
use crate::service;

/// Connections at a time.
pub const CONNECTIONS: usize = 30;
/// How long nothing may happen in one.
pub const IDLE: Duration = Duration::from_secs(60);
/// How soon TCP is asked again, at the earliest.
const TICK: Duration = Duration::from_millis(1);
/// Packets that wait, each way.
const PACKETS: usize = 64;
/// Bytes of an IP packet.
const MTU: usize = 1500;
/// Bytes that a connection's socket holds for the service, and for the guest.
const BUFFERS: [usize; 2] = [4 << 10, 8 << 10];
/// Where the service is.
const PORT: u16 = 80;

/// The packets between the guest and TCP.
#[derive(Default)]
struct Link {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl smoltcp::phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Time) -> Option<(Incoming, Outgoing<'_>)> {
        // What comes in may be answered at once.
        if self.outgoing.len() >= PACKETS {
            return None;
        }
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Time) -> Option<Outgoing<'_>> {
        match self.outgoing.len() < PACKETS {
            true => Some(Outgoing(&mut self.outgoing)),
            false => None,
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        // A guest that leaves checksums to its receiver has not computed those that come in.
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        checksum.icmpv4 = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// A connection.
struct Connection {
    socket: SocketHandle,
    /// What came of a request.
    input: Vec<u8>,
    /// An answer, of which the first `sent` bytes have gone.
    output: Vec<u8>,
    sent: usize,
    /// It ends with this answer.
    last: bool,
    /// When something happened.
    used: Instant,
}

/// TCP and its connections.
pub struct Stack {
    data: Metadata,
    config: MetadataConfig,
    begin: Instant,
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    /// Takes the next connection.
    listener: SocketHandle,
    connections: Vec<Connection>,
    /// When TCP, or a connection's end, is due.
    next: Option<Instant>,
}

impl Stack {
    /// Makes one that serves `data`.
    pub fn new(data: Metadata, config: MetadataConfig, now: Instant) -> Self {
        let mut link = Link::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut link, Time::ZERO);
        let address = IpAddress::Ipv4(config.address);
        interface.update_ip_addrs(|addresses| {
            // There is room for two, and none is there.
            let _ = addresses.push(IpCidr::new(address, 32));
        });
        // Whoever asks is on this link, wherever it says that it is.
        let _ = interface
            .routes_mut()
            .add_default_ipv4_route(config.address);
        let mut sockets = SocketSet::new(Vec::new());
        let listener = listen(&mut sockets, config);
        Self {
            data,
            config,
            begin: now,
            interface,
            sockets,
            link,
            listener,
            connections: Vec::new(),
            next: None,
        }
    }

    /// Takes an IP packet of the guest's, and does what it asks for.
    pub fn take(&mut self, packet: &[u8], now: Instant) {
        if self.link.incoming.len() < PACKETS {
            self.link.incoming.push_back(packet.to_vec());
        }
        self.work(now);
    }

    /// Does what is due.
    pub fn work(&mut self, now: Instant) {
        let time = self.time(now);
        loop {
            self.interface.poll(time, &mut self.link, &mut self.sockets);
            self.admit(now);
            if !self.serve(now) {
                break;
            }
        }
        self.end_idle(now);
        let due = self.interface.poll_at(time, &self.sockets);
        let due = due.map(|at| self.begin + Duration::from_micros(at.total_micros().max(0) as u64));
        let idle = self
            .connections
            .iter()
            .map(|connection| connection.used + IDLE)
            .min();
        // What is not done by now is not done by asking again at once.
        let next = due.into_iter().chain(idle).min();
        self.next = next.map(|next| next.max(now + TICK));
    }

    /// Returns the next packet for the guest.
    pub fn give(&mut self) -> Option<Vec<u8>> {
        self.link.outgoing.pop_front()
    }

    /// Returns when there is something to do, or to give; what waits already has done so since the beginning.
    pub fn due(&self) -> Option<Instant> {
        match self.link.outgoing.is_empty() {
            true => self.next,
            false => Some(self.begin),
        }
    }

    fn time(&self, now: Instant) -> Time {
        let since = now.saturating_duration_since(self.begin);
        Time::from_micros(since.as_micros() as i64)
    }

    /// Takes a connection that somebody has begun.
    fn admit(&mut self, now: Instant) {
        let listener = self.sockets.get::<tcp::Socket>(self.listener);
        match listener.state() {
            tcp::State::Listen => return,
            tcp::State::Closed => drop(self.sockets.remove(self.listener)),
            _ => {
                if self.connections.len() >= CONNECTIONS {
                    self.make_room();
                }
                self.connections.push(Connection {
                    socket: self.listener,
                    input: Vec::new(),
                    output: Vec::new(),
                    sent: 0,
                    last: false,
                    used: now,
                });
            }
        }
        self.listener = listen(&mut self.sockets, self.config);
    }

    /// Ends a connection: one in which the guest has everything and no more will come, or else the one in which nothing
    /// has happened for longest.
    fn make_room(&mut self) {
        use tcp::State::{FinWait2, TimeWait};
        let is_open = |connection: &Connection| {
            let socket = self.sockets.get::<tcp::Socket>(connection.socket);
            !matches!(socket.state(), FinWait2 | TimeWait)
        };
        let all = self.connections.iter().enumerate();
        let oldest = all.min_by_key(|(_, other)| (is_open(other), other.used));
        if let Some((at, _)) = oldest {
            let connection = self.connections.swap_remove(at);
            // Without a word: its packets find nobody.
            self.sockets.remove(connection.socket);
        }
    }

    /// Serves all connections; tells whether that gave TCP something to do.
    fn serve(&mut self, now: Instant) -> bool {
        let mut busy = false;
        let Self {
            data,
            config,
            sockets,
            connections,
            ..
        } = self;
        connections.retain_mut(|connection| {
            let socket = sockets.get_mut::<tcp::Socket>(connection.socket);
            if connection.serve(socket, data, config, now) {
                connection.used = now;
                busy = true;
            }
            let lives = socket.state() != tcp::State::Closed;
            if !lives {
                sockets.remove(connection.socket);
            }
            lives
        });
        busy
    }

    fn end_idle(&mut self, now: Instant) {
        let sockets = &mut self.sockets;
        self.connections.retain(|connection| {
            let lives = now.saturating_duration_since(connection.used) < IDLE;
            if !lives {
                sockets.remove(connection.socket);
            }
            lives
        });
    }
}

/// Makes a socket that takes one connection.
fn listen(sockets: &mut SocketSet<'static>, config: MetadataConfig) -> SocketHandle {
    let [receive, transmit] = BUFFERS.map(|len| tcp::SocketBuffer::new(vec![0; len]));
    let mut socket = tcp::Socket::new(receive, transmit);
    // Who does not answer for so long has gone.
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(IDLE.as_secs())));
    socket.set_nagle_enabled(false);
    let listening = socket.listen((IpAddress::Ipv4(config.address), PORT));
    debug_assert!(
        listening.is_ok(),
        "a new socket listens at a port that is not zero"
    );
    sockets.add(socket)
}

impl Connection {
    /// Reads, answers, writes; tells whether anything happened.
    fn serve(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        data: &Metadata,
        config: &MetadataConfig,
        now: Instant,
    ) -> bool {
        let mut happened = false;
        // One request at a time: who does not take an answer gets no other one.
        if self.output.is_empty() && !self.last {
            happened |= self.read(socket);
            self.answer(data, config, now);
            // It has said everything, and half a request is none.
            self.last |= self.output.is_empty() && !socket.may_recv() && socket.may_send();
        }
        if self.sent < self.output.len() && socket.can_send() {
            let sent = socket.send_slice(&self.output[self.sent..]).unwrap_or(0);
            self.sent += sent;
            happened |= sent > 0;
        }
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
            if self.last && socket.may_send() {
                socket.close();
                happened = true;
            }
        }
        happened
    }

    fn read(&mut self, socket: &mut tcp::Socket<'_>) -> bool {
        let mut happened = false;
        while socket.can_recv() && self.input.len() < REQUEST_MAX {
            let room = REQUEST_MAX - self.input.len();
            let read = socket.recv(|bytes| {
                let len = bytes.len().min(room);
                self.input.extend_from_slice(&bytes[..len]);
                (len, len)
            });
            match read {
                Ok(len) if len > 0 => happened = true,
                _ => break,
            }
        }
        happened
    }

    fn answer(&mut self, data: &Metadata, config: &MetadataConfig, now: Instant) {
        match Request::parse(&self.input) {
            Parsed::Partial => {}
            Parsed::Whole(request, len) => {
                self.input.drain(..len);
                self.last = !request.keeps;
                let response = service::answer(data, config, &request, now);
                self.output = response.bytes(request.keeps);
            }
            Parsed::Bad => {
                self.input = Vec::new();
                self.last = true;
                self.output = Response::text(400, "Invalid request.").bytes(false);
            }
        }
    }
}
