//! The power button: one register that the ACPI tables' code looks at when it is interrupted (ACPI 6.5, 4.8.2.2.1.2,
//! a control method power button).
//!
//! ```text
//!   +0  pressed  reads 1 if the button was pressed since the last time, else 0
//! ```
//! A press that comes before the guest has looked is the same press.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use umbra_irq::Line;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The button.
pub struct PowerButton {
    line: Arc<dyn Line>,
    pressed: AtomicBool,
}

impl PowerButton {
    /// How many ports the register takes.
    pub const PORTS: u16 = 1;

    /// Makes it; `line` is the edge-triggered interrupt that the tables name.
    pub fn new(line: Arc<dyn Line>) -> Self {
        Self {
            line,
            pressed: AtomicBool::new(false),
        }
    }

    /// Presses it. What the guest does then, if anything, is its own decision. Never blocks; any thread may call
    /// it.
    pub fn press(&self) {
        // Before the interrupt that makes the guest look.
        self.pressed.store(true, Ordering::Release);
        self.line.pulse();
    }
}

impl DevicePio for PowerButton {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = self.pressed.swap(false, Ordering::AcqRel).into();
        }
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[derive(Default)]
    struct Pulses(AtomicU32);

    impl Line for Pulses {
        fn set(&self, high: bool) {
            self.0.fetch_add(high.into(), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_press_interrupts_and_is_read_once() {
        let pulses = Arc::new(Pulses::default());
        let button = PowerButton::new(pulses.clone());
        let read = || {
            let mut data = [0xff; 2];
            button.pio_read(PioAddress(0x610), 0, &mut data);
            data
        };
        assert_eq!(read(), [0, 0]);
        button.press();
        button.press();
        assert_eq!(pulses.0.load(Ordering::Relaxed), 2);
        button.pio_write(PioAddress(0x610), 0, &[0]);
        assert_eq!((read(), read()), ([1, 0], [0, 0]));
    }
}
