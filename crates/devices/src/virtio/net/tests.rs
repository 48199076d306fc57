//! A driver of the network device, and what is behind its ports.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_net::{FRAME_MAX, Header, Sent, Stream};
use umbra_virtio::Event;
use umbra_virtio::testing::{Driver, NEXT, RINGS, WRITE};

use super::*;
use crate::virtio::Bucket;

const MAC: Mac = Mac([2, 1, 2, 3, 4, 5]);
const RECEIVE: u64 = 0x4_0000;
const SEND: u64 = 0x6_0000;
/// Queues of the first pair, and of control where there is one pair.
const RX: u32 = 0;
const TX: u32 = 1;
const CONTROL: u32 = 2;

/// A driver whose device has one port, and the other end of that.
struct Bench {
    driver: Driver,
    control: NetControl,
    host: UnixStream,
}

fn ports(count: usize) -> (Vec<Box<dyn Port>>, Vec<UnixStream>) {
    (0..count)
        .map(|_| {
            let (here, there) = UnixStream::pair().unwrap();
            there
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            (Box::new(Stream::new(here).unwrap()) as Box<dyn Port>, there)
        })
        .unzip()
}

fn bench(options: NetOptions) -> Bench {
    let (ports, mut hosts) = ports(1);
    let (net, control) = Net::new(ports, options).unwrap();
    Bench {
        driver: Driver::new(Box::new(net), 8),
        control,
        host: hosts.remove(0),
    }
}

fn options(mtu: Option<u16>) -> NetOptions {
    NetOptions {
        name: "net0".into(),
        mac: MAC,
        mtu,
        receive: Limits::default(),
        transmit: Limits::default(),
    }
}

/// So many frames, and no more of them before the test is over.
fn frames(count: u64) -> Limits {
    Limits {
        operations: Some(Bucket {
            size: count,
            one_time_burst: 0,
            refill_time: Duration::from_secs(1_000_000 * count),
        }),
        bandwidth: None,
    }
}

impl Bench {
    fn started(features: Features) -> Self {
        let mut bench = bench(options(None));
        bench.driver.start(features);
        bench
    }

    /// Describes a buffer of a queue: its descriptor has the number of the chain.
    fn describe(&self, queue: u32, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = RINGS[0] + 0x1_0000 * u64::from(queue) + 16 * u64::from(index);
        self.driver.describe_at(place, (at, len, flags, next));
    }

    /// Sends a frame in two buffers.
    fn send(&mut self, head: u16, payload: &[u8]) {
        self.driver.memory.put(SEND, &[0; Header::LEN]);
        self.driver.memory.put(SEND + 0x100, payload);
        self.describe(TX, head, SEND, Header::LEN as u32, NEXT, head + 1);
        self.describe(TX, head + 1, SEND + 0x100, payload.len() as u32, 0, 0);
        self.offer(TX, head);
    }

    fn offer(&mut self, queue: u32, head: u16) {
        self.driver.offer_in(queue, head);
        self.driver.write(0x50, queue);
    }

    /// Gives the device a buffer for frames: number n is at RECEIVE + 0x1000 * n.
    fn make_room(&mut self, head: u16, len: u32) {
        let at = RECEIVE + 0x1000 * u64::from(head);
        self.describe(RX, head, at, len, WRITE, 0);
        self.offer(RX, head);
    }

    fn host_sends(&mut self, payload: &[u8]) {
        self.host
            .write_all(&(payload.len() as u32).to_be_bytes())
            .unwrap();
        self.host.write_all(payload).unwrap();
    }

    fn host_gets(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.host.read_exact(&mut len).unwrap();
        let mut payload = vec![0; u32::from_be_bytes(len) as usize];
        self.host.read_exact(&mut payload).unwrap();
        payload
    }

    fn used_element(&self, queue: u32, index: u16) -> (u32, u32) {
        let at = RINGS[2] + 0x1_0000 * u64::from(queue) + 4 + 8 * u64::from(index % 8);
        let memory = &self.driver.memory;
        (memory.get_u32(at), memory.get_u32(at + 4))
    }

