//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

/// Why some text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six numbers.
    #[error("{text:?} is no MAC address; write six hexadecimal bytes like 52:54:00:12:34:56")]
    Form {
        /// What was written.
        text: String,
    },
    /// It means several.
    #[error("{text:?} is an address of several; the first byte of one interface's is even")]
    Multicast {
        /// What was written.
        text: String,
    },
    /// It means nobody.
    #[error("an interface cannot have the address of nobody, 00:00:00:00:00:00")]
    Zero,
}

impl Mac {
    /// Makes one for an interface that was given none: locally administered, and random.
    #[must_use]
    pub fn random() -> Self {
        use std::hash::BuildHasher;
        // The keys of the standard library's hash maps come from the host's randomness.
        let random = std::hash::RandomState::new().hash_one(std::process::id());
        let [a, b, c, d, e, ..] = random.to_ne_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form {
            text: text.to_owned(),
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(form)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| form())?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes[0] & 1 != 0 {
            return Err(MacError::Multicast {
                text: text.to_owned(),
            });
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written() {
        let mac: Mac = "52:54:00:aB:0c:ff".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0x0c, 0xff]));
        assert_eq!(mac.to_string(), "52:54:00:ab:0c:ff");
        let random = Mac::random();
        assert_eq!(random.0[0], 2);
        assert_eq!(random.to_string().parse(), Ok(random));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "52:54:00:ab:0c",
            "52:54:00:ab:0c:ff:00",
            "5:54:00:ab:0c:ff",
            "+5:54:00:ab:0c:ff",
            "52-54-00-ab-0c-ff",
        ] {
            let text = text.to_owned();
            assert_eq!(text.parse::<Mac>(), Err(MacError::Form { text }));
        }
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        let text = "01:00:5e:00:00:01".to_owned();
        assert_eq!(text.parse::<Mac>(), Err(MacError::Multicast { text }));
    }
}
