//! A port whose write ends the machine with a status (QEMU's `isa-debug-exit`).

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::{PowerEvent, PowerListener};

/// Four ports; whatever is written to any of them ends the machine with that value. They read as
/// zero.
pub struct DebugExit {
    listener: PowerListener,
}

impl DebugExit {
    /// How many ports the device takes.
    pub const PORTS: u16 = 4;
    /// The first of them, where nobody says anything else.
    pub const DEFAULT_PORT: u16 = 0xf4;

    /// Makes the device.
    pub fn new(listener: PowerListener) -> Self {
        Self { listener }
    }
}

impl DevicePio for DebugExit {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        let value = data.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b));
        (self.listener)(PowerEvent::Exit(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::power_recorder;

    #[test]
    fn what_is_written_is_the_value_whatever_the_width() {
        let (events, listener) = power_recorder();
        let device = DebugExit::new(listener);
        device.pio_write(PioAddress(0xf4), 0, &[0]);
        device.pio_write(PioAddress(0xf4), 0, &[0x34, 0x12]);
        device.pio_write(PioAddress(0xf4), 0, &[0x78, 0x56, 0x34, 0x12]);
        device.pio_write(PioAddress(0xf4), 3, &[7]);
        let expected = [0, 0x1234, 0x1234_5678, 7].map(PowerEvent::Exit);
        assert_eq!(*events.lock(), expected);
    }

    #[test]
    fn reading_ends_nothing() {
        let (events, listener) = power_recorder();
        let mut data = [0xaa; 4];
        DebugExit::new(listener).pio_read(PioAddress(0xf4), 0, &mut data);
        assert_eq!((data, events.lock().len()), ([0; 4], 0));
    }
}
