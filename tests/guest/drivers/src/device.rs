//! A device of virtio-mmio, found at an address.
#![allow(unsafe_code)]

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};

/// Registers, and the configuration behind them.
const WINDOW: usize = 0x200;

/// Returns the device at an address, which has to be of a type.
pub fn find(address: usize, kind: DeviceType) -> Result<MmioTransport<'static>, &'static str> {
    let header = NonNull::new(address as *mut VirtIOHeader).ok_or("no device is at 0")?;
    // SAFETY: whoever wrote the command line says that a device is there.
    let transport = unsafe { MmioTransport::new(header, WINDOW) };
    let transport = transport.map_err(|error| {
        crate::println!("{error}");
        "no virtio-mmio device is there"
    })?;
    if transport.device_type() == kind {
        Ok(transport)
    } else {
        crate::println!("there is a device of type {:?}", transport.device_type());
        Err("it is another device than the command is for")
    }
}

/// Says what a driver had to complain about, and what was asked of it then.
pub fn failed(what: &'static str) -> impl FnOnce(virtio_drivers::Error) -> &'static str {
    move |error| {
        crate::println!("{error}");
        what
    }
}

/// 64-bit FNV-1a, as the tests compute it.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
