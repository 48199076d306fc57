//! What a program of the host says first: the port that it wants, as `CONNECT PORT` and an end of line.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::Id;
use super::socket::{Peek, receive_some};

/// Bytes of the longest line, with its end. The longest that makes sense has 19.
const LINE_MAX: usize = 32;
/// How long a program may take to say it; it may be typed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How many may be about to say it. One more, and the first of them is dropped.
pub const MAX: usize = 1024;

/// A program that has connected and not said its port.
struct Handshake {
    socket: OwnedFd,
    until: Instant,
}

/// All of them, the one that has waited longest first.
#[derive(Default)]
pub struct Handshakes(BTreeMap<Id, Handshake>);

/// What a program has said.
#[derive(Debug)]
pub enum Said {
    /// Not enough yet.
    Nothing,
    /// What makes no sense, or it has gone: it was dropped.
    Nonsense,
    /// The port.
    Port(OwnedFd, u32),
}

impl Handshakes {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one; drops another one if there are too many.
    pub fn add(&mut self, id: Id, socket: OwnedFd, now: Instant) {
        if self.0.len() >= MAX {
            self.0.pop_first();
        }
        let until = now + PATIENCE;
        self.0.insert(id, Handshake { socket, until });
    }

    /// Looks at what one has said, who may say no more if it `ended`; `None` if there is no such one.
    pub fn look(&mut self, id: Id, ended: bool) -> Option<Said> {
        let line = read(&self.0.get(&id)?.socket);
        Some(match line {
            Line::Unfinished if !ended => Said::Nothing,
            Line::Unfinished | Line::Wrong => {
                self.0.remove(&id);
                Said::Nonsense
            }
            Line::Port(port) => Said::Port(self.0.remove(&id)?.socket, port),
        })
    }

    /// When the first one will have waited too long.
    pub fn deadline(&self) -> Option<Instant> {
        Some(self.0.first_key_value()?.1.until)
    }

    /// Drops those that have waited too long.
    pub fn expire(&mut self, now: Instant) {
        while self.deadline().is_some_and(|until| until <= now) {
            self.0.pop_first();
        }
    }

    /// Gives all of them more time.
    pub fn delay(&mut self, time: Duration) {
        for handshake in self.0.values_mut() {
            handshake.until += time;
        }
    }

    /// Drops all of them.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

enum Line {
    Unfinished,
    Wrong,
    Port(u32),
}

/// Takes the line from a socket, once it is whole, and nothing of what follows.
fn read(socket: &OwnedFd) -> Line {
    let mut bytes = [0; LINE_MAX];
    let len = match receive_some(socket, &mut bytes, Peek::Leave) {
        Ok(None) => return Line::Unfinished,
        // At the end of a line that has none.
        Ok(Some(0)) | Err(_) => return Line::Wrong,
        Ok(Some(len)) => len,
    };
    let Some(end) = bytes[..len].iter().position(|byte| *byte == b'\n') else {
        return match len {
            LINE_MAX => Line::Wrong,
            _ => Line::Unfinished,
        };
    };
    let Some(port) = parse(&bytes[..end]) else {
        return Line::Wrong;
    };
    let taken = receive_some(socket, &mut bytes[..=end], Peek::Take);
    match taken {
        Ok(Some(len)) if len == end + 1 => Line::Port(port),
        _ => Line::Wrong,
    }
}

/// Reads `CONNECT PORT`, in any case, with any spaces.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (word, port) = (words.next()?, words.next()?);
    // A number with a sign is none.
    let plain = word.eq_ignore_ascii_case("connect") && !port.starts_with('+');
    match words.next() {
        None if plain => port.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn program() -> (OwnedFd, UnixStream) {
        let (here, there) = UnixStream::pair().unwrap();
        (here.into(), there)
    }

    #[test]
    fn lines_are_read() {
        let table: [(&[u8], Option<u32>); 14] = [
            (b"CONNECT 52", Some(52)),
            (b"connect 4294967295", Some(u32::MAX)),
            (b" CONNECT  0 \r", Some(0)),
            (b"CONNECT 4294967296", None),
            (b"CONNECT -1", None),
            (b"CONNECT +1", None),
            (b"CONNECT 0x10", None),
            (b"CONNECT", None),
            (b"CONNECT 1 2", None),
            (b"CONNECT\xff1", None),
            (b"GET / HTTP/1.1", None),
            (b"52", None),
            (b"", None),
            (b"\0", None),
        ];
        for (line, port) in table {
            assert_eq!(parse(line), port, "{:?}", line.escape_ascii().to_string());
        }
    }

    #[test]
    fn what_follows_the_line_stays_in_the_socket() {
        let (socket, mut there) = program();
        let mut all = Handshakes::default();
        all.add(7, socket, Instant::now());
        assert!(matches!(all.look(7, false), Some(Said::Nothing)));
        there.write_all(b"CONN").unwrap();
        assert!(matches!(all.look(7, false), Some(Said::Nothing)));
        there.write_all(b"ECT 5\nhello\n").unwrap();
        let Some(Said::Port(socket, 5)) = all.look(7, false) else {
            panic!("it is port 5")
        };
        let mut rest = [0; 6];
        UnixStream::from(socket).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello\n");
        assert!(all.look(7, false).is_none() && all.len() == 0);
    }

    #[test]
    fn who_says_something_else_is_dropped() {
        let table: [(&[u8], bool); 4] = [
            (b"HELLO 5\n", false),
            (&[b' '; LINE_MAX], false),
            (b"CONNECT 5", true),
            (b"", false),
        ];
        for (line, ended) in table {
            let (socket, mut there) = program();
            let mut all = Handshakes::default();
            all.add(1, socket, Instant::now());
            there.write_all(line).unwrap();
            there.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(matches!(all.look(1, ended), Some(Said::Nonsense)));
            assert_eq!(there.read(&mut [0]).unwrap_or(0), 0);
        }
    }

    #[test]
    fn who_says_nothing_is_dropped_after_a_while_or_when_there_are_many() {
        let (mut all, now) = (Handshakes::default(), Instant::now());
        let second = Duration::from_secs(1);
        let programs: Vec<_> = (0..=MAX as Id).map(|_| program()).collect();
        let (here, mut there): (Vec<_>, Vec<_>) = programs.into_iter().unzip();
        for (id, socket) in (0..).zip(here) {
            all.add(id, socket, now + second * u32::from(id > 1));
        }
        assert_eq!(all.len(), MAX, "the first one made room");
        assert_eq!(there[0].read(&mut [0]).unwrap(), 0);
        all.delay(second);
        all.expire(now + PATIENCE);
        assert_eq!(all.len(), MAX);
        all.expire(now + PATIENCE + second);
        assert_eq!(all.len(), MAX - 1);
        assert_eq!(all.deadline(), Some(now + PATIENCE + 2 * second));
        all.clear();
        assert_eq!(all.deadline(), None);
    }
}
