//! Requests of `/v1` that are nearly right, and streams of events that nobody ends.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use umbra_fuzz::Source;

use crate::{answers, check, connect};

const METHODS: &[&str] = &[
    "GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS",
];
/// `*` is a name of the input's.
const PATHS: &[&str] = &[
    "/v1",
    "/v1/openapi.json",
    "/v1/vm",
    "/v1/vm/spec",
    "/v1/vm/start",
    "/v1/vm/pause",
    "/v1/vm/resume",
    "/v1/vm/stop",
    "/v1/vm/reset",
    "/v1/vm/power-button",
    "/v1/vm/ctrl-alt-del",
    "/v1/vm/nmi",
    "/v1/vm/cpus",
    "/v1/vm/cpus/0/pause",
    "/v1/vm/cpus/1/resume",
    "/v1/vm/cpus/*/pause",
    "/v1/devices",
    "/v1/devices/r",
    "/v1/devices/b",
    "/v1/devices/*",
    "/v1/events/log",
    "/v1/inspect",
    "/v1/inspect/map",
    "/v1/inspect/generation",
    "/v1/inspect/mmu",
    "/v1/inspect/page-tables",
    "/v1/inspect/*",
    "/metrics",
    "/v1/*",
];
const QUERIES: &[&str] = &[
    "",
    "since",
    "limit",
    "cpu",
    "address",
    "timeout_ms",
    "force",
    "wait_ms",
];
const VALUES: &[&str] = &[
    "0",
    "1",
    "2",
    "20",
    "0x10",
    "true",
    "false",
    "-1",
    "18446744073709551615",
    "",
    "*",
];
const BODIES: &[&str] = &[
    "",
    "{}",
    r#"{"cpu":0}"#,
    r#"{"cpu":7}"#,
    r#"{"target":4096}"#,
    r#"{"polling_ms":100}"#,
    r#"{"path":"/"}"#,
    r#"{"kind":"rng"}"#,
    r#"{"kernel":"k","cpus":2}"#,
];
/// More than the server has places for streams.
const LEFT_OPEN: usize = 40;

thread_local! {
    static STREAMS: RefCell<VecDeque<UnixStream>> = RefCell::default();
}

/// A piece of the input that can stand in a line of a request.
fn word(source: &mut Source<'_>) -> Vec<u8> {
    let len = source.below(24);
    let bytes = source.bytes(len).iter().copied();
    bytes.filter(|byte| byte.is_ascii_graphic()).collect()
}

/// Puts a piece of the input in the place of a star.
fn filled(source: &mut Source<'_>, text: &str) -> Vec<u8> {
    match text.split_once('*') {
        Some((before, after)) => [before.as_bytes(), &word(source), after.as_bytes()].concat(),
        None => text.as_bytes().to_vec(),
    }
}

fn query(source: &mut Source<'_>) -> Vec<u8> {
    let mut all = Vec::new();
    for number in 0..source.u8() & 3 {
        let name = source.pick(QUERIES);
        all.push(if number == 0 { b'?' } else { b'&' });
        all.extend(name.as_bytes());
        all.push(b'=');
        let value = source.pick(VALUES);
        // Nothing may happen for long.
        match (name, value) {
            ("wait_ms" | "timeout_ms", "*" | "18446744073709551615") => all.push(b'x'),
            _ => all.extend(filled(source, value)),
        }
    }
    all
}

fn headers(source: &mut Source<'_>) -> Vec<u8> {
    let mut all = b"Host: a\r\n".to_vec();
    let choice = source.u8();
    if choice & 1 != 0 {
        let value = source.pick(VALUES);
        all.extend(b"Last-Event-ID: ");
        all.extend(filled(source, value));
        all.extend(b"\r\n");
    }
    if choice & 2 != 0 {
        all.extend(b"Accept: text/event-stream\r\n");
    }
    if choice & 4 != 0 {
        all.extend(word(source));
        all.extend(b": ");
        all.extend(word(source));
        all.extend(b"\r\n");
    }
    all
}

fn request(source: &mut Source<'_>) -> Vec<u8> {
    let (method, path) = (source.pick(METHODS), source.pick(PATHS));
    let (path, query, headers) = (filled(source, path), query(source), headers(source));
    let body = match source.u8() {
        choice if choice & 1 == 0 => source.pick(BODIES).as_bytes().to_vec(),
        choice => source.bytes(choice.into()).to_vec(),
    };
    let length = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    [
        method.as_bytes(),
        b" ",
        &path,
        &query,
        b" HTTP/1.1\r\n",
        &headers,
        &length,
        &body,
    ]
    .concat()
}

/// Asks several things by one connection, and takes all answers.
pub fn ask(source: &mut Source<'_>) {
    let mut stream = connect();
    let mut written = Vec::new();
    for _ in 0..=source.u8() & 3 {
        written.extend(request(source));
    }
    // What is left of the path may be that of a stream.
    let ends = !written.windows(11).any(|part| part == b"/v1/events ")
        && !written.windows(11).any(|part| part == b"/v1/events?");
    // Who is refused hears of it.
    let _ = stream.write_all(&written);
    let _ = stream.shutdown(Shutdown::Write);
    if ends {
        check(&answers(&mut stream));
    }
}

/// Begins to follow what happens, and does not end it.
pub fn follow(source: &mut Source<'_>) {
    let mut stream = connect();
    let (query, headers) = (query(source), headers(source));
    let request = [
        &b"GET /v1/events"[..],
        &query,
        b" HTTP/1.1\r\n",
        &headers,
        b"\r\n",
    ];
    if stream.write_all(&request.concat()).is_err() {
        return;
    }
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    while !said.windows(4).any(|part| part == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(len) => said.extend_from_slice(&piece[..len]),
            // The fuzzer's clock.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("a stream begins at once: {error}"),
        }
    }
    check(&said);
    STREAMS.with_borrow_mut(|streams| {
        streams.push_back(stream);
        if streams.len() > LEFT_OPEN {
            streams.pop_front();
        }
    });
}