    /// Has a command done: class, command, arguments.
    fn command(&mut self, queue: u32, bytes: &[u8]) -> u8 {
        let used = self.driver.used_in(queue);
        self.driver.memory.put(SEND, bytes);
        self.driver.memory.put(SEND + 0x80, &[0xaa]);
        self.describe(queue, 0, SEND, bytes.len() as u32, NEXT, 1);
        self.describe(queue, 1, SEND + 0x80, 1, WRITE, 0);
        self.offer(queue, 0);
        self.driver
            .wait(|d| d.used_in(queue) == used.wrapping_add(1));
        self.driver.memory.get::<1>(SEND + 0x80)[0]
    }

    fn link(&self) -> u32 {
        self.driver.read(0x104) >> 16 & 1
    }
}

#[test]
fn the_configuration_says_what_the_device_is() {
    let bench = bench(options(Some(9000)));
    let read = |at| bench.driver.read(at);
    assert_eq!(read(0x08), 1);
    assert_eq!(read(0x100), 0x0302_0102);
    // The rest of the address, the link, one pair, the MTU.
    assert_eq!((read(0x104), read(0x108)), (0x0001_0504, 9000 << 16 | 1));
    let net = |count, mtu| Net::new(ports(count).0, options(mtu)).unwrap().0;
    assert!(!net(1, None).features().has(feature::MQ));
    assert!(!net(1, None).features().has(feature::MTU));
    assert!(
        net(2, Some(100))
            .features()
            .has(feature::MQ.with(feature::MTU))
    );
    assert!(
        !net(1, None).features().has(feature::CSUM),
        "a socket has no offloads"
    );
    assert_eq!(net(3, None).queue_sizes(), [256; 7]);
}

#[test]
fn frames_go_to_the_host_without_their_header() {
    let mut bench = Bench::started(Features::NONE);
    for (n, payload) in [&b"one"[..], b"another"].into_iter().enumerate() {
        bench.send(2 * n as u16, payload);
        assert_eq!(bench.host_gets(), payload);
    }
    bench
        .driver
        .wait(|d| d.used_in(TX) == 2 && d.line.is_high());
    assert_eq!(bench.used_element(TX, 1), (2, 0));
    let done = bench.control.statistics();
    assert_eq!(
        (done.sent_frames, done.sent_bytes, done.dropped_out),
        (2, 10, 0)
    );
}

#[test]
fn frames_come_to_the_driver_in_one_buffer_each() {
    let mut bench = Bench::started(Features::NONE);
    bench.make_room(0, 0x200);
    bench.make_room(1, 0x200);
    bench.host_sends(b"first");
    bench.host_sends(&[7; 100]);
    bench
        .driver
        .wait(|d| d.used_in(RX) == 2 && d.line.is_high());
    assert_eq!(bench.used_element(RX, 0), (0, 12 + 5));
    assert_eq!(bench.used_element(RX, 1), (1, 12 + 100));
    let frame: [u8; 17] = bench.driver.memory.get(RECEIVE);
    assert_eq!(
        frame[..12],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        "one buffer"
    );
    assert_eq!(&frame[12..], b"first");
    assert_eq!(bench.control.statistics().received_bytes, 105);
}

#[test]
fn a_frame_waits_for_buffers() {
    let mut bench = Bench::started(Features::NONE);
    for n in 0..20u8 {
        bench.host_sends(&[n; 60]);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(RX), 0);
    for n in 0..20u16 {
        bench.make_room(n % 8, 0x100);
        bench.driver.wait(|d| d.used_in(RX) == n + 1);
        let at = RECEIVE + 0x1000 * u64::from(n % 8);
        assert_eq!(bench.driver.memory.get::<60>(at + 12), [n as u8; 60]);
    }
}

