//! Clients that are slow, silent, many, or nonsense: they disturb neither the machine nor each other.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Client, Rig, request};
use umbra_api::server::Limits;

fn quick() -> Limits {
    Limits {
        head: Duration::from_millis(300),
        body_time: Duration::from_millis(300),
        answer: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// A client that behaves is served at once.
fn is_served(rig: &Rig) {
    let begin = Instant::now();
    assert_eq!(rig.ask("GET", "/", "").status, 200);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn two_hundred_at_once_are_all_served() {
    let rig = Rig::new();
    rig.start();
    let path = rig.path("api.sock");
    std::thread::scope(|scope| {
        for number in 0..200 {
            let path = &path;
            scope.spawn(move || {
                let mut client = Client::connect(path);
                for _ in 0..10 {
                    let answer = match number % 4 {
                        0 => client.ask("PATCH", "/vm", r#"{"state": "Paused"}"#),
                        1 => client.ask("PATCH", "/vm", r#"{"state": "Resumed"}"#),
                        2 => client.ask("GET", "/vm/config", ""),
                        _ => client.ask("PUT", "/mmds", r#"{"a": 1}"#),
                    };
                    assert!(answer.status < 300, "{answer:?}");
                }
            });
        }
    });
    is_served(&rig);
}

#[test]
fn requests_in_one_piece_are_answered_in_their_order() {
    let rig = Rig::new();
    let mut client = rig.client();
    let all = [
        request("PUT", "/mmds", r#"{"a": 1}"#),
        request("GET", "/mmds", ""),
        request("GET", "/nope", ""),
        request("GET", "/version", ""),
    ];
    client.send(all.concat().as_bytes());
    for status in [204, 200, 400, 200] {
        assert_eq!(client.answer().unwrap().status, status);
    }
}

#[test]
fn a_request_in_single_bytes_is_understood() {
    let rig = Rig::new();
    let mut client = rig.client();
    for byte in request("PUT", "/mmds", r#"{"a": 1}"#).bytes() {
        client.send(&[byte]);
    }
    assert_eq!(client.answer().unwrap().status, 204);
}

#[test]
fn who_sends_half_a_head_goes_and_who_says_nothing_stays() {
    let rig = Rig::with(false, quick());
    let (mut half, mut silent) = (rig.client(), rig.client());
    half.send(b"GET / HTTP/1.1\r\nHost:");
    half.wait_closed();
    is_served(&rig);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(silent.ask("GET", "/", "").status, 200);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(silent.ask("GET", "/", "").status, 200);
}

#[test]
fn who_sends_half_a_body_is_told_and_goes() {
    let rig = Rig::with(false, quick());
    let mut client = rig.client();
    client.send(b"PUT /mmds HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{");
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("takes too long"), "{answer:?}");
    client.wait_closed();
    is_served(&rig);
}

#[test]
fn a_body_beyond_the_limit_is_refused_before_it_has_come() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.send(b"PUT /mmds HTTP/1.1\r\nHost: a\r\nContent-Length: 51201\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("larger than the limit of 51200"),
        "{answer:?}"
    );
    // One that does not say how much it is.
    let mut client = rig.client();
    client.send(b"PUT /mmds HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = [b"8000\r\n".to_vec(), vec![b'x'; 0x8000], b"\r\n".to_vec()].concat();
    while client.try_send(&chunk).is_ok() {}
    is_served(&rig);
}

#[test]
fn who_does_not_take_his_answers_goes() {
    let rig = Rig::with(false, quick());
    let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(40000));
    assert_eq!(rig.ask("PUT", "/mmds", &large).status, 204);
    let mut client = rig.client();
    let ask = request("GET", "/mmds", "");
    let begin = Instant::now();
    // Answers pile up in the socket until the server waits, and then it does not.
    while client.try_send(ask.as_bytes()).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
    is_served(&rig);
}

#[test]
fn nonsense_is_answered_and_ends_its_connection() {
    let rig = Rig::new();
    for nonsense in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x80 HTTP/1.1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"{\"json\": true}\r\n\r\n",
    ] {
        let mut client = rig.client();
        client.send(nonsense);
        if let Ok(answer) = client.answer() {
            assert!(answer.status >= 400, "{nonsense:?}: {answer:?}");
        }
        client.wait_closed();
    }
    let mut client = rig.client();
    client.send(b"GET / HTTP/1.1\r\nX: ");
    let long = [b'x'; 4096];
    while client.try_send(&long).is_ok() {}
    is_served(&rig);
}

#[test]
fn other_verbs_are_refused_in_words() {
    let rig = Rig::new();
    for verb in ["POST", "OPTIONS", "TRACE", "FOO"] {
        let answer = rig.ask(verb, "/", "");
        assert_eq!(answer.status, 400, "{answer:?}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(verb), "{error}");
    }
}

#[test]
fn who_is_idle_makes_room() {
    let limits = Limits {
        connections: 3,
        ..Limits::default()
    };
    let rig = Rig::with(false, limits);
    let mut idle: Vec<_> = (0..3).map(|_| rig.client()).collect();
    for client in &mut idle {
        assert_eq!(client.ask("GET", "/", "").status, 200);
    }
    is_served(&rig);
    // The one that was idle for longest.
    idle[0].wait_closed();
    assert_eq!(idle[2].ask("GET", "/", "").status, 200);
}

#[test]
fn a_socket_is_gone_with_its_server_and_its_clients_too() {
    let rig = Rig::new();
    let path = rig.path("api.sock");
    let mut client = rig.client();
    assert_eq!(client.ask("GET", "/", "").status, 200);
    drop(rig);
    client.wait_closed();
    assert!(!path.exists());
}
