//! The socket's file.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use umbra_vhost_backend::{ListenError, Server, Socket, Visits};
use umbra_virtio::echo;

use crate::back::Back;
use crate::guest::Guest;

#[test]
fn the_file_is_for_the_user_alone_and_goes_in_the_end() {
    let mut back = Back::start();
    let mode = std::fs::metadata(&back.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    back.stop().unwrap();
    assert!(!back.path.exists());
}

#[test]
fn a_socket_that_somebody_has_left_is_replaced_and_one_that_is_served_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    let first = Socket::bind(&path).unwrap();
    let refused = Socket::bind(&path).unwrap_err();
    assert!(matches!(refused, ListenError::Taken { .. }), "{refused}");
    drop(first);
    std::fs::write(&path, "precious").unwrap();
    let refused = Socket::bind(&path).unwrap_err();
    assert!(matches!(refused, ListenError::NoSocket { .. }), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let refused = Socket::bind(&dir.path().join("no/such")).unwrap_err();
    assert!(matches!(refused, ListenError::Host { .. }), "{refused}");
}

#[test]
fn a_file_that_is_another_one_by_now_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let socket = Socket::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(socket);
    assert!(path.exists());
}

#[test]
fn a_socket_is_taken_over_from_a_supervisor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let theirs = UnixListener::bind(&path).unwrap();
    let socket = Socket::adopt(OwnedFd::from(theirs.try_clone().unwrap())).unwrap();
    let server = Server::new(socket, Box::new(echo::device().0)).unwrap();
    let serving = std::thread::spawn(move || server.serve(Visits::Once));
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let mut guest = Guest::with_memory(stream, crate::guest::memory(crate::guest::RAM));
    guest.start(0);
    guest.echo(0, b"over");
    drop(guest);
    serving.join().unwrap().unwrap();
    assert!(path.exists());
}

#[test]
fn what_does_not_listen_is_not_taken_over() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    for fd in [OwnedFd::from(one), tcp.into(), file.into()] {
        let refused = Socket::adopt(fd).unwrap_err();
        assert!(
            matches!(refused, ListenError::NotListening { .. }),
            "{refused}"
        );
    }
}
