//! A driver of the console device, and clients of its ports.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use umbra_virtio::testing::{Driver, RAM, RINGS, WRITE};

use super::*;

/// Queues.
const RX: u32 = 0;
const TX: u32 = 1;
const SAY: u32 = 2;
const HEAR: u32 = 3;
const RX1: u32 = 4;
const TX1: u32 = 5;

/// Buffers of a queue, 0x1000 each.
const BUFFERS: u64 = 0x8_0000;
const SIZE: u16 = 8;

struct Bench {
    driver: Driver,
    control: ConsoleControl,
    place: TempDir,
}

fn buffer(queue: u32, head: u16) -> u64 {
    BUFFERS + 0x8000 * u64::from(queue) + 0x1000 * u64::from(head)
}

impl Bench {
    /// A device whose ports are sockets named by their numbers; the names are of those from 1 on.
    fn new(names: &[&str], size: Option<(u16, u16)>) -> Self {
        let place = tempfile::tempdir().unwrap();
        let socket = |number: usize| {
            let host = SocketHost::listen(&place.path().join(number.to_string()));
            Box::new(host.unwrap()) as Box<dyn PortHost>
        };
        let mut ports = vec![PortOptions {
            name: None,
            is_console: true,
            host: socket(0),
        }];
        ports.extend((1..).zip(names).map(|(number, name)| PortOptions {
            name: Some((*name).to_owned()),
            is_console: false,
            host: socket(number),
        }));
        let name = "console".into();
        let (device, control) = Console::new(ConsoleOptions { name, ports, size }).unwrap();
        Self {
            driver: Driver::new(Box::new(device), SIZE),
            control,
            place,
        }
    }

    fn single() -> Self {
        let mut bench = Self::new(&[], None);
        bench.driver.start(Features::NONE);
        bench
    }

    /// A console and a port named `data`, both of which the driver has added and opened.
    fn double() -> Self {
        let mut bench = Self::new(&["data"], Some((80, 25)));
        bench.driver.start(feature::MULTIPORT.with(feature::SIZE));
        bench
    }

    fn path(&self, port: u32) -> PathBuf {
        self.place.path().join(port.to_string())
    }

    fn connect(&self, port: u32) -> UnixStream {
        let client = UnixStream::connect(self.path(port)).unwrap();
        let patience = Some(Duration::from_secs(10));
        client.set_read_timeout(patience).unwrap();
        client.set_write_timeout(patience).unwrap();
        client
    }

    fn offer(&mut self, queue: u32, head: u16, (at, len, flags): (u64, u32, u16)) {
        let place = RINGS[0] + 0x1_0000 * u64::from(queue) + 16 * u64::from(head);
        self.driver.describe_at(place, (at, len, flags, 0));
        self.driver.offer_in(queue, head);
        self.driver.write(0x50, queue);
    }

    fn send(&mut self, queue: u32, head: u16, bytes: &[u8]) {
        let at = buffer(queue, head);
        self.driver.memory.put(at, bytes);
        self.offer(queue, head, (at, bytes.len() as u32, 0));
    }

    fn wait_used(&self, queue: u32, count: u16) {
        self.driver.wait(|d| d.used_in(queue) == count);
    }

    /// Gives the device a buffer, and returns what comes.
    fn receive(&mut self, queue: u32) -> Vec<u8> {
        let used = self.driver.used_in(queue);
        let head = used % SIZE;
        self.offer(queue, head, (buffer(queue, head), 0x1000, WRITE));
        self.wait_used(queue, used.wrapping_add(1));
        self.received(queue, used)
    }

    fn received(&self, queue: u32, used: u16) -> Vec<u8> {
        let place = RINGS[2] + 0x1_0000 * u64::from(queue) + 4 + 8 * u64::from(used % SIZE);
        let (head, len) = (
            self.driver.memory.get_u32(place) as u16,
            self.driver.memory.get_u32(place + 4),
        );
        let page: [u8; 0x1000] = self.driver.memory.get(buffer(queue, head));
        page[..len as usize].to_vec()
    }

    /// Says something as a driver: port, event, value.
    fn say(&mut self, port: u32, event: u16, value: u16) {
        let used = self.driver.used_in(HEAR);
        let bytes = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat();
        self.send(HEAR, used % SIZE, &bytes);
        self.wait_used(HEAR, used.wrapping_add(1));
    }

    /// Hears the next message: port, event, value, and what follows.
    fn hear(&mut self) -> (u8, u8, u8, Vec<u8>) {
        let bytes = self.receive(SAY);
        (bytes[0], bytes[4], bytes[6], bytes[8..].to_vec())
    }
}

