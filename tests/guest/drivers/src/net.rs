//! `net PLACE`: sends a frame, and returns what comes.

use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;

use crate::device::{Place, failed, find};
use crate::pages::OneToOne;

/// Frames of this length, header and all, are the longest.
const LONGEST: usize = 2048;

/// Descriptors of each queue.
const QUEUE: usize = 16;

/// How many frames are sent back.
const FRAMES: usize = 100;

/// An ethertype for experiments (IEEE 802, local).
const TYPE: [u8; 2] = [0x88, 0xb5];

/// Prints `net MAC`; says hello to everybody, then sends a hundred frames back to where they came from, with the
/// bytes behind the header turned around.
pub fn run(place: Place) -> Result<(), &'static str> {
    let transport = find(place, DeviceType::Network)?;
    let mut net = VirtIONetRaw::<OneToOne, _, QUEUE>::new(transport)
        .map_err(failed("the device cannot be initialised"))?;
    let mac = net.mac_address();
    crate::println!("net {mac:02x?}");

    let mut hello = [0; 60];
    hello[..6].fill(0xff);
    hello[6..12].copy_from_slice(&mac);
    hello[12..14].copy_from_slice(&TYPE);
    hello[14..19].copy_from_slice(b"hello");
    net.send(&hello).map_err(failed("the first frame"))?;

    let mut buffer = [0; LONGEST];
    let mut bytes = 0;
    for _ in 0..FRAMES {
        let (header, len) = net
            .receive_wait(&mut buffer)
            .map_err(failed("a frame that comes"))?;
        let frame = buffer
            .get_mut(header..header + len)
            .ok_or("the used length")?;
        if len < 14 {
            return Err("a frame without a header");
        }
        frame.copy_within(6..12, 0);
        frame[6..12].copy_from_slice(&mac);
        frame[14..].reverse();
        net.send(frame).map_err(failed("a frame that goes back"))?;
        bytes += len;
    }
    crate::println!("returned {FRAMES} frames, {bytes} bytes");
    Ok(())
}
