//! How PCI functions come and go while the guest runs: three registers that the ACPI tables' code looks at
//! when it is interrupted (ACPI 6.5, 6.3.3).
//!
//! ```text
//!   +0  up     reads which have come since the last time
//!   +4  down   reads which shall go, and were not asked for since the last time
//!   +8  eject  written: the guest has let these go
//! ```
//! Each has 32 bits, bit n for device n, and takes accesses of 32 bits; others read as zero and are dropped.
//! What has happened while the guest could not look, it finds when it does: nothing depends on each
//! interrupt being one look.

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_irq::Line;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

const UP: u16 = 0;
const DOWN: u16 = 4;
const EJECT: u16 = 8;

/// Hears which device the guest has let go, on the thread of the processor that says so: it must not wait
/// for a processor. A guest says so of any device, also of one that is not there.
pub type EjectListener = Box<dyn Fn(u8) + Send + Sync>;

#[derive(Default)]
struct Pending {
    up: u32,
    down: u32,
}

/// The registers.
pub struct PciHotplug {
    line: Arc<dyn Line>,
    pending: Mutex<Pending>,
    on_eject: EjectListener,
}

impl PciHotplug {
    /// How many ports the registers take.
    pub const PORTS: u16 = 12;

    /// Makes them; `line` is the edge-triggered interrupt that the tables name.
    pub fn new(line: Arc<dyn Line>, on_eject: EjectListener) -> Self {
        Self {
            line,
            pending: Mutex::default(),
            on_eject,
        }
    }

    /// Tells the guest that a device, 0 to 31, has come.
    pub fn tell_of(&self, device: u8) {
        self.pending.lock().up |= bit(device);
        self.line.pulse();
    }

    /// Asks the guest to let a device, 0 to 31, go.
    pub fn ask_for(&self, device: u8) {
        self.pending.lock().down |= bit(device);
        self.line.pulse();
    }

    /// Takes back what was said of a device that the guest has not heard yet.
    pub fn forget(&self, device: u8) {
        let mut pending = self.pending.lock();
        pending.up &= !bit(device);
        pending.down &= !bit(device);
    }
}

fn bit(device: u8) -> u32 {
    1u32.checked_shl(device.into()).unwrap_or(0)
}

impl DevicePio for PciHotplug {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let mut pending = self.pending.lock();
        let value = match offset {
            UP => std::mem::take(&mut pending.up),
            DOWN => std::mem::take(&mut pending.down),
            _ => 0,
        };
        *data = value.to_le_bytes();
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let (EJECT, Ok(bytes)) = (offset, data.try_into()) else {
            return;
        };
        let devices = u32::from_le_bytes(bytes);
        for device in (0..32).filter(|device| devices & bit(*device) != 0) {
            (self.on_eject)(device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Pulses(AtomicU32);

    impl Line for Pulses {
        fn set(&self, high: bool) {
            self.0.fetch_add(high.into(), Ordering::Relaxed);
        }
    }

    struct Bench {
        registers: PciHotplug,
        pulses: Arc<Pulses>,
        ejected: Arc<Mutex<Vec<u8>>>,
    }

    impl Bench {
        fn new() -> Self {
            let pulses = Arc::new(Pulses::default());
            let ejected: Arc<Mutex<Vec<u8>>> = Arc::default();
            let heard = Arc::clone(&ejected);
            let listener = Box::new(move |device| heard.lock().push(device));
            Self {
                registers: PciHotplug::new(pulses.clone(), listener),
                pulses,
                ejected,
            }
        }

        fn read<const N: usize>(&self, offset: u16) -> [u8; N] {
            let mut data = [0xff; N];
            self.registers.pio_read(PioAddress(0), offset, &mut data);
            data
        }

        fn write(&self, offset: u16, data: &[u8]) {
            self.registers.pio_write(PioAddress(0), offset, data);
        }

        fn pulses(&self) -> u32 {
            self.pulses.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn the_guest_hears_once_of_what_comes_and_what_shall_go() {
        let bench = Bench::new();
        assert_eq!((bench.read(0), bench.pulses()), ([0; 4], 0));
        bench.registers.tell_of(3);
        bench.registers.tell_of(31);
        bench.registers.ask_for(8);
        assert_eq!(bench.pulses(), 3);
        assert_eq!(
            (bench.read(0), bench.read(4)),
            ([8, 0, 0, 0x80], [0, 1, 0, 0])
        );
        assert_eq!((bench.read(0), bench.read(4)), ([0; 4], [0; 4]));
    }

    #[test]
    fn what_was_not_heard_can_be_taken_back() {
        let bench = Bench::new();
        bench.registers.tell_of(3);
        bench.registers.ask_for(4);
        bench.registers.forget(3);
        assert_eq!((bench.read(0), bench.read(4)), ([0; 4], [16, 0, 0, 0]));
    }

    #[test]
    fn the_guest_says_what_it_has_let_go() {
        let bench = Bench::new();
        bench.write(8, &0x8000_0009u32.to_le_bytes());
        assert_eq!(*bench.ejected.lock(), [0, 3, 31]);
    }

    #[test]
    fn other_accesses_do_nothing() {
        let bench = Bench::new();
        bench.registers.tell_of(0);
        bench.registers.tell_of(200);
        assert_eq!((bench.read(0), bench.read(0)), ([0u8], [0u8; 2]));
        assert_eq!((bench.read(8), bench.read(2)), ([0u8; 4], [0u8; 4]));
        assert_eq!(bench.read(0), [0u8; 8]);
        for (offset, data) in [
            (0, &[1, 0, 0, 0][..]),
            (8, &[1]),
            (8, &[1; 8]),
            (9, &[1; 4]),
        ] {
            bench.write(offset, data);
        }
        assert!(bench.ejected.lock().is_empty());
        assert_eq!(bench.read(0), [1, 0, 0, 0]);
    }
}
