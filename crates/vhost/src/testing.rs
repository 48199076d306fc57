//! For tests: a back end that is written by the specification alone, and can be told to misbehave.
//!
//! Its device copies what a chain can be read into what of it can be written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const NEED_REPLY: u32 = 8;

/// Requests by number (vhost-user, "Front-end message types").
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
}

/// How a request is answered wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    /// Not at all.
    Silence,
    /// The connection is closed.
    Close,
    /// With a failure.
    No,
    /// As another request.
    Other,
    /// With a size that is not that of the answer.
    Size,
    /// With half of the answer.
    Half,
    /// With files that nobody asked for.
    Files,
    /// With more files than anybody could take.
    ManyFiles,
    /// With bytes without end.
    Endless,
}

/// What a back end is.
#[derive(Clone, Debug)]
pub struct Options {
    pub features: u64,
    pub protocol: u64,
    pub queues: u64,
    pub slots: u64,
    pub config: Vec<u8>,
    /// A request that is answered wrongly.
    pub twist: Option<(u32, Twist)>,
}

/// CONFIG, MQ, REPLY_ACK, BACKEND_REQ, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
pub const PROTOCOL: u64 = 1 << 9 | 1 << 0 | 1 << 3 | 1 << 5 | 1 << 13 | 1 << 15;
/// CONFIGURE_MEM_SLOTS.
pub const MEM_SLOTS: u64 = 1 << 15;
/// REPLY_ACK.
pub const REPLY_ACK: u64 = 1 << 3;

impl Default for Options {
    fn default() -> Self {
        Self {
            // VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC, EVENT_IDX, and two of the device's.
            features: 1 << 32 | 1 << 30 | 1 << 28 | 1 << 29 | 0b101,
            protocol: PROTOCOL,
            queues: 2,
            slots: 16,
            config: (1..=60).collect(),
            twist: None,
        }
    }
}

/// What it has, and has done.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pieces of memory: address and length.
    pub pieces: BTreeMap<u64, u64>,
    /// Requests, in their order.
    pub requests: Vec<u32>,
    /// Chains that were done.
    pub done: u64,
    /// First bytes of the chains that were taken, in their order.
    pub taken: Vec<u8>,
    /// Takes chains, and does not do them as long as it is so; it stops at once none the less.
    pub holds: bool,
    /// Takes no more memory.
    pub refuses: bool,
    pub features: u64,
    pub written_config: Vec<(u32, Vec<u8>)>,
    /// By which it says that it cannot go on.
    fault: Option<Arc<OwnedFd>>,
    /// By which it asks.
    asks: Option<Arc<UnixStream>>,
    connection: Option<UnixStream>,
}

/// A back end that runs.
pub struct BackEnd {
    pub seen: Arc<Mutex<Seen>>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl BackEnd {
    /// Listens, and serves one front end.
    pub fn start(path: &Path, options: Options) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let theirs = seen.clone();
        listener.set_nonblocking(true).unwrap();
        let thread = thread::spawn(move || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(10) && Arc::strong_count(&theirs) > 1 {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).unwrap();
                    theirs.lock().connection = Some(stream.try_clone().unwrap());
                    drop(listener);
                    Peer::new(stream, options, theirs).run();
                    return;
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            seen,
            path: path.to_owned(),
            thread: Some(thread),
        }
    }

    /// Ends as if it were killed.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stream) = self.seen.lock().connection.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        self.seen = Arc::default();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }

    /// Takes no more memory from now on.
    pub fn refuse_more(&self) {
        self.seen.lock().refuses = true;
    }

    /// Says that it cannot go on.
    pub fn fault(&self) {
        let fault = self.seen.lock().fault.clone().unwrap();
        rustix::io::write(&*fault, &1u64.to_ne_bytes()).unwrap();
    }

    /// Says that the configuration has changed.
    pub fn config_changed(&self) {
        let asks = self.seen.lock().asks.clone().unwrap();
        let message = [2u32, 1, 0].map(u32::to_ne_bytes).concat();
        (&*asks).write_all(&message).unwrap();
    }

    /// Waits until something is so.
    pub fn wait(&self, what: impl Fn(&Seen) -> bool) {
        let begin = Instant::now();
        while !what(&self.seen.lock()) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", self.seen);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.end();
    }
}

struct Piece {
    gpa: u64,
    len: u64,
    user: u64,
    offset: u64,
    file: Arc<File>,
}

