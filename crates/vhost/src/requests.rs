//! What a back end asks its front end for (vhost-user, "Back-end message types").
//!
//! Only one of these requests means something to a front end of this kind: the configuration has changed.
//! Others are answered with a failure if an answer is asked for. Files that come with them are closed by the
//! host, since nobody takes them.
//!
//! A back end may ask without end, or stop in the middle of a request: nothing here waits, and what is read in
//! one go is bounded.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes of a header: request, flags, size.
const HEADER: usize = 12;
/// The largest payload that any request has.
const PAYLOAD_MAX: usize = 0x1000;
/// Version 1, in bits 0 and 1 of the flags.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;
/// Bytes that are read in one go.
const BITE: usize = 0x2000;

/// Our end of the socket that a back end asks on.
#[derive(Debug)]
pub struct Requests {
    socket: UnixStream,
    /// What has come of a request that is not complete.
    begun: Vec<u8>,
}

/// What has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The configuration has changed, once or often.
    pub config_changed: bool,
    /// The back end has closed its end.
    pub ended: bool,
}

/// A request that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {request} with flags {flags:#x} and {size} bytes")]
pub struct Malformed {
    request: u32,
    flags: u32,
    size: u32,
}

impl Requests {
    /// Makes both ends; the other one is for the back end.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new() -> io::Result<(Self, UnixStream)> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let begun = Vec::new();
        Ok((Self { socket, begun }, theirs))
    }

    /// Takes what has come, and answers it. Does not block.
    ///
    /// # Errors
    /// If it is no request.
    pub fn take(&mut self) -> Result<Asked, Malformed> {
        let mut asked = Asked::default();
        let mut bytes = [0; BITE];
        match self.socket.read(&mut bytes) {
            Ok(0) => asked.ended = true,
            Ok(len) => self.begun.extend(&bytes[..len]),
            Err(error) => {
                let later = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                asked.ended = !later;
            }
        }
        let mut rest = &self.begun[..];
        while let Some((header, body)) = rest.split_at_checked(HEADER) {
            let [request, flags, size] = words(header);
            let malformed = Malformed {
                request,
                flags,
                size,
            };
            let good = flags & VERSION_MASK == VERSION && flags & REPLY == 0;
            if !good || size as usize > PAYLOAD_MAX {
                return Err(malformed);
            }
            let Some(after) = body.get(size as usize..) else {
                break;
            };
            let known = request == CONFIG_CHANGE;
            if known && size != 0 {
                return Err(malformed);
            }
            asked.config_changed |= known;
            if flags & NEED_REPLY != 0 {
                self.reply(request, u64::from(!known));
            }
            rest = after;
        }
        let left = rest.len();
        self.begun.drain(..self.begun.len() - left);
        Ok(asked)
    }

    fn reply(&self, request: u32, failed: u64) {
        let mut message = Vec::with_capacity(HEADER + 8);
        for word in [request, VERSION | REPLY, 8] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(failed.to_ne_bytes());
        // A back end that does not read its answers gets none.
        let _ = (&self.socket).write(&message);
    }
}

fn words(header: &[u8]) -> [u32; 3] {
    let word = |at: usize| {
        let bytes = header[at..at + 4].try_into();
        u32::from_ne_bytes(bytes.expect("a header has three words"))
    };
    [word(0), word(4), word(8)]
}

impl AsFd for Requests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: u32, flags: u32, size: u32) -> Vec<u8> {
        let words = [request, flags, size].map(u32::to_ne_bytes);
        words.concat()
    }

    #[test]
    fn a_change_of_the_configuration_is_heard_and_answered_if_that_is_wanted() {
        let (mut requests, mut theirs) = Requests::new().unwrap();
        assert_eq!(requests.take().unwrap(), Asked::default());
        theirs.write_all(&message(2, 1, 0)).unwrap();
        theirs.write_all(&message(2, 9, 0)).unwrap();
        let asked = requests.take().unwrap();
        assert!(asked.config_changed && !asked.ended);
        let mut reply = [0; 20];
        theirs.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..12], message(2, 5, 8));
        assert_eq!(reply[12..], [0; 8]);
        drop(theirs);
        assert!(requests.take().unwrap().ended);
    }

    #[test]
    fn a_request_may_come_in_pieces() {
        let (mut requests, mut theirs) = Requests::new().unwrap();
        let mut bytes = message(9, 9, 5);
        bytes.extend([1; 5]);
        bytes.extend(message(2, 1, 0));
        for byte in &bytes[..bytes.len() - 1] {
            theirs.write_all(&[*byte]).unwrap();
            assert_eq!(requests.take().unwrap(), Asked::default());
        }
        theirs.write_all(&bytes[bytes.len() - 1..]).unwrap();
        assert!(requests.take().unwrap().config_changed);
        let mut reply = [0; 20];
        theirs.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], 1u64.to_ne_bytes(), "nobody knows request 9");
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        for (request, flags, size) in [(2, 0, 0), (2, 2, 0), (2, 5, 0), (2, 1, 1), (1, 1, 0x1001)] {
            let (mut requests, mut theirs) = Requests::new().unwrap();
            theirs.write_all(&message(request, flags, size)).unwrap();
            theirs.write_all(&[0]).unwrap();
            assert!(requests.take().is_err(), "{request} {flags} {size}");
        }
    }

    #[test]
    fn one_that_asks_without_end_is_heard_in_bounded_pieces() {
        let (mut requests, mut theirs) = Requests::new().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let many = message(2, 9, 0).repeat(1000);
        for _ in 0..100 {
            let _ = theirs.write(&many);
            requests.take().unwrap();
            assert!(requests.begun.len() < HEADER);
        }
    }
}
