//! Which bits of a register change: `0b01xx`, highest bit first.

/// Bits that are set, cleared, or left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bitmap {
    /// Bits that the bitmap decides.
    mask: u64,
    /// Their values.
    value: u64,
}

impl Bitmap {
    /// Reads a bitmap of at most `bits` bits. Bits that it does not reach are left alone; underscores
    /// are for readers.
    pub fn parse(text: &str, bits: usize) -> Result<Self, String> {
        let digits = text
            .strip_prefix("0b")
            .ok_or_else(|| format!("the bitmap {text:?} does not begin with 0b"))?;
        let digits: Vec<char> = digits.chars().filter(|c| *c != '_').collect();
        if digits.is_empty() || digits.len() > bits {
            let count = digits.len();
            return Err(format!(
                "the bitmap {text:?} has {count} bits, not 1 to {bits}"
            ));
        }
        let mut bitmap = Self::default();
        for digit in digits {
            let (mask, value) = match digit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                other => {
                    return Err(format!(
                        "the bitmap {text:?} has a {other:?}: bits are 0, 1 or x"
                    ));
                }
            };
            bitmap.mask = bitmap.mask << 1 | mask;
            bitmap.value = bitmap.value << 1 | value;
        }
        Ok(bitmap)
    }

    /// Returns what becomes of a value.
    pub fn apply(self, value: u64) -> u64 {
        value & !self.mask | self.value
    }
}
