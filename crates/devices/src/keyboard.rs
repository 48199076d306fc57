//! What is left of the 8042 keyboard controller: its reset command.
//!
//! The tables say that there is no keyboard controller. Kernels that are told to (`reboot=k`), and
//! those too old for ACPI, still pulse its reset output (PC/AT Technical Reference, "Keyboard
//! Controller Commands").

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::{PowerEvent, PowerListener};

/// Pulse output line 0, which is the processor's reset.
const PULSE_RESET: u8 = 0xfe;

/// The command port, 0x64, and the data port, 0x60; both may be put on the bus as one device.
pub struct Keyboard {
    listener: PowerListener,
}

impl Keyboard {
    /// The data port.
    pub const DATA: u16 = 0x60;
    /// The command and status port.
    pub const COMMAND: u16 = 0x64;

    /// Makes the controller.
    pub fn new(listener: PowerListener) -> Self {
        Self { listener }
    }
}

impl DevicePio for Keyboard {
    /// Status: both buffers empty. Data: nothing.
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        if base.0 == Self::COMMAND && data.first() == Some(&PULSE_RESET) {
            (self.listener)(PowerEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn only_the_pulse_command_at_the_command_port_resets() {
        let resets = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&resets);
        let keyboard = Keyboard::new(Arc::new(move |event| {
            assert_eq!(event, PowerEvent::Reset);
            count.fetch_add(1, Ordering::Relaxed);
        }));
        keyboard.pio_write(PioAddress(0x60), 0, &[0xfe]);
        keyboard.pio_write(PioAddress(0x64), 0, &[0xaa]);
        assert_eq!(resets.load(Ordering::Relaxed), 0);
        keyboard.pio_write(PioAddress(0x64), 0, &[0xfe]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }
}
