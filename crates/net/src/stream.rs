//! Frames over a stream socket: each with its length before it, 32 bits in network order (QEMU's
//! `-netdev stream`, passt).

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::{FRAME_MAX, Header, Offloads, Port, Sent};

const LENGTH: usize = 4;
/// Bytes that are asked of the socket at a time.
const BUFFER: usize = 4 * FRAME_MAX;

/// Why there is no such connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to the network socket {path:?}: start its server first, or name another")]
pub struct StreamError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    /// What has come; `start..end` was not looked at yet.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// What was taken to be sent; the first `sent` bytes have gone.
    output: Vec<u8>,
    sent: usize,
}

impl Stream {
    /// Connects to a socket.
    ///
    /// # Errors
    /// If nobody answers there.
    pub fn connect(path: &Path) -> Result<Self, StreamError> {
        let failed = |source| StreamError {
            path: path.to_owned(),
            source,
        };
        let socket = UnixStream::connect(path).map_err(failed)?;
        Self::new(socket).map_err(failed)
    }

    /// Takes a connection.
    ///
    /// # Errors
    /// If the host refuses to make it one that does not block.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            input: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            output: Vec::new(),
            sent: 0,
        })
    }

    /// The length of the frame that comes next, if that has come.
    fn next_len(&self) -> Option<usize> {
        let length = self.input[self.start..self.end].first_chunk::<LENGTH>()?;
        Some(u32::from_be_bytes(*length) as usize)
    }

    /// Tells whether more came.
    fn fill(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self.socket.read(&mut self.input[self.end..]) {
            Ok(0) => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the other end has closed the connection",
            )),
            Ok(len) => {
                self.end += len;
                Ok(true)
            }
            Err(error) if is_later(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Port for Stream {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn can_offload(&self) -> bool {
        false
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn enable(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<Sent> {
        self.flush()?;
        if self.has_unsent() {
            return Ok(Sent::Later);
        }
        let complete = Header::of(frame).is_some_and(|header| header.is_complete());
        let payload = frame.get(Header::LEN..).unwrap_or_default();
        if !complete || payload.is_empty() || frame.len() > FRAME_MAX {
            return Ok(Sent::Dropped);
        }
        self.output.clear();
        self.output.extend((payload.len() as u32).to_be_bytes());
        self.output.extend(payload);
        self.sent = 0;
        self.flush()?;
        Ok(Sent::Done)
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(len) = self.next_len() {
                if len > FRAME_MAX - Header::LEN {
                    let what = format!("the other end sends a frame of {len} bytes, which is none");
                    return Err(io::Error::new(ErrorKind::InvalidData, what));
                }
                let all = self.start + LENGTH + len;
                if all <= self.end {
                    let payload = &self.input[self.start + LENGTH..all];
                    frame[..Header::LEN].fill(0);
                    frame[Header::LEN..Header::LEN + len].copy_from_slice(payload);
                    self.start = all;
                    return Ok(Some(Header::LEN + len));
                }
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn has_unsent(&self) -> bool {
        self.sent < self.output.len()
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.has_unsent() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (Stream::new(here).unwrap(), there)
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
    }

    fn with_header(payload: &[u8]) -> Vec<u8> {
        [&[0; Header::LEN][..], payload].concat()
    }

    #[test]
    fn frames_come_as_they_were_sent_however_the_stream_is_cut() {
        let (mut port, mut there) = pair();
        let payloads: Vec<Vec<u8>> = (1..40u8).map(|n| vec![n; usize::from(n) * 50]).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|p| framed(p)).collect();
        let mut frame = vec![0xaa; FRAME_MAX];
        let mut found = Vec::new();
        for piece in stream.chunks(37) {
            there.write_all(piece).unwrap();
            while let Some(len) = port.receive(&mut frame).unwrap() {
                assert_eq!(frame[..Header::LEN], [0; Header::LEN]);
                found.push(frame[Header::LEN..len].to_vec());
            }
        }
        assert_eq!(found, payloads);
    }

    #[test]
    fn a_frame_goes_with_its_length_and_one_that_is_not_complete_goes_nowhere() {
        let (mut port, mut there) = pair();
        assert_eq!(port.send(&with_header(b"hello")).unwrap(), Sent::Done);
        let mut bytes = [0; 9];
        there.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..], framed(b"hello"));
        let mut segmented = with_header(b"hello");
        segmented[1] = 1;
        for frame in [&segmented[..], &[0; Header::LEN], &[0; 3], b""] {
            assert_eq!(port.send(frame).unwrap(), Sent::Dropped);
        }
        there.set_nonblocking(true).unwrap();
        assert!(there.read(&mut bytes).is_err(), "nothing came");
    }

    #[test]
    fn a_full_socket_takes_the_rest_of_a_frame_later() {
        let (mut port, mut there) = pair();
        let frame = with_header(&[7; 0x1_0000]);
        let mut sent = 0;
        while port.send(&frame).unwrap() == Sent::Done {
            sent += 1;
            assert!(sent < 1000, "a socket is full at some time");
        }
        assert!(port.has_unsent());
        let all = sent * (LENGTH + 0x1_0000);
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; all];
            there.read_exact(&mut bytes).unwrap();
            (bytes, there)
        });
        while port.has_unsent() {
            port.flush().unwrap();
        }
        let (bytes, _there) = reader.join().unwrap();
        assert_eq!(bytes, framed(&[7; 0x1_0000]).repeat(sent));
        assert_eq!(port.send(&frame).unwrap(), Sent::Done);
    }

    #[test]
    fn an_end_and_nonsense_are_errors() {
        let mut frame = vec![0; FRAME_MAX];
        let (mut port, there) = pair();
        drop(there);
        let ended = port.receive(&mut frame).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::UnexpectedEof);
        let (mut port, mut there) = pair();
        there.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let wrong = port.receive(&mut frame).unwrap_err();
        assert!(wrong.to_string().contains("4294967295"), "{wrong}");
    }
}
