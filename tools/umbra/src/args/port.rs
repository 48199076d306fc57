//! Port numbers as people write them.

/// Reads `0xf4` or `244`.
pub fn parse(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("{text:?} is no port; write it like 0xf4"))
}
