//! One connection to a back end: every request of the protocol that is needed, each with a time-out and a
//! typed error.
//!
//! ```text
//!   open    connect, features, protocol features, owner, queues, memory slots, back-end channel
//!   ask     the answer is the reply
//!   tell    there is an answer only with REPLY_ACK; without it `settle` asks for something else and
//!           waits for that: requests are answered in their order
//! ```
//! **A back end is hostile.** What is wrong, late or not there breaks the connection, for what comes next
//! would be an answer to nobody knows what: the socket is shut down, and every later request fails at once.
//! Only a refusal leaves it open. Nobody else is affected, and answers are waited for no longer than
//! [`PATIENCE`], all of them together: time that was waited comes back ten times as slowly. So one that answers
//! everything at the last moment holds up nobody longer than one that does not answer.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_virtio::{Event, Features};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Error as UserError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::pace::millis;
use crate::requests::{Asked, Requests};
use crate::table::Piece;
use crate::{BackEndError, Deadlines};

/// How long answers are waited for.
pub const PATIENCE: Duration = millis(if cfg!(test) { 500 } else { 5000 });

/// VHOST_USER_F_PROTOCOL_FEATURES: there are protocol features to agree on.
const PROTOCOL_FEATURES: Features = Features::bit(30);
/// Pieces of memory in a whole table.
const TABLE_MAX: usize = 8;
/// Queues of one pair or device where MQ is not offered.
const QUEUES_WITHOUT_MQ: u64 = 0x100;

/// What is used of the protocol where a back end has it.
const WANTED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// What a back end offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features, without those of the protocol.
    pub features: Features,
    /// Queues at most; `None` if it does not say.
    pub queues: Option<u64>,
    /// Pieces of memory at most.
    pub pieces: usize,
    /// Pieces of memory come and go one by one.
    pub pieces_change: bool,
    /// It has a configuration.
    pub has_config: bool,
    /// Its device can be reset.
    pub resets: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Channel {
    frontend: Mutex<Front>,
    socket: Arc<UnixStream>,
    deadlines: Arc<Deadlines>,
    requests: Mutex<Option<Requests>>,
    broken: AtomicBool,
    acknowledges: bool,
    offer: Offer,
}

/// The connection of the `vhost` crate.
struct Front {
    connection: Frontend,
    /// How long answers will be waited for.
    patience: Duration,
    /// When that was.
    at: Instant,
}

impl Front {
    fn new(connection: Frontend) -> Self {
        Self {
            connection,
            patience: PATIENCE,
            at: Instant::now(),
        }
    }

    /// Begins to wait: says for how long at most.
    fn begin(&mut self) -> Duration {
        let now = Instant::now();
        let rested = self.patience + (now - self.at) / 10;
        self.patience = rested.min(PATIENCE);
        self.at = now;
        self.patience
    }

    /// Has waited.
    fn end(&mut self) {
        let now = Instant::now();
        self.patience = self.patience.saturating_sub(now - self.at);
        self.at = now;
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frontend({})", self.connection.as_raw_fd())
    }
}

/// Where a queue is, for a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// Its descriptors.
    pub size: u16,
    /// Descriptor table, available ring, used ring: addresses in the table of memory.
    pub addresses: [u64; 3],
    /// The index in the available ring from which on nothing was taken.
    pub base: u16,
}

