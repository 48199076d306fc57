//! The small devices of a microVM: serial port, CMOS clock, keyboard controller, ACPI registers.
//!
//! | device | ports | source |
//! |---|---|---|
//! | [`Serial`] | 8 | PC16550D data sheet |
//! | [`Cmos`] | 0x70, 0x71 | MC146818A data sheet, PC/AT Technical Reference |
//! | [`Keyboard`] | 0x60, 0x64 | only the 8042's reset command |
//! | [`Power`] | 12 | ACPI 6.5, 4.8.3.3, 4.8.3.6 and 4.8.3.7 |
//!
//! Each implements a trait of `vm-device` behind its own short lock, is given a clock, a wire and
//! closures, and knows neither the bus nor the machine. What concerns the whole machine leaves as a
//! [`PowerEvent`]. Start reading at [`Power`], the smallest.
#![forbid(unsafe_code)]

mod cmos;
mod keyboard;
mod power;
mod serial;

use std::sync::Arc;

pub use cmos::{Cmos, MemorySizes};
pub use keyboard::Keyboard;
pub use power::Power;
pub use serial::Serial;

/// What the guest asks of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Off.
    Off,
    /// Start anew.
    Reset,
}

/// Hears of a [`PowerEvent`]. Called on a processor's thread, which goes on executing the guest:
/// it must not wait for a processor.
pub type PowerListener = Arc<dyn Fn(PowerEvent) + Send + Sync>;