#[test]
fn a_frame_that_does_not_fit_is_dropped_and_the_buffer_stays() {
    let mut bench = Bench::started(Features::NONE);
    bench.make_room(0, 0x40);
    bench.host_sends(&[1; 200]);
    bench.host_sends(&[2; 20]);
    bench.driver.wait(|d| d.used_in(RX) == 1);
    assert_eq!(bench.driver.memory.get::<20>(RECEIVE + 12), [2; 20]);
    assert_eq!(bench.control.statistics().dropped_in, 1);
}

#[test]
fn empty_frames_are_dropped_and_hold_up_none_behind_them() {
    let mut bench = Bench::started(Features::NONE);
    bench.make_room(0, 0x100);
    // All in one piece, so that nothing comes later that would have the rest looked at.
    let stream = b"\0\0\0\0\0\0\0\0\0\0\0\x06behind";
    bench.host.write_all(stream).unwrap();
    bench.driver.wait(|d| d.used_in(RX) == 1);
    assert_eq!(&bench.driver.memory.get::<6>(RECEIVE + 12), b"behind");
    assert_eq!(bench.control.statistics().dropped_in, 2);
}

#[test]
fn merged_buffers_take_a_large_frame_in_one_step() {
    let mut bench = Bench::started(feature::MRG_RXBUF);
    let payload: Vec<u8> = (0..0x250u32).map(|n| n as u8).collect();
    bench.make_room(0, 0x100);
    bench.make_room(1, 0x100);
    bench.host_sends(&payload);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(
        bench.driver.used_in(RX),
        0,
        "not before there is room for all"
    );
    bench.make_room(2, 0x100);
    bench.driver.wait(|d| d.used_in(RX) != 0);
    assert_eq!(bench.driver.used_in(RX), 3);
    let lens: Vec<_> = (0..3).map(|n| bench.used_element(RX, n)).collect();
    assert_eq!(lens, [(0, 0x100), (1, 0x100), (2, 0x5c)]);
    let memory = &bench.driver.memory;
    assert_eq!(memory.get_u16(RECEIVE + 10), 3, "buffers");
    let mut found = memory.get::<{ 0x100 - 12 }>(RECEIVE + 12).to_vec();
    found.extend(memory.get::<0x100>(RECEIVE + 0x1000));
    found.extend(memory.get::<0x5c>(RECEIVE + 0x2000));
    assert_eq!(found, payload);
    // The next one begins with the next buffer.
    bench.make_room(3, 0x100);
    bench.host_sends(b"small");
    bench.driver.wait(|d| d.used_in(RX) == 4);
    assert_eq!(
        &bench.driver.memory.get::<5>(RECEIVE + 0x3000 + 12),
        b"small"
    );
}

#[test]
fn buffers_that_are_too_few_are_not_waited_for_again() {
    let mut bench = Bench::started(feature::MRG_RXBUF.with(Features::EVENT_IDX));
    for head in 0..2 {
        bench.make_room(head, 0x100);
    }
    bench.host_sends(&[7; 0x250]);
    // Behind the elements of the used ring: the device wants to hear of the third one.
    let event = RINGS[2] + 4 + 8 * 8;
    bench.driver.wait(|d| d.memory.get_u16(event) == 2);
    assert_eq!(bench.driver.used_in(RX), 0);
    bench.make_room(2, 0x100);
    bench.driver.wait(|d| d.used_in(RX) == 3);
}

