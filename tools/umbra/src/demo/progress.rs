//! One line on the user's terminal that says how far a download is; nothing where there is none.

use std::io::{IsTerminal, Write, stderr};

/// Characters of a full bar.
const WIDTH: u64 = 30;

/// A line that is written over and over, and wiped when it is dropped.
pub struct Progress {
    name: String,
    /// Bytes that will come; 0 if nobody knows.
    total: u64,
    shown: bool,
}

impl Progress {
    /// Begins a line, for something of `total` bytes, or 0 if that is not known.
    pub fn new(name: &str, total: u64) -> Self {
        let progress = Self {
            name: name.to_owned(),
            total,
            shown: stderr().is_terminal(),
        };
        progress.update(0);
        progress
    }

    /// Says that so many bytes are there.
    pub fn update(&self, bytes: u64) {
        if self.shown {
            // A terminal that is gone needs no progress.
            let _ = write!(stderr(), "\r\x1b[K{}", line(&self.name, bytes, self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(name: &str, bytes: u64, total: u64) -> String {
    const MIB: u64 = 1 << 20;
    if total == 0 {
        return format!("{name} ...");
    }
    let full = (bytes.min(total) * WIDTH / total) as usize;
    let bar = format!("{:-<30}", "=".repeat(full));
    format!("{name} [{bar}] {}/{} MiB", bytes / MIB, total.div_ceil(MIB))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_up() {
        let table = [
            (0, "x [------------------------------] 0/2 MiB"),
            (1 << 20, "x [===============---------------] 1/2 MiB"),
            (2 << 20, "x [==============================] 2/2 MiB"),
            (9 << 20, "x [==============================] 9/2 MiB"),
        ];
        for (bytes, wanted) in table {
            assert_eq!(line("x", bytes, 2 << 20), wanted);
        }
        assert_eq!(line("x", 5, 0), "x ...");
    }
}
