//! The front end: messages that are mostly right, in any order.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use umbra_block::testing::MemoryDisk;
use umbra_devices::virtio::{Block, BlockOptions};
use umbra_fuzz::Source;
use umbra_fuzz::wire::{HEADER, header, receive, send_with_files, word};
use umbra_vhost_backend::{Server, Socket, Stopper, Visits};

use crate::guest::{Guest, NAME, RINGS, event, file};
use crate::messages::{Attached, BEGIN, GET_FEATURES, GET_VRING_BASE, Message, RING};

/// How long anything may take: the back end waits up to five seconds for requests that are on their way.
const PATIENCE: Duration = Duration::from_secs(12);
/// Version 1; an answer is wanted.
const FLAGS: [u32; 2] = [1, 9];
const SECTORS: usize = 64;
/// Files of front ends: the guest's memory, a log, what is nothing in particular, and what the back end makes for them.
const FILES: [&str; 4] = [NAME, LOG, SCRATCH, "vhost-inflight"];
const LOG: &str = "umbra-fuzz-log";
const SCRATCH: &str = "umbra-fuzz-scratch";

/// The front end, its guest, and the back end that it speaks to.
pub struct FrontEnd {
    guest: Guest,
    connection: UnixStream,
    /// The file that the back end has made last.
    inflight: Option<File>,
    /// The channel of its requests, which nobody reads.
    channel: UnixStream,
    channel_of_theirs: UnixStream,
    log: File,
    scratch: File,
    event: OwnedFd,
    stopper: Stopper,
    server: JoinHandle<()>,
}

fn path() -> PathBuf {
    std::env::temp_dir().join(format!("umbra-fuzz-backend-{}", std::process::id()))
}

fn disk() -> Vec<u8> {
    (0..SECTORS * 512).map(|at| (at >> 9) as u8).collect()
}

fn serve() -> (Stopper, JoinHandle<()>) {
    // Left by a process of the same number that was killed.
    let _ = std::fs::remove_file(path());
    let options = BlockOptions {
        queues: RINGS as u16,
        ..BlockOptions::default()
    };
    // Nobody writes it: what is read in the end is what is there now.
    let disk = MemoryDisk::read_only(disk());
    let device = Block::new(disk as Arc<_>, options).expect("the options are good");
    let socket = Socket::bind(&path()).expect("the host has sockets");
    let server = Server::new(socket, Box::new(device)).expect("the host has events");
    let stopper = server.stopper();
    let serve = move || server.serve(Visits::Many).expect("the host has all");
    (stopper, thread::spawn(serve))
}

fn connect() -> UnixStream {
    UnixStream::connect(path()).expect("it listens")
}

impl FrontEnd {
    /// Starts it, and the back end.
    pub fn new() -> Self {
        let (stopper, server) = serve();
        let (channel, channel_of_theirs) = UnixStream::pair().expect("the host has sockets");
        Self {
            guest: Guest::new(),
            connection: connect(),
            inflight: None,
            channel,
            channel_of_theirs,
            log: file(LOG, 0x1000),
            scratch: file(SCRATCH, 0x1_0000),
            event: event(),
            stopper,
            server,
        }
    }