#[test]
fn a_port_without_room_holds_frames_back_and_none_is_lost() {
    let mut bench = Bench::started(Features::NONE);
    let (count, len) = (60u16, 0x8000);
    let host = bench.host.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        let mut host = host;
        let mut stream = vec![0; usize::from(count) * (4 + len)];
        host.read_exact(&mut stream).unwrap();
        stream
    });
    for n in 0..count {
        bench.driver.memory.put(SEND + 0x100, &vec![n as u8; len]);
        let head = 2 * (n % 4);
        bench.driver.memory.put(SEND, &[0; Header::LEN]);
        bench.describe(TX, head, SEND, Header::LEN as u32, NEXT, head + 1);
        bench.describe(TX, head + 1, SEND + 0x100, len as u32, 0, 0);
        bench.offer(TX, head);
        bench.driver.wait(|d| d.used_in(TX) == n + 1);
    }
    let stream = reader.join().unwrap();
    for (n, frame) in stream.chunks_exact(4 + len).enumerate() {
        assert_eq!(frame[..4], (len as u32).to_be_bytes());
        assert!(frame[4..].iter().all(|byte| usize::from(*byte) == n), "{n}");
    }
    assert_eq!(bench.control.statistics().dropped_out, 0);
}

#[test]
fn commands_are_answered() {
    let mut bench = Bench::started(feature::CTRL_VQ);
    let table: [(&[u8], u8); 12] = [
        (&[0, 0, 1], 0),
        (&[0, 5, 0], 0),
        (&[0, 6, 0], 1),
        (&[0, 0], 1),
        (&[1, 0, 0, 0, 0, 0], 0),
        (&[1, 1, 2, 9, 9, 9, 9, 9], 0),
        (&[1, 1, 3, 9, 9, 9, 9, 9], 1),
        (&[1, 1, 2, 9], 1),
        (&[4, 0, 1, 0], 0),
        (&[4, 0, 2, 0], 1),
        (&[4, 0, 0, 0], 1),
        (&[9], 1),
    ];
    for (command, answer) in table {
        assert_eq!(bench.command(CONTROL, command), answer, "{command:?}");
    }
    let set = Mac([2, 9, 9, 9, 9, 9]);
    assert_eq!(bench.control.mac(), set);
    assert_eq!(bench.driver.read(0x100), 0x0909_0902);
    bench.driver.write(0x70, 0);
    assert_eq!(bench.control.mac(), MAC, "a reset forgets it");
}

#[test]
fn a_link_that_is_down_is_told_and_drops_frames() {
    let mut bench = Bench::started(feature::STATUS);
    assert_eq!(bench.link(), 1);
    let generation = bench.driver.read(0xfc);
    bench.control.set_link(false);
    bench.control.set_link(false);
    assert!(bench.driver.line.is_high() && bench.driver.read(0x60) == 2);
    assert_eq!((bench.link(), bench.driver.read(0xfc)), (0, generation + 1));
    bench.send(0, b"lost");
    bench.make_room(0, 0x100);
    bench.host_sends(b"lost, too");
    bench.driver.wait(|d| d.used_in(TX) == 1);
    let dropped = |bench: &Bench| {
        let done = bench.control.statistics();
        (done.dropped_in, done.dropped_out)
    };
    while dropped(&bench) != (1, 1) {
        std::thread::yield_now();
    }
    bench.control.set_link(true);
    assert_eq!(bench.link(), 1);
    bench.send(0, b"not lost");
    assert_eq!(bench.host_gets(), b"not lost");
}

#[test]
fn a_link_that_is_down_drops_what_waits_for_buffers() {
    let mut bench = Bench::started(feature::STATUS);
    for _ in 0..3 {
        bench.host_sends(b"too early");
    }
    bench.control.set_link(false);
    while bench.control.statistics().dropped_in != 3 {
        std::thread::yield_now();
    }
    bench.control.set_link(true);
    bench.make_room(0, 0x100);
    bench.host_sends(b"in time");
    bench.driver.wait(|d| d.used_in(RX) == 1);
    assert_eq!(&bench.driver.memory.get::<7>(RECEIVE + 12), b"in time");
}

