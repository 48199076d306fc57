//! `umbra backend` as a process, with the front end of the `vhost` crate as the other side.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

mod driver;
mod process;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use driver::{DISCARD, Driver, FLUSH_DISCARD_ZEROES, READ, Sector, WRITE, WRITE_ZEROES};
use process::{Back, umbra};
use rustix::process::Signal;
use tempfile::TempDir;

const SECTORS: u64 = 256;

fn disk(dir: &TempDir) -> String {
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0; 512 * SECTORS as usize]).unwrap();
    path.to_str().unwrap().to_owned()
}

fn sector(number: u64, round: u8) -> Sector {
    let mut bytes = [round; 512];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[test]
fn what_a_front_end_writes_is_in_the_file_and_is_read_back() {
    let with = ["", ",engine=threads", ",cache=writethrough", ",direct"];
    for option in with {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(&dir);
        let back = Back::start(&dir, &["block", &format!("{disk}{option}")]);
        let mut driver = Driver::new(&back.path);
        let capacity: [u8; 8] = driver.config(0, 8).try_into().unwrap();
        assert_eq!(u64::from_le_bytes(capacity), SECTORS);
        driver.start(0);
        for number in 0..SECTORS {
            assert_eq!(
                driver.block(WRITE, number, sector(number, 7)).0,
                0,
                "{option}"
            );
        }
        for number in (0..SECTORS).rev() {
            let (status, data) = driver.block(READ, number, [0; 512]);
            assert_eq!((status, data), (0, sector(number, 7)), "{option}");
        }
        assert_eq!(driver.block(READ, SECTORS, [0; 512]).0, 1);
        let file = std::fs::read(&disk).unwrap();
        assert_eq!(file[512 * 99..512 * 100], sector(99, 7));
        back.end(Signal::TERM);
    }
}

#[test]
fn every_kind_of_request_works_behind_the_filter() {
    let dir = tempfile::tempdir().unwrap();
    let raw = disk(&dir);
    let mut disks = vec![
        raw.clone(),
        format!("{raw},engine=threads"),
        format!("{raw},ops=100000"),
    ];
    disks.extend(qcow2(&dir));
    for option in disks {
        let back = Back::start(&dir, &["block", &option]);
        let mut driver = Driver::with_features(&back.path, FLUSH_DISCARD_ZEROES);
        driver.start(0);
        for number in 0..64 {
            assert_eq!(
                driver.block(WRITE, number, sector(number, 9)).0,
                0,
                "{option}"
            );
        }
        // Eight sectors from the eighth on: sector, count, flags.
        let mut range = [0; 512];
        range[..8].copy_from_slice(&8u64.to_le_bytes());
        range[8..12].copy_from_slice(&8u32.to_le_bytes());
        for kind in [WRITE_ZEROES, DISCARD] {
            assert_eq!(driver.ranges(kind, range), 0, "{option}");
        }
        assert_eq!(driver.flush(), 0, "{option}");
        assert_eq!(driver.block(READ, 15, [0; 512]), (0, [0; 512]), "{option}");
        assert_eq!(
            driver.block(READ, 16, [0; 512]),
            (0, sector(16, 9)),
            "{option}"
        );
        back.end(Signal::TERM);
    }
}

/// Makes a disk of 64 MiB, where that can be.
fn qcow2(dir: &TempDir) -> Option<String> {
    let disk = dir.path().join("disk.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("64M")
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no qemu-img here");
        return None;
    }
    Some(format!("{},format=qcow2", disk.to_str().unwrap()))
}

#[test]
fn a_qcow2_disk_grows_behind_the_filter() {
    let dir = tempfile::tempdir().unwrap();
    let Some(option) = qcow2(&dir) else {
        return;
    };
    let back = Back::start(&dir, &["block", &option]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    for number in (0..131_072).step_by(4099) {
        assert_eq!(driver.block(WRITE, number, sector(number, 3)).0, 0);
    }
    for number in (0..131_072).step_by(4099) {
        assert_eq!(driver.block(READ, number, [0; 512]), (0, sector(number, 3)));
    }
    back.end(Signal::TERM);
}

#[test]
fn requests_survive_a_back_end_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir);
    let mut back = Back::start(&dir, &["block", &disk]);
    let mut driver = Driver::new(&back.path);
    driver.keep_in_flight();
    driver.start(0);
    let (mut written, mut cut_off) = (0, 0);
    for round in 0..20u8 {
        // As many at once as there is room for; some are answered before it dies.
        let numbers: Vec<u64> = (0..16)
            .map(|n| (u64::from(round) * 16 + n) % SECTORS)
            .collect();
        for (slot, number) in (0..).zip(&numbers) {
            driver.offer_block(slot, WRITE, *number, sector(*number, round));
        }
        driver.kick(0);
        std::thread::sleep(Duration::from_micros(u64::from(round) * 40));
        back.kill();
        written += 16;
        cut_off += written - driver.used(0);
        back = Back::start(&dir, &["block", &disk]);
        driver.reconnect(&back.path);
        driver.start(0);
        driver.wait_for_used(0, written);
        for (slot, number) in (0..).zip(numbers) {
            assert_eq!(driver.status(slot), 0, "{number}");
            let file = std::fs::read(&disk).unwrap();
            let at = 512 * number as usize;
            assert_eq!(
                file[at..at + 512],
                sector(number, round),
                "{number} of round {round}"
            );
        }
    }
    assert!(cut_off > 0, "every one was faster than its death");
    // None was answered twice.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(0), written);
}

