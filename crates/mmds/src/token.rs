//! Tokens: who has one has asked for it before, not long ago, and by a request that a careless proxy in the guest does
//! not pass on.
//!
//! A token says when it ends, and has a code over that (HMAC-SHA-256, RFC 2104) by a key that is random and this
//! data's alone. So nothing is remembered of tokens, however many a guest asks for, and none of another machine is
//! good here. A key is made when the first token is asked for.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a code.
const CODE: usize = 32;
/// Bytes of the time.
const TIME: usize = 8;

/// Makes and knows tokens.
pub struct Tokens {
    begin: Instant,
    key: OnceLock<[u8; KEY]>,
}

/// How long a token may last.
pub const TTL_MAX: u32 = 21600;

impl Tokens {
    /// Makes a place without tokens.
    pub fn new() -> Self {
        Self {
            begin: Instant::now(),
            key: OnceLock::new(),
        }
    }

    /// Makes a token that lasts so many seconds; `None` if the host has no random bytes.
    pub fn make(&self, seconds: u32, now: Instant) -> Option<String> {
        let end = self.milliseconds(now + Duration::from_secs(seconds.into()));
        let time = end.to_le_bytes();
        let code = self.code(&time)?.finalize().into_bytes();
        Some(
            time.iter()
                .chain(&code)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }

    /// Tells whether a token is good.
    pub fn is_good(&self, token: &str, now: Instant) -> bool {
        let Some(bytes) = bytes(token) else {
            return false;
        };
        let (time, code) = bytes.split_at(TIME);
        // Compares in the same time whatever differs.
        let known = self
            .code(time)
            .is_some_and(|known| known.verify_slice(code).is_ok());
        let end = time
            .first_chunk()
            .map_or(0, |time| u64::from_le_bytes(*time));
        known && self.milliseconds(now) < end
    }

    fn milliseconds(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.begin).as_millis() as u64
    }

    fn code(&self, time: &[u8]) -> Option<Hmac<Sha256>> {
        let key = match self.key.get() {
            Some(key) => key,
            None => {
                let mut key = [0; KEY];
                let flags = rustix::rand::GetRandomFlags::empty();
                // So few bytes come at once, or not at all.
                if rustix::rand::getrandom(&mut key[..], flags).ok()? != KEY {
                    return None;
                }
                self.key.get_or_init(|| key)
            }
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
        mac.update(time);
        Some(mac)
    }
}

/// Reads hexadecimal digits, of exactly a token.
fn bytes(text: &str) -> Option<[u8; TIME + CODE]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * (TIME + CODE) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; TIME + CODE];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_until_its_end_and_where_it_was_made() {
        let (here, there) = (Tokens::new(), Tokens::new());
        let now = Instant::now();
        let token = here.make(10, now).unwrap();
        assert!(here.is_good(&token, now));
        assert!(here.is_good(&token, now + Duration::from_millis(9990)));
        assert!(!here.is_good(&token, now + Duration::from_secs(10)));
        assert!(!there.is_good(&token, now));
    }

    #[test]
    fn no_digit_of_a_token_can_be_changed() {
        let tokens = Tokens::new();
        let now = Instant::now();
        let token = tokens.make(TTL_MAX, now).unwrap();
        for at in 0..token.len() {
            let mut other = token.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert!(
                !tokens.is_good(std::str::from_utf8(&other).unwrap(), now),
                "{at}"
            );
        }
        for other in ["", "00", &token[1..], &format!("{token}0"), &"é".repeat(40)] {
            assert!(!tokens.is_good(other, now), "{other}");
        }
    }
}
