//! A back end that is written by the specification alone, and misbehaves as its input says.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use umbra_fuzz::Source;
use umbra_fuzz::wire::{
    HEADER, NEED_REPLY, REPLY, header, long, receive, send, send_with_files, word,
};
use umbra_virtio::Event;

use crate::mischief::{Answer, Deed};
use crate::rings::{Piece, Pieces, Ring};

/// All of any device, and what the transport needs; the rings' bits are added.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 0xff_ffff | !0 << 50;
/// INDIRECT_DESC, EVENT_IDX.
const RING_FEATURES: [u64; 2] = [1 << 28, 1 << 29];
/// MQ, CONFIG, and what a back end may lack: REPLY_ACK, BACKEND_REQ, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 << 0 | 1 << 9;
const PROTOCOL_PARTS: [u64; 4] = [1 << 3, 1 << 5, 1 << 13, 1 << 15];
const QUEUES: u64 = 8;
const SLOTS: u64 = 32;
/// More bytes than any socket has room for.
const ENDLESS: usize = 0x1_0000;

/// A back end in a thread, one front end after the other.
pub struct BackEnd {
    shared: Arc<Shared>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Something below has changed.
    news: Event,
    /// It does its work from now on.
    good: AtomicBool,
    ends: AtomicBool,
}

impl BackEnd {
    /// Listens, and serves.
    pub fn start(path: &Path, input: &[u8]) -> Self {
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("the host has sockets");
        let shared = Arc::new(Shared {
            news: Event::new().expect("the host has events"),
            good: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let (theirs, input) = (shared.clone(), input.to_vec());
        let serve = move || theirs.serve(&listener, &input);
        Self {
            shared,
            path: path.to_owned(),
            thread: Some(thread::spawn(serve)),
        }
    }

    /// Another one comes, which does its work.
    pub fn be_good(&self) {
        self.shared.good.store(true, Ordering::Release);
        self.shared.news.signal();
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        self.shared.news.signal();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it has not panicked");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn serve(&self, listener: &UnixListener, input: &[u8]) {
        let mut source = Source::new(input);
        let traits = source.u8();
        while !self.ends.load(Ordering::Acquire) {
            let mut watched = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(&self.news, PollFlags::IN),
            ];
            // It is looked again.
            let _ = poll(&mut watched, None);
            self.news.take();
            let is_good = self.good.load(Ordering::Acquire);
            if is_good {
                source = Source::new(&[]);
            }
            if !watched[0].revents().is_empty()
                && let Ok((socket, _)) = listener.accept()
            {
                let mut peer = Peer::new(socket, traits, &mut source);
                let goes_on = || {
                    let ends = self.ends.load(Ordering::Acquire);
                    self.good.load(Ordering::Acquire) == is_good && !ends
                };
                let mut is_there = true;
                while is_there && goes_on() {
                    is_there = peer.turn(&self.news);
                }
            }
        }
    }
}

/// One connection.
struct Peer<'a, 'b> {
    socket: UnixStream,
    source: &'a mut Source<'b>,
    features: u64,
    protocol: u64,
    memory: Pieces,
    rings: [Ring; QUEUES as usize],
    asks: Option<UnixStream>,
    /// What its tables say is nothing to write by.
    spoiled: bool,
}

impl<'a, 'b> Peer<'a, 'b> {
    fn new(socket: UnixStream, traits: u8, source: &'a mut Source<'b>) -> Self {
        let all = RING_FEATURES.into_iter().chain(PROTOCOL_PARTS);
        let has = all.enumerate().map(|(bit, part)| match traits >> bit & 1 {
            0 => part,
            _ => 0,
        });
        let has: Vec<u64> = has.collect();
        Self {
            socket,
            source,
            features: has[..2].iter().fold(FEATURES, |all, part| all | part),
            protocol: has[2..].iter().fold(PROTOCOL, |all, part| all | part),
            memory: Pieces::default(),
            rings: Default::default(),
            asks: None,
            spoiled: false,
        }
    }

