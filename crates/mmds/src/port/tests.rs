//! A guest with a TCP of its own, frame by frame.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::*;
use crate::data::Version;
use crate::stack::CONNECTIONS;

const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 7, 2);
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// A port that remembers what is sent by it, and has what it is told.
struct Behind {
    file: File,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    waiting: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

impl Port for Behind {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
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

    fn send(&mut self, frame: &[u8]) -> io::Result<Sent> {
        self.sent.lock().push(frame.to_vec());
        Ok(Sent::Done)
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.waiting.lock().pop_front().map(|waiting| {
            frame[..waiting.len()].copy_from_slice(&waiting);
            waiting.len()
        }))
    }
}

/// The guest's packets.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut VecDeque<Vec<u8>>);

impl smoltcp::phy::RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Time) -> Option<(In, Out<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((In(packet), Out(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Time) -> Option<Out<'_>> {
        Some(Out(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

/// A guest and its port.
struct Guest {
    /// Of two queues.
    ports: Vec<MetadataPort>,
    /// By which one it speaks.
    queue: usize,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    waiting: Arc<Mutex<VecDeque<Vec<u8>>>>,
    interface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    begin: Instant,
    next_port: u16,
    /// Checksums of TCP are left to the receiver.
    partial: bool,
}

impl Guest {
    fn new(data: &Metadata, version: Version) -> Self {
        let config = MetadataConfig {
            version,
            ..MetadataConfig::default()
        };
        let (sent, waiting) = (
            Arc::<Mutex<Vec<_>>>::default(),
            Arc::<Mutex<VecDeque<_>>>::default(),
        );
        let behind = || -> Box<dyn Port> {
            Box::new(Behind {
                file: File::open("/dev/null").unwrap(),
                sent: Arc::clone(&sent),
                waiting: Arc::clone(&waiting),
            })
        };
        let ports = MetadataPort::before(vec![behind(), behind()], data.clone(), config);
        let mut wire = Wire::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, Time::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface
            .routes_mut()
            .add_default_ipv4_route(MetadataConfig::ADDRESS)
            .unwrap();
        Self {
            ports,
            queue: 0,
            sent,
            waiting,
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            begin: Instant::now(),
            next_port: 40000,
            partial: false,
        }
    }

    fn port(&mut self) -> &mut MetadataPort {
        &mut self.ports[self.queue]
    }

    fn send(&mut self, frame: &[u8]) {
        let whole = [&[0; Header::LEN][..], frame].concat();
        assert!(matches!(self.port().send(&whole), Ok(Sent::Done)));
    }

    /// Every frame that comes now, without its virtio header.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut room = vec![0xaa; FRAME_MAX];
        let mut all = Vec::new();
        while let Some(len) = self.port().receive(&mut room).unwrap() {
            assert_eq!(room[..Header::LEN], [0; Header::LEN]);
            all.push(room[Header::LEN..len].to_vec());
        }
        all
    }

    /// Lets packets go to and fro until there are no more.
    fn turn(&mut self) {
        loop {
            let time = Time::from_micros(self.begin.elapsed().as_micros() as i64);
            self.interface.poll(time, &mut self.wire, &mut self.sockets);
            let packets = std::mem::take(&mut self.wire.outgoing);
            for mut packet in packets {
                if self.partial {
                    // After a header of 20 bytes, at 16.
                    packet[36..38].fill(0x55);
                }
                let ethernet = [&MAC[..], &GUEST_MAC, &TYPE_IP].concat();
                self.send(&[ethernet, packet].concat());
            }
            let frames = self.receive();
            if frames.is_empty() {
                return;
            }
            for frame in frames {
                assert_eq!((&frame[..6], &frame[6..12]), (&GUEST_MAC[..], &MAC[..]));
                self.wire.incoming.push_back(frame[ETHERNET..].to_vec());
            }
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        self.next_port += 1;
        let to = (smoltcp::wire::IpAddress::Ipv4(MetadataConfig::ADDRESS), 80);
        socket
            .connect(self.interface.context(), to, self.next_port)
            .unwrap();
        let socket = self.sockets.add(socket);
        self.turn();
        socket
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn say(&mut self, handle: SocketHandle, text: &str) {
        self.socket(handle).send_slice(text.as_bytes()).unwrap();
    }

    /// Reads until so much has come, or the other end has ended.
    fn hear(&mut self, handle: SocketHandle, end: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        for _ in 0..1000 {
            self.turn();
            let socket = self.socket(handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        (
                            bytes.len(),
                            text.push_str(std::str::from_utf8(bytes).unwrap()),
                        )
                    })
                    .unwrap();
            }
            if end(&text) || !self.socket(handle).may_recv() {
                break;
            }
        }
        text
    }

    /// Asks, and takes the body of the answer.
    fn ask(&mut self, head: &str) -> String {
        let handle = self.connect();
        self.say(handle, &format!("{head}\r\nConnection: close\r\n\r\n"));
        let text = self.hear(handle, |_| false);
        self.socket(handle).close();
        self.turn();
        self.sockets.remove(handle);
        let (_, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{text:?}"));
        body.to_owned()
    }
}

fn data() -> Metadata {
    let data = Metadata::new(100_000);
    data.put(json!({"name": "violet", "long": "0123456789".repeat(4000)}))
        .unwrap();
    data
}

/// An ARP message of the guest's.
fn arp(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(GUEST_MAC);
    frame.extend(TYPE_ARP);
    frame.extend(ARP_REQUEST);
    frame.extend(GUEST_MAC);
    frame.extend(GUEST.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

#[test]
fn the_service_has_an_address_and_others_have_theirs() {
    let mut guest = Guest::new(&data(), Version::V1);
    assert_eq!(guest.port().due(), None);
    let before = Instant::now();
    guest.send(&arp(MetadataConfig::ADDRESS));
    assert!(guest.port().due().is_some_and(|due| due <= before));
    let replies = guest.receive();
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0][..6], GUEST_MAC);
    assert_eq!(replies[0][ETHERNET + 8..ETHERNET + 14], MAC);
    assert_eq!(
        replies[0][ETHERNET + 14..ETHERNET + 18],
        MetadataConfig::ADDRESS.octets()
    );
    assert!(guest.sent.lock().is_empty());
    let other = arp(Ipv4Addr::new(172, 16, 7, 1));
    guest.send(&other);
    assert_eq!(guest.sent.lock()[0][Header::LEN..], other);
    assert!(guest.receive().is_empty());
    // More questions than there is room for.
    for _ in 0..100 {
        guest.send(&arp(MetadataConfig::ADDRESS));
    }
    assert_eq!(guest.receive().len(), REPLIES);
}

#[test]
fn answers_come_by_tcp_and_others_frames_beside_them() {
    let mut guest = Guest::new(&data(), Version::V1);
    assert_eq!(guest.ask("GET /name HTTP/1.1"), "violet");
    assert_eq!(guest.ask("GET /long HTTP/1.1"), "0123456789".repeat(4000));
    assert!(guest.sent.lock().is_empty());
    guest.waiting.lock().push_back(vec![0; Header::LEN + 60]);
    assert_eq!(guest.receive(), [vec![0; 60]]);
}

#[test]
fn checksums_that_are_left_to_the_receiver_are_no_reason_to_be_silent() {
    let mut guest = Guest::new(&data(), Version::V1);
    guest.partial = true;
    assert_eq!(guest.ask("GET /name HTTP/1.1"), "violet");
}

#[test]
fn a_request_comes_in_one_packet_larger_than_the_link_has() {
    let mut guest = Guest::new(&data(), Version::V1);
    let handle = guest.connect();
    let filling = "x".repeat(3000);
    guest.say(
        handle,
        &format!("GET /name HTTP/1.0\r\nFilling: {filling}\r\n\r\n"),
    );
    let time = Time::from_micros(guest.begin.elapsed().as_micros() as i64);
    guest
        .interface
        .poll(time, &mut guest.wire, &mut guest.sockets);
    let packets = std::mem::take(&mut guest.wire.outgoing);
    assert!(packets.len() > 1);
    // Segmentation is left to the receiver: one header, and what all carry behind theirs of 40 bytes.
    let mut packet = packets[0][..40].to_vec();
    packet.extend(packets.iter().flat_map(|packet| &packet[40..]));
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let ethernet = [&MAC[..], &GUEST_MAC, &TYPE_IP].concat();
    guest.send(&[ethernet, packet].concat());
    for frame in guest.receive() {
        guest.wire.incoming.push_back(frame[ETHERNET..].to_vec());
    }
    let text = guest.hear(handle, |_| false);
    assert!(text.ends_with("violet"), "{text}");
}

#[test]
fn a_token_is_asked_for_and_used_by_one_connection() {
    let mut guest = Guest::new(&data(), Version::V2);
    let handle = guest.connect();
    guest.say(
        handle,
        "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
    );
    let token = guest.hear(handle, |text| {
        text.split("\r\n\r\n")
            .nth(1)
            .is_some_and(|body| body.len() == 80)
    });
    let token = token.split_once("\r\n\r\n").unwrap().1.to_owned();
    // Two at once.
    let get = format!("GET /name HTTP/1.1\r\nX-metadata-token: {token}\r\n\r\n");
    guest.say(handle, &format!("{get}{get}"));
    let both = guest.hear(handle, |text| text.matches("violet").count() == 2);
    assert_eq!(both.matches("HTTP/1.1 200 OK").count(), 2, "{both}");
    assert!(
        guest
            .ask("GET /name HTTP/1.1")
            .starts_with("No MMDS token provided")
    );
}

#[test]
fn a_connection_goes_on_by_another_queue() {
    let mut guest = Guest::new(&data(), Version::V1);
    let handle = guest.connect();
    guest.queue = 1;
    guest.say(handle, "GET /name HTTP/1.1\r\n\r\n");
    let first = guest.hear(handle, |text| text.ends_with("violet"));
    assert!(first.ends_with("violet"), "{first}");
    // Only the queue by which it speaks has something for it, and to wait for.
    assert_eq!(guest.ports[0].due(), None);
    assert!(guest.ports[1].due().is_some());
    guest.queue = 0;
    guest.say(handle, "GET /long HTTP/1.0\r\n\r\n");
    let second = guest.hear(handle, |_| false);
    assert!(second.ends_with(&"0123456789".repeat(4000)));
}

#[test]
fn a_queue_that_was_left_gives_what_is_not_the_services() {
    let mut guest = Guest::new(&data(), Version::V1);
    guest.send(&arp(MetadataConfig::ADDRESS));
    guest.queue = 1;
    guest.send(&arp(MetadataConfig::ADDRESS));
    guest.waiting.lock().push_back(vec![0; Header::LEN + 60]);
    guest.queue = 0;
    assert_eq!(guest.receive(), [vec![0; 60]]);
    guest.queue = 1;
    assert_eq!(guest.receive().len(), 2);
}

#[test]
#[should_panic(expected = "224.0.0.1 is not link local")]
fn an_address_of_no_link_is_refused() {
    let config = MetadataConfig {
        address: Ipv4Addr::new(224, 0, 0, 1),
        ..MetadataConfig::default()
    };
    let _ = MetadataPort::before(Vec::new(), data(), config);
}

#[test]
fn connections_are_few_and_the_oldest_makes_room() {
    let mut guest = Guest::new(&data(), Version::V1);
    let handles: Vec<_> = (0..3 * CONNECTIONS).map(|_| guest.connect()).collect();
    let last = *handles.last().unwrap();
    guest.say(last, "GET /name HTTP/1.0\r\n\r\n");
    let text = guest.hear(last, |_| false);
    assert!(text.ends_with("violet"), "{text}");
    // The first one is spoken to, and does not answer any more.
    guest.say(handles[0], "GET /name HTTP/1.0\r\n\r\n");
    assert_eq!(guest.hear(handles[0], |_| false), "");
}

#[test]
fn connections_that_are_over_make_room_before_one_that_is_not() {
    let mut guest = Guest::new(&data(), Version::V1);
    let stays = guest.connect();
    for _ in 0..3 * CONNECTIONS {
        assert_eq!(guest.ask("GET /name HTTP/1.1"), "violet");
    }
    guest.say(stays, "GET /name HTTP/1.0\r\n\r\n");
    let text = guest.hear(stays, |_| false);
    assert!(text.ends_with("violet"), "{text}");
}

#[test]
fn a_connection_in_which_nothing_happens_ends() {
    use crate::stack::{IDLE, Stack};
    let mut guest = Guest::new(&data(), Version::V1);
    let handle = guest.connect();
    let due = guest.port().due().expect("its end is due");
    assert!(Instant::now() < due && due <= Instant::now() + IDLE);
    {
        let stack: &mut Stack = &mut guest.port().service.lock().stack;
        stack.work(due + IDLE);
        // What it may have said at its end.
        while stack.give().is_some() {}
        assert_eq!(stack.due(), None);
    }
    guest.say(handle, "GET /name HTTP/1.0\r\n\r\n");
    assert_eq!(guest.hear(handle, |_| false), "");
}

#[test]
fn half_a_request_and_nonsense_end_their_connection() {
    for (said, answered) in [
        ("GET /na", ""),
        ("\0\0\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        let mut guest = Guest::new(&data(), Version::V1);
        let handle = guest.connect();
        guest.say(handle, said);
        guest.turn();
        if answered.is_empty() {
            guest.socket(handle).close();
        }
        let text = guest.hear(handle, |_| false);
        assert!(text.starts_with(answered), "{said:?}: {text}");
        assert!(!guest.socket(handle).may_recv(), "{said:?}");
    }
}

proptest! {
    /// Whatever a guest sends is the service's or somebody else's, and neither is broken by it.
    #[test]
    fn no_frame_breaks_the_service(
        frames in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..120), 0usize..4, any::<prop::sample::Index>(), any::<u8>()),
            1..60,
        ),
    ) {
        let mut guest = Guest::new(&data(), Version::V1);
        let open = guest.connect();
        for (bytes, kind, at, value) in frames {
            let mut frame = match kind {
                0 => bytes,
                1 => arp(MetadataConfig::ADDRESS),
                // A packet of TCP for the service, and one of a connection that there is.
                _ => {
                    let mut frame = [&MAC[..], &GUEST_MAC, &TYPE_IP].concat();
                    frame.extend([0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0]);
                    frame.extend(GUEST.octets());
                    frame.extend(MetadataConfig::ADDRESS.octets());
                    frame.extend(if kind == 2 { 40001u16 } else { 5 }.to_be_bytes());
                    frame.extend(80u16.to_be_bytes());
                    frame.extend(bytes);
                    frame
                }
            };
            if !frame.is_empty() {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            guest.queue = usize::from(value & 1);
            let before = guest.sent.lock().len();
            let other = classify(&frame, MetadataConfig::ADDRESS) == Frame::Other;
            guest.send(&frame);
            prop_assert_eq!(guest.sent.lock().len() - before, usize::from(other));
            guest.receive();
        }
        guest.sockets.remove(open);
        prop_assert_eq!(guest.ask("GET /name HTTP/1.1"), "violet");
    }
}
