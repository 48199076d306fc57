//! A driver of a network device of one pair of queues or two, and what is at the other ends of its sockets.

use std::time::{Duration, Instant};

use umbra_devices::virtio::net::{Net, NetControl, NetOptions};
use umbra_devices::virtio::{Bucket, Limits};
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};
use umbra_net::{Header, Mac, Port};

use crate::host::Host;

/// Two pairs, and the control queue.
const QUEUES: usize = 5;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Headers, commands and frames to send.
const DATA: u64 = 0x1_0000;
const ROOM: u64 = 0x2_0000;

/// Descriptor flag: a table of others.
const INDIRECT: u16 = 4;
/// Features: frames in several buffers.
const MRG_RXBUF: u32 = 1 << 15;

/// A frame to be known again; there is none of this length else that begins so.
const KNOWN: &[u8] = b"\xffstill here";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The driver, and the other ends.
pub struct Driver {
    virtio: VirtioDriver,
    control: NetControl,
    hosts: Vec<Host>,
    is_paused: bool,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(12) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => VirtioDriver::rings(near as u16 % QUEUES as u16)[near as usize % 3],
        5..8 => ROOM + 0x100 * near,
        _ => DATA + 0x10 * (near & 15),
    }
}

fn len(source: &mut Source<'_>) -> u32 {
    match source.below(8) {
        0 => source.u32(),
        1 | 2 => u32::from(source.u16()),
        3 => u32::from(source.u8() & 15),
        4 | 5 => 0x100 + u32::from(source.u8()),
        _ => 0x4000,
    }
}

impl Driver {
    pub fn new(source: &mut Source<'_>) -> Self {
        let (hosts, ports): (Vec<_>, Vec<_>) = (0..1 + source.below(2))
            .map(|_| Host::pair())
            .map(|(host, port)| (host, Box::new(port) as Box<dyn Port>))
            .unzip();
        let options = NetOptions {
            name: "fuzz".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: (source.below(2) == 0).then_some(1500),
            receive: Limits::default(),
            transmit: Limits::default(),
        };
        let (device, control) = Net::new(ports, options).expect("the host has descriptors");
        Self {
            virtio: VirtioDriver::new(Box::new(device), QUEUES),
            control,
            hosts,
            is_paused: false,
        }
    }

    /// A chain of up to four buffers, for any queue.
    fn chain(&mut self, source: &mut Source<'_>) {
        let queue = source.below(QUEUES) as u16;
        let head = u16::from(source.u8() % 5);
        let receives = queue.is_multiple_of(2) != (source.below(16) == 0);
        let more = source.below(4) as u16;
        for index in head..=head + more {
            let mut flags = match receives {
                true => WRITE,
                false => 0,
            };
            let mut next = index + 1;
            if index < head + more {
                flags |= NEXT;
            }
            match source.below(32) {
                0 => flags |= INDIRECT,
                1 => flags = u16::from(source.u8()),
                2 => next = u16::from(source.u8() % 10),
                _ => {}
            }
            let (at, len) = (address(source), len(source));
            self.virtio.describe(queue, index, (at, len, flags, next));
        }
        for _ in 0..=source.below(16) / 14 {
            self.virtio.offer(queue, head);
        }
    }

    /// A header where frames begin, likely one that has a frame sent.
    fn header(&self, source: &mut Source<'_>) {
        let bytes = match source.below(2) {
            0 => source.bytes(Header::LEN),
            _ => &[0; Header::LEN],
        };
        self.virtio
            .put(DATA + 0x10 * u64::from(source.u8() & 15), bytes);
    }

    /// A command, and mostly room for its answer, in the control queue of one pair or that of two.
    fn command(&mut self, source: &mut Source<'_>) {
        let queue = source.pick(&[2, 4]);
        let class_and_command = source.pick(&[[0, 1], [1, 0], [1, 1], [4, 0], [4, 0], [9, 9]]);
        let bytes = [&class_and_command, source.bytes(6)].concat();
        let at = DATA + 0x200;
        self.virtio.put(at, &bytes);
        let len = u32::from(source.u8() % 10);
        self.virtio.describe(queue, 6, (at, len, NEXT, 7));
        let room = u32::from(source.below(16) != 0);
        self.virtio.describe(queue, 7, (at + 0x10, room, WRITE, 0));
        self.virtio.offer(queue, 6);
    }

