//! A driver of the socket device, and programs of the host.

mod credit;
mod hostile;
mod life;
mod streams;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use umbra_virtio::testing::{Driver, NEXT, RINGS, WRITE};

use super::credit::BUF_ALLOC;
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM as STREAMS};
use super::*;

const CID: u64 = 3;
/// Queues.
const RX: u32 = 0;
const TX: u32 = 1;
/// Descriptors of each.
const SIZE: u16 = 8;
/// Buffer n to receive is at RECEIVE + 0x1000 * n.
const RECEIVE: u64 = 0x4_0000;
const BUFFER: u32 = 0x1000;
const SEND: u64 = 0x6_0000;
/// Room that the guest says it has.
const GUEST_ROOM: u32 = 0x4_0000;

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// A packet for the guest.
#[derive(Debug)]
struct Packet {
    header: Header,
    data: Vec<u8>,
}

impl Packet {
    fn op(&self) -> Option<Op> {
        Op::of(self.header.op)
    }

    /// Its ports: the host's, the guest's.
    fn ports(&self) -> (u32, u32) {
        (self.header.src_port, self.header.dst_port)
    }
}

/// A driver, the device, and where that has its sockets.
struct Bench {
    driver: Driver,
    place: tempfile::TempDir,
    /// Packets that were looked at.
    seen: u16,
    sent: u16,
    room: u32,
    fwd_cnt: u32,
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let options = VsockOptions {
            name: "vsock0".into(),
            cid: CID,
            path: place.path().join("v"),
            stays: false,
        };
        Self {
            driver: Driver::new(Box::new(Vsock::new(options).unwrap()), SIZE),
            place,
            seen: 0,
            sent: 0,
            room: GUEST_ROOM,
            fwd_cnt: 0,
        }
    }

    /// One that works, with all buffers to receive.
    fn started() -> Self {
        let mut bench = Self::new();
        bench.start(Features::RINGS);
        bench.make_room();
        bench
    }

    fn start(&mut self, features: Features) {
        self.driver.start(features);
        (self.seen, self.sent) = (0, 0);
    }

    fn describe(&self, queue: u32, index: u16, descriptor: (u64, u32, u16, u16)) {
        let table = RINGS[0] + 0x1_0000 * u64::from(queue);
        let place = table + 16 * u64::from(index);
        self.driver.describe_at(place, descriptor);
    }

    fn offer(&mut self, queue: u32, head: u16) {
        self.driver.offer_in(queue, head);
        self.driver.write(0x50, queue);
    }

    fn make_room(&mut self) {
        for head in 0..SIZE {
            let at = RECEIVE + 0x1000 * u64::from(head);
            self.describe(RX, head, (at, BUFFER, WRITE, 0));
            self.offer(RX, head);
        }
    }

    /// Waits for the next packet.
    fn packet(&mut self) -> Packet {
        let seen = self.seen;
        self.driver.wait(|driver| driver.used_in(RX) != seen);
        self.seen = seen.wrapping_add(1);
        let memory = &self.driver.memory;
        let at = RINGS[2] + 4 + 8 * u64::from(seen % SIZE);
        let (head, len) = (memory.get_u32(at), memory.get_u32(at + 4));
        let bytes: [u8; BUFFER as usize] = memory.get(RECEIVE + 0x1000 * u64::from(head));
        let header = Header::of(bytes.first_chunk().unwrap());
        assert_eq!(len, Header::LEN as u32 + header.len, "{header:?}");
        assert_eq!(header.dst_cid, CID, "{header:?}");
        let data = bytes[Header::LEN..len as usize].to_vec();
        self.offer(RX, head as u16);
        Packet { header, data }
    }

    /// Waits for a packet that does this.
    fn expect(&mut self, op: Op) -> Packet {
        let packet = self.packet();
        let found = (packet.op(), packet.header.kind);
        assert_eq!(found, (Some(op), STREAMS), "{packet:?}");
        packet
    }

    fn expect_nothing(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        if self.driver.used_in(RX) != self.seen {
            panic!("{:?}", self.packet());
        }
    }

    fn header(&self, op: Op, (host, guest): (u32, u32)) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAMS,
            op: op.number(),
            buf_alloc: self.room,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    /// Makes a packet available.
    fn offer_packet(&mut self, header: &Header, data: &[u8]) {
        let header = Header {
            len: data.len() as u32,
            ..*header
        };
        self.driver.memory.put(SEND, &header.bytes());
        self.describe(TX, 0, (SEND, Header::LEN as u32, NEXT, 1));
        self.driver.memory.put(SEND + 0x1000, data);
        self.describe(TX, 1, (SEND + 0x1000, data.len() as u32, 0, 0));
        self.offer(TX, 0);
    }

    fn send_header(&mut self, header: &Header, data: &[u8]) {
        self.offer_packet(header, data);
        self.sent = self.sent.wrapping_add(1);
        let sent = self.sent;
        self.driver.wait(|driver| driver.used_in(TX) == sent);
    }

    fn send(&mut self, op: Op, ports: (u32, u32), data: &[u8]) {
        self.send_header(&self.header(op, ports), data);
    }

    /// Sends packets without data, as many at a time as the queue takes.
    fn send_all(&mut self, headers: &[Header]) {
        for some in headers.chunks(SIZE.into()) {
            for (head, header) in (0..).zip(some) {
                let at = SEND + 0x100 * u64::from(head);
                self.driver.memory.put(at, &header.bytes());
                self.describe(TX, head, (at, Header::LEN as u32, 0, 0));
                self.offer(TX, head);
            }
            self.sent = self.sent.wrapping_add(some.len() as u16);
            let sent = self.sent;
            self.driver.wait(|driver| driver.used_in(TX) == sent);
        }
    }

    fn shut_down(&mut self, ports: (u32, u32), flags: u32) {
        let header = self.header(Op::Shutdown, ports);
        self.send_header(&Header { flags, ..header }, &[]);
    }

    /// A program of the host that asks for a port.
    fn program(&self, port: u32) -> UnixStream {
        let mut program = UnixStream::connect(self.place.path().join("v")).unwrap();
        patient(&program);
        writeln!(program, "CONNECT {port}").unwrap();
        program
    }

    /// One that is connected to it, and both ports.
    fn connected(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut program = self.program(port);
        let ports = self.expect(Op::Request).ports();
        self.send(Op::Response, ports, &[]);
        assert_eq!(line(&mut program), format!("OK {}\n", ports.0));
        (program, ports)
    }

    /// A program that serves a port.
    fn server(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.place.path().join(format!("v_{port}"))).unwrap()
    }

    /// Connects the guest to it.
    fn connect(&mut self, server: &UnixListener, ports: (u32, u32)) -> UnixStream {
        self.send(Op::Request, ports, &[]);
        let (program, _) = server.accept().unwrap();
        patient(&program);
        assert_eq!(self.expect(Op::Response).ports(), ports);
        program
    }
}

