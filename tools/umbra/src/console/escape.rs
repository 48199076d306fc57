//! The escape key, Ctrl-A, as a state machine over bytes.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// End the machine.
    End,
    /// Explain the keys.
    Help,
}

/// What Ctrl-A h prints.
pub const HELP: &str = "\r\nCtrl-A x       end the machine\r\nCtrl-A h       this help\r\nCtrl-A Ctrl-A  send one Ctrl-A\r\n";

/// Remembers whether the last byte was the escape key.
#[derive(Debug, Default)]
pub struct Escape {
    pressed: bool,
}

impl Escape {
    /// Filters typed bytes: appends what the guest gets to `guest`; returns what the user asks for
    /// and how many bytes were used up to there.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> (usize, Option<Ask>) {
        for (used, byte) in (1..).zip(typed) {
            match (std::mem::take(&mut self.pressed), *byte) {
                (false, ESCAPE) => self.pressed = true,
                (false, byte) | (true, byte @ ESCAPE) => guest.push(byte),
                (true, b'x' | b'X') => return (used, Some(Ask::End)),
                (true, b'h' | b'H' | b'?') => return (used, Some(Ask::Help)),
                // Not a command: the guest gets what was typed.
                (true, byte) => guest.extend([ESCAPE, byte]),
            }
        }
        (typed.len(), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types `keys` in pieces of every size; what the guest gets, and what was asked for.
    fn typed(keys: &[u8]) -> (Vec<u8>, Vec<Ask>) {
        let once = |size: usize| {
            let (mut escape, mut guest, mut asked) = (Escape::default(), Vec::new(), Vec::new());
            for mut piece in keys.chunks(size) {
                while !piece.is_empty() {
                    let (used, ask) = escape.filter(piece, &mut guest);
                    asked.extend(ask);
                    piece = &piece[used..];
                }
            }
            (guest, asked)
        };
        let whole = once(keys.len());
        assert!((1..keys.len()).all(|size| once(size) == whole));
        whole
    }

    #[test]
    fn plain_keys_pass() {
        assert_eq!(
            typed(b"ls -l\r\x03\x1b[A"),
            (b"ls -l\r\x03\x1b[A".to_vec(), vec![])
        );
    }

    #[test]
    fn commands_are_heard_and_not_sent() {
        assert_eq!(
            typed(b"a\x01hb\x01xc"),
            (b"abc".to_vec(), vec![Ask::Help, Ask::End])
        );
    }

    #[test]
    fn twice_the_escape_key_sends_it_once() {
        assert_eq!(typed(b"\x01\x01x\x01\x01"), (b"\x01x\x01".to_vec(), vec![]));
    }

    #[test]
    fn an_unknown_command_is_sent_whole() {
        assert_eq!(typed(b"\x01q"), (b"\x01q".to_vec(), vec![]));
    }
}