#[derive(Default)]
struct Ring {
    size: u16,
    addresses: [u64; 3],
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    queue: Option<Queue>,
    /// Chains that were taken and are not done.
    held: Vec<Chain>,
}

/// A chain: its head, what is in it, and where that goes.
struct Chain {
    head: u16,
    input: Vec<u8>,
    output: Vec<(GuestAddress, usize)>,
}

struct Peer {
    stream: UnixStream,
    options: Options,
    seen: Arc<Mutex<Seen>>,
    pieces: Vec<Piece>,
    rings: Vec<Ring>,
}

fn u64_at(body: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(body[at..at + 8].try_into().unwrap())
}

fn u32_at(body: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(body[at..at + 4].try_into().unwrap())
}

impl Peer {
    fn new(stream: UnixStream, options: Options, seen: Arc<Mutex<Seen>>) -> Self {
        let rings = (0..options.queues).map(|_| Ring::default()).collect();
        Self {
            stream,
            options,
            seen,
            pieces: Vec::new(),
            rings,
        }
    }

    fn run(mut self) {
        while Arc::strong_count(&self.seen) > 1 {
            let kicks = self.rings.iter().filter_map(|ring| ring.kick.as_ref());
            let mut watched = vec![PollFd::new(&self.stream, PollFlags::IN)];
            watched.extend(kicks.map(|kick| PollFd::new(kick, PollFlags::IN)));
            let tick = Timespec::try_from(Duration::from_millis(5)).unwrap();
            let _ = poll(&mut watched, Some(&tick));
            let has_message = !watched[0].revents().is_empty();
            for kick in self.rings.iter().filter_map(|ring| ring.kick.as_ref()) {
                let mut watched = [PollFd::new(kick, PollFlags::IN)];
                if poll(&mut watched, Some(&Timespec::default())) == Ok(1) {
                    let _ = rustix::io::read(kick, &mut [0; 8]);
                }
            }
            self.work();
            if has_message && !self.message() {
                return;
            }
        }
    }

    /// Receives exactly so many bytes, with the files that come with them.
    fn receive(&self, len: usize) -> Option<(Vec<u8>, Vec<File>)> {
        let (mut bytes, mut files) = (vec![0; len], Vec::new());
        let mut at = 0;
        while at < len {
            let mut iovs = [libc::iovec {
                iov_base: bytes[at..].as_mut_ptr().cast(),
                iov_len: len - at,
            }];
            let mut fds = [0; 32];
            #[allow(unsafe_code)]
            // SAFETY: the vector is in `bytes`.
            let received = unsafe { self.stream.recv_with_fds(&mut iovs, &mut fds) };
            let (count, file_count) = received.ok()?;
            if count == 0 {
                return None;
            }
            #[allow(unsafe_code)]
            // SAFETY: they were received a moment ago.
            files.extend(
                fds[..file_count]
                    .iter()
                    .map(|fd| unsafe { File::from_raw_fd(*fd) }),
            );
            at += count;
        }
        Some((bytes, files))
    }

    fn send(&self, request: u32, body: &[u8]) -> bool {
        let mut bytes = [request, 5, body.len() as u32]
            .map(u32::to_ne_bytes)
            .concat();
        bytes.extend(body);
        (&self.stream).write_all(&bytes).is_ok()
    }

    /// Answers wrongly; `false` ends it.
    fn twist(&self, twist: Twist, request: u32) -> bool {
        let body = 0u64.to_ne_bytes();
        match twist {
            Twist::Silence => true,
            Twist::Close => {
                let _ = self.stream.shutdown(std::net::Shutdown::Both);
                false
            }
            Twist::No => self.send(request, &1u64.to_ne_bytes()),
            Twist::Other => self.send(request + 1, &body),
            Twist::Size => self.send(request, &[0; 100]),
            Twist::Half => (&self.stream).write_all(&request.to_ne_bytes()).is_ok(),
            Twist::Files | Twist::ManyFiles => {
                let count = if twist == Twist::Files { 3 } else { 200 };
                let fds = vec![self.stream.as_raw_fd(); count];
                let mut bytes = [request, 5, 8].map(u32::to_ne_bytes).concat();
                bytes.extend(body);
                self.stream.send_with_fds(&[&bytes[..]], &fds).is_ok()
            }
            Twist::Endless => {
                while (&self.stream).write_all(&[0xff; 0x1000]).is_ok() {}
                false
            }
        }
    }

