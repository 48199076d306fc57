//! The port by which a guest's kernel says that it has crashed (QEMU's `pvpanic`, ACPI `QEMU0001`).
//!
//! Reads give the events that can be told, a write tells of some. What becomes of the guest then is its own affair: it
//! restarts, halts, or boots the kernel that writes its memory to a disk.

use std::sync::atomic::{AtomicBool, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The kernel has crashed.
const PANICKED: u8 = 1 << 0;
/// It has crashed, and another one looks after what is left.
const CRASH_LOADED: u8 = 1 << 1;

/// One port. The first crash is told; a guest that says it again and again is not news.
pub struct PanicPort {
    told: Box<dyn Fn() + Send + Sync>,
    said: AtomicBool,
}

impl PanicPort {
    /// The port, as on QEMU.
    pub const PORT: u16 = 0x505;

    /// Makes the device. `told` is called on a processor's thread, once, and must not block.
    pub fn new(told: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            told: Box::new(told),
            said: AtomicBool::new(false),
        }
    }
}

impl DevicePio for PanicPort {
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn pio_write(&self, _base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        let says = data.first().copied().unwrap_or_default();
        if says & (PANICKED | CRASH_LOADED) != 0 && !self.said.swap(true, Ordering::Relaxed) {
            (self.told)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_crash_is_told_once_and_nothing_else_is() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let port = PanicPort::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let write = |bytes: &[u8]| port.pio_write(PioAddress(PanicPort::PORT), 0, bytes);
        write(&[]);
        write(&[0xfc]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        write(&[CRASH_LOADED]);
        write(&[PANICKED]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
        let mut data = [0xaa; 2];
        port.pio_read(PioAddress(PanicPort::PORT), 0, &mut data);
        assert_eq!(data, [3, 0]);
    }
}
