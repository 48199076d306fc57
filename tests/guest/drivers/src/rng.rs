//! `rng ADDR`: reads from an entropy device.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::pages::OneToOne;
use crate::serial::Serial;

/// Registers, and the configuration behind them.
const WINDOW: usize = 0x200;

/// Prints `rng LENGTH BYTES`, for two requests in turn.
pub fn run(address: usize) -> Result<(), &'static str> {
    let header = NonNull::new(address as *mut VirtIOHeader).ok_or("no device is at 0")?;
    // SAFETY: whoever wrote the command line says that a device is there.
    let transport = unsafe { MmioTransport::new(header, WINDOW) };
    let transport = transport.map_err(|error| {
        crate::println!("{error}");
        "no virtio-mmio device is there"
    })?;
    if transport.device_type() != DeviceType::EntropySource {
        return Err("it is no entropy device");
    }
    let device = VirtIORng::<OneToOne, _>::new(transport);
    let mut device = device.map_err(|_| "the device cannot be initialised")?;
    for mut buffer in [[0; 16], [0; 16]] {
        let got = device.request_entropy(&mut buffer);
        let len = got.map_err(|_| "the request failed")?;
        print(buffer.get(..len).ok_or("the used length")?);
    }
    Ok(())
}

fn print(bytes: &[u8]) {
    use core::fmt::Write;
    // Serial never fails.
    let _ = write!(Serial, "rng {} ", bytes.len());
    for byte in bytes {
        let _ = write!(Serial, "{byte:02x}");
    }
    crate::println!();
}