#[test]
fn features_and_queues_are_those_of_its_ports() {
    let single = Bench::new(&[], None);
    assert_eq!(single.driver.read(0x08), 3);
    let double = Bench::new(&["data"], Some((132, 50)));
    assert_eq!(double.driver.read(0x100), 50 << 16 | 132);
    assert_eq!(double.driver.read(0x104), 2);
    let (features, queues) = (
        |bench: &Bench| bench.driver.read(0x10),
        |bench: &Bench, queue| {
            bench.driver.write(0x30, queue);
            bench.driver.read(0x34)
        },
    );
    assert_eq!((features(&single) & 7, queues(&single, 3)), (6, 128));
    assert_eq!(queues(&single, 4), 0);
    assert_eq!((features(&double) & 7, queues(&double, 5)), (7, 128));
    assert_eq!(queues(&double, 6), 0);
}

#[test]
fn bytes_go_both_ways_in_order() {
    let mut bench = Bench::single();
    let mut client = bench.connect(0);
    client.write_all(b"from the host").unwrap();
    assert_eq!(bench.receive(RX), b"from the host");
    bench.send(TX, 0, b"from ");
    bench.send(TX, 1, b"the guest");
    let mut bytes = [0; 14];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    bench.wait_used(TX, 2);
    bench.driver.wait(|d| d.line.is_high());
}

#[test]
fn output_is_dropped_while_nobody_is_there() {
    let mut bench = Bench::single();
    bench.send(TX, 0, b"nobody hears");
    bench.wait_used(TX, 1);
    let mut client = bench.connect(0);
    client.write_all(b"x").unwrap();
    assert_eq!(bench.receive(RX), b"x");
    bench.send(TX, 1, b"somebody");
    let mut bytes = [0; 8];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"somebody");
}

#[test]
fn output_waits_for_a_client_that_does_not_read_and_none_is_lost() {
    let mut bench = Bench::single();
    let mut client = bench.connect(0);
    client.write_all(b"x").unwrap();
    bench.receive(RX);
    // Much more than a socket holds, from all of memory that no queue uses.
    let (at, len) = (0x3_0000, 0xd_0000u32);
    let pattern: Vec<u8> = (0..len / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    bench.driver.memory.put(at, &pattern);
    for head in 0..4 {
        bench.offer(TX, head, (at, len, 0));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_ne!(bench.driver.used_in(TX), 4, "it does not fit");
    // Meanwhile input comes.
    client.write_all(b"y").unwrap();
    for _ in 0..4 {
        let mut bytes = vec![0; len as usize];
        client.read_exact(&mut bytes).unwrap();
        assert!(bytes == bench_read(&bench, at, len), "as it is in memory");
    }
    bench.wait_used(TX, 4);
    assert_eq!(bench.receive(RX), b"y");
}

/// Memory that nobody writes meanwhile.
fn bench_read(bench: &Bench, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    let map = bench.driver.memory.space.load();
    map.read(umbra_slots::Gpa(at), &mut bytes).unwrap();
    bytes
}

#[test]
fn ports_are_told_in_the_order_that_drivers_expect() {
    let mut bench = Bench::double();
    bench.say(0, 0, 1);
    assert_eq!(bench.hear(), (0, 1, 1, vec![]));
    assert_eq!(bench.hear(), (1, 1, 1, vec![]));
    bench.say(0, 3, 1);
    assert_eq!(bench.hear(), (0, 4, 1, vec![]));
    assert_eq!(bench.hear(), (0, 5, 0, vec![80, 0, 25, 0]));
    bench.say(1, 3, 1);
    assert_eq!(bench.hear(), (1, 7, 1, b"data".to_vec()));
    let client = bench.connect(1);
    assert_eq!(bench.hear(), (1, 6, 1, vec![]));
    drop(client);
    assert_eq!(bench.hear(), (1, 6, 0, vec![]));
}

#[test]
fn a_port_that_has_a_client_already_says_so_when_it_is_ready() {
    let mut bench = Bench::double();
    let _client = bench.connect(1);
    std::thread::sleep(Duration::from_millis(20));
    bench.say(1, 3, 1);
    assert_eq!(bench.hear(), (1, 7, 1, b"data".to_vec()));
    assert_eq!(bench.hear(), (1, 6, 1, vec![]));
}

#[test]
fn input_waits_until_the_guest_has_opened_its_port() {
    let mut bench = Bench::double();
    bench.connect(1).write_all(b"early").unwrap();
    bench.offer(RX1, 0, (buffer(RX1, 0), 0x1000, WRITE));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(RX1), 0);
    bench.say(1, 6, 1);
    bench.wait_used(RX1, 1);
    assert_eq!(
        bench.received(RX1, 0),
        b"early",
        "though its client has gone"
    );
    // The next one is served then.
    let mut next = bench.connect(1);
    next.write_all(b"next").unwrap();
    assert_eq!(bench.receive(RX1), b"next");
    bench.send(TX1, 0, b"answer");
    let mut bytes = [0; 6];
    next.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
    bench.say(1, 6, 0);
    next.write_all(b"later").unwrap();
    bench.offer(RX1, 2, (buffer(RX1, 2), 0x1000, WRITE));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(RX1), 2, "it is closed");
}

