//! A stock guest that speaks with programs of the host over its socket device.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::back_ends::{self, ours, wait_for_socket};
use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::stock::answer;
use crate::support::{Ended, Input, Umbra, program};

const LIMIT: Duration = Duration::from_secs(240);
/// Streams of each kind.
const STREAMS: u32 = 1000;
/// Those of each kind that vhost-device-vsock is given.
const FEW: u32 = 50;
/// The port that the guest's program serves, and the one that it asks for.
const SERVED: u32 = 5000;
const ASKED: u32 = 6000;

/// The messages of `userland/streams.c`.
mod message {
    use std::io::{self, Read};

    pub fn len(seed: u32) -> usize {
        8 * (500 + seed as usize % 16 * 700)
    }

    /// Makes one.
    pub fn make(seed: u32) -> Vec<u8> {
        let mut message = (len(seed) as u32).to_le_bytes().to_vec();
        message.extend(seed.to_le_bytes());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_add(seed.into());
        let mut sum = 0u64;
        for _ in 0..len(seed) / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            message.extend(state.to_le_bytes());
            sum = sum.rotate_left(5) ^ state;
        }
        message.extend(sum.to_le_bytes());
        message
    }

    /// Reads one, of any seed; returns that.
    pub fn read(from: &mut impl Read) -> io::Result<u32> {
        let mut message = vec![0; 8];
        from.read_exact(&mut message)?;
        let word = |at: usize| u32::from_le_bytes(*message[at..].first_chunk().unwrap());
        let (len, seed) = (word(0) as usize, word(4));
        assert_eq!(len, self::len(seed), "seed {seed}");
        message.resize(8 + len + 8, 0);
        from.read_exact(&mut message[8..])?;
        assert!(message == make(seed), "seed {seed}");
        Ok(seed)
    }
}

/// How streams end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Every other client ends its direction before it is answered.
    Half,
    /// Both directions end at once.
    Whole,
}

impl Ends {
    /// The seed of a client, which decides that.
    fn seed(self, number: u32) -> u32 {
        match self {
            Self::Half => number,
            Self::Whole => 2 * number + 1,
        }
    }
}

/// Where a machine's socket device has its sockets.
struct Host {
    place: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
        let place = tempfile::tempdir().unwrap();
        Self { place }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("v.sock")
    }

    /// Runs a guest that has the program `streams`, to its end.
    fn run(&self, guest: &Guest, backend: &str, device: [&str; 2], commands: &str) -> Ended {
        let arguments = [
            "--kernel",
            guest.kernel(),
            "--initrd",
            guest.initrd(),
            "--backend",
            backend,
        ];
        let input = format!("{commands}\npoweroff -f\n");
        let arguments = [&arguments[..], &device[..]].concat();
        let ended = Umbra::run(&arguments, Input::Pipe(&input), LIMIT);
        assert_eq!((ended.status, &*ended.stderr), (Some(0), ""), "{ended}");
        ended
    }
}

fn patient(stream: &UnixStream) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
}

/// Connects to a port of the guest.
fn connect(path: &Path, port: u32) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    patient(&stream);
    // In one piece: vhost-device-vsock 0.3 closes a stream whose first piece has no whole line.
    let line = format!("CONNECT {port}\n");
    stream.write_all(line.as_bytes()).unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the guest accepts");
        line.push(byte[0]);
    }
    assert!(line.starts_with(b"OK "), "{line:?}");
    stream
}

/// A client of the guest, once all are connected.
fn ask(path: &Path, seed: u32, all: &Barrier) {
    let mut stream = connect(path, SERVED);
    all.wait();
    stream.write_all(&message::make(seed)).unwrap();
    if seed.is_multiple_of(2) {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!(message::read(&mut stream).unwrap(), seed + 1);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the guest has closed");
}

/// Serves a client in the guest.
fn serve(mut stream: UnixStream) {
    patient(&stream);
    let seed = message::read(&mut stream).unwrap();
    if seed.is_multiple_of(2) {
        let end = stream.read(&mut [0]).unwrap();
        assert_eq!(end, 0, "the guest has ended its direction");
    }
    stream.write_all(&message::make(seed + 1)).unwrap();
}

/// Starts a thread of its own for each stream: thousands of small ones.
fn spawn<'s>(
    scope: &'s thread::Scope<'s, '_>,
    work: impl FnOnce() + Send + 's,
) -> thread::ScopedJoinHandle<'s, ()> {
    let small = thread::Builder::new().stack_size(0x2_0000);
    small.spawn_scoped(scope, work).unwrap()
}