    /// Takes one message; `false` at the end.
    fn message(&mut self) -> bool {
        let Some((header, mut files)) = self.receive(12) else {
            return false;
        };
        let (request, flags) = (u32_at(&header, 0), u32_at(&header, 4));
        let Some((body, more)) = self.receive(u32_at(&header, 8) as usize) else {
            return false;
        };
        files.extend(more);
        self.seen.lock().requests.push(request);
        if let Some((which, twist)) = self.options.twist
            && which == request
        {
            return self.twist(twist, request);
        }
        if request == request::ADD_MEM_REG && self.seen.lock().refuses {
            return self.twist(Twist::No, request);
        }
        let reply = match request {
            1 => Some(self.options.features.to_ne_bytes().to_vec()),
            15 => Some(self.options.protocol.to_ne_bytes().to_vec()),
            17 => Some(self.options.queues.to_ne_bytes().to_vec()),
            36 => Some(self.options.slots.to_ne_bytes().to_vec()),
            11 => Some(self.stop(u32_at(&body, 0))),
            24 => {
                let mut reply = body.clone();
                let len = u32_at(&body, 4) as usize;
                reply[12..].copy_from_slice(&self.options.config[..len]);
                Some(reply)
            }
            _ => {
                self.told(request, &body, files);
                (flags & NEED_REPLY != 0).then(|| vec![0; 8])
            }
        };
        reply.is_none_or(|reply| self.send(request, &reply))
    }

    fn stop(&mut self, index: u32) -> Vec<u8> {
        let ring = &mut self.rings[index as usize];
        let base = match ring.queue.take() {
            Some(queue) => queue.next_avail(),
            None => ring.base,
        };
        ring.kick = None;
        ring.enabled = false;
        ring.held.clear();
        [index, base.into()].map(u32::to_ne_bytes).concat()
    }

    fn told(&mut self, request: u32, body: &[u8], mut files: Vec<File>) {
        let index = || u32_at(body, 0) as usize;
        match request {
            2 => self.seen.lock().features = u64_at(body, 0),
            5 => {
                self.pieces.clear();
                for (n, file) in files.into_iter().enumerate() {
                    self.add(&body[8 + 32 * n..], file);
                }
                assert_eq!(self.pieces.len(), u32_at(body, 0) as usize);
                self.mapped();
            }
            8 => self.rings[index()].size = u32_at(body, 4) as u16,
            9 => {
                let [table, used, available] = [8, 16, 24].map(|at| u64_at(body, at));
                self.rings[index()].addresses = [table, available, used];
            }
            10 => self.rings[index()].base = u32_at(body, 4) as u16,
            12 => self.rings[u64_at(body, 0) as usize & 0xff].kick = files.pop().map(Into::into),
            13 => self.rings[u64_at(body, 0) as usize & 0xff].call = files.pop().map(Into::into),
            14 => self.seen.lock().fault = files.pop().map(|file| Arc::new(file.into())),
            18 => self.rings[index()].enabled = u32_at(body, 4) == 1,
            21 => {
                let file: OwnedFd = files.pop().unwrap().into();
                self.seen.lock().asks = Some(Arc::new(file.into()));
            }
            25 => {
                let (offset, bytes) = (u32_at(body, 0), body[12..].to_vec());
                let at = offset as usize;
                self.options.config[at..at + bytes.len()].copy_from_slice(&bytes);
                self.seen.lock().written_config.push((offset, bytes));
            }
            37 => {
                self.add(&body[8..], files.pop().unwrap());
                self.mapped();
            }
            38 => {
                let gpa = u64_at(body, 8);
                let before = self.pieces.len();
                self.pieces.retain(|piece| piece.gpa != gpa);
                assert_eq!(self.pieces.len() + 1, before, "{gpa:#x} is not there");
                self.mapped();
            }
            _ => {}
        }
    }

    fn add(&mut self, body: &[u8], file: File) {
        let [gpa, len, user, offset] = [0, 8, 16, 24].map(|at| u64_at(body, at));
        let apart = |piece: &Piece| gpa + len <= piece.gpa || piece.gpa + piece.len <= gpa;
        assert!(self.pieces.iter().all(apart), "{gpa:#x} is there already");
        self.pieces.push(Piece {
            gpa,
            len,
            user,
            offset,
            file: Arc::new(file),
        });
    }

    fn mapped(&self) {
        let pieces = self.pieces.iter().map(|piece| (piece.gpa, piece.len));
        self.seen.lock().pieces = pieces.collect();
    }