#[test]
fn a_client_that_only_reads_on_gets_the_rest() {
    let mut bench = Bench::single();
    let mut client = bench.connect(0);
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(bench.receive(RX), b"question");
    bench.send(TX, 0, b"answer");
    let mut bytes = [0; 6];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"answer");
}

#[test]
fn a_size_is_told_by_configuration_and_message() {
    let mut bench = Bench::double();
    bench.say(0, 3, 1);
    bench.hear();
    bench.hear();
    bench.driver.write(0x64, 3);
    let generation = bench.driver.read(0xfc);
    bench.control.resize(80, 25);
    bench.control.resize(100, 40);
    assert_eq!(bench.hear(), (0, 5, 0, vec![100, 0, 40, 0]));
    assert_eq!(bench.driver.read(0x60) & 2, 2);
    assert_ne!(bench.driver.read(0xfc), generation);
    assert_eq!(bench.driver.read(0x100), 40 << 16 | 100);
    let plain = Bench::new(&[], None);
    plain.control.resize(100, 40);
    assert_eq!(plain.driver.read(0x100), 0, "it has no size");
}

#[test]
fn an_emergency_needs_no_driver_and_no_queue() {
    let mut bench = Bench::new(&[], None);
    let mut client = bench.connect(0);
    for byte in b"help" {
        bench.driver.write(0x108, u32::from(*byte));
    }
    let mut bytes = [0; 4];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"help");
    bench.driver.start(Features::NONE);
    for byte in b"again" {
        bench.driver.write(0x108, u32::from(*byte));
    }
    let mut bytes = [0; 5];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"again");
}

#[test]
fn messages_that_are_none_are_nothing() {
    let mut bench = Bench::double();
    for (port, event) in [(2, 3), (u32::MAX, 6), (0, 1), (0, 99)] {
        bench.say(port, event, 1);
    }
    let used = bench.driver.used_in(HEAR);
    bench.send(HEAR, 5, &[0; 7]);
    bench.wait_used(HEAR, used + 1);
    assert!(!bench.driver.needs_reset());
    bench.say(0, 0, 1);
    assert_eq!(bench.hear(), (0, 1, 1, vec![]));
}

#[test]
fn wrong_buffers_need_a_reset() {
    for (queue, at, len, flags) in [
        (TX, RAM - 4, 8, 0),
        (RX1, RAM - 4, 8, WRITE),
        (RX1, BUFFERS, 0, WRITE),
        (SAY, BUFFERS, 7, WRITE),
        (HEAR, RAM, 8, 0),
    ] {
        let mut bench = Bench::double();
        let _client = bench.connect(0);
        let mut other = bench.connect(1);
        other.write_all(b"x").unwrap();
        bench.say(1, 6, 1);
        bench.say(0, 0, 1);
        bench.offer(queue, 6, (at, len, flags));
        bench.driver.wait(Driver::needs_reset);
        bench.driver.write(0x70, 0);
        assert_eq!(bench.driver.status(), 0);
    }
}

#[test]
fn a_reset_forgets_who_was_there() {
    let mut bench = Bench::double();
    bench.say(0, 0, 1);
    bench.say(1, 6, 1);
    bench.driver.start(feature::MULTIPORT);
    let mut client = bench.connect(1);
    client.write_all(b"x").unwrap();
    bench.offer(RX1, 0, (buffer(RX1, 0), 0x1000, WRITE));
    bench.offer(SAY, 0, (buffer(SAY, 0), 0x1000, WRITE));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(
        (bench.driver.used_in(RX1), bench.driver.used_in(SAY)),
        (0, 0)
    );
}

#[test]
fn a_socket_that_is_left_over_is_replaced_and_one_in_use_is_not() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let host = SocketHost::listen(&path).unwrap();
    let refused = SocketHost::listen(&path).unwrap_err();
    assert!(refused.to_string().contains("cannot listen at the socket"));
    drop(host);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(SocketHost::listen(&path).is_err());
    assert!(path.exists());
}

#[test]
fn a_file_takes_output_and_gives_nothing() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("log");
    std::fs::write(&path, "old").unwrap();
    let host = Box::new(FileHost::create(&path).unwrap());
    let ports = vec![PortOptions {
        name: Some("log".into()),
        is_console: false,
        host,
    }];
    let options = ConsoleOptions {
        name: "console".into(),
        ports,
        size: None,
    };
    let (device, control) = Console::new(options).unwrap();
    let mut bench = Bench {
        driver: Driver::new(Box::new(device), SIZE),
        control,
        place,
    };
    bench.driver.start(feature::MULTIPORT);
    bench.say(0, 3, 1);
    assert_eq!(bench.hear(), (0, 7, 1, b"log".to_vec()));
    assert_eq!(bench.hear(), (0, 6, 1, vec![]));
    bench.send(TX, 0, b"line 1\n");
    bench.send(TX, 1, b"line 2\n");
    bench.wait_used(TX, 2);
    assert_eq!(std::fs::read(&path).unwrap(), b"line 1\nline 2\n");
    bench.control.wake();
}
