//! The device's configuration through messages.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vhost::vhost_user::message::VhostUserConfigFlags as Why;
use vhost::vhost_user::{
    FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};

use crate::back::Back;
use crate::guest::Guest;

#[test]
fn the_configuration_is_read_and_written() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let read = |guest: &mut Guest, offset, len: usize| {
        let room = vec![0; len];
        let got = guest
            .frontend
            .get_config(offset, len as u32, Why::empty(), &room);
        got.unwrap().1
    };
    assert_eq!(read(&mut guest, 0, 6), b"config");
    assert_eq!(
        read(&mut guest, 3, 20),
        b"fig\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    guest
        .frontend
        .set_config(1, Why::WRITABLE, b"ancel")
        .unwrap();
    assert_eq!(read(&mut guest, 0, 6), b"cancel");
    guest
        .frontend
        .set_config(0x100, Why::WRITABLE, b"x")
        .unwrap();
    assert_eq!(read(&mut guest, 0x100, 1), [0]);
    // The largest that fits into a message.
    let most = 0x1000 - 12;
    assert_eq!(read(&mut guest, 0, most).len(), most);
}

#[derive(Default)]
struct Heard(Arc<AtomicU32>);

impl VhostUserFrontendReqHandlerMut for Heard {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(0)
    }
}

struct Fd(RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

#[test]
fn a_changed_configuration_is_told_on_the_channel() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let heard = Heard::default();
    let count = heard.0.clone();
    let mut channel = FrontendReqHandler::new(Arc::new(Mutex::new(heard))).unwrap();
    channel.set_reply_ack_flag(true);
    let fd = Fd(channel.get_tx_raw_fd());
    guest.frontend.set_backend_request_fd(&fd).unwrap();
    guest.start(0);
    for round in 1..=3 {
        let interrupt = back.knobs.interrupt.lock().clone();
        interrupt.unwrap().config_changed();
        channel.handle_request().unwrap();
        assert_eq!(count.load(Ordering::SeqCst), round);
    }
    guest.echo(0, b"fine");
}

#[test]
fn a_front_end_that_does_not_listen_to_its_channel_holds_nobody_up() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let channel = FrontendReqHandler::new(Arc::new(Mutex::new(Heard::default()))).unwrap();
    let fd = Fd(channel.get_tx_raw_fd());
    guest.frontend.set_backend_request_fd(&fd).unwrap();
    guest.start(0);
    let interrupt = back.knobs.interrupt.lock().clone().unwrap();
    for _ in 0..100_000 {
        interrupt.config_changed();
    }
    guest.echo(0, b"fine");
}
