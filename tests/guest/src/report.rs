//! What a claim is, and how it ends.

use core::fmt::{self, Write};

/// One promise of the manual.
pub struct Claim {
    /// What is promised.
    pub name: &'static str,
    /// Where.
    pub section: &'static str,
    /// Checks it.
    pub run: fn() -> Result<(), Stop>,
}

/// How a claim ended, as an index.
pub enum Outcome {
    /// It holds.
    Ok,
    /// It is about something that this processor does not claim to have.
    Skipped,
    /// It does not hold.
    Failed,
}

/// Why a claim stopped early.
pub enum Stop {
    /// The processor or the machine lacks what the claim is about.
    Skip(&'static str),
    /// It does not hold.
    Fail(Text),
}

/// A short text; what does not fit is cut.
pub struct Text {
    bytes: [u8; 240],
    len: usize,
}

impl Text {
    /// Formats a text.
    pub fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut text = Self {
            bytes: [0; 240],
            len: 0,
        };
        // A text that was cut is still a text.
        let _ = text.write_fmt(arguments);
        text
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            *self.bytes.get_mut(self.len).ok_or(fmt::Error)? = byte;
            self.len += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?"))
    }
}

/// Fails the claim with a text unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::report::Stop::Fail($crate::report::Text::new(format_args!($($text)+))));
        }
    };
}

/// Fails the claim unless two values are equal.
#[macro_export]
macro_rules! same {
    ($found:expr, $wanted:expr, $what:expr) => {
        let (found, wanted) = ($found, $wanted);
        $crate::ensure!(
            found == wanted,
            "{:?}: {:x?}, not {:x?}",
            $what,
            found,
            wanted
        );
    };
}

/// Leaves the claim out unless a condition holds.
#[macro_export]
macro_rules! needs {
    ($condition:expr, $what:expr) => {
        if !$condition {
            return Err($crate::report::Stop::Skip($what));
        }
    };
}
