//! The guest: it remembers what the service's last segment of each connection was.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use umbra_fuzz::Source;
use umbra_mmds::{Metadata, MetadataConfig, MetadataPort, Version};
use umbra_net::{FRAME_MAX, Header, Offloads, Port, Sent};

/// Connections that the guest has at a time.
const CONNECTIONS: usize = 4;
/// Frames that may come for one of the guest's.
const ANSWERS: usize = 128;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH_ACK: u8 = 0x18;

const REQUESTS: [&str; 7] = [
    "GET / HTTP/1.1\r\n\r\n",
    "GET /a/b HTTP/1.1\r\nAccept: application/json\r\n\r\n",
    "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
    "GET /a HTTP/1.0\r\nX-metadata-token: 00\r\n\r\n",
    "GET /long HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    "PUT / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
];

/// A port that counts what goes by it.
struct Behind(File, Arc<AtomicUsize>);

impl Port for Behind {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn can_offload(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn enable(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &[u8]) -> io::Result<Sent> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(Sent::Done)
    }

    fn receive(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

/// What the guest says next in a connection, and has heard.
#[derive(Clone, Copy, Default)]
struct Tcp {
    sequence: u32,
    acknowledge: u32,
}

/// The guest.
pub struct Guest {
    /// Of two queues.
    ports: Vec<MetadataPort>,
    /// By which one it speaks.
    queue: usize,
    passed: Arc<AtomicUsize>,
    connections: [Tcp; CONNECTIONS],
    room: Vec<u8>,
}

impl Guest {
    pub fn new() -> Self {
        let data = Metadata::new(MetadataConfig::LIMIT);
        let long = "x".repeat(20000);
        let text = format!(r#"{{"a": {{"b": "c"}}, "long": "{long}"}}"#);
        let value = serde_json::from_str(&text).expect("this is JSON");
        data.put(value).expect("there is room");
        let passed = Arc::new(AtomicUsize::new(0));
        let behind = || -> Box<dyn Port> {
            let file = File::open("/dev/null").expect("every host has it");
            Box::new(Behind(file, passed.clone()))
        };
        let config = MetadataConfig {
            version: Version::V1,
            ..MetadataConfig::default()
        };
        Self {
            ports: MetadataPort::before(vec![behind(), behind()], data, config),
            queue: 0,
            passed,
            connections: [Tcp::default(); CONNECTIONS],
            room: vec![0; FRAME_MAX],
        }
    }

    pub fn step(&mut self, source: &mut Source<'_>) {
        self.queue = source.below(self.ports.len());
        let number = source.below(CONNECTIONS);
        match source.below(8) {
            0 => {
                let len = source.below(80);
                let frame: Vec<u8> = (0..len).map(|_| source.u8()).collect();
                self.send(&frame);
            }
            1 => self.segment(number, SYN, &[]),
            2 => self.segment(number, source.u8(), &[]),
            3 => self.segment(number, PSH_ACK | FIN, &[]),
            4 => {
                let len = source.below(200);
                let bytes: Vec<u8> = (0..len).map(|_| source.u8()).collect();
                self.segment(number, PSH_ACK, &bytes);
            }
            5 => {
                let tcp = &mut self.connections[number];
                tcp.sequence = tcp.sequence.wrapping_add_signed(source.u8() as i8 as i32);
                tcp.acknowledge = tcp
                    .acknowledge
                    .wrapping_add_signed(source.u8() as i8 as i32);
            }
            _ => {
                let request = REQUESTS[source.below(REQUESTS.len())];
                self.segment(number, PSH_ACK, request.as_bytes());
            }
        }
    }

    /// A connection that nobody disturbs is served.
    pub fn finish(mut self) {
        let port = CONNECTIONS;
        let mut tcp = Tcp {
            sequence: 1000,
            acknowledge: 0,
        };
        let mut heard = Vec::new();
        for (flags, bytes) in [(SYN, &b""[..]), (PSH_ACK, b"GET /a/b HTTP/1.0\r\n\r\n")] {
            for (segment, data) in self.exchange(port, tcp, flags, bytes) {
                tcp.acknowledge = segment;
                heard.extend(data);
            }
            tcp.sequence += bytes.len() as u32 + u32::from(flags == SYN);
        }
        assert!(
            heard.ends_with(b"\r\n\r\nc"),
            "{:?}",
            String::from_utf8_lossy(&heard)
        );
    }

    fn segment(&mut self, number: usize, flags: u8, bytes: &[u8]) {
        let tcp = self.connections[number];
        let answers = self.exchange(number, tcp, flags, bytes);
        let tcp = &mut self.connections[number];
        tcp.sequence = tcp.sequence.wrapping_add(bytes.len() as u32);
        if flags & (SYN | FIN) != 0 {
            tcp.sequence = tcp.sequence.wrapping_add(1);
        }
        if let Some((next, _)) = answers.last() {
            tcp.acknowledge = *next;
        }
    }

    /// Sends a segment; returns what comes back in that connection: the number that follows each segment, and its data.
    fn exchange(
        &mut self,
        number: usize,
        tcp: Tcp,
        flags: u8,
        bytes: &[u8],
    ) -> Vec<(u32, Vec<u8>)> {
        let source_port = 40000 + number as u16;
        let mut packet = vec![0x45, 0];
        packet.extend((40 + bytes.len() as u16).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
        packet.extend(MetadataConfig::ADDRESS.octets());
        packet.extend(source_port.to_be_bytes());
        packet.extend(80u16.to_be_bytes());
        packet.extend(tcp.sequence.to_be_bytes());
        packet.extend(tcp.acknowledge.to_be_bytes());
        packet.extend([0x50, flags, 0x40, 0, 0, 0, 0, 0]);
        packet.extend(bytes);
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        frame.extend(packet);
        let answers = self.send(&frame);
        let of_this = answers.iter().filter_map(|frame| {
            let segment = frame.get(34..)?;
            let to = u16::from_be_bytes(*segment.get(2..4)?.first_chunk()?);
            let sequence = u32::from_be_bytes(*segment.get(4..8)?.first_chunk()?);
            let header = usize::from(segment.get(12)? >> 4) * 4;
            let flags = segment.get(13)?;
            let data = segment.get(header..)?.to_vec();
            let counts = data.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
            (to == source_port).then(|| (sequence.wrapping_add(counts), data))
        });
        of_this.collect()
    }

    /// Sends a frame, and takes all that come.
    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let whole = [&[0; Header::LEN][..], frame].concat();
        let before = self.passed.load(Ordering::Relaxed);
        let port = &mut self.ports[self.queue];
        let sent = port.send(&whole);
        assert!(matches!(sent, Ok(Sent::Done)));
        assert!(self.passed.load(Ordering::Relaxed) - before <= 1);
        let mut answers = Vec::new();
        while let Ok(Some(len)) = port.receive(&mut self.room) {
            answers.push(self.room[Header::LEN..len].to_vec());
            assert!(answers.len() < ANSWERS, "it does not end");
        }
        answers
    }
}
