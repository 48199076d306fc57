//! Whatever comes to the API's socket, in pieces: it is answered as HTTP or its connection ends, what is no request is
//! refused, and the next client is served, whatever streams of events somebody has left open. Requests of `/v1` are made
//! of parts that are nearly right, too, for a machine that there is. And whatever a request of Firecracker's interface has
//! in it: it is read, or refused.
#![no_main]

mod owner;
mod v1;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::time::Duration;

use umbra_api::firecracker::request::{Method, parse};
use umbra_api::server::{Limits, Server};
use umbra_fuzz::Source;

/// The server of this process, which lasts as long as it does; where it is.
fn server() -> &'static PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("umbra-fuzz-api-{}", std::process::id()));
        let (to_owner, messages) = channel();
        std::thread::spawn(move || owner::serve(messages));
        let limits = Limits {
            head: Duration::from_millis(200),
            body_time: Duration::from_millis(200),
            ..Limits::default()
        };
        let server =
            Server::start(&path, limits, to_owner).expect("a socket in a place of its own");
        std::mem::forget(server);
        path
    })
}

fn connect() -> UnixStream {
    let stream = UnixStream::connect(server()).expect("the server lives");
    let wait = stream.set_read_timeout(Some(Duration::from_secs(10)));
    wait.expect("a socket has time-outs");
    stream
}

fn answers(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return all,
            Ok(len) => all.extend_from_slice(&piece[..len]),
            Err(error) => match error.kind() {
                // The fuzzer's clock; a socket with a time-out does not go on by itself.
                ErrorKind::Interrupted => {}
                ErrorKind::ConnectionReset => return all,
                _ => panic!("the server is silent: {error}"),
            },
        }
    }
}

/// What must be true of everything that a server says.
fn check(said: &[u8]) {
    let text = || String::from_utf8_lossy(said);
    assert!(
        said.is_empty() || said.starts_with(b"HTTP/1."),
        "{}",
        text()
    );
    // Quotes that are somebody else's have a backslash before them.
    let mistake = br#"{"error":{"code":"internal""#;
    let made = said.windows(mistake.len()).any(|part| part == mistake);
    assert!(!made, "{}", text());
}

/// Somebody else is served.
fn is_there() {
    let mut stream = connect();
    let request = b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("the server listens");
    let said = answers(&mut stream);
    assert!(said.starts_with(b"HTTP/1.1 400"), "{said:?}");
}

fn client(source: &mut Source<'_>, input: &[u8]) {
    let mut stream = connect();
    let mut rest = input;
    while !rest.is_empty() {
        let len = (1 + source.below(200)).min(rest.len());
        // Who is refused hears of it.
        if stream.write_all(&rest[..len]).is_err() {
            break;
        }
        rest = &rest[len..];
    }
    let _ = stream.shutdown(Shutdown::Write);
    // Events come as long as the machine goes on.
    let mut paths = input.windows(10);
    if !paths.any(|part| part == b"/v1/events") {
        check(&answers(&mut stream));
    }
}

fn firecracker(kind: u8, input: &[u8]) {
    let all = [Method::Get, Method::Put, Method::Patch, Method::Delete];
    let method = all[usize::from(kind >> 3) % all.len()];
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let path = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let parsed = parse(method, &path, parts.next().unwrap_or_default());
    if let Err(fault) = parsed.action {
        assert!((400..500).contains(&fault.status()) && !fault.to_string().is_empty());
    }
}

/// A request in pieces, one of each interface, and a stream.
fn seeds() -> impl Iterator<Item = (String, Vec<u8>)> {
    let raw = |kind: u8, text: &str| [&[kind][..], text.as_bytes()].concat();
    let requests = [
        "GET /v1/vm HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v1/events/log?since=0&limit=2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v1/events?since=0 HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 1\r\n\r\n",
        "PATCH /v1/devices/b HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n{\"target\":4096}",
        "PUT /boot-source HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ];
    let clients = requests.map(|text| raw(0, text));
    let firecrackers = [
        (0, "/machine-config"),
        (
            1,
            "/drives/a\n{\"drive_id\":\"a\",\"path_on_host\":\"d\",\"is_root_device\":true}",
        ),
        (2, "/vm\n{\"state\":\"Paused\"}"),
        (3, "/network-interfaces/e"),
    ];
    let firecrackers = firecrackers.map(|(method, text)| raw(1 | method << 3, text));
    // The first bytes: how many more requests, method, path; all else is nothing.
    let asked = (0..29).map(|path| vec![2, 0, path % 6, path, 0, 0, 0, path % 9]);
    let followed = (0..4).map(|headers| vec![3, 1, 1, 0, headers, 1]);
    let all = clients
        .into_iter()
        .chain(firecrackers)
        .chain(asked)
        .chain(followed);
    all.enumerate()
        .map(|(number, input)| (format!("seed-{number}"), input))
}

libfuzzer_sys::fuzz_target!(init: umbra_fuzz::write_seeds(seeds()), |input: &[u8]| {
    let mut source = Source::new(input);
    let kind = source.u8();
    match kind % 8 {
        0 => client(&mut source, input.get(1..).unwrap_or_default()),
        1 => return firecracker(kind, input.get(1..).unwrap_or_default()),
        3 | 7 => v1::follow(&mut source),
        _ => v1::ask(&mut source),
    }
    is_there();
});
