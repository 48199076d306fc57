//! `rng PLACE`: reads from an entropy device.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

use crate::device::{Place, failed, find};
use crate::pages::OneToOne;
use crate::serial::Serial;

/// Prints `rng LENGTH BYTES`, for two requests in turn.
pub fn run(place: Place) -> Result<(), &'static str> {
    let transport = find(place, DeviceType::EntropySource)?;
    let mut device = VirtIORng::<OneToOne, _>::new(transport)
        .map_err(failed("the device cannot be initialised"))?;
    for mut buffer in [[0; 16], [0; 16]] {
        let got = device.request_entropy(&mut buffer);
        let len = got.map_err(failed("the request failed"))?;
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
