//! Two more ways to reset a PC: the reset control register and system control port A.
//!
//! | port | source | what resets |
//! |---|---|---|
//! | 0xcf9 | 82371SB (PIIX3), 3.2.1, "RC" | bit 2 |
//! | 0x92 | PS/2 Technical Reference, "System Control Port A" | bit 0 |
//!
//! Bit 1 of 0xcf9 (hard or soft) is kept and means nothing. Bit 1 of 0x92 gates A20; it reads back
//! as it was written, and the gate is always open.

use std::sync::atomic::{AtomicU8, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::{PowerEvent, PowerListener};

const HARD: u8 = 1 << 1;
const RESET: u8 = 1 << 2;
const FAST_RESET: u8 = 1 << 0;
const A20: u8 = 1 << 1;

/// Both registers; the device is put on the bus at either port.
pub struct ResetControl {
    listener: PowerListener,
    control: AtomicU8,
    port_a: AtomicU8,
}

impl ResetControl {
    /// The reset control register. Byte-wide, in the middle of a PCI bridge's ports.
    pub const CONTROL: u16 = 0xcf9;
    /// System control port A.
    pub const PORT_A: u16 = 0x92;

    /// Makes the registers.
    pub fn new(listener: PowerListener) -> Self {
        Self {
            listener,
            control: AtomicU8::new(0),
            port_a: AtomicU8::new(A20),
        }
    }

    fn register(&self, base: PioAddress) -> &AtomicU8 {
        if base.0 == Self::CONTROL {
            &self.control
        } else {
            &self.port_a
        }
    }
}

impl DevicePio for ResetControl {
    fn pio_read(&self, base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        // Registers that hold a value and order nothing: relaxed.
        data.fill(self.register(base).load(Ordering::Relaxed));
    }

    fn pio_write(&self, base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        let Some(value) = data.first() else {
            return;
        };
        let (kept, resets) = if base.0 == Self::CONTROL {
            (value & HARD, value & RESET != 0)
        } else {
            (value & A20, value & FAST_RESET != 0)
        };
        self.register(base).store(kept, Ordering::Relaxed);
        if resets {
            (self.listener)(PowerEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::power_recorder;

    const CONTROL: PioAddress = PioAddress(ResetControl::CONTROL);
    const PORT_A: PioAddress = PioAddress(ResetControl::PORT_A);

    fn read(device: &ResetControl, port: PioAddress) -> u8 {
        let mut data = [0xff];
        device.pio_read(port, 0, &mut data);
        data[0]
    }

    #[test]
    fn only_the_reset_bit_resets() {
        for (port, quiet, loud) in [(CONTROL, 0x02, 0x06), (PORT_A, 0x02, 0x03)] {
            let (events, listener) = power_recorder();
            let device = ResetControl::new(listener);
            device.pio_write(port, 0, &[quiet]);
            assert!(events.lock().is_empty());
            assert_eq!(read(&device, port), 0x02);
            device.pio_write(port, 0, &[loud]);
            assert_eq!(*events.lock(), [PowerEvent::Reset]);
        }
    }

    #[test]
    fn a20_is_open_after_power_up() {
        let (_, listener) = power_recorder();
        assert_eq!(read(&ResetControl::new(listener), PORT_A), 0x02);
    }
}