#[test]
fn each_direction_waits_for_its_own_limit() {
    let (limits, free) = (frames(2), Limits::default());
    for limited_in in [true, false] {
        let mut bench = Bench::started(Features::NONE);
        let (inwards, outwards) = match limited_in {
            true => (limits, free),
            false => (free, limits),
        };
        bench.control.set_receive_limits(inwards);
        bench.control.set_transmit_limits(outwards);
        let found = (
            bench.control.receive_limits(),
            bench.control.transmit_limits(),
        );
        assert_eq!(found, (inwards, outwards));
        for n in 0..4u16 {
            bench.host_sends(&[n as u8; 20]);
            bench.make_room(n, 0x100);
            bench.send(2 * n, &[7; 30]);
        }
        let (rx, tx) = if limited_in { (2, 4) } else { (4, 2) };
        bench
            .driver
            .wait(|d| d.used_in(RX) == rx && d.used_in(TX) == tx);
        let waited = |bench: &Bench| {
            let done = bench.control.statistics();
            (done.throttled_in, done.throttled_out)
        };
        let expected = if limited_in { (1, 0) } else { (0, 1) };
        while waited(&bench) != expected {
            std::thread::yield_now();
        }
        // Long enough for one that does not wait to show up.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(
            (bench.driver.used_in(RX), bench.driver.used_in(TX)),
            (rx, tx)
        );
        // One that waits is let go by a change, and was counted once.
        bench.control.set_receive_limits(free);
        bench.control.set_transmit_limits(free);
        bench
            .driver
            .wait(|d| d.used_in(RX) == 4 && d.used_in(TX) == 4);
        assert_eq!(waited(&bench), expected);
        for _ in 0..4 {
            assert_eq!(bench.host_gets(), [7; 30]);
        }
    }
}

#[test]
fn a_limit_is_over_by_itself_and_counts_bytes_without_headers() {
    let bytes = Bucket {
        size: 60,
        one_time_burst: 30,
        refill_time: Duration::from_millis(30),
    };
    let limits = Limits {
        bandwidth: Some(bytes),
        operations: None,
    };
    let limited = NetOptions {
        transmit: limits,
        receive: limits,
        ..options(None)
    };
    let mut bench = bench(limited);
    bench.driver.start(Features::NONE);
    // Three go by burst and bucket, and each of the others has to wait.
    for n in 0..8u16 {
        bench.send(2 * (n % 4), &[n as u8; 30]);
        assert_eq!(bench.host_gets(), [n as u8; 30]);
        bench.host_sends(&[n as u8; 30]);
        bench.make_room(n % 8, 0x100);
        bench
            .driver
            .wait(|d| d.used_in(RX) == n + 1 && d.used_in(TX) == n + 1);
    }
}

#[test]
fn a_host_that_goes_is_a_link_that_is_down() {
    let mut bench = Bench::started(feature::STATUS);
    bench.host.shutdown(std::net::Shutdown::Both).unwrap();
    bench.driver.wait(|d| d.line.is_high());
    assert_eq!((bench.link(), bench.control.is_up()), (0, false));
    for n in 0..3 {
        bench.send(0, b"nowhere");
        bench.driver.wait(|d| d.used_in(TX) == n + 1);
    }
    assert!(!bench.driver.needs_reset());
    assert_eq!(bench.control.statistics().dropped_out, 3);
}

#[test]
fn several_pairs_are_used_when_the_driver_says_so() {
    let (ports, hosts) = ports(3);
    let (net, control) = Net::new(ports, options(None)).unwrap();
    let mut bench = Bench {
        driver: Driver::new(Box::new(net), 8),
        control,
        host: hosts[0].try_clone().unwrap(),
    };
    bench.driver.start(feature::MQ.with(feature::CTRL_VQ));
    let control = 6;
    // Frames that come by a pair that is not used wait.
    let mut second = &hosts[1];
    second.write_all(&[0, 0, 0, 3, b'a', b'b', b'c']).unwrap();
    let receive = 2;
    let at = RECEIVE + 0x8000;
    bench.describe(receive, 0, at, 0x100, WRITE, 0);
    bench.offer(receive, 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(receive), 0);
    assert_eq!(bench.command(control, &[4, 0, 4, 0]), 1);
    assert_eq!(bench.command(control, &[4, 0, 2, 0]), 0);
    bench.driver.wait(|d| d.used_in(receive) == 1);
    assert_eq!(&bench.driver.memory.get::<3>(at + 12), b"abc");
}

