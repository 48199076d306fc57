//! The kernel's vhost for real: our front ends drive `/dev/vhost-net`, `/dev/vhost-vsock` and `/dev/vhost-vdpa-0`, with
//! a driver of the test's own in memory of the test's own.
//!
//! ```text
//!   program: Driver ── VhostKernel ──> /dev/vhost-net ── TAP ── packet socket          of the same program
//!            Driver ── VhostKernel ──> /dev/vhost-vsock ── AF_VSOCK socket
//!            Driver ── VhostKernel ──> /dev/vhost-vdpa-0 ── vduse ── QEMU's storage daemon ── file
//! ```
//! That runs wherever the nodes are. They are in a Debian guest, so this program runs in one as well: Debian 12's
//! kernels have the modules, and a disk has the program with its libraries. There are machines in that guest as well:
//! the command with a bare-metal guest of its own, whose devices are the kernel's. Of vDPA the stable one, 6.1, has nothing;
//! 6.12 has VDUSE, by which a program of the guest's is the device.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use umbra_net::{Mac, Port, Tap};
use umbra_slots::{Flags, Gpa, HugePages, RamOptions, RamRegion, SlotError, SlotId};
use umbra_vhost::{
    Hub, VdpaOptions, VhostKernel, VhostKernelControl, VhostNetOptions, VhostVsockOptions, nodes,
};
use umbra_virtio::Features;
use umbra_virtio::testing::{Driver, Memory, NEXT, RINGS, WRITE};

use crate::support::asked::Asked;
use crate::support::back_ends::{self, Program};
use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{self, LINUX_6_1, LINUX_6_12, or_skip};
use crate::support::poll::{checksum, drivers_guest};
use crate::support::{Input, Umbra, sockets, vhost_guest};

const LIMIT: Duration = Duration::from_secs(150);
/// Set where the nodes have to be there.
const NEEDED: &str = "UMBRA_NODES_NEEDED";

/// Tells whether a node is there.
fn has(node: &str) -> bool {
    let found = File::options().read(true).write(true).open(node);
    let Err(error) = found else {
        return true;
    };
    eprintln!("SKIPPED: {node}: {error}");
    assert!(std::env::var_os(NEEDED).is_none(), "{node}: {error}");
    false
}

/// Descriptors of each queue, and bytes of a buffer.
const SIZE: u16 = 8;
const BUFFER: u64 = 0x1000;
/// Buffers of queue n are at 0x4_0000 + 0x1_0000 * n.
const BUFFERS: u64 = 0x4_0000;
const MORE: u64 = 0x100_0000;
/// VIRTIO_NET_F_MRG_RXBUF.
const MRG_RXBUF: Features = Features::bit(15);
/// Bytes of the header before a frame, of a frame's own header, and of one before a packet.
const NET_HEADER: usize = 12;
const VSOCK_HEADER: usize = 44;

/// A driver with buffers to receive, and a device of the kernel's.
struct Guest {
    driver: Driver,
    control: VhostKernelControl,
    /// What was taken of what came and went.
    received: u16,
    sent: u16,
}

