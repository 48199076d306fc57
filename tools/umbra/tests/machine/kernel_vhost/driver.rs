//! A driver of the test's own for a device of the kernel's, in memory of the test's own; and what tests of all kinds of
//! them share.

use std::fs::File;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use umbra_slots::{Flags, Gpa, HugePages, RamOptions, RamRegion, SlotError, SlotId};
use umbra_vhost::{VhostKernel, VhostKernelControl};
use umbra_virtio::Features;
use umbra_virtio::testing::{Driver, Memory, NEXT, RINGS, WRITE};

use super::NEEDED;

/// Tells whether a node is there.
pub fn has(node: &str) -> bool {
    let found = File::options().read(true).write(true).open(node);
    let Err(error) = found else {
        return true;
    };
    eprintln!("SKIPPED: {node}: {error}");
    assert!(std::env::var_os(NEEDED).is_none(), "{node}: {error}");
    false
}

/// Descriptors of each queue, and bytes of a buffer.
pub const SIZE: u16 = 8;
pub const BUFFER: u64 = 0x1000;
/// Buffers of queue n are at 0x4_0000 + 0x1_0000 * n.
pub const BUFFERS: u64 = 0x4_0000;
pub const MORE: u64 = 0x100_0000;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const MRG_RXBUF: Features = Features::bit(15);
/// Bytes of the header before a frame, of a frame's own header, and of one before a packet.
pub const NET_HEADER: usize = 12;
pub const VSOCK_HEADER: usize = 44;

/// A driver with buffers to receive, and a device of the kernel's.
pub struct Guest {
    pub driver: Driver,
    pub control: VhostKernelControl,
    /// What was taken of what came and went.
    received: u16,
    sent: u16,
}

impl Guest {
    pub fn start(memory: &Arc<Memory>, device: VhostKernel, features: Features) -> Self {
        let control = device.control();
        let driver = Driver::with_memory(memory.clone(), Box::new(device), SIZE);
        let mut guest = Self {
            driver,
            control,
            received: 0,
            sent: 0,
        };
        guest.restart(features);
        guest
    }

    pub fn restart(&mut self, features: Features) {
        self.driver.start(features);
        (self.received, self.sent) = (0, 0);
        (0..SIZE).for_each(|head| self.offer_to_receive(head));
        self.driver.write(0x50, 0);
    }

    fn offer_to_receive(&mut self, head: u16) {
        let at = BUFFERS + BUFFER * u64::from(head);
        self.driver.describe(head, (at, BUFFER as u32, WRITE, 0));
        self.driver.offer_in(0, head);
    }

    /// Takes what has come in one buffer, if something has.
    fn try_receive(&mut self) -> Option<Vec<u8>> {
        if self.driver.used_in(0) == self.received {
            return None;
        }
        let (head, len) = self.driver.used(self.received);
        self.received = self.received.wrapping_add(1);
        let mut bytes = vec![0; len as usize];
        let at = BUFFERS + BUFFER * u64::from(head);
        self.driver
            .memory
            .space
            .load()
            .read(Gpa(at), &mut bytes)
            .unwrap();
        self.offer_to_receive(head as u16);
        self.driver.write(0x50, 0);
        Some(bytes)
    }

    /// Waits for something that is wanted.
    pub fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let begin = Instant::now();
        loop {
            match self.try_receive() {
                Some(bytes) if wanted(&bytes) => return bytes,
                Some(_) => {}
                None => thread::sleep(Duration::from_micros(200)),
            }
            let state = self.control.state();
            assert!(begin.elapsed() < Duration::from_secs(30), "{state:?}");
        }
    }

    /// Sends from an address, in two buffers, and waits until that is done.
    pub fn send_from(&mut self, at: u64, bytes: &[u8]) {
        let head = 2 * (self.sent % (SIZE / 2));
        let (first, rest) = (NET_HEADER as u32, (bytes.len() - NET_HEADER) as u32);
        self.driver.memory.put(at, bytes);
        let place = RINGS[0] + 0x1_0000 + 16 * u64::from(head);
        self.driver.describe_at(place, (at, first, NEXT, head + 1));
        self.driver
            .describe_at(place + 16, (at + u64::from(first), rest, 0, 0));
        self.driver.offer_in(1, head);
        self.driver.write(0x50, 1);
        self.sent = self.sent.wrapping_add(1);
        let begin = Instant::now();
        while self.driver.used_in(1) != self.sent {
            let state = self.control.state();
            assert!(begin.elapsed() < Duration::from_secs(30), "{state:?}");
            thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.send_from(BUFFERS + 0x1_0000, bytes);
    }
}

pub fn add(memory: &Memory, at: u64) -> Result<SlotId, SlotError> {
    let options = RamOptions {
        len: 0x4000,
        huge: HugePages::No,
        prefault: false,
    };
    let region = RamRegion::new(options).unwrap();
    let added = memory.space.update("test", |map| {
        map.add_ram(Gpa(at), region, 0, 0x4000, Flags::default())
    });
    added.map(umbra_slots::Updated::wait)
}

pub fn remove(memory: &Memory, id: SlotId) {
    memory
        .space
        .update("test", |map| map.remove(id))
        .unwrap()
        .wait();
}