#[test]
fn every_kind_of_device_works_behind_the_filter() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();

    let back = Back::start(&dir, &["rng"]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    let random = driver.receive(0, 64);
    assert!(random.iter().any(|byte| *byte != 0));
    back.end(Signal::INT);

    let log = at("log");
    let back = Back::start(&dir, &["console", &format!("file={log}")]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    driver.start(1);
    driver.send(1, b"to the file");
    assert_eq!(std::fs::read(&log).unwrap(), b"to the file");
    back.end(Signal::TERM);

    let socket = at("console");
    let back = Back::start(&dir, &["console", &format!("socket={socket}")]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    driver.start(1);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"typed").unwrap();
    assert_eq!(driver.receive(0, 64), b"typed");
    driver.send(1, b"shown");
    let mut shown = [0; 5];
    client.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"shown");
    drop(client);
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"again").unwrap();
    assert_eq!(driver.receive(0, 64), b"again");
    back.end(Signal::TERM);

    let socket = at("net");
    let host = UnixListener::bind(&socket).unwrap();
    let back = Back::start(&dir, &["net", &format!("socket={socket}")]);
    let (mut host, _) = host.accept().unwrap();
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    driver.start(1);
    let frame = [0x5a; 60];
    driver.send(1, &[&[0; 12][..], &frame].concat());
    let mut sent = [0; 64];
    host.read_exact(&mut sent).unwrap();
    assert_eq!(
        (&sent[..4], &sent[4..]),
        (&60u32.to_be_bytes()[..], &frame[..])
    );
    host.write_all(&sent).unwrap();
    assert_eq!(driver.receive(0, 2048)[12..], frame);
    back.end(Signal::TERM);

    let socket = at("vsock");
    let back = Back::start(&dir, &["vsock", &format!("path={socket}")]);
    let mut driver = Driver::new(&back.path);
    (0..3).for_each(|ring| driver.start(ring));
    let mut client = UnixStream::connect(&socket).unwrap();
    client.write_all(b"CONNECT 5\n").unwrap();
    let request = driver.receive(0, 4096);
    // Destination port, and VIRTIO_VSOCK_OP_REQUEST.
    assert_eq!((request[20], request[30]), (5, 1));
    // The guest asks for a port of the host.
    let host = UnixListener::bind(format!("{socket}_9")).unwrap();
    driver.send(1, &packet(1234, 9));
    let (served, _) = host.accept().unwrap();
    drop((client, served));
    // An answer, or the end of one of both.
    driver.receive(0, 4096);
    back.end(Signal::TERM);
}