impl Guest {
    fn start(memory: &Arc<Memory>, device: VhostKernel, features: Features) -> Self {
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

    fn restart(&mut self, features: Features) {
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
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
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
    fn send_from(&mut self, at: u64, bytes: &[u8]) {
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

    fn send(&mut self, bytes: &[u8]) {
        self.send_from(BUFFERS + 0x1_0000, bytes);
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Of nobody's (IEEE 802, local experiments).
const ETHERTYPE: u16 = 0x88b5;

fn frame(number: u32) -> Vec<u8> {
    let mut frame = [&MAC[..], &[2, 0, 0, 0, 0, 8], &ETHERTYPE.to_be_bytes()].concat();
    frame.extend(number.to_le_bytes());
    frame.resize(60 + number as usize % 1400, number as u8);
    frame
}

fn is_ours(bytes: &[u8]) -> bool {
    bytes.get(NET_HEADER + 12..NET_HEADER + 14) == Some(&ETHERTYPE.to_be_bytes())
}

/// An interface that is up, and goes when it is dropped.
fn interface(name: &str) -> Result<Vec<Box<dyn Port>>, String> {
    let taps = Tap::open(name, 1).map_err(|error| format!("{error}"))?;
    // The host's own frames would be in between. Where it has no such setting it has none of them either.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let up = ["link", "set", name, "up"];
    let run = |command: &mut Command| command.args(up).status().is_ok_and(|s| s.success());
    if !run(&mut Command::new("ip")) && !run(Command::new("/bin/busybox").arg("ip")) {
        return Err(format!("cannot set {name} up"));
    }
    Ok(taps.into_iter().map(|tap| Box::new(tap) as _).collect())
}

fn counter(name: &str, which: &str) -> u64 {
    let path = format!("/sys/class/net/{name}/statistics/{which}");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn add(memory: &Memory, at: u64) -> Result<SlotId, SlotError> {
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

fn remove(memory: &Memory, id: SlotId) {
    memory
        .space
        .update("test", |map| map.remove(id))
        .unwrap()
        .wait();
}

#[test]
fn frames_go_both_ways_through_the_kernels_vhost_net() {
    const FRAMES: u32 = 200;
    const NAME: &str = "umbra-vhost0";
    if !has(nodes::NET) {
        return;
    }
    let ports = match interface(NAME) {
        Ok(ports) => ports,
        Err(error) => {
            assert!(std::env::var_os(NEEDED).is_none(), "{error}");
            return eprintln!("SKIPPED: {error}");
        }
    };
    let memory = Memory::new();
    let hub = Hub::new(&memory.space).unwrap();
    let options = VhostNetOptions {
        name: "net".into(),
        node: nodes::NET.into(),
        ports,
        mac: Mac(MAC),
        mtu: None,
    };
    let device = VhostKernel::net(options, &hub).unwrap();
    let mut guest = Guest::start(&memory, device, Features::RINGS.with(MRG_RXBUF));
    let mut host = sockets::frames(NAME, ETHERTYPE).unwrap();
    let before = [counter(NAME, "rx_packets"), counter(NAME, "tx_packets")];
    let reports = memory.reports();

    let begin = Instant::now();
    for number in 0..FRAMES {
        host.write_all(&frame(number)).unwrap();
        let bytes = guest.receive(is_ours);
        assert_eq!(bytes[NET_HEADER..], frame(number), "to the guest");
        // One buffer, as the header says.
        assert_eq!(bytes[10..NET_HEADER], [1, 0]);
    }
    println!(
        "NODES net: {FRAMES} frames to the guest in {:?}",
        begin.elapsed()
    );
    assert!(
        memory.reports() >= reports + FRAMES,
        "what was written is followed"
    );

    let begin = Instant::now();
    let mut bytes = vec![0; 2048];
    let exchange = |guest: &mut Guest, host: &mut File, bytes: &mut [u8], at: u64, number| {
        guest.send_from(at, &[&[0; NET_HEADER][..], &frame(number)].concat());
        let len = host.read(bytes).unwrap();
        assert_eq!(bytes[..len], frame(number), "to the host");
    };
    for number in 0..FRAMES {
        exchange(
            &mut guest,
            &mut host,
            &mut bytes,
            BUFFERS + 0x1_0000,
            number,
        );
    }
    println!(
        "NODES net: {FRAMES} frames to the host in {:?}",
        begin.elapsed()
    );
    let after = [counter(NAME, "rx_packets"), counter(NAME, "tx_packets")];
    assert!(after[0] - before[0] >= FRAMES.into() && after[1] - before[1] >= FRAMES.into());
    println!("NODES net: the interface counts {before:?}, then {after:?}");

    // Memory comes and goes, and is used.
    for number in 0..20 {
        let id = add(&memory, MORE).unwrap();
        exchange(&mut guest, &mut host, &mut bytes, MORE + 0x1000, number);
        remove(&memory, id);
        exchange(
            &mut guest,
            &mut host,
            &mut bytes,
            BUFFERS + 0x1_0000,
            number,
        );
    }
    // And while frames are on their way.
    let theirs = memory.clone();
    let changes = thread::spawn(move || {
        for _ in 0..500 {
            let id = add(&theirs, MORE).unwrap();
            remove(&theirs, id);
        }
    });
    let mut number = 0;
    while !changes.is_finished() || number < 20 {
        number += 1;
        host.write_all(&frame(number)).unwrap();
        assert_eq!(guest.receive(is_ours)[NET_HEADER..], frame(number));
        exchange(
            &mut guest,
            &mut host,
            &mut bytes,
            BUFFERS + 0x1_0000,
            number,
        );
    }
    changes.join().unwrap();
    println!("NODES net: {number} frames each way while the map changed 1000 times");
    // More of it than the kernel takes.
    let mut ids = VecDeque::new();
    let refused = loop {
        match add(&memory, MORE + 0x10_0000 * ids.len() as u64) {
            Ok(id) => ids.push_back(id),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SlotError::Follower { .. }), "{refused}");
    println!("NODES net: {} pieces more, then: {refused}", ids.len());
    exchange(&mut guest, &mut host, &mut bytes, MORE, 5);
    ids.iter().for_each(|id| remove(&memory, *id));

    // A driver that begins anew.
    guest.restart(Features::VERSION_1);
    exchange(&mut guest, &mut host, &mut bytes, BUFFERS + 0x1_0000, 6);
    assert_eq!(guest.control.state().losses, 0);
    // One that sends what may be written: the kernel says that it cannot go on.
    let place = RINGS[0] + 0x1_0000;
    guest.driver.describe_at(place, (BUFFERS, 64, WRITE, 0));
    guest.driver.offer_in(1, 0);
    guest.driver.write(0x50, 1);
    guest.driver.wait(Driver::needs_reset);
    println!("NODES net: {}", guest.control.state().error.unwrap());
    guest.restart(Features::VERSION_1);
    exchange(&mut guest, &mut host, &mut bytes, BUFFERS + 0x1_0000, 7);
    assert_eq!(guest.control.state().losses, 1);
}

/// A packet (virtio 1.3, 5.10.6): operation, ports of the guest and of the host, and what it carries.
fn packet(operation: u16, [guest, host]: [u32; 2], data: &[u8], taken: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(u64::from(CID).to_le_bytes());
    packet.extend(2u64.to_le_bytes());
    for word in [guest, host, data.len() as u32] {
        packet.extend(word.to_le_bytes());
    }
    packet.extend(1u16.to_le_bytes());
    packet.extend(operation.to_le_bytes());
    // Flags, room for what comes, how much of it was taken.
    for word in [0, 0x1_0000, taken as u32] {
        packet.extend(u32::to_le_bytes(word));
    }
    packet.extend(data);
    packet
}

fn word(packet: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*packet[at..].first_chunk().unwrap())
}

fn is_operation(operation: u16) -> impl Fn(&[u8]) -> bool {
    move |packet| packet.len() >= VSOCK_HEADER && packet[30..32] == operation.to_le_bytes()
}

const CID: u32 = 4242;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT: u16 = 6;

#[test]
fn connections_go_both_ways_through_the_kernels_vhost_vsock() {
    const BYTES: usize = 20_000;
    if !has(nodes::VSOCK) {
        return;
    }
    let memory = Memory::new();
    let hub = Hub::new(&memory.space).unwrap();
    let options = VhostVsockOptions {
        name: "vsock".into(),
        node: nodes::VSOCK.into(),
        cid: CID.into(),
    };
    let device = VhostKernel::vsock(options.clone(), &hub).unwrap();
    let taken = VhostKernel::vsock(options, &hub).err().unwrap();
    println!("NODES vsock: a second guest: {taken}");
    assert!(taken.to_string().contains("another guest"), "{taken}");
    let mut guest = Guest::start(&memory, device, Features::RINGS);

    // A program of the host's connects.
    let begin = Instant::now();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at / 7) as u8).collect();
    let theirs = sent.clone();
    let program = thread::spawn(move || {
        let mut connection = sockets::connect(CID, 1234).unwrap();
        connection.write_all(&theirs).unwrap();
        let mut answer = [0; 600];
        connection.read_exact(&mut answer).unwrap();
        answer.to_vec()
    });
    let request = guest.receive(is_operation(REQUEST));
    assert_eq!(word(&request, 20), 1234);
    let ports = [1234, word(&request, 16)];
    guest.send(&packet(RESPONSE, ports, &[], 0));
    let mut got: Vec<u8> = Vec::new();
    while got.len() < BYTES {
        let data = guest.receive(is_operation(DATA));
        got.extend(&data[VSOCK_HEADER..]);
        guest.send(&packet(CREDIT, ports, &[], got.len()));
    }
    assert_eq!(got, sent);
    let answer: Vec<u8> = (0..600).map(|at| (at / 3) as u8).collect();
    guest.send(&packet(DATA, ports, &answer, got.len()));
    assert_eq!(program.join().unwrap(), answer);
    // It has closed its end.
    guest.receive(is_operation(SHUTDOWN));
    guest.send(&packet(RESET, ports, &[], got.len()));
    println!(
        "NODES vsock: {BYTES} bytes to the guest, 600 back, in {:?}",
        begin.elapsed()
    );

    // A program of the guest's connects.
    let listener = sockets::listen(4321).unwrap();
    let ports = [77, 4321];
    guest.send(&packet(REQUEST, ports, &[], 0));
    let mut connection = sockets::accept(&listener).unwrap();
    guest.receive(is_operation(RESPONSE));
    guest.send(&packet(DATA, ports, b"from the guest", 0));
    let mut bytes = [0; 14];
    connection.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    connection.write_all(b"from the host").unwrap();
    let data = guest.receive(is_operation(DATA));
    assert_eq!(&data[VSOCK_HEADER..], b"from the host");

    // A driver that begins anew knows no connections, and the host hears of it.
    guest.restart(Features::RINGS);
    let lost = connection.read(&mut bytes);
    println!("NODES vsock: after a reset: {lost:?}");
    assert!(matches!(lost, Ok(0) | Err(_)));
    guest.send(&packet(REQUEST, [78, 4321], &[], 0));
    let _again = sockets::accept(&listener).unwrap();
    assert_eq!(guest.control.state().losses, 0);
}

/// The file behind a disk of vDPA that is there for tests: any other one is not to be written to.
const VDPA_DISK: &str = "UMBRA_VDPA_DISK";
const VDPA_NODE: &str = "/dev/vhost-vdpa-0";
const SECTOR: usize = 512;

/// Reads or writes a sector of a disk (virtio 1.3, 5.2.6) with a buffer at an address; returns the status.
fn transfer(driver: &mut Driver, write: u32, sector: u64, at: u64) -> u8 {
    const HEADER: u64 = 0x7_0000;
    driver.memory.put(HEADER, &write.to_le_bytes());
    driver.memory.put(HEADER + 8, &sector.to_le_bytes());
    driver.memory.put(HEADER + 16, &[0xff]);
    let data = if write == 0 { WRITE } else { 0 };
    driver.describe(0, (HEADER, 16, NEXT, 1));
    driver.describe(1, (at, SECTOR as u32, NEXT | data, 2));
    driver.describe(2, (HEADER + 16, 1, WRITE, 0));
    let done = driver.used_in(0);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == done.wrapping_add(1));
    driver.memory.get::<1>(HEADER + 16)[0]
}

#[test]
fn a_disk_of_the_kernels_vhost_vdpa_is_read_and_written() {
    const SECTORS: u64 = 50;
    let Some(file) = std::env::var_os(VDPA_DISK) else {
        return eprintln!("SKIPPED: {VDPA_DISK} names no disk of vDPA that is there for tests");
    };
    assert!(has(VDPA_NODE));
    let memory = Memory::new();
    let hub = Hub::new(&memory.space).unwrap();
    let options = VdpaOptions {
        name: "vdpa".into(),
        node: VDPA_NODE.into(),
    };
    let device = VhostKernel::vdpa(options.clone(), &hub).unwrap();
    let second = VhostKernel::vdpa(options, &hub).err().unwrap();
    println!("NODES vdpa: a second owner: {second}");
    assert!(second.to_string().contains("in use"), "{second}");
    let control = device.control();
    let mut driver = Driver::with_memory(memory.clone(), Box::new(device), SIZE);
    assert_eq!(driver.read(8), 2, "a disk");
    let capacity = u64::from(driver.read(0x100)) * SECTOR as u64;
    assert_eq!(capacity, fs::metadata(&file).unwrap().len());
    driver.start(Features::RINGS);
    let pattern = |sector: u64| [sector as u8 ^ 0x5a; SECTOR];
    let begin = Instant::now();
    for sector in 0..SECTORS {
        memory.put(BUFFERS, &pattern(sector));
        assert_eq!(transfer(&mut driver, 1, sector, BUFFERS), 0);
    }
    let written = fs::read(&file).unwrap();
    let reports = memory.reports();
    for (sector, there) in (0..SECTORS).zip(written.chunks(SECTOR)) {
        assert_eq!(there, pattern(sector), "in the file");
        assert_eq!(transfer(&mut driver, 0, sector, BUFFERS + 0x1000), 0);
        assert_eq!(memory.get(BUFFERS + 0x1000), pattern(sector));
    }
    assert!(
        memory.reports() >= reports + SECTORS as u32,
        "what was written is followed"
    );
    println!(
        "NODES vdpa: {SECTORS} sectors written and read in {:?}",
        begin.elapsed()
    );
    // Memory comes and goes, and is used.
    for sector in 0..10 {
        let id = add(&memory, MORE).unwrap();
        assert_eq!(transfer(&mut driver, 0, sector, MORE + 0x1000), 0);
        assert_eq!(memory.get(MORE + 0x1000), pattern(sector));
        remove(&memory, id);
    }
    // A machine that pauses, and a driver that begins anew.
    umbra_virtio::Transport::pause(&*driver.transport);
    umbra_virtio::Transport::resume(&*driver.transport);
    assert_eq!(transfer(&mut driver, 0, 7, BUFFERS), 0);
    assert_eq!(memory.get(BUFFERS), pattern(7));
    driver.start(Features::VERSION_1);
    assert_eq!(transfer(&mut driver, 0, 8, BUFFERS), 0);
    assert_eq!(memory.get(BUFFERS), pattern(8));
    // Beyond its end.
    assert_eq!(transfer(&mut driver, 0, capacity, BUFFERS), 1);
    assert_eq!(control.state().losses, 0, "{:?}", control.state());
}

/// Where the command and its guest are, if this is not where they were made.
const PROGRAMS: &str = "UMBRA_PROGRAMS";

/// Starts a machine whose bare-metal guest drives its first device so; the guest's end is the command's.
fn machine(device: &[&str], command: &str) -> Child {
    let (mut umbra, image) = match std::env::var_os(PROGRAMS).map(PathBuf::from) {
        Some(place) => {
            let mut loader = Command::new(place.join("ld.so"));
            loader
                .arg("--library-path")
                .arg(&place)
                .arg(place.join("umbra"));
            (loader, place.join("drivers"))
        }
        None => (Command::new(env!("CARGO_BIN_EXE_umbra")), drivers_guest()),
    };
    umbra.args([
        "run",
        "--backend",
        "soft",
        "--memory",
        "32M",
        "--debug-exit",
        "--kernel",
    ]);
    umbra.arg(image).args(["--cmdline", command]).args(device);
    umbra
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    umbra.spawn().unwrap()
}

/// Waits for its end, which is success; returns the lines that its guest printed.
fn lines(mut machine: Child) -> Vec<String> {
    let begin = Instant::now();
    while machine.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(20) {
            machine.kill().unwrap();
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let output = machine.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    // The exit port says 1 for a success.
    let ended = (output.status.code(), &*stderr);
    assert_eq!(ended, (Some(1), ""), "{stdout}");
    stdout.lines().map(str::to_owned).collect()
}

/// What is there for the first device of a machine.
const FIRST: &str = "0xfeb00000";

#[test]
fn frames_of_a_machine_go_through_the_kernels_vhost_net() {
    const NAME: &str = "umbra-vhost1";
    const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];
    if !has(nodes::NET) {
        return;
    }
    let kept = match Kept::new(NAME) {
        Ok(kept) => kept,
        Err(error) => {
            assert!(std::env::var_os(NEEDED).is_none(), "{error}");
            return eprintln!("SKIPPED: {error}");
        }
    };
    let mut host = sockets::frames(NAME, ETHERTYPE).unwrap();
    let net = format!("tap={NAME},vhost,mac=52:54:00:00:00:09");
    let machine = machine(&["--net", &net], &format!("net {FIRST}"));
    let mut bytes = vec![0; 2048];
    let Ok(len) = host.read(&mut bytes) else {
        panic!("no frame comes: {:?}", lines(machine));
    };
    assert!(len >= 19 && bytes[..19] == [&[0xff; 6], &GUEST[..], b"\x88\xb5hello"].concat());
    wait_for_carrier(NAME);
    let mut total = 0;
    for number in 0..100_usize {
        let mut sent = [GUEST, MAC].concat();
        sent.extend(ETHERTYPE.to_be_bytes());
        sent.extend((0..46 + number * 1454 / 99).map(|at| (at * 3 + number) as u8));
        host.write_all(&sent).unwrap();
        let len = host.read(&mut bytes).unwrap();
        sent[..12].rotate_left(6);
        sent[14..].reverse();
        assert!(bytes[..len] == sent, "frame {number}");
        total += len;
    }
    let told = lines(machine);
    println!("NODES a machine's net: {told:?}");
    assert_eq!(told[1], format!("returned 100 frames, {total} bytes"));
    drop(kept);
}

/// Waits until the host sends by an interface that somebody has just taken: until its kernel has seen the carrier,
/// which it looks for once a second, it drops frames.
fn wait_for_carrier(name: &str) {
    let path = format!("/sys/class/net/{name}/operstate");
    back_ends::wait_for(|| fs::read_to_string(&path).is_ok_and(|state| state.trim() == "up"));
    // It begins to send right after it has said so.
    thread::sleep(Duration::from_millis(200));
}

/// An interface that is up, and stays while nobody has it.
struct Kept(&'static str);

impl Kept {
    fn new(name: &'static str) -> Result<Self, String> {
        let ports = interface(name)?;
        persist(&*ports[0], 1);
        Ok(Self(name))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Ok(taps) = Tap::open(self.0, 1) {
            persist(&taps[0], 0);
        }
    }
}

/// Has an interface stay without its owner, or not.
fn persist(tap: &dyn Port, on: libc::c_ulong) {
    // _IOW('T', 203, int).
    const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
    // SAFETY: the argument is a number.
    let done = unsafe { libc::ioctl(tap.fd().as_raw_fd(), TUNSETPERSIST, on) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_connection_of_a_machine_goes_through_the_kernels_vhost_vsock() {
    const PORT: u32 = 7000;
    if !has(nodes::VSOCK) {
        return;
    }
    let listener = sockets::listen(PORT).unwrap();
    let vsock = format!("cid={},vhost", CID + 1);
    let machine = machine(&["--vsock", &vsock], &format!("vsock {FIRST} {PORT}"));
    let mut stream = sockets::accept(&listener).unwrap();
    let mut all = Vec::new();
    let mut piece = [0; 5000];
    loop {
        let len = stream.read(&mut piece).unwrap();
        if len == 0 {
            break;
        }
        stream.write_all(&piece[..len]).unwrap();
        all.extend_from_slice(&piece[..len]);
    }
    let told = lines(machine);
    println!("NODES a machine's vsock: {told:?}");
    assert_eq!(told[0], format!("vsock cid {}", CID + 1));
    assert_eq!(told[1], format!("echo {:#x}", checksum(&all)));
}

#[test]
fn a_disk_of_a_machine_is_the_kernels_vhost_vdpa() {
    const NINE: usize = 9 * SECTOR;
    let Some(file) = std::env::var_os(VDPA_DISK) else {
        return eprintln!("SKIPPED: {VDPA_DISK} names no disk of vDPA that is there for tests");
    };
    let before = fs::read(&file).unwrap();
    let told = lines(machine(&["--vdpa", VDPA_NODE], &format!("block {FIRST}")));
    println!("NODES a machine's vdpa: {told:?}");
    assert!(
        told[0].starts_with(&format!("block {}", before.len() / SECTOR)),
        "{told:?}"
    );
    assert_eq!(told[1], format!("read {:#x}", checksum(&before[..NINE])));
    let after = fs::read(&file).unwrap();
    assert_eq!(
        told[2],
        format!("wrote {:#x}", checksum(&after[NINE..2 * NINE]))
    );
    assert_eq!(told[3], "past the end: I/O error");
}

/// Boots a guest with programs, loads modules, and has these tests of this program run there, so many.
fn run_in_a_guest(
    (package, backend): (&str, &str),
    programs: &[(&str, Program)],
    prepare: &str,
    tests: &[&str],
) {
    let Some(guest) = vhost_guest::fetch(package) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = or_skip(vhost_guest::disk(place.path(), programs)) else {
        return;
    };
    let disk = format!("{},readonly", disk.display());
    let arguments = ["--memory", "512M", "--disk", &disk];
    let mut guest = Asked::start(&guest, backend, &arguments, LIMIT);
    guest.running.say(vhost_guest::MOUNT);
    guest.check("modprobe -a tun vhost_net vhost_vsock; echo $?", "0");
    guest.check(
        "ls /dev/vhost-net /dev/vhost-vsock /dev/net/tun | wc -l",
        "3",
    );
    guest.running.say(prepare);
    let programs = format!("{PROGRAMS}=/program {NEEDED}=1");
    let run = format!("run tests {} --nocapture --test-threads=1", tests.join(" "));
    let status = guest.ask(&format!("{programs} {run} > /tmp/out 2>&1; echo $?"));
    for line in guest
        .ask("grep -a NODES /tmp/out | tr '\\n' '|'")
        .split('|')
    {
        println!("{line}");
    }
    let result = guest.ask("grep -a 'test result' /tmp/out");
    if status != "0" || !result.contains(&format!("{} passed", tests.len())) {
        let said = "{ dmesg | tail -n 5; tail -n 40 /tmp/out /tmp/daemon; } | tr '\\n' '|'";
        let said = guest.ask(said);
        panic!("{status}, {result}: {said}");
    }
    guest.check("dmesg | grep -c -i -E 'BUG:|Oops|WARNING:'", "0");
    guest.finish();
}

const NET_AND_VSOCK: [&str; 4] = [
    "kernel_vhost::frames_go_both_ways",
    "kernel_vhost::frames_of_a_machine",
    "kernel_vhost::connections_go_both_ways",
    "kernel_vhost::a_connection_of_a_machine",
];

fn interfaces_and_sockets_of_the_kernel_work_in_a_guest(backend: &str) {
    run_in_a_guest((LINUX_6_1, backend), &[], "", &NET_AND_VSOCK);
}

/// A disk of 1 MiB, which QEMU's storage daemon serves by VDUSE.
const VDUSE: &str = r#"
modprobe -a vduse vhost_vdpa; export UMBRA_VDPA_DISK=/tmp/disk
dd if=/dev/zero of=/tmp/disk bs=1M count=1
run qemu-storage-daemon --blockdev driver=file,filename=/tmp/disk,node-name=d   --export type=vduse-blk,id=e,name=umbra0,node-name=d,writable=on,num-queues=1 >/tmp/daemon 2>&1 &
while [ ! -e /dev/vduse/umbra0 ] && kill -0 $!; do sleep 0.1; done
run vdpa dev add name umbra0 mgmtdev vduse >>/tmp/daemon 2>&1
"#;

fn a_device_of_the_hosts_works_in_a_guest(backend: &str) {
    let daemon = or_skip(back_ends::storage_daemon());
    let tool = Program::of_this_system("/sbin/vdpa".into());
    let tool = match tool.path().exists() {
        true => Ok(tool),
        false => Err(anyhow::anyhow!("there is no /sbin/vdpa: install iproute2")),
    };
    let (Some(daemon), Some(tool)) = (daemon, or_skip(tool)) else {
        return;
    };
    let programs = [("qemu-storage-daemon", daemon), ("vdpa", tool)];
    let disks = [
        "kernel_vhost::a_disk_of_the_kernels",
        "kernel_vhost::a_disk_of_a_machine",
    ];
    let tests = [&NET_AND_VSOCK[..], &disks].concat();
    run_in_a_guest((LINUX_6_12, backend), &programs, VDUSE, &tests);
}

on_each_stock_backend! {
    interfaces_and_sockets_of_the_kernel_work_in_a_guest,
    a_device_of_the_hosts_works_in_a_guest,
}

/// Where there are no nodes the command says which, and what to do.
#[test]
fn a_node_that_is_missing_is_named_by_the_command() {
    let Some(guest) = guest::Guest::fetch(LINUX_6_1) else {
        return;
    };
    let (vsock, vdpa) = (nodes::VSOCK, "/dev/vhost-vdpa-of-nobody");
    if !Path::new(vsock).exists() {
        let said = [vsock, "modprobe vhost_vsock", "path="];
        refused(&guest, &["--vsock", "cid=3,vhost"], &said);
    }
    let said = [vdpa, "modprobe vhost_vdpa", "vdpa dev show"];
    refused(&guest, &["--vdpa", vdpa], &said);
    let limited = ["--net", "tap=t0,vhost,rx-ops=5"];
    refused(&guest, &limited, &["cannot have limits", "tc"]);
    let lent = ["--vdpa", vdpa, "--balloon"];
    refused(&guest, &lent, &["no balloon", "locked"]);
}

/// The command does not start a machine, and says why.
fn refused(guest: &guest::Guest, arguments: &[&str], parts: &[&str]) {
    let machine = ["--backend", "soft", "--kernel", guest.kernel()];
    let ended = Umbra::run(&[&machine[..], arguments].concat(), Input::Empty, LIMIT);
    assert_ne!(ended.status, Some(0), "{ended}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part}: {ended}");
    }
    println!("{}", ended.stderr.trim());
}