#[test]
fn a_driver_that_breaks_the_rules_needs_a_reset_and_gets_one() {
    type Break = fn(&mut Bench);
    let table: [(&str, Break); 5] = [
        ("no header", |b| {
            b.describe(TX, 0, SEND, 11, 0, 0);
            b.offer(TX, 0);
        }),
        ("no room for a header", |b| {
            b.make_room(0, 11);
            b.host_sends(b"x");
        }),
        ("a frame out of reach", |b| {
            b.describe(TX, 0, u64::MAX - 4, 100, 0, 0);
            b.offer(TX, 0);
        }),
        ("no room for an answer", |b| {
            b.describe(CONTROL, 0, SEND, 4, 0, 0);
            b.offer(CONTROL, 0);
        }),
        ("a buffer to receive that is read-only", |b| {
            b.describe(RX, 0, umbra_virtio::testing::ROM, 0x100, WRITE, 0);
            b.offer(RX, 0);
            b.host_sends(b"x");
        }),
    ];
    for (what, break_it) in table {
        let mut bench = Bench::started(Features::NONE);
        break_it(&mut bench);
        let begin = std::time::Instant::now();
        while !bench.driver.needs_reset() {
            assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::yield_now();
        }
        bench.driver.start(Features::NONE);
        bench.send(0, b"again");
        assert_eq!(bench.host_gets(), b"again", "{what}");
    }
}

#[test]
fn frames_that_are_empty_or_too_large_are_dropped() {
    let mut bench = Bench::started(Features::NONE);
    bench.describe(TX, 0, SEND, Header::LEN as u32, 0, 0);
    bench.offer(TX, 0);
    bench.describe(TX, 1, 0, FRAME_MAX as u32 + 1, 0, 0);
    bench.offer(TX, 1);
    bench.driver.wait(|d| d.used_in(TX) == 2);
    assert_eq!(bench.control.statistics().dropped_out, 2);
    bench.send(2, b"good");
    assert_eq!(bench.host_gets(), b"good");
}

#[test]
fn a_pause_loses_nothing_that_waits() {
    use umbra_virtio::Transport;
    let mut bench = Bench::started(Features::NONE);
    // The device takes it, and has no buffer for it.
    bench.host_sends(b"before");
    std::thread::sleep(Duration::from_millis(20));
    bench.driver.transport.pause();
    bench.driver.transport.resume();
    bench.make_room(2, 0x100);
    bench.driver.wait(|d| d.used_in(RX) == 1);
    let place = RECEIVE + 0x2000 + 12;
    assert_eq!(&bench.driver.memory.get::<6>(place), b"before");
    for n in 0..10u16 {
        bench.driver.transport.pause();
        bench.send(0, &[n as u8; 30]);
        bench.host_sends(&[n as u8; 40]);
        bench.make_room(1, 0x100);
        bench.driver.transport.resume();
        assert_eq!(bench.host_gets(), [n as u8; 30]);
        bench.driver.wait(|d| d.used_in(RX) == n + 2);
    }
}

/// A port that takes every frame, and counts how often its pair works.
struct Counting(Arc<AtomicU64>, Event);