    /// Waits for something, and does it; `false` at the end.
    fn turn(&mut self, news: &Event) -> bool {
        // One that has mischief to do does not wait for a reason.
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: 500_000,
        };
        let has_message = {
            let kicks = self.rings.iter().filter_map(|ring| ring.kick.as_ref());
            let mut watched = vec![
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::new(news, PollFlags::IN),
            ];
            watched.extend(kicks.map(|kick| PollFd::new(kick, PollFlags::IN)));
            let patience = (!self.source.is_empty()).then_some(&tick);
            let _ = poll(&mut watched, patience);
            !watched[0].revents().is_empty()
        };
        if !has_message {
            for index in 0..self.rings.len() {
                if !self.look_at(index) {
                    return false;
                }
            }
        }
        !has_message || self.message()
    }

    /// Does something with a ring, if that runs; `false` if that is to go.
    fn look_at(&mut self, index: usize) -> bool {
        let ring = &mut self.rings[index];
        if !ring.runs() {
            return true;
        }
        if let Some(kick) = &ring.kick {
            let mut watched = [PollFd::new(kick, PollFlags::IN)];
            if poll(&mut watched, Some(&Timespec::default())) == Ok(1) {
                let _ = rustix::io::read(kick, &mut [0; 8]);
            }
        }
        let memory = &self.memory;
        let deed = match ring.waits_for_two {
            true => Deed::Twice,
            false => Deed::next(self.source),
        };
        // What it has not done is made anew under its hands.
        let skips = matches!(deed, Deed::Element(..) | Deed::Jump(_) | Deed::Twice);
        self.spoiled |= skips || matches!(deed, Deed::Poke(..));
        match deed {
            Deed::Work => ring.work(memory, self.spoiled),
            Deed::Rest => {}
            Deed::Backwards => ring.one(memory, true, self.spoiled.then_some(1)),
            Deed::Length(len) => ring.one(memory, false, Some(len)),
            Deed::Element(id, len) => {
                ring.element(memory, id, len);
                ring.show(memory, 1);
            }
            Deed::Jump(by) => ring.show(memory, by),
            Deed::Twice => ring.twice(memory),
            Deed::Poke(place, bytes) => {
                // Descriptors, the available and the used ring, and tables of the first ones are in the first pages.
                let at = ring.at[0] + u64::from(place % 0x1800);
                memory.write(at, &bytes.to_le_bytes());
            }
            Deed::Hint(value) => ring.hint(memory, value),
            Deed::Fault => ring.fault(),
            Deed::Call => ring.call(),
            Deed::Unasked => {
                let mut bytes = header(1, REPLY, 8);
                bytes.extend([0xff; 8]);
                send(&self.socket, &bytes);
            }
            Deed::Ask(count, flags) => self.ask(&header(2, flags, 0).repeat(count)),
            Deed::Garbage(what, len) => {
                let mut bytes = header(what as u32 & 0xf, 1, (what >> 32) as u32 & 0x1fff);
                bytes[4] ^= (what >> 16) as u8 & 7;
                bytes.resize(len, what as u8);
                self.ask(&bytes);
            }
            Deed::AskNoMore => self.asks = None,
            Deed::Die => return false,
        }
        true
    }

    fn ask(&self, bytes: &[u8]) {
        if let Some(asks) = &self.asks {
            send(asks, bytes);
        }
    }

    /// Takes one message, and answers it or not; `false` at the end.
    fn message(&mut self) -> bool {
        let mut files = Vec::new();
        let Some(head) = receive(&self.socket, HEADER, &mut files) else {
            return false;
        };
        let (request, flags) = (word(&head, 0), word(&head, 4));
        let len = word(&head, 8) as usize;
        let Some(body) = receive(&self.socket, len, &mut files) else {
            return false;
        };
        let answer = Answer::next(self.source);
        let reply = match answer {
            Answer::No => Some(1u64.to_ne_bytes().to_vec()),
            _ => self.reply(request, &body, files),
        };
        let reply = reply.or_else(|| (flags & NEED_REPLY != 0).then(|| vec![0; 8]));
        reply.is_none_or(|reply| self.answer(answer, request, reply))
    }

