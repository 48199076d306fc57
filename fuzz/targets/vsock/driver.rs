//! A driver that sends packets: mostly of connections that there are, with anything in them.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use umbra_devices::virtio::{Vsock, VsockOptions};
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};

use crate::host::{BUSY, Host, SERVED};

const QUEUES: usize = 3;
const RX: u16 = 0;
const TX: u16 = 1;
/// Where packets to send are, by descriptor.
const SEND: u64 = 0x8000;
/// Where packets are received, by descriptor: 0x800 bytes each.
const RECEIVE: u64 = 0x2_0000;
const SIZE: u16 = VirtioDriver::SIZE;
const CID: u64 = 3;
const HEADER: usize = 44;

/// The driver, and the programs of the host.
pub struct Driver {
    virtio: VirtioDriver,
    host: Host,
    /// Used elements that were looked at.
    seen: u16,
    /// Ports of connections: the host's, the guest's.
    ports: VecDeque<(u32, u32)>,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(8) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => u64::MAX - near,
        5 => VirtioDriver::rings(RX)[near as usize % 3],
        _ => SEND + 64 * near,
    }
}

impl Driver {
    /// Starts one, and the device.
    pub fn new() -> Self {
        let path = Host::path();
        // Left by a process of the same number that was killed.
        let _ = std::fs::remove_file(&path);
        let options = VsockOptions {
            name: "fuzz".into(),
            cid: CID,
            path,
            stays: false,
        };
        let device = Vsock::new(options).expect("the host has sockets");
        Self {
            virtio: VirtioDriver::new(Box::new(device), QUEUES),
            host: Host::new(),
            seen: 0,
            ports: VecDeque::new(),
        }
    }

    /// Starts with those of the device's features that are in `features`.
    fn start(&mut self, features: u32) {
        self.virtio.start(features);
        self.seen = 0;
        self.ports.clear();
    }

    /// Gives the device a good buffer.
    fn make_room(&mut self, head: u16) {
        let at = RECEIVE + 0x800 * u64::from(head);
        self.virtio.describe(RX, head, (at, 0x800, WRITE, 0));
        self.virtio.offer(RX, head);
    }

