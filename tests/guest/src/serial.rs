//! Text through the first serial port, one byte after the other.

use core::fmt;

use crate::cpu;

const PORT: u16 = 0x3f8;
const LINE_STATUS: u16 = PORT + 5;
const EMPTY: u8 = 1 << 5;

/// The port.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            while cpu::in8(LINE_STATUS) & EMPTY == 0 {}
            cpu::out8(PORT, byte);
        }
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::serial::Serial, $($text)*);
    }};
}
