//! The ACPI registers: sleep control and status, reset, power-management timer.
//!
//! ```text
//!   +0  sleep control   (4.8.3.7)  SLP_EN with SLP_TYP 5 powers off
//!   +1  sleep status    (4.8.3.7)  reads as zero: this machine never wakes
//!   +2  reset register  (4.8.3.6)  1 resets
//!   +5  PM1 control, upper byte (4.8.3.2)  the same with SLP_TYP 0, as on QEMU's PC
//!   +8  timer, 32 bits  (4.8.3.3)  counts at 3.579545 MHz
//! ```
//! A hardware-reduced machine has no timer and no PM1 control by the tables; they are here, where
//! QEMU's PC has them, for guests that write 0x2000 to port 0x604 or read 0x608 without a look at
//! the tables.

use umbra_clock::Clock;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::{PowerEvent, PowerListener};

const SLEEP_CONTROL: u16 = 0;
const SLEEP_STATUS: u16 = 1;
const RESET: u16 = 2;
const PM1_CONTROL: u16 = 4;
const PM1_CONTROL_HIGH: u16 = 5;
const TIMER: u16 = 8;
const TIMER_END: u16 = TIMER + 4;

const TIMER_HZ: u128 = 3_579_545;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The ACPI registers of a machine.
pub struct Power {
    clock: Clock,
    listener: PowerListener,
}

impl Power {
    /// How many ports the registers take.
    pub const PORTS: u16 = TIMER_END;
    /// Offset of the sleep control register; the status register follows it.
    pub const SLEEP_CONTROL: u16 = SLEEP_CONTROL;
    /// Offset of the timer.
    pub const TIMER: u16 = TIMER;
    /// Offset of the reset register.
    pub const RESET: u16 = RESET;
    /// What is written there to reset.
    pub const RESET_VALUE: u8 = 1;
    /// SLP_TYP of soft-off, as the tables say in `\_S5`.
    pub const SLEEP_TYPE_OFF: u8 = 5;

    /// Makes the registers.
    pub fn new(clock: Clock, listener: PowerListener) -> Self {
        Self { clock, listener }
    }

    fn timer(&self) -> u32 {
        (u128::from(self.clock.now()) * TIMER_HZ / 1_000_000_000) as u32
    }

    fn write_byte(&self, offset: u16, value: u8) {
        match offset {
            SLEEP_CONTROL | PM1_CONTROL_HIGH if value & SLEEP_ENABLE != 0 => {
                let sleep_type = value >> 2 & 7;
                let legacy_off = offset == PM1_CONTROL_HIGH && sleep_type == 0;
                if sleep_type == Self::SLEEP_TYPE_OFF || legacy_off {
                    (self.listener)(PowerEvent::Off);
                } else {
                    tracing::debug!(
                        value,
                        "the guest asked for a sleep state that does not exist"
                    );
                }
            }
            RESET if value == Self::RESET_VALUE => (self.listener)(PowerEvent::Reset),
            _ => {}
        }
    }
}

impl DevicePio for Power {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // One reading for all bytes: the timer must not advance between them.
        let timer = self.timer().to_le_bytes();
        for (at, byte) in (offset..).zip(data) {
            *byte = match at {
                SLEEP_CONTROL | SLEEP_STATUS | RESET | PM1_CONTROL | PM1_CONTROL_HIGH => 0,
                TIMER..TIMER_END => timer[usize::from(at - TIMER)],
                _ => 0xff,
            };
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.write_byte(at, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;

    fn power() -> (Power, Arc<Mutex<Vec<PowerEvent>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&heard);
        let power = Power::new(Clock::start(), Arc::new(move |event| to.lock().push(event)));
        (power, heard)
    }

    fn write(power: &Power, offset: u16, value: u8) {
        power.pio_write(PioAddress(0x600), offset, &[value]);
    }

    #[test]
    fn soft_off_needs_its_type_and_the_enable_bit() {
        let (power, heard) = power();
        write(&power, SLEEP_CONTROL, 5 << 2);
        write(&power, SLEEP_CONTROL, 1 << 5 | 3 << 2);
        assert!(heard.lock().is_empty());
        write(&power, SLEEP_CONTROL, 1 << 5 | 5 << 2);
        assert_eq!(*heard.lock(), [PowerEvent::Off]);
    }

    #[test]
    fn the_reset_register_wants_its_value() {
        let (power, heard) = power();
        write(&power, RESET, 0);
        assert!(heard.lock().is_empty());
        write(&power, RESET, 1);
        assert_eq!(*heard.lock(), [PowerEvent::Reset]);
    }

    #[test]
    fn the_timer_counts_3_579_545_times_a_second() {
        let (power, _) = power();
        let read = || {
            let mut data = [0; 4];
            power.pio_read(PioAddress(0x600), TIMER, &mut data);
            (power.clock.now(), u32::from_le_bytes(data))
        };
        let (from, first) = read();
        std::thread::sleep(Duration::from_millis(20));
        let (to, second) = read();
        let expected = (to - from) as f64 * 3.579_545e-3;
        let counted = f64::from(second.wrapping_sub(first));
        assert!(
            (counted / expected - 1.0).abs() < 0.05,
            "{counted} of {expected}"
        );
    }
}