impl Channel {
    /// Connects to a back end, and hears what it offers.
    ///
    /// # Errors
    /// If nobody is there, what is there does not speak the protocol, or it lacks what is needed.
    pub fn open(path: &Path, deadlines: &Arc<Deadlines>) -> Result<Self, BackEndError> {
        let socket = connect(path).map_err(|source| BackEndError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::over(socket, deadlines)
    }

    /// The same over a socket that is connected.
    pub(crate) fn over(
        socket: UnixStream,
        deadlines: &Arc<Deadlines>,
    ) -> Result<Self, BackEndError> {
        let copy = socket.try_clone().map_err(host("a descriptor"))?;
        let mut channel = Self {
            frontend: Mutex::new(Front::new(Frontend::from_stream(copy, QUEUES_WITHOUT_MQ))),
            socket: Arc::new(socket),
            deadlines: deadlines.clone(),
            requests: Mutex::new(None),
            broken: AtomicBool::new(false),
            acknowledges: false,
            offer: Offer {
                features: Features::NONE,
                queues: None,
                pieces: TABLE_MAX,
                pieces_change: false,
                has_config: false,
                resets: false,
            },
        };
        channel.negotiate()?;
        Ok(channel)
    }

    fn negotiate(&mut self) -> Result<(), BackEndError> {
        use VhostUserProtocolFeatures as Protocol;
        let features = self.ask("GET_FEATURES", |f| f.get_features())?;
        let features = Features::from_low(features);
        if !features.has(Features::VERSION_1) {
            return Err(BackEndError::Lacks("VIRTIO_F_VERSION_1"));
        }
        if !features.has(PROTOCOL_FEATURES) {
            return Err(BackEndError::Lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        let protocol = self.ask("GET_PROTOCOL_FEATURES", |f| f.get_protocol_features())?;
        let agreed = protocol & WANTED;
        self.ask("SET_PROTOCOL_FEATURES", |f| f.set_protocol_features(agreed))?;
        self.acknowledges = agreed.contains(Protocol::REPLY_ACK);
        let queues = match agreed.contains(Protocol::MQ) {
            true => Some(self.ask("GET_QUEUE_NUM", |f| f.get_queue_num())?),
            false => None,
        };
        let pieces_change = agreed.contains(Protocol::CONFIGURE_MEM_SLOTS);
        let pieces = match pieces_change {
            true => {
                let most = self.ask("GET_MAX_MEM_SLOTS", |f| f.get_max_mem_slots())?;
                usize::try_from(most).unwrap_or(usize::MAX)
            }
            false => TABLE_MAX,
        };
        self.offer = Offer {
            features: features.without(PROTOCOL_FEATURES).without(LOG_ALL),
            queues,
            pieces,
            pieces_change,
            has_config: agreed.contains(Protocol::CONFIG),
            resets: agreed.contains(Protocol::RESET_DEVICE),
        };
        self.tell("SET_OWNER", |f| f.set_owner())?;
        if agreed.contains(Protocol::BACKEND_REQ) {
            let (requests, theirs) = Requests::new().map_err(host("a pair of sockets"))?;
            self.tell("SET_BACKEND_REQ_FD", |f| f.set_backend_request_fd(&theirs))?;
            *self.requests.lock() = Some(requests);
        }
        Ok(())
    }

    /// Returns what the back end offers.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Tells whether the connection is of no use any more.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Cuts the connection.
    pub fn cut(&self) {
        self.broken.store(true, Ordering::Release);
        // One that is not connected any more needs no end.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Returns what hangs up when the back end goes, or the connection is cut.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Calls `with` with what becomes readable when the back end asks for something, if it can.
    pub fn with_requests<T>(&self, with: impl FnOnce(Option<BorrowedFd<'_>>) -> T) -> T {
        let requests = self.requests.lock();
        with(requests.as_ref().map(AsFd::as_fd))
    }

    /// Takes what the back end has asked for. Does not block.
    ///
    /// # Errors
    /// If that is nothing that one can ask for; the connection is cut.
    pub fn take_requests(&self) -> Result<Asked, BackEndError> {
        let mut requests = self.requests.lock();
        let Some(open) = &mut *requests else {
            return Ok(Asked::default());
        };
        let asked = open.take().inspect_err(|_| self.cut())?;
        if asked.ended {
            // The connection itself may go on.
            *requests = None;
        }
        Ok(asked)
    }

    /// Asks for the first `len` bytes of the configuration.
    ///
    /// # Errors
    /// Those of every request.
    pub fn config(&self, len: usize) -> Result<Vec<u8>, BackEndError> {
        let flags = VhostUserConfigFlags::empty();
        let room = vec![0; len];
        let asked = self.ask("GET_CONFIG", |f| f.get_config(0, len as u32, flags, &room));
        Ok(asked?.1)
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// Those of every request.
    pub fn write_config(&self, offset: u32, bytes: &[u8]) -> Result<(), BackEndError> {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.tell("SET_CONFIG", |f| f.set_config(offset, flags, bytes))
    }

    /// Says what the driver has accepted.
    ///
    /// # Errors
    /// Those of every request.
    pub fn set_features(&self, features: Features) -> Result<(), BackEndError> {
        // Those from 64 on cannot be offered, so nobody has accepted them.
        let bits = features.with(PROTOCOL_FEATURES).low();
        self.tell("SET_FEATURES", |f| f.set_features(bits))
    }

    /// Resets the device, if the back end can.
    ///
    /// # Errors
    /// Those of every request.
    pub fn reset(&self) -> Result<(), BackEndError> {
        match self.offer.resets {
            true => self.tell("RESET_DEVICE", |f| f.reset_device()),
            false => Ok(()),
        }
    }

    /// Replaces the whole table of memory. When this returns, the back end has no other.
    ///
    /// # Errors
    /// Those of every request.
    pub fn set_table(&self, pieces: &[Piece]) -> Result<(), BackEndError> {
        let regions: Vec<_> = pieces.iter().map(region).collect();
        self.tell("SET_MEM_TABLE", |f| f.set_mem_table(&regions).map(drop))?;
        self.settle()
    }

    /// Adds a piece of memory. When this returns, the back end has it.
    ///
    /// # Errors
    /// Those of every request.
    pub fn add_piece(&self, piece: &Piece) -> Result<(), BackEndError> {
        let region = region(piece);
        self.tell("ADD_MEM_REG", |f| f.add_mem_region(&region).map(drop))?;
        self.settle()
    }

    /// Takes a piece of memory away. When this returns, the back end has it no more.
    ///
    /// # Errors
    /// Those of every request.
    pub fn remove_piece(&self, piece: &Piece) -> Result<(), BackEndError> {
        let region = region(piece);
        self.tell("REM_MEM_REG", |f| f.remove_mem_region(&region))?;
        self.settle()
    }

    /// Lets the back end work on a queue: notifications signal `kick`, it signals `call`, and `fault` if it cannot go
    /// on.
    ///
    /// # Errors
    /// Those of every request.
    pub fn start_ring(
        &self,
        index: u16,
        place: &RingPlace,
        [kick, call, fault]: [&Event; 3],
    ) -> Result<(), BackEndError> {
        let queue = usize::from(index);
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = place.addresses;
        let config = VringConfigData {
            queue_max_size: place.size,
            queue_size: place.size,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        let [kick, call, fault] = [eventfd(kick)?, eventfd(call)?, eventfd(fault)?];
        self.tell("SET_VRING_NUM", |f| f.set_vring_num(queue, place.size))?;
        self.tell("SET_VRING_ADDR", |f| f.set_vring_addr(queue, &config))?;
        self.tell("SET_VRING_BASE", |f| f.set_vring_base(queue, place.base))?;
        self.tell("SET_VRING_ERR", |f| f.set_vring_err(queue, &fault))?;
        self.tell("SET_VRING_CALL", |f| f.set_vring_call(queue, &call))?;
        self.tell("SET_VRING_KICK", |f| f.set_vring_kick(queue, &kick))?;
        self.tell("SET_VRING_ENABLE", |f| f.set_vring_enable(queue, true))
    }

    /// Has the back end stop working on a queue. When this returns it works on nothing of it any more. Returns
    /// the index in the available ring from which on it has taken nothing.
    ///
    /// # Errors
    /// Those of every request.
    pub fn stop_ring(&self, index: u16) -> Result<u16, BackEndError> {
        let base = self.ask("GET_VRING_BASE", |f| f.get_vring_base(index.into()))?;
        u16::try_from(base).map_err(|_| {
            self.cut();
            BackEndError::Wrong {
                request: "GET_VRING_BASE",
                what: format!("{base:#x}"),
            }
        })
    }

    /// Waits until everything has been done that was told before.
    fn settle(&self) -> Result<(), BackEndError> {
        match self.acknowledges {
            true => Ok(()),
            false => self.ask("GET_FEATURES", |f| f.get_features()).map(drop),
        }
    }

    fn tell(
        &self,
        request: &'static str,
        with: impl FnOnce(&mut Frontend) -> vhost::Result<()>,
    ) -> Result<(), BackEndError> {
        let flags = match self.acknowledges {
            true => VhostUserHeaderFlag::NEED_REPLY,
            false => VhostUserHeaderFlag::empty(),
        };
        self.call(request, flags, with)
    }

    fn ask<T>(
        &self,
        request: &'static str,
        with: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, BackEndError> {
        self.call(request, VhostUserHeaderFlag::empty(), with)
    }

    fn call<T>(
        &self,
        request: &'static str,
        flags: VhostUserHeaderFlag,
        with: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, BackEndError> {
        let mut frontend = self.frontend.lock();
        if self.is_broken() {
            return Err(BackEndError::Gone { request });
        }
        frontend.connection.set_hdr_flags(flags);
        let armed = self.deadlines.arm(&self.socket, frontend.begin());
        let result = with(&mut frontend.connection);
        frontend.end();
        if !armed.disarm() {
            self.cut();
            return Err(BackEndError::Late {
                request,
                after: PATIENCE,
            });
        }
        result.map_err(|error| self.failed(request, error))
    }

    /// Says what a failure means.
    fn failed(&self, request: &'static str, error: vhost::Error) -> BackEndError {
        if let vhost::Error::VhostUserProtocol(UserError::BackendInternalError) = error {
            return BackEndError::Refused { request };
        }
        self.cut();
        match error {
            vhost::Error::VhostUserProtocol(
                UserError::Disconnected
                | UserError::PartialMessage
                | UserError::SocketBroken(_)
                | UserError::SocketError(_),
            ) => BackEndError::Gone { request },
            other => BackEndError::Wrong {
                request,
                what: other.to_string(),
            },
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.cut();
    }
}

/// VHOST_F_LOG_ALL: what is written can be logged.
const LOG_ALL: Features = Features::bit(26);

/// Connects, and does not wait: one that takes no connections is as good as none.
fn connect(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> BackEndError {
    move |source| BackEndError::Host { what, source }
}

/// A piece as the protocol has it. Addresses of the monitor are none of a back end's business: the rings are
/// found by guest-physical addresses, too.
fn region(piece: &Piece) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: piece.start(),
        memory_size: piece.len(),
        userspace_addr: piece.start(),
        mmap_offset: piece.offset(),
        mmap_handle: piece.file().as_raw_fd(),
    }
}

/// The same event as the `vhost` crate wants it.
#[allow(unsafe_code)]
fn eventfd(event: &Event) -> Result<EventFd, BackEndError> {
    let copy: OwnedFd = event
        .as_fd()
        .try_clone_to_owned()
        .map_err(host("a descriptor"))?;
    // SAFETY: the descriptor is open, and nobody else owns it.
    Ok(unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) })
}
