//! What a function is to the bus that it is on.

use std::fmt;
use std::sync::Arc;

use umbra_bus::MmioDevice;
use umbra_slots::{GpaRange, IoId};

/// Device and function number on a bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(u8);

impl Address {
    /// Returns function `function` of device `device`; `None` if there cannot be one.
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self(device << 3 | function))
    }

    /// Returns the device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// Returns the function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }

    /// Reads it from eight bits, as configuration addresses carry it.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device(), self.function())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A function of a device.
///
/// The bus calls it on the thread of the processor that accesses a register, one call at a time. It
/// takes no lock of the bus, and waits for no processor.
pub trait Function: Send + Sync {
    /// Reads configuration registers: 1, 2 or 4 bytes, aligned, at 0 to 4095. What does not exist
    /// reads as all ones.
    fn read_config(&self, register: u16, data: &mut [u8]);

    /// Writes them, the same.
    fn write_config(&self, register: u16, data: &[u8]);

    /// Returns the BARs with what is behind them. Asked once, when the function appears.
    fn bars(self: Arc<Self>) -> Vec<(u8, MmioDevice)> {
        Vec::new()
    }

    /// Returns where it wants a BAR to be now, `None` if nowhere
    /// ([`ConfigSpace::decoded`](crate::ConfigSpace::decoded)). Asked after every write.
    fn decoded(&self, bar: u8) -> Option<GpaRange> {
        let _ = bar;
        None
    }

    /// Learns the id of a BAR's window. It stays the same, whether the window is open or not, until
    /// the function is removed.
    fn attach(&self, bar: u8, id: IoId) {
        let _ = (bar, id);
    }
}