fn patient(stream: &UnixStream) {
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).unwrap();
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Tells whether the device has closed it, or ended what it sends.
fn is_ended(stream: &mut UnixStream) -> bool {
    stream.read(&mut [0]).is_ok_and(|len| len == 0)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8) as u8).collect()
}

#[test]
fn it_is_a_socket_device_with_three_queues_and_the_guests_cid() {
    let bench = Bench::new();
    let read = |at| bench.driver.read(at);
    assert_eq!((read(0x08), read(0x100), read(0x104)), (19, 3, 0));
    let sizes: Vec<_> = (0..4)
        .map(|queue| {
            bench.driver.write(0x30, queue);
            bench.driver.read(0x34)
        })
        .collect();
    assert_eq!(sizes, [256, 256, 64, 0]);
    // VIRTIO_VSOCK_F_STREAM and NO_IMPLIED_STREAM, and not SEQPACKET.
    bench.driver.write(0x14, 0);
    assert_eq!(read(0x10) & 0xff, 0b101);
}

#[test]
fn the_sockets_file_goes_with_the_device() {
    let bench = Bench::started();
    let path = bench.place.path().join("v");
    let program = bench.program(5);
    assert!(path.exists());
    let Bench { driver, place, .. } = bench;
    drop(driver);
    assert!(!path.exists());
    drop((program, place));
}