    /// Looks at the packets that came: requests are connections to be.
    fn look(&mut self) {
        let used = self.virtio.used(RX);
        while self.seen != used && used.wrapping_sub(self.seen) <= SIZE {
            let element = VirtioDriver::rings(RX)[2] + 4 + 8 * u64::from(self.seen % SIZE);
            let head = u64::from(self.virtio.load::<4>(element)[0]) % u64::from(SIZE);
            let header: [u8; HEADER] = self.virtio.load(RECEIVE + 0x800 * head);
            let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| header[at + n]));
            if header[30] == 1 {
                self.ports.push_back((word(16), word(20)));
                self.ports.truncate(16);
            }
            self.seen = self.seen.wrapping_add(1);
        }
    }

    /// The header of a packet, without its length.
    fn header(&self, op: u16, (host, guest): (u32, u32)) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&CID.to_le_bytes());
        bytes[8] = 2;
        bytes[16..20].copy_from_slice(&guest.to_le_bytes());
        bytes[20..24].copy_from_slice(&host.to_le_bytes());
        bytes[28] = 1;
        bytes[30..32].copy_from_slice(&op.to_le_bytes());
        bytes
    }

    /// A packet that may be wrong anywhere, in a chain that may be.
    fn packet(&mut self, source: &mut Source<'_>) {
        let host = source.pick(&[SERVED, SERVED, BUSY, 7]);
        let ports = match source.below(4) {
            0 => (host, source.u8().into()),
            1 => (host, u32::from(source.u8() & 3)),
            _ => match self.ports.len() {
                0 => (host, 1),
                count => self.ports[source.below(count)],
            },
        };
        let op = match source.below(16) {
            0 => source.u16(),
            _ => source.pick(&[1, 2, 3, 4, 5, 5, 5, 5, 6, 7]),
        };
        if op == 1 {
            self.ports.push_back(ports);
            self.ports.truncate(16);
        }
        let mut header = self.header(op, ports);
        let len = match source.below(8) {
            0 => source.u32(),
            1 => 0x1_0000 + u32::from(source.u8()),
            _ => 16 << source.below(12),
        };
        header[24..28].copy_from_slice(&len.to_le_bytes());
        header[32] = source.u8();
        let room = source.pick(&[0, 1, 100, 0x4_0000, u32::MAX]);
        header[36..40].copy_from_slice(&room.to_le_bytes());
        header[40..44].copy_from_slice(&u32::from(source.u16()).to_le_bytes());
        if source.below(16) == 0 {
            let at = source.below(HEADER);
            header[at] = source.u8();
        }
        let head = u16::from(source.u8() % 6);
        let at = SEND + 0x100 * u64::from(head);
        self.virtio.put(at, &header);
        match source.below(16) {
            0 => self
                .virtio
                .describe(TX, head, (address(source), source.u32(), 0, 0)),
            1 => self
                .virtio
                .describe(TX, head, (at, source.u8().into(), 0, 0)),
            _ => {
                self.virtio
                    .describe(TX, head, (at, HEADER as u32, NEXT, head + 1));
                // Much of memory, so that there is enough.
                self.virtio
                    .describe(TX, head + 1, (0x4000, len.min(0x3_0000), 0, 0));
            }
        }
        self.virtio.offer(TX, head);
    }

    /// Waits a little until the device has heard all.
    fn settle(&mut self) {
        let begin = Instant::now();
        while self.virtio.used(TX) != self.virtio.offered(TX)
            && begin.elapsed() < Duration::from_millis(1)
        {
            std::thread::yield_now();
        }
        self.look();
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(24) {
            0 => self.start(source.u32()),
            1 => self.virtio.toggle(),
            2 => self.virtio.write_config(source, 0x10),
            3 => self.virtio.poke(source),
            4 => {
                self.virtio.pause();
                self.host.step(source);
                self.virtio.resume();
            }
            5 => {
                let head = u16::from(source.u8()) % SIZE;
                let len = 32 + u32::from(source.u8() & 0x1f);
                self.virtio
                    .describe(RX, head, (address(source), len, WRITE, 0));
                self.virtio.offer(RX, head);
            }
            6 | 7 => self.settle(),
            8..=11 => self.make_room(u16::from(source.u8()) % SIZE),
            12..=17 => self.host.step(source),
            _ => self.packet(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(mut self) {
        self.start(u32::MAX);
        assert!(self.virtio.works());
        // Programs that came before the reset come first.
        let begin = Instant::now();
        let mut answered = 0;
        let program = loop {
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "no place to connect"
            );
            if let Some(program) = self.host.connect() {
                break program;
            }
        };
        program.write_all(b"CONNECT 77\n").expect("there is room");
        let mut program = program.try_clone().expect("the host has sockets");
        for head in 0..SIZE {
            self.make_room(head);
        }
        while answered == 0 {
            assert!(
                begin.elapsed() < Duration::from_secs(5),
                "it is not asked for"
            );
            let before = self.seen;
            self.look();
            while let Some(ports) = self.ports.pop_front() {
                if ports.1 == 77 {
                    answered = ports.0;
                }
            }
            for number in before..self.seen {
                self.make_room(number % SIZE);
            }
            std::thread::yield_now();
        }
        let header = self.header(2, (answered, 77));
        self.virtio.put(SEND, &header);
        self.virtio.describe(TX, 0, (SEND, HEADER as u32, 0, 0));
        self.virtio.offer(TX, 0);
        let line = format!("OK {answered}\n");
        let heard = Host::hear(&mut program, line.len());
        assert_eq!(heard.as_deref(), Some(line.as_bytes()));
        self.virtio.reset();
        self.virtio.check();
        assert_eq!(Host::hear(&mut program, 1), None, "a reset ends it");
        drop(self.virtio);
        assert!(!Host::path().exists(), "the socket is removed");
    }
}