    fn answer(&mut self, answer: Answer, request: u32, mut body: Vec<u8>) -> bool {
        let mut words = [request, REPLY, body.len() as u32];
        match answer {
            Answer::Silence => return true,
            Answer::Close => return false,
            Answer::Header(at, value) => words[at] = value,
            Answer::Number(number) => {
                let len = body.len().min(8);
                body[..len].copy_from_slice(&number.to_ne_bytes()[..len]);
            }
            _ => {}
        }
        let mut bytes = header(words[0], words[1], words[2]);
        bytes.extend(body);
        match answer {
            Answer::Part(len) => bytes.truncate(len),
            Answer::Changed(at, with) => {
                let at = at % bytes.len();
                bytes[at] ^= with;
            }
            Answer::Twice => bytes = bytes.repeat(2),
            Answer::Endless => bytes.resize(ENDLESS, 0xff),
            Answer::Files(count) => {
                return send_with_files(&self.socket, &bytes, &vec![self.socket.as_fd(); count]);
            }
            _ => {}
        }
        // Who has cut the connection is seen by the next look.
        send(&self.socket, &bytes);
        true
    }

    /// Does what a message says; returns what has to be answered.
    fn reply(&mut self, request: u32, body: &[u8], files: Vec<File>) -> Option<Vec<u8>> {
        let number = |number: u64| Some(number.to_ne_bytes().to_vec());
        match request {
            1 => number(self.features),
            15 => number(self.protocol),
            17 => number(QUEUES),
            36 => number(SLOTS),
            11 => {
                let index = word(body, 0);
                let ring = self.rings.get_mut(index as usize)?;
                let base = ring.base;
                *ring = Ring::default();
                Some([index, base.into()].map(u32::to_ne_bytes).concat())
            }
            24 => {
                let mut reply = body.to_vec();
                // The same each time, and the guest's tag can be read.
                let config = reply.iter_mut().skip(12).zip(1u8..);
                config.for_each(|(byte, value)| *byte = value);
                Some(reply)
            }
            _ => {
                self.told(request, body, files);
                None
            }
        }
    }

    fn told(&mut self, request: u32, body: &[u8], mut files: Vec<File>) {
        let index = word(body, 0) as usize & 0xff;
        let mut nothing = Ring::default();
        let ring = self.rings.get_mut(index).unwrap_or(&mut nothing);
        let event = |files: &mut Vec<File>| files.pop().map(OwnedFd::from);
        match request {
            5 => {
                self.memory.0.clear();
                for (n, file) in files.into_iter().enumerate() {
                    self.add(body.get(8 + 32 * n..).unwrap_or_default(), file);
                }
            }
            8 => ring.size = word(body, 4) as u16,
            9 => ring.at = [8, 24, 16].map(|at| long(body, at)),
            10 => ring.base = word(body, 4) as u16,
            12 => ring.kick = event(&mut files),
            13 => ring.call = event(&mut files),
            14 => ring.fault = event(&mut files),
            18 => ring.enabled = word(body, 4) == 1,
            21 => self.asks = event(&mut files).map(UnixStream::from),
            37 => {
                if let Some(file) = files.pop() {
                    self.add(body.get(8..).unwrap_or_default(), file);
                }
            }
            38 => {
                let start = long(body, 8);
                self.memory.0.retain(|piece| piece.start != start);
            }
            _ => {}
        }
    }

    fn add(&mut self, body: &[u8], file: File) {
        let [start, len, _, offset] = [0, 8, 16, 24].map(|at| long(body, at));
        self.memory.0.push(Piece {
            start,
            len,
            offset,
            file,
        });
    }
}
