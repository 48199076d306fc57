//! Interfaces, by `/dev/vhost-net`.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use umbra_net::{Mac, Port, Tap};
use umbra_slots::SlotError;
use umbra_vhost::{Hub, VhostKernel, VhostNetOptions, nodes};
use umbra_virtio::Features;
use umbra_virtio::testing::{Driver, Memory, RINGS, WRITE};

use super::NEEDED;
use super::driver::{BUFFERS, Guest, MORE, MRG_RXBUF, NET_HEADER, add, has, remove};
use super::machine::{FIRST, lines, machine};
use crate::support::{back_ends, sockets};

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

/// Where frames are that the guest sends.
const OUTGOING: u64 = BUFFERS + 0x1_0000;

/// Sends a frame from an address to the host.
fn send_to_host(guest: &mut Guest, host: &mut File, at: u64, number: u32) {
    guest.send_from(at, &[&[0; NET_HEADER][..], &frame(number)].concat());
    let mut bytes = vec![0; 2048];
    let len = host.read(&mut bytes).unwrap();
    assert_eq!(bytes[..len], frame(number), "to the host");
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
    for number in 0..FRAMES {
        send_to_host(&mut guest, &mut host, OUTGOING, number);
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
        send_to_host(&mut guest, &mut host, MORE + 0x1000, number);
        remove(&memory, id);
        send_to_host(&mut guest, &mut host, OUTGOING, number);
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
        send_to_host(&mut guest, &mut host, OUTGOING, number);
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
    send_to_host(&mut guest, &mut host, MORE, 5);
    ids.iter().for_each(|id| remove(&memory, *id));

    // A driver that begins anew.
    guest.restart(Features::VERSION_1);
    send_to_host(&mut guest, &mut host, OUTGOING, 6);
    assert_eq!(guest.control.state().losses, 0);
    // One that sends what may be written: the kernel says that it cannot go on.
    let place = RINGS[0] + 0x1_0000;
    guest.driver.describe_at(place, (BUFFERS, 64, WRITE, 0));
    guest.driver.offer_in(1, 0);
    guest.driver.write(0x50, 1);
    guest.driver.wait(Driver::needs_reset);
    println!("NODES net: {}", guest.control.state().error.unwrap());
    guest.restart(Features::VERSION_1);
    send_to_host(&mut guest, &mut host, OUTGOING, 7);
    assert_eq!(guest.control.state().losses, 1);
}

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