fn a_thousand_streams_go_each_way_at_once(backend: &str) {
    let host = Host::new();
    let vsock = format!("cid=7,path={}", host.path().display());
    streams(backend, &host, ["--vsock", &vsock], (STREAMS, Ends::Half));
    assert!(!host.path().exists(), "the socket is removed");
}

fn as_many_go_by_a_back_end_of_our_own(backend: &str) {
    let host = Host::new();
    let socket = host.place.path().join("back.sock");
    let vsock = format!("cid=7,path={}", host.path().display());
    let arguments = [
        "backend",
        "vsock",
        &vsock,
        "--socket",
        socket.to_str().unwrap(),
    ];
    let _server = ours().start(&arguments, &host.place.path().join("messages"));
    wait_for_socket(&socket);
    let device = format!("vsock,socket={}", socket.display());
    streams(
        backend,
        &host,
        ["--vhost-user", &device],
        (STREAMS, Ends::Half),
    );
}

/// It ends both directions when one is ended.
fn some_go_by_vhost_device_vsock(backend: &str) {
    let Some(program) = or_skip(back_ends::vhost_device_vsock()) else {
        return;
    };
    let host = Host::new();
    let socket = host.place.path().join("back.sock");
    let (path, place) = (host.path(), socket.display());
    let vm = format!("guest-cid=7,socket={place},uds-path={}", path.display());
    let _server = program.start(&["--vm", &vm], &host.place.path().join("messages"));
    wait_for_socket(&socket);
    let device = format!("vsock,socket={place}");
    streams(
        backend,
        &host,
        ["--vhost-user", &device],
        (FEW, Ends::Whole),
    );
}

fn streams(backend: &str, host: &Host, device: [&str; 2], (count, ends): (u32, Ends)) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let streams = program::compile("streams.c");
    let guest = guest.with_program(host.place.path(), "bin/streams", &streams);
    let path = host.path();
    let server = UnixListener::bind(format!("{}_{ASKED}", path.display())).unwrap();
    let all = Barrier::new(count as usize);
    let ended = thread::scope(|scope| {
        spawn(scope, || {
            let mut began = None;
            let mut threads = Vec::new();
            for number in 0..count {
                let (stream, _) = server.accept().unwrap();
                if number == 0 {
                    // Now the guest serves its port, too.
                    began = Some(Instant::now());
                    let (path, all) = (&path, &all);
                    let ask = move |n| move || ask(path, ends.seed(n), all);
                    threads.extend((0..count).map(|n| spawn(scope, ask(n))));
                }
                threads.push(spawn(scope, || serve(stream)));
            }
            for thread in threads {
                thread.join().unwrap();
            }
            let bytes: usize = (0..=count).map(|n| message::len(ends.seed(n))).sum();
            eprintln!(
                "some {} bytes each way in {:?}",
                2 * bytes,
                began.unwrap().elapsed()
            );
        });
        let complaints = r#"dmesg | grep -ciE 'vsock.*(error|fail|wrong|broken)'"#;
        let odd = if ends == Ends::Whole { "odd" } else { "" };
        let commands = format!("streams {count} {odd}\necho \"complaints: $({complaints})\"");
        host.run(&guest, backend, device, &commands)
    });
    for (word, expected) in [
        ("asked: ", &*count.to_string()),
        ("served: ", &*count.to_string()),
        ("wrong: ", "0"),
        ("complaints: ", "0"),
    ] {
        assert_eq!(answer(&ended, word), expected, "{ended}");
    }
}

fn a_socket_that_exists_is_not_taken(backend: &str) {
    let host = Host::new();
    let path = host.path();
    std::fs::write(&path, "mine").unwrap();
    let vsock = format!("path={}", path.display());
    let kernel = crate::support::poll::tiny_guest();
    let arguments = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--backend",
        backend,
        "--vsock",
        &vsock,
    ];
    let ended = Umbra::run(&arguments, Input::Empty, LIMIT);
    assert_eq!(
        (ended.status, ended.stderr.lines().count()),
        (Some(1), 1),
        "{ended}"
    );
    assert!(ended.stderr.contains("remove it"), "{ended}");
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
}

on_each_stock_backend! {
    a_socket_that_exists_is_not_taken,
    a_thousand_streams_go_each_way_at_once,
    as_many_go_by_a_back_end_of_our_own,
    some_go_by_vhost_device_vsock,
}
