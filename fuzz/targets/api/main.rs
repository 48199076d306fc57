//! Whatever comes to the API's socket, in pieces: it is answered as HTTP or its connection ends, what is no request is
//! refused, and the next client is served. And whatever a configuration file has in it: it is read, or refused.
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::time::Duration;

use umbra_api::firecracker::config::ConfigFile;
use umbra_api::firecracker::fault::Fault;
use umbra_api::firecracker::instance::Message;
use umbra_api::firecracker::request::{Method, parse};
use umbra_api::server::{Limits, Server};
use umbra_fuzz::Source;

/// The server of this process, which lasts as long as it does; where it is.
fn server() -> &'static PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("umbra-fuzz-api-{}", std::process::id()));
        let (owner, messages) = channel();
        std::thread::spawn(move || {
            for message in messages {
                if let Message::Wanted(_, reply) = message {
                    reply(Err(Fault::BeforeStart));
                }
            }
        });
        let limits = Limits {
            head: Duration::from_millis(200),
            body_time: Duration::from_millis(200),
            ..Limits::default()
        };
        let server = Server::start(&path, limits, owner).expect("a socket in a place of its own");
        std::mem::forget(server);
        path
    })
}

fn answers(stream: &mut UnixStream) -> Vec<u8> {
    let wait = stream.set_read_timeout(Some(Duration::from_secs(10)));
    wait.expect("a socket has time-outs");
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return all,
            Ok(len) => all.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return all,
            Err(error) => panic!("the server is silent: {error}"),
        }
    }
}

fn client(source: &mut Source<'_>, input: &[u8]) {
    let mut stream = UnixStream::connect(server()).expect("the server lives");
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
    let said = answers(&mut stream);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1."), "{said:?}");
    let mut stream = UnixStream::connect(server()).expect("the server lives");
    let request = b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("the server listens");
    let said = answers(&mut stream);
    assert!(said.starts_with(b"HTTP/1.1 400"), "{said:?}");
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut source = Source::new(input);
    let (kind, rest) = (source.u8(), input.get(1..).unwrap_or_default());
    match kind % 4 {
        0 => client(&mut source, rest),
        1 => {
            if let Ok(text) = std::str::from_utf8(rest) {
                let _ = ConfigFile::parse(text);
            }
        }
        _ => {
            let all = [Method::Get, Method::Put, Method::Patch, Method::Delete];
            let method = all[usize::from(kind >> 2) % all.len()];
            let at = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(rest.len());
            let (path, body) = rest.split_at(at);
            let path = String::from_utf8_lossy(path);
            let parsed = parse(method, &path, body.get(1..).unwrap_or_default());
            if let Err(fault) = parsed.action {
                assert!((400..500).contains(&fault.status()) && !fault.to_string().is_empty());
            }
        }
    }
});
