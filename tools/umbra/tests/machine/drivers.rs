//! Devices under somebody else's drivers, those of the crate `virtio-drivers`, on bare metal: what another reader
//! of the specification expects of them, without an operating system that forgives. Its guest uses vector
//! registers, which a KVM that interprets does not know: the software processor executes it. The polling guest, which
//! does without, keeps to the same conversations, also on such a KVM.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::backend::on_each_backend;
use crate::support::poll::{checksum, drivers_guest, poll_guest};
use crate::support::sockets;
use crate::support::{Input, Running, Umbra};

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the nine sectors that the guest reads, and writes behind them.
const NINE: usize = 9 * 512;

/// Who drives the device on which backend, and what carries it: an option, and where the first device is then, as the
/// guest reads it.
#[derive(Clone, Copy)]
struct Transport {
    option: Option<&'static str>,
    place: &'static str,
    guest: fn() -> PathBuf,
    backend: &'static str,
}

const MMIO: Transport = Transport {
    option: None,
    place: "0xfeb00000",
    guest: drivers_guest,
    backend: "soft",
};
/// Device 0 is the bus itself.
const PCI: Transport = Transport {
    option: Some("--pci"),
    place: "pci:1",
    ..MMIO
};

/// The same devices under drivers that poll.
mod polled {
    use super::*;

    /// The claim about either transport.
    fn on_either(backend: &'static str, claim: fn(Transport)) {
        for transport in [MMIO, PCI] {
            claim(Transport {
                guest: poll_guest,
                backend,
                ..transport
            });
        }
    }

    fn a_disk_is_read_and_written(backend: &'static str) {
        on_either(backend, super::a_disk_is_read_and_written);
    }

    fn a_disk_that_cannot_be_written_says_so(backend: &'static str) {
        on_either(backend, super::a_disk_that_cannot_be_written_says_so);
    }

    fn frames_go_out_and_come_in(backend: &'static str) {
        on_either(backend, super::frames_go_out_and_come_in);
    }

    fn a_console_without_ports_has_a_conversation(backend: &'static str) {
        on_either(backend, super::a_console_without_ports_has_a_conversation);
    }

    fn a_socket_of_the_host_sends_back_what_it_gets(backend: &'static str) {
        on_either(backend, super::a_socket_of_the_host_sends_back_what_it_gets);
    }

    fn random_bytes_come(backend: &'static str) {
        on_either(backend, |transport| {
            let told = lines(start(transport, &["--rng"], "rng @ 64"));
            assert!(
                told.len() == 1 && told[0].starts_with("rng 64 0x"),
                "{told:?}"
            );
        });
    }

    fn another_device_than_the_command_is_for_is_told(backend: &'static str) {
        on_either(backend, |transport| {
            let ended = start(transport, &["--rng"], "block @").finish(LIMIT);
            let told = "FAIL it is another device than the command is for\n";
            assert_eq!((ended.status, &*ended.stdout), (Some(3), told), "{ended}");
        });
    }

    on_each_backend! {
        a_disk_is_read_and_written,
        a_disk_that_cannot_be_written_says_so,
        frames_go_out_and_come_in,
        a_console_without_ports_has_a_conversation,
        a_socket_of_the_host_sends_back_what_it_gets,
        random_bytes_come,
        another_device_than_the_command_is_for_is_told,
    }
}

