//! Byte images as strings of hexadecimal digits.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// A string that is no byte image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHex {
    /// Two digits make a byte.
    #[error("{0} hexadecimal digits are no whole number of bytes")]
    Odd(usize),
    /// Only 0 to 9 and a to f are digits.
    #[error("character {0} is no hexadecimal digit in lower case")]
    Digit(usize),
}

/// Writes bytes, two digits each.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

/// Reads what [`encode`] wrote.
pub fn decode(text: &str) -> Result<Vec<u8>, BadHex> {
    if !text.len().is_multiple_of(2) {
        return Err(BadHex::Odd(text.len()));
    }
    let digit = |(at, byte): (usize, u8)| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(BadHex::Digit(at)),
    };
    let digits: Vec<u8> = text
        .bytes()
        .enumerate()
        .map(digit)
        .collect::<Result<_, _>>()?;
    Ok(digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect())
}

/// For `serde(with)`.
pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes))
}

/// For `serde(with)`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    decode(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(encode(&[0x0f, 0xa0]), "0fa0");
        assert_eq!(decode(&encode(&bytes)), Ok(bytes));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert_eq!(decode("abc"), Err(BadHex::Odd(3)));
        assert_eq!(decode("aF"), Err(BadHex::Digit(1)));
        assert_eq!(decode("é"), Err(BadHex::Digit(0)));
    }
}
