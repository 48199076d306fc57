//! The device by which test kernels reach behind the processor (QEMU's `pc-testdev`).
//!
//! ```text
//!   ports  0xe0–0xe3   a 32-bit register, by bytes, words or whole
//!          0xe4–0xe7   flush: a 32-bit write names a page of which nothing cached may be used
//!          0xe8–0xeb   the same register, for accesses that must be cut into bytes
//!          0x2000+n    interrupt line n: 0 releases it, anything else asserts it
//!   memory 0xff000000  64 KiB that keep what is written, but are a device and no RAM
//! ```
//! What QEMU does for a flush (it takes the page from its own process and gives it back) makes KVM
//! drop its translations. Nothing is cached here that could be stale, so a flush has no effect.

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_irq::Line;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

/// Bytes of the window.
const MEMORY: usize = 0x1_0000;

/// The ports, the lines and the memory.
pub struct TestDevice {
    lines: Vec<Option<Arc<dyn Line>>>,
    echo: Mutex<[u8; 4]>,
    memory: Mutex<Box<[u8]>>,
}

impl TestDevice {
    /// First of the twelve ports of register and flush.
    pub const ECHO: u16 = 0xe0;
    /// How many they are.
    pub const ECHO_PORTS: u16 = 12;
    /// Port of interrupt line 0; one port a line.
    pub const LINES: u16 = 0x2000;
    /// How many lines there are.
    pub const LINE_COUNT: u16 = 24;
    /// Address of the memory.
    pub const MEMORY: u64 = 0xff00_0000;
    /// Bytes of it.
    pub const MEMORY_LEN: u64 = MEMORY as u64;

    /// Makes the device; `line` finds an interrupt line by number.
    pub fn new(line: impl Fn(u32) -> Option<Arc<dyn Line>>) -> Self {
        Self {
            lines: (0..u32::from(Self::LINE_COUNT)).map(line).collect(),
            echo: Mutex::new([0; 4]),
            memory: Mutex::new(vec![0; MEMORY].into_boxed_slice()),
        }
    }

    /// The part of the window that an access touches; accesses are shorter than the window and the
    /// bus cuts them at its end.
    fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
        let start = (offset as usize).min(MEMORY);
        start..(start + len).min(MEMORY)
    }
}

impl DevicePio for TestDevice {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if base.0 != Self::ECHO {
            return; // The lines are write-only.
        }
        let echo = self.echo.lock();
        for (port, byte) in (offset..).zip(data) {
            if !is_flush(port) {
                *byte = echo[usize::from(port & 3)];
            }
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if base.0 != Self::ECHO {
            // A wider write is not cut into lines: the port that it names gets its lowest byte.
            let line = self.lines.get(usize::from(offset)).and_then(Option::as_ref);
            if let (Some(line), Some(value)) = (line, data.first()) {
                line.set(*value != 0);
            }
            return;
        }
        let mut echo = self.echo.lock();
        for (port, byte) in (offset..).zip(data) {
            if !is_flush(port) {
                echo[usize::from(port & 3)] = *byte;
            }
        }
    }
}

fn is_flush(offset: u16) -> bool {
    (4..8).contains(&offset)
}

impl DeviceMmio for TestDevice {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let range = Self::range(offset, data.len());
        let len = range.len();
        data[..len].copy_from_slice(&self.memory.lock()[range]);
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let range = Self::range(offset, data.len());
        let len = range.len();
        self.memory.lock()[range].copy_from_slice(&data[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ECHO: PioAddress = PioAddress(TestDevice::ECHO);
    const LINES: PioAddress = PioAddress(TestDevice::LINES);
    const WINDOW: MmioAddress = MmioAddress(TestDevice::MEMORY);

    #[derive(Default)]
    struct Recorder(Mutex<Vec<bool>>);

    impl Line for Recorder {
        fn set(&self, high: bool) {
            self.0.lock().push(high);
        }
    }

    fn device() -> TestDevice {
        TestDevice::new(|_| None)
    }

    fn read(device: &TestDevice, offset: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        device.pio_read(ECHO, offset, &mut data);
        data
    }

    #[test]
    fn the_register_echoes_every_width_at_both_places() {
        let device = device();
        device.pio_write(ECHO, 0, &[1, 2, 3, 4]);
        assert_eq!(read(&device, 0, 4), [1, 2, 3, 4]);
        assert_eq!(read(&device, 2, 2), [3, 4]);
        assert_eq!(read(&device, 8, 4), [1, 2, 3, 4]);
        device.pio_write(ECHO, 9, &[0xee]);
        assert_eq!(read(&device, 0, 4), [1, 0xee, 3, 4]);
    }

    #[test]
    fn a_flush_leaves_the_register_alone() {
        let device = device();
        device.pio_write(ECHO, 0, &[1, 2, 3, 4]);
        device.pio_write(ECHO, 4, &[9, 9, 9, 9]);
        assert_eq!(read(&device, 0, 4), [1, 2, 3, 4]);
        assert_eq!(read(&device, 4, 4), [0; 4]);
    }

    #[test]
    fn a_line_follows_what_is_written_to_its_port() {
        let line = Arc::new(Recorder::default());
        let wire = line.clone();
        let device = TestDevice::new(move |n| (n == 14).then(|| wire.clone() as Arc<dyn Line>));
        for value in [1, 0, 0x80] {
            device.pio_write(LINES, 14, &[value]);
        }
        device.pio_write(LINES, 15, &[1]);
        assert_eq!(*line.0.lock(), [true, false, true]);
    }

    #[test]
    fn the_memory_keeps_bytes_at_every_width_and_ends_where_it_ends() {
        let device = device();
        device.mmio_write(WINDOW, 0x100, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut data = [0; 2];
        device.mmio_read(WINDOW, 0x103, &mut data);
        assert_eq!(data, [4, 5]);
        device.mmio_write(WINDOW, 0xffff, &[7, 8]);
        let mut data = [0xaa; 4];
        device.mmio_read(WINDOW, 0xffff, &mut data);
        assert_eq!(data[0], 7);
    }
}