impl Port for Counting {
    fn fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn can_offload(&self) -> bool {
        false
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn enable(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &[u8]) -> io::Result<Sent> {
        Ok(Sent::Done)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(Some(Header::LEN + 1))
    }
}

#[test]
fn who_waits_for_a_limit_does_nothing_meanwhile() {
    let worked = Arc::<AtomicU64>::default();
    // The port has frames without end, and its descriptor says so.
    let ready = Event::new().unwrap();
    ready.signal();
    let port = Counting(worked.clone(), ready);
    let (net, control) = Net::new(vec![Box::new(port)], options(None)).unwrap();
    control.set_receive_limits(frames(1));
    control.set_transmit_limits(frames(1));
    let mut bench = Bench {
        driver: Driver::new(Box::new(net), 8),
        control,
        host: UnixStream::pair().unwrap().0,
    };
    bench.driver.start(Features::NONE);
    for n in 0..2 {
        bench.make_room(n, 0x100);
        bench.send(2 * n, b"out");
    }
    let done = || bench.control.statistics();
    while (done().throttled_in, done().throttled_out) != (1, 1) {
        std::thread::yield_now();
    }
    // What it was notified of is over by then.
    std::thread::sleep(Duration::from_millis(50));
    let before = worked.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(worked.load(Ordering::Relaxed), before);
    assert_eq!((bench.driver.used_in(RX), bench.driver.used_in(TX)), (1, 1));
}

/// A port whose frames come back after a while, with no descriptor that says so.
struct Echo {
    after: Duration,
    back: Option<(Instant, Vec<u8>)>,
    never: Event,
}

impl Port for Echo {
    fn fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }

    fn can_offload(&self) -> bool {
        false
    }

    fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn enable(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<Sent> {
        self.back = Some((Instant::now() + self.after, frame.to_vec()));
        Ok(Sent::Done)
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let back = self.back.take_if(|(due, _)| *due <= Instant::now());
        Ok(back.map(|(_, back)| {
            frame[..back.len()].copy_from_slice(&back);
            back.len()
        }))
    }

    fn due(&self) -> Option<Instant> {
        // As late as it can be said.
        let (due, _) = self.back.as_ref()?;
        Some((*due).max(Instant::now()))
    }
}

#[test]
fn a_port_is_asked_when_it_has_something_by_itself() {
    for after in [Duration::ZERO, Duration::from_millis(30)] {
        let port = Echo {
            after,
            back: None,
            never: Event::new().unwrap(),
        };
        let (net, control) = Net::new(vec![Box::new(port)], options(None)).unwrap();
        let mut bench = Bench {
            driver: Driver::new(Box::new(net), 8),
            control,
            host: UnixStream::pair().unwrap().0,
        };
        bench.driver.start(Features::NONE);
        bench.make_room(0, 0x100);
        bench.make_room(1, 0x100);
        for n in 0..2 {
            // Nothing else wakes the pair meanwhile.
            std::thread::sleep(Duration::from_millis(50));
            bench.send(2 * n, b"again");
            bench.driver.wait(|d| d.used_in(RX) == n + 1);
            assert_eq!(bench.used_element(RX, n), (u32::from(n), 12 + 5));
        }
    }
}

/// A port that says what it was told.
struct Told(Arc<Mutex<Vec<Offloads>>>, Event);

impl Port for Told {
    fn fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn can_offload(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.0.lock().push(offloads);
        Ok(())
    }

    fn enable(&mut self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &[u8]) -> io::Result<Sent> {
        Ok(Sent::Dropped)
    }

    fn receive(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

#[test]
fn a_port_may_leave_to_the_driver_what_that_accepts_and_what_stands_on_it() {
    use feature::*;
    let told = Arc::<Mutex<Vec<Offloads>>>::default();
    let port = Told(told.clone(), Event::new().unwrap());
    let (net, _) = Net::new(vec![Box::new(port)], options(None)).unwrap();
    let mut driver = Driver::new(Box::new(net), 8);
    let all = GUEST_CSUM.with(GUEST_TSO4).with(GUEST_TSO6).with(GUEST_ECN);
    for features in [
        Features::NONE,
        GUEST_TSO4.with(GUEST_ECN),
        GUEST_CSUM.with(GUEST_ECN),
        all,
    ] {
        driver.start(features);
    }
    let none = Offloads::default();
    let checksum = Offloads {
        checksum: true,
        ..none
    };
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(*told.lock(), [none, none, checksum, all]);
}