#[test]
fn passt_ends_with_the_back_end_that_has_started_it() {
    if Command::new("passt").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no passt here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let back = Back::start(&dir, &["net", "user"]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    driver.start(1);
    driver.send(1, &[0; 72]);
    back.end(Signal::TERM);
}

/// Starts its arguments where it is root, with an interface of its own.
const WITH_TAP: &str = "ip tuntap add t0 mode tap && ip link set t0 up && exec \"$0\" \"$@\"";

#[test]
fn an_interface_is_set_up_behind_the_filter() {
    let mut unshare = Command::new("unshare");
    unshare.args(["-rn", "sh", "-c", WITH_TAP]);
    let can = unshare.arg("true").output();
    if !can.is_ok_and(|can| can.status.success()) {
        eprintln!("SKIPPED: no interfaces in a namespace here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", WITH_TAP]);
    command.args([env!("CARGO_BIN_EXE_umbra"), "backend"]);
    let back = Back::start_by(command, &dir, &["net", "tap=t0"]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    driver.start(1);
    driver.send(1, &[0; 72]);
    // Linux asks who else is on a link that has come up, by IPv6.
    if Path::new("/proc/net/if_inet6").exists() {
        assert!(driver.receive(0, 2048).len() > 12 + 14);
    }
    back.end(Signal::TERM);
}

/// A packet that asks for a connection to the host (virtio 1.3, 5.10.6).
fn packet(from: u32, to: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend([from, to, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([1u16, 1].iter().flat_map(|half| half.to_le_bytes()));
    bytes.extend(
        [0u32, 0x1_0000, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    bytes
}

#[test]
fn a_back_end_ends_with_its_socket_by_a_signal_and_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let back = Back::start(&dir, &["rng"]);
        let path = back.path.clone();
        back.end(signal);
        assert!(!path.exists());
    }
}

#[test]
fn front_ends_come_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disk(&dir);
    let back = Back::start(&dir, &["block", &disk]);
    for round in 0..5 {
        let mut driver = Driver::new(&back.path);
        driver.start(0);
        assert_eq!(driver.block(WRITE, 1, sector(1, round)).0, 0);
    }
    back.end(Signal::TERM);
    let back = Back::start(&dir, &["block", &disk, "--once"]);
    let mut driver = Driver::new(&back.path);
    driver.start(0);
    assert_eq!(driver.block(READ, 1, [0; 512]), (0, sector(1, 4)));
    drop(driver);
    assert_eq!(back.wait().code(), Some(0));
}

#[test]
fn a_socket_that_is_handed_over_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theirs");
    let listener = UnixListener::bind(&path).unwrap();
    let mut back = umbra(&["backend", "rng", "--socket-fd", "0", "--once"])
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut driver = Driver::new(&path);
    driver.start(0);
    driver.receive(0, 64);
    drop(driver);
    assert!(back.wait().unwrap().success());
    assert!(path.exists(), "it is somebody else's");
}

fn refused(arguments: &[&str], why: &str) {
    let all = [&["backend"], arguments].concat();
    let output = umbra(&all).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(why), "{text}");
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
}

#[test]
fn what_cannot_be_served_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let back = Back::start(&dir, &["rng"]);
    let taken = back.path.to_str().unwrap();
    let free = dir.path().join("free");
    let free = free.to_str().unwrap();
    refused(&["rng", "--socket", taken], "serves");
    refused(&["rng", "--socket", "/no/such/place"], "/no/such/place");
    refused(&["rng", "--socket-fd", "99"], "no open descriptor");
    refused(&["rng", "--socket-fd", "2"], "listens");
    refused(
        &["block", "/no/such/disk", "--socket", free],
        "/no/such/disk",
    );
    refused(&["console", "stdio", "--socket", free], "no terminal");
    refused(&["vsock", "cid=1,path=v", "--socket", free], "CID");
    refused(&["pmem", "/p", "--socket", free], "pmem");
    assert!(!Path::new(free).exists());
    back.end(Signal::TERM);
}

#[test]
fn a_socket_that_a_killed_one_has_left_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut back = Back::start(&dir, &["rng"]);
    back.kill();
    assert!(back.path.exists());
    Back::start(&dir, &["rng"]).end(Signal::TERM);
}
