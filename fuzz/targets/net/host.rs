//! The other end of a device's socket: frames behind their lengths, or what looks so.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::net::{SendFlags, send};
use umbra_fuzz::Source;
use umbra_net::{FRAME_MAX, Header, Stream};

/// The longest frame without its header.
const LONGEST: usize = FRAME_MAX - Header::LEN;
/// No more waits to be sent than this.
const WAITING: usize = 0x4_0000;

/// The other end.
pub struct Host {
    socket: UnixStream,
    /// It has closed, or said nonsense: the device may have given it up.
    lost: bool,
    /// What the socket has not taken yet.
    out: VecDeque<u8>,
    /// Bytes that are missing of the last frame.
    owed: usize,
    /// What was read, from the beginning of a frame on.
    input: Vec<u8>,
}

impl Host {
    /// Makes the two ends of a connection.
    pub fn pair() -> (Self, Stream) {
        let (here, there) = UnixStream::pair().expect("the host has sockets");
        here.set_nonblocking(true).expect("it is a socket");
        let host = Self {
            socket: here,
            lost: false,
            out: VecDeque::new(),
            owed: 0,
            input: Vec::new(),
        };
        (host, Stream::new(there).expect("it is a socket"))
    }

    /// Tells whether nothing can be expected of the connection any more.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Begins a frame of `len` bytes with what there is of it.
    fn begin(&mut self, len: usize, bytes: &[u8]) {
        self.complete();
        if self.out.len() <= WAITING {
            self.lost |= len > LONGEST;
            self.out.extend((len as u32).to_be_bytes());
            self.out.extend(bytes);
            self.owed = len.min(LONGEST) - bytes.len();
        }
        self.flush();
    }

    fn complete(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        self.out.resize(self.out.len() + owed, 0);
    }

    /// Sends a frame, behind whatever waits.
    pub fn send(&mut self, frame: &[u8]) {
        self.complete();
        self.out.extend((frame.len() as u32).to_be_bytes());
        self.out.extend(frame);
        self.flush();
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) {
        while !self.out.is_empty() {
            let (bytes, _) = self.out.as_slices();
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(len) => drop(self.out.drain(..len)),
                // It is full, or closed.
                Err(_) => return,
            }
        }
    }

    /// Reads up to `len` bytes, and returns the frames that are complete.
    pub fn read(&mut self, len: usize) -> Vec<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self.socket.read(&mut bytes) {
            Ok(len) => self.input.extend(&bytes[..len]),
            Err(error) => assert!(
                self.lost || error.kind() == ErrorKind::WouldBlock,
                "{error}"
            ),
        }
        let (mut frames, mut at) = (Vec::new(), 0);
        while let Some(length) = self.input[at..].first_chunk() {
            let len = u32::from_be_bytes(*length) as usize;
            assert!((1..=LONGEST).contains(&len), "a frame of {len} bytes");
            let Some(frame) = self.input.get(at + 4..at + 4 + len) else {
                break;
            };
            frames.push(frame.to_vec());
            at += 4 + len;
        }
        self.input.drain(..at);
        frames
    }

    fn close(&mut self, source: &mut Source<'_>) {
        self.lost = true;
        let how = source.pick(&[Shutdown::Both, Shutdown::Read, Shutdown::Write]);
        let _ = self.socket.shutdown(how);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        let len = usize::from(source.u16()) >> source.below(14);
        match source.below(32) {
            0 => self.close(source),
            // A length that is none, or just about none.
            1 => {
                let len = source.pick(&[LONGEST + 1, LONGEST, u32::MAX as usize, 1 << 31]);
                self.begin(len, &[]);
            }
            // A frame that comes in two pieces.
            2..8 => self.begin(len, &vec![0x5a; len >> 1]),
            8..11 => (0..len & 15).for_each(|n| self.begin(n, &vec![0x5a; n])),
            11..14 => self.begin(0, &[]),
            14..18 => drop(self.read(len)),
            _ => self.begin(len, &vec![0x5a; len]),
        }
    }
}