    /// The file that belongs to a message.
    fn attached(&self, attached: Attached, ring: usize) -> Option<BorrowedFd<'_>> {
        match attached {
            Attached::Nothing => None,
            Attached::Memory => Some(self.guest.file().as_fd()),
            Attached::Kick => Some(self.guest.kicks[ring % RINGS].as_fd()),
            Attached::Event => Some(self.event.as_fd()),
            Attached::Log => Some(self.log.as_fd()),
            Attached::Inflight => Some(self.inflight.as_ref().unwrap_or(&self.scratch).as_fd()),
            Attached::Channel => Some(self.channel_of_theirs.as_fd()),
        }
    }

    fn send(&self, message: &Message, flags: u32) {
        let len = message.body.len() as u32;
        let mut bytes = header(message.request, flags, len);
        bytes.extend(&message.body);
        let ring = word(&message.body, 0) as usize;
        let files: Vec<_> = self.attached(message.attached, ring).into_iter().collect();
        send_with_files(&self.connection, &bytes, &files);
    }

    /// A message with something wrong.
    fn send_wrong(&self, mut message: Message, source: &mut Source<'_>) {
        let mut words = [
            message.request,
            source.pick(&FLAGS),
            message.body.len() as u32,
        ];
        let mut files = Vec::new();
        // What is wrong does not show the guest's memory: of that it is known what may be written.
        files.extend(match message.attached {
            Attached::Memory => Some(self.scratch.as_fd()),
            other => self.attached(other, word(&message.body, 0) as usize),
        });
        let len = message.body.len();
        match source.below(8) {
            0 => words[source.below(3)] = source.u32(),
            1 => words[1] ^= u32::from(source.u8()),
            2 => message.body.truncate(source.below(64)),
            3 => files.clear(),
            4 => {
                let other = source.pick(&[
                    Attached::Kick,
                    Attached::Log,
                    Attached::Inflight,
                    Attached::Channel,
                ]);
                files = vec![self.attached(other, 0).unwrap_or(self.event.as_fd())];
            }
            5 => files = vec![self.event.as_fd(); source.below(64)],
            6 if len >= 8 => {
                let at = source.below(len / 8) * 8;
                let value = source.u64().to_ne_bytes();
                message.body[at..at + 8].copy_from_slice(&value);
            }
            _ if len != 0 => message.body[source.below(len)] = source.u8(),
            _ => message.body = source.bytes(32).to_vec(),
        }
        let mut bytes = header(words[0], words[1], words[2]);
        bytes.extend(message.body);
        send_with_files(&self.connection, &bytes, &files);
    }

    /// Says all that there is to say at the beginning.
    fn begin(&mut self, flags: u32) {
        self.guest.begin();
        for request in BEGIN {
            self.send(&Message::good(request, 0, 0), flags);
        }
        for ring in 0..RINGS {
            for request in RING {
                self.send(&Message::good(request, ring, 0), flags);
            }
        }
    }

    /// Takes what was answered, and keeps the file that comes.
    fn drain(&mut self) {
        let mut files = Vec::new();
        while self.is_readable(Duration::ZERO) && receive(&self.connection, 1, &mut files).is_some()
        {
        }
        if let Some(file) = files.pop() {
            self.inflight = Some(file);
        }
    }

    fn is_readable(&self, patience: Duration) -> bool {
        let patience = Timespec::try_from(patience).expect("it is short");
        let mut watched = [PollFd::new(&self.connection, PollFlags::IN)];
        // The fuzzer has an alarm.
        let ready = rustix::io::retry_on_intr(|| poll(&mut watched, Some(&patience)));
        ready == Ok(1)
    }

    /// Hangs up, sees that the back end does so as well, and comes again.
    fn come_again(&mut self) {
        // All that was said is there before.
        let _ = self.connection.shutdown(Shutdown::Write);
        let begin = Instant::now();
        let mut files = Vec::new();
        loop {
            let waited = begin.elapsed();
            assert!(waited < PATIENCE, "the back end does not let go");
            if self.is_readable(PATIENCE) && receive(&self.connection, 1, &mut files).is_none() {
                break;
            }
        }
        self.connection = connect();
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(24) {
            0 => self.come_again(),
            1 => self.connection = connect(),
            2 | 3 => self.begin(source.pick(&FLAGS)),
            4 | 5 => self.drain(),
            6 => std::thread::sleep(Duration::from_micros(100)),
            7 => {
                let at = source.u16().into();
                let bytes = source.bytes(8);
                let written = std::os::unix::fs::FileExt::write_all_at(
                    self.inflight.as_ref().unwrap_or(&self.scratch),
                    bytes,
                    at,
                );
                // It is sealed, and shorter than that.
                drop(written);
            }
            8..=10 => {
                let message = Message::any(source);
                self.send_wrong(message, source);
            }
            11..=15 => self.guest.step(source),
            _ => self.send(&Message::any(source), source.pick(&FLAGS)),
        }
    }

    /// Takes one answer.
    fn hear(&self) -> Vec<u8> {
        assert!(self.is_readable(PATIENCE), "it does not answer");
        let mut files = Vec::new();
        let head = receive(&self.connection, HEADER, &mut files).expect("it has an answer");
        let body = receive(&self.connection, word(&head, 8) as usize, &mut files);
        body.expect("it has an answer")
    }

    /// Whatever was before: the next front end finds the device as new.
    pub fn finish(mut self) {
        self.come_again();
        self.begin(FLAGS[0]);
        for _ in 0..2 {
            self.hear();
        }
        self.send(&Message::good(GET_FEATURES, 0, 0), FLAGS[0]);
        self.hear();
        for ring in 0..RINGS {
            let sector = 3 + ring;
            let found = self.guest.read(ring, sector as u64, PATIENCE);
            assert!(found == [sector as u8; 512], "another sector");
            self.send(&Message::good(GET_VRING_BASE, ring, 0), FLAGS[0]);
            assert_eq!(word(&self.hear(), 4), 1, "it goes on behind that");
        }
        self.come_again();
        self.guest.check();
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the host has /proc");
        for name in FILES {
            assert!(!maps.contains(name), "{name} is still mapped");
        }
        self.stopper.stop();
        self.server.join().expect("it has not panicked");
        drop(self.channel);
    }
}