    fn register(&self, source: &mut Source<'_>) {
        let mut data = [0; 8];
        let offset = u64::from(source.u16() & 0x1ff);
        let width = source.pick(&[1, 2, 4, 8]);
        match source.below(2) {
            0 => self.virtio.read(offset, &mut data[..width]),
            _ => self.virtio.write(offset, source.bytes(width)),
        }
    }

    fn notify(&self, source: &mut Source<'_>) {
        for n in 0..u32::from(source.u8()) {
            self.virtio.set(0x50, n % (QUEUES as u32 + 1));
        }
    }

    fn pause(&mut self) {
        match self.is_paused {
            true => self.virtio.resume(),
            false => self.virtio.pause(),
        }
        self.is_paused = !self.is_paused;
    }

    /// Has one direction wait a moment, or for ever, or not at all.
    fn limit(&self, source: &mut Source<'_>) {
        let mut bucket = || {
            let size = u64::from(source.u8());
            let refill_time = source.pick(&[0, 1, 1 << 40]);
            Some(Bucket {
                size,
                one_time_burst: size / 2,
                refill_time: Duration::from_micros(refill_time),
            })
        };
        let limits = Limits {
            bandwidth: bucket(),
            operations: bucket(),
        };
        match source.below(2) {
            0 => self.control.set_receive_limits(limits),
            _ => self.control.set_transmit_limits(limits),
        }
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(25) {
            24 => self.limit(source),
            0 => self.virtio.start(source.u32()),
            1 => self.virtio.start(u32::MAX),
            2 => self.virtio.toggle(),
            3 => self.virtio.write_config(source, 0x10),
            4 => self.register(source),
            5 => self.virtio.poke(source),
            6 => self.notify(source),
            7 => self.control.set_link(source.below(4) != 0),
            8 => self.pause(),
            9 | 10 => self.header(source),
            11 | 12 => self.command(source),
            13..17 => {
                let host = source.below(self.hosts.len());
                self.hosts[host].step(source);
            }
            17 => std::thread::yield_now(),
            _ => self.chain(source),
        }
    }

    /// Whatever was before: after a reset frames go out and come in, if there is somebody at the other end.
    pub fn finish(mut self) {
        if self.is_paused {
            self.pause();
        }
        self.control.set_link(true);
        self.control.set_receive_limits(Limits::default());
        self.control.set_transmit_limits(Limits::default());
        self.virtio.start(!MRG_RXBUF);
        assert!(self.virtio.works());
        self.send();
        if !self.hosts.iter().any(Host::is_lost) {
            assert!(self.control.is_up());
            self.receive();
        }
        self.virtio.reset();
        self.virtio.check();
    }

    /// Sends a frame, which is the last one that the host gets.
    fn send(&mut self) {
        let frame = [&[0; Header::LEN], KNOWN].concat();
        self.virtio.put(DATA, &frame);
        let len = frame.len() as u32;
        self.virtio.describe(TRANSMIT, 0, (DATA, len, 0, 0));
        self.virtio.offer(TRANSMIT, 0);
        let lost = self.hosts.iter().any(Host::is_lost);
        let (mut came, begin) = (false, Instant::now());
        while !(came || lost) || self.virtio.used(TRANSMIT) != self.virtio.offered(TRANSMIT) {
            let frames = self.hosts[0].read(0x1_0000);
            came |= frames.last().is_some_and(|last| last == KNOWN);
            assert!(begin.elapsed() < PATIENCE, "no frame goes out");
            std::thread::yield_now();
        }
    }

    /// Receives until a frame comes that is the last one that the host sends.
    fn receive(&mut self) {
        self.hosts[0].send(KNOWN);
        let len = (Header::LEN + KNOWN.len()) as u32;
        let element = VirtioDriver::rings(RECEIVE)[2] + 4;
        let begin = Instant::now();
        loop {
            let slot = u64::from(self.virtio.offered(RECEIVE) % VirtioDriver::SIZE);
            self.virtio.describe(RECEIVE, 0, (ROOM, 0x400, WRITE, 0));
            self.virtio.offer(RECEIVE, 0);
            while self.virtio.used(RECEIVE) != self.virtio.offered(RECEIVE) {
                self.hosts[0].flush();
                assert!(begin.elapsed() < PATIENCE, "no frame comes in");
                std::thread::yield_now();
            }
            let [_, _, _, _, filled @ ..] = self.virtio.load::<8>(element + 8 * slot);
            let frame: [u8; KNOWN.len()] = self.virtio.load(ROOM + Header::LEN as u64);
            if u32::from_le_bytes(filled) == len && frame == KNOWN {
                return;
            }
        }
    }
}
