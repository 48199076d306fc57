//! Servers that do as they should, and others.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::*;
use crate::status::Status;

/// Serves one connection: reads the head of a request, writes `answer`, and hangs up.
fn serve(answer: &'static [u8]) -> (TempDir, Client, JoinHandle<String>) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        // A client that is satisfied early hangs up itself.
        let _ = stream.write_all(answer);
        String::from_utf8(head).unwrap()
    });
    let client = Client::new(&path).unwrap();
    (place, client, thread)
}

#[test]
fn an_answer_is_a_status_and_a_body() {
    let (_place, client, server) = serve(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}");
    let answer = client.ask(&Request::get("/v1?a=b")).unwrap();
    assert_eq!((answer.status, &answer.body[..]), (202, "{}"));
    assert!(
        server
            .join()
            .unwrap()
            .starts_with("GET /v1?a=b HTTP/1.1\r\n")
    );
}

#[test]
fn refusals_of_either_interface_are_read() {
    let ours = br#"HTTP/1.1 409 Conflict
Connection: close

{"error": {"code": "not_started", "field": "x", "message": "it has not begun", "remedy": "Start it."}}"#;
    let firecrackers = br#"HTTP/1.1 400 Bad Request
Connection: close

{"fault_message": "no", "code": "why"}"#;
    for (answer, said) in [
        (&ours[..], "it has not begun (not_started, x): Start it."),
        (firecrackers, "no (why)"),
        (
            b"HTTP/1.1 500 Oops\r\n\r\n",
            "the request was refused with status 500",
        ),
    ] {
        let (_place, client, _server) = serve(answer);
        let error = client.ask(&Request::get("/")).unwrap_err();
        assert_eq!(
            (error.to_string(), error.status()),
            (said.to_owned(), Status::Refused)
        );
        let (_place, client, _server) = serve(answer);
        let error = client.follow(None).err().unwrap();
        assert_eq!(error.to_string(), said);
    }
}

#[test]
fn an_answer_that_is_too_long_is_not_read_to_its_end() {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let most = format!("{head}{}", "a".repeat(ANSWER_MAX)).leak();
    let (_place, client, _server) = serve(most.as_bytes());
    let answer = client.ask(&Request::get("/")).unwrap();
    assert_eq!(answer.body.len(), ANSWER_MAX);
    let more = format!("{most}a").leak();
    let (_place, client, _server) = serve(more.as_bytes());
    let error = client.ask(&Request::get("/")).unwrap_err();
    assert!(matches!(error, ClientError::TooLong), "{error}");
}

#[test]
fn who_does_not_answer_is_told_from_who_refuses() {
    for answer in [
        &b""[..],
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff",
    ] {
        let (_place, client, _server) = serve(answer);
        let error = client.ask(&Request::get("/")).unwrap_err();
        assert_eq!(error.status(), Status::Unreachable, "{error}");
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sock");
    let ask = || Client::new(&path).unwrap().ask(&Request::get("/"));
    assert!(matches!(ask(), Err(ClientError::NoSocket { .. })));
    drop(UnixListener::bind(&path).unwrap());
    assert!(matches!(ask(), Err(ClientError::NobodyListens { .. })));
    let _silent = {
        std::fs::remove_file(&path).unwrap();
        UnixListener::bind(&path).unwrap()
    };
    let request = Request {
        patience: Duration::from_millis(50),
        ..Request::get("/")
    };
    let slow = Client::new(&path).unwrap().ask(&request).unwrap_err();
    assert_eq!(slow.to_string(), "no answer within 0.05 s");
    let odd = Client::new(&path)
        .unwrap()
        .ask(&Request::get("no path"))
        .unwrap_err();
    assert_eq!(odd.status(), Status::BadInput, "{odd}");
}
