//! Sizes of memory as people write them.

/// Reads `512M`, `2GiB`, `65536K`; a bare number counts MiB.
pub fn parse(text: &str) -> Result<u64, String> {
    let refused = || format!("{text:?} is no size; write it like 512M or 2G");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| refused())?;
    let shift = match text[digits..].to_ascii_lowercase().as_str() {
        "k" | "kb" | "kib" => 10,
        "" | "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(refused()),
    };
    number.checked_mul(1 << shift).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        let table = [
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1TiB", 1 << 40),
            ("64K", 64 << 10),
            ("256", 256 << 20),
        ];
        for (text, bytes) in table {
            assert_eq!(parse(text), Ok(bytes));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "M", "-1M", "1.5G", "12Q", "99999999999T", "１M"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