    fn memory(&self) -> GuestMemoryMmap {
        let regions = self.pieces.iter().map(|piece| {
            let file = FileOffset::from_arc(piece.file.clone(), piece.offset);
            let map = MmapRegion::from_file(file, piece.len as usize).unwrap();
            GuestRegionMmap::new(map, GuestAddress(piece.gpa)).unwrap()
        });
        let mut regions: Vec<_> = regions.collect();
        regions.sort_by_key(|region| region.start_addr().0);
        GuestMemoryMmap::from_regions(regions).unwrap()
    }

    fn work(&mut self) {
        if !self
            .rings
            .iter()
            .any(|ring| ring.enabled && ring.kick.is_some())
        {
            return;
        }
        let memory = self.memory();
        let translate = |pieces: &[Piece], user: u64| {
            let inside = |p: &&Piece| (p.user..p.user + p.len).contains(&user);
            let piece = pieces.iter().find(inside).expect("an address of a piece");
            GuestAddress(user - piece.user + piece.gpa)
        };
        for ring in &mut self.rings {
            if !ring.enabled || ring.kick.is_none() {
                continue;
            }
            if ring.queue.is_none() {
                let mut queue = Queue::new(1024).unwrap();
                queue.try_set_size(ring.size).unwrap();
                let [table, available, used] =
                    ring.addresses.map(|user| translate(&self.pieces, user));
                queue.try_set_desc_table_address(table).unwrap();
                queue.try_set_avail_ring_address(available).unwrap();
                queue.try_set_used_ring_address(used).unwrap();
                queue.set_next_avail(ring.base);
                queue.set_next_used(memory.read_obj(GuestAddress(used.0 + 2)).unwrap());
                queue.set_event_idx(self.seen.lock().features & 1 << 29 != 0);
                queue.set_ready(true);
                assert!(queue.is_valid(&memory));
                ring.queue = Some(queue);
            }
            if !self.seen.lock().holds {
                let held = std::mem::take(&mut ring.held);
                held.into_iter()
                    .for_each(|chain| ring.finish(chain, &memory, &self.seen));
            }
            loop {
                let queue = ring.queue.as_mut().unwrap();
                let chains: Vec<_> = queue.iter(&memory).unwrap().collect();
                for chain in chains {
                    let head = chain.head_index();
                    let (mut input, mut output) = (Vec::new(), Vec::new());
                    for part in chain {
                        if part.is_write_only() {
                            output.push((part.addr(), part.len() as usize));
                            continue;
                        }
                        let mut bytes = vec![0; part.len() as usize];
                        memory.read_slice(&mut bytes, part.addr()).unwrap();
                        input.extend(bytes);
                    }
                    let holds = {
                        let mut seen = self.seen.lock();
                        seen.taken.push(input[0]);
                        seen.holds
                    };
                    let chain = Chain {
                        head,
                        input,
                        output,
                    };
                    match holds {
                        true => ring.held.push(chain),
                        false => ring.finish(chain, &memory, &self.seen),
                    }
                }
                let queue = ring.queue.as_mut().unwrap();
                if !queue.enable_notification(&memory).unwrap() {
                    break;
                }
            }
        }
    }
}

impl Ring {
    /// Does a chain.
    fn finish(&mut self, chain: Chain, memory: &GuestMemoryMmap, seen: &Mutex<Seen>) {
        let (mut rest, mut written) = (&chain.input[..], 0);
        for (at, len) in chain.output {
            let (now, later) = rest.split_at(len.min(rest.len()));
            memory.write_slice(now, at).unwrap();
            rest = later;
            written += now.len() as u32;
        }
        let queue = self.queue.as_mut().unwrap();
        queue.add_used(memory, chain.head, written).unwrap();
        seen.lock().done += 1;
        if queue.needs_notification(memory).unwrap()
            && let Some(call) = &self.call
        {
            rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
        }
    }
}

/// Where files of tests are.
pub fn socket() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    (folder, path)
}

/// Counts the descriptors of this thread's table.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/thread-self/fd").unwrap().count()
}

/// Runs a test in a thread with a table of descriptors of its own, so that it can count them while others run.
pub fn alone(test: impl FnOnce() + Send + 'static) {
    let ran = thread::spawn(move || {
        own_descriptors();
        test();
    });
    if let Err(panic) = ran.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Gives this thread a table of descriptors of its own, with what every process has.
#[allow(unsafe_code)]
pub fn own_descriptors() {
    // SAFETY: other threads keep their table.
    let done = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: all of these are copies of what other threads have in their table.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