/// Makes each claim a test on either transport.
macro_rules! on_each_transport {
    ($($test:ident),* $(,)?) => {
        mod mmio { $(#[test] fn $test() { super::$test(super::MMIO) })* }
        mod pci { $(#[test] fn $test() { super::$test(super::PCI) })* }
    };
}

on_each_transport! {
    a_disk_is_read_and_written,
    a_disk_that_cannot_be_written_says_so,
    frames_go_out_and_come_in,
    a_console_without_ports_has_a_conversation,
    a_socket_of_the_host_sends_back_what_it_gets,
    random_bytes_come,
    a_command_for_another_device_fails_with_a_reason,
}

/// Runs the guest; `@` in its command is the device's place.
fn start(transport: Transport, device: &[&str], command: &str) -> Running {
    let image = (transport.guest)();
    let command = command.replace('@', transport.place);
    let mut arguments = vec!["run", "--backend", transport.backend, "--memory", "32M"];
    arguments.extend(transport.option);
    arguments.extend(["--debug-exit", "--kernel", image.to_str().unwrap()]);
    arguments.extend(["--cmdline", &command]);
    arguments.extend(device);
    Umbra::new(&arguments, &Input::Empty).start()
}

/// Waits for its end, which is success (the exit port says 1 then); returns the lines that it printed.
fn lines(running: Running) -> Vec<String> {
    let ended = running.finish(LIMIT);
    assert_eq!((ended.status, &*ended.stderr), (Some(1), ""), "{ended}");
    ended.stdout.lines().map(str::to_owned).collect()
}

fn path<'a>(folder: &'a TempDir, name: &str, buffer: &'a mut String) -> &'a str {
    *buffer = folder.path().join(name).to_str().unwrap().to_owned();
    buffer
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

/// Waits for somebody who connects.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let until = Instant::now() + LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return patient(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < until, "nobody connects");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Connects as soon as somebody listens.
fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return patient(stream),
            Err(error) => assert!(Instant::now() < until, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A disk whose length is no whole number of its requests.
fn contents() -> Vec<u8> {
    (0..64 * 512_u32).map(|at| (at % 251) as u8).collect()
}

/// What the guest writes.
fn pattern() -> Vec<u8> {
    (0..NINE).map(|at| (at * 7 / 3) as u8).collect()
}

fn a_disk_is_read_and_written(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = String::new();
    let disk = path(&folder, "disk", &mut buffer);
    let mut expected = contents();
    std::fs::write(disk, &expected).unwrap();
    let told = lines(start(
        transport,
        &["--disk", &format!("{disk},serial=number five")],
        "block @",
    ));
    let read = format!("read {:#x}", checksum(&expected[..NINE]));
    let wrote = format!("wrote {:#x}", checksum(&pattern()));
    let past = "past the end: I/O error";
    assert_eq!(told, ["block 64 number five", &read, &wrote, past]);
    expected[NINE..2 * NINE].copy_from_slice(&pattern());
    assert!(std::fs::read(disk).unwrap() == expected, "and nothing else");
}

fn a_disk_that_cannot_be_written_says_so(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = String::new();
    let disk = path(&folder, "disk", &mut buffer);
    std::fs::write(disk, contents()).unwrap();
    let told = lines(start(
        transport,
        &["--disk", &format!("{disk},readonly,serial=r")],
        "block @",
    ));
    let read = format!("read {:#x}", checksum(&contents()[..NINE]));
    assert_eq!(told, ["block 64 r", &read, "read-only: I/O error"]);
    assert!(std::fs::read(disk).unwrap() == contents());
}

/// Reads a frame: four bytes of length, then the frame.
fn frame(from: &mut impl Read) -> Vec<u8> {
    let mut len = [0; 4];
    from.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    from.read_exact(&mut frame).unwrap();
    frame
}

fn frames_go_out_and_come_in(transport: Transport) {
    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];
    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = String::new();
    let socket = path(&folder, "net", &mut buffer);
    let listener = UnixListener::bind(socket).unwrap();
    let net = format!("socket={socket},mac=52:54:00:00:00:09");
    let running = start(transport, &["--net", &net], "net @");
    let mut stream = accept(&listener);
    let hello = frame(&mut stream);
    assert_eq!(hello[..12], [[0xff; 6], MAC].concat());
    assert_eq!(&hello[12..19], b"\x88\xb5hello");

    let mut bytes = 0;
    for number in 0..100_usize {
        let mut sent = [MAC, OURS].concat();
        sent.extend([0x88, 0xb5]);
        // From the shortest to the longest without an offer of more.
        sent.extend((0..46 + number * 1454 / 99).map(|at| (at * 3 + number) as u8));
        let len = (sent.len() as u32).to_be_bytes();
        stream.write_all(&[&len, &sent[..]].concat()).unwrap();
        let got = frame(&mut stream);
        sent[..12].rotate_left(6);
        sent[14..].reverse();
        assert!(got == sent, "frame {number}");
        bytes += sent.len();
    }
    let told = lines(running);
    let returned = format!("returned 100 frames, {bytes} bytes");
    assert_eq!(told, ["net [52, 54, 00, 00, 00, 09]", &returned]);
}

fn a_console_without_ports_has_a_conversation(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = String::new();
    let socket = path(&folder, "console", &mut buffer);
    let running = start(
        transport,
        &["--console", &format!("socket={socket}")],
        "console @",
    );
    let mut stream = connect(Path::new(socket));
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for number in 0..50 {
        let line = "all is well, ".repeat(number % 8) + &format!("{number}\n");
        // In pieces: lines are no messages.
        let (first, second) = line.split_at(line.len() / 2);
        stream.write_all(first.as_bytes()).unwrap();
        stream.write_all(second.as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, line.to_uppercase());
    }
    stream.write_all(b"bye\n").unwrap();
    assert_eq!(lines(running), ["console 50 lines"]);
}

fn a_socket_of_the_host_sends_back_what_it_gets(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = String::new();
    let socket = path(&folder, "vsock", &mut buffer);
    let listener = UnixListener::bind(format!("{socket}_7000")).unwrap();
    let vsock = format!("{socket},cid=77");
    let running = start(transport, &["--vsock", &vsock], "vsock @ 7000");
    let mut stream = accept(&listener);
    let all = sockets::echo(&mut stream);
    let expected: Vec<u8> = (0..40_000).map(|at: u32| (at * 5 / 3) as u8).collect();
    assert!(all == expected, "{} bytes came", all.len());
    let echo = format!("echo {:#x}", checksum(&expected));
    assert_eq!(lines(running), ["vsock cid 77", &echo]);
    assert!(std::fs::exists(format!("{socket}_7000")).unwrap());
}

fn a_command_for_another_device_fails_with_a_reason(transport: Transport) {
    let running = start(transport, &["--rng"], "block @");
    let ended = running.finish(LIMIT);
    assert_eq!(ended.status, Some(3), "{ended}");
    let told = "there is a device of type EntropySource\nFAIL it is another device than the command is for\n";
    assert_eq!(ended.stdout, told, "{ended}");
}

fn random_bytes_come(transport: Transport) {
    let told = lines(start(transport, &["--rng"], "rng @"));
    let [first, second] = &told[..] else {
        panic!("{told:?}");
    };
    for line in [first, second] {
        let bytes = line.strip_prefix("rng 16 ").unwrap();
        assert_eq!(bytes.len(), 32, "{line}");
        assert_ne!(bytes.trim_matches('0'), "", "{line}");
    }
    assert_ne!(first, second);
}
