//! Requests that a back end had when it died. What stands for its death is a panic of the device's thread, after
//! which the front end comes anew.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use crate::back::Back;
use crate::guest::{Guest, SIZE, wait};

fn get(guest: &mut Guest) -> (VhostUserInflight, File) {
    let wanted = VhostUserInflight::new(0, 0, 2, SIZE);
    let (made, file) = guest.frontend.get_inflight_fd(&wanted).unwrap();
    guest
        .frontend
        .set_inflight_fd(&made, file.as_raw_fd())
        .unwrap();
    (made, file)
}

#[test]
fn what_was_in_flight_is_answered_once_and_before_what_came_later() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let (made, file) = get(&mut guest);
    guest.start(0);
    for round in 0..10 {
        guest.echo(0, &[round; 4]);
    }
    back.knobs.panics.store(true, Ordering::SeqCst);
    let answer = guest.request(0, 3, b"lost");
    guest.offer(0, 6);
    guest.kick(0);
    assert!(guest.ends[0].error.read().unwrap() > 0);
    back.knobs.panics.store(false, Ordering::SeqCst);

    // The driver goes on with its ring, until the entry of the lost one is another's.
    let (ram, available) = (guest.ram.clone(), guest.available);
    drop(guest);
    let mut guest = Guest::with_memory(back.connect(), ram);
    guest.available = available;
    for n in 0..2 {
        guest.request(0, n, b"next");
        guest.offer(0, 2 * n);
    }
    let [_, ring, _] = Guest::place(0);
    guest.put(
        ring + 4 + 2 * (10 % u64::from(SIZE)),
        &0xffffu16.to_le_bytes(),
    );
    guest
        .frontend
        .set_inflight_fd(&made, file.as_raw_fd())
        .unwrap();
    // As QEMU has it: behind what was answered.
    guest.start(0);
    wait("all answers", || guest.used(0) == 13);
    let heads: Vec<_> = (10..13).map(|index| guest.used_head(0, index)).collect();
    assert_eq!(heads, [6, 0, 2]);
    assert_eq!(guest.get::<4>(answer), *b"lost");
    guest.echo(0, b"more");
}

#[test]
fn a_ring_that_was_stopped_in_order_has_nothing_in_flight() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let (made, file) = get(&mut guest);
    guest.start(0);
    for round in 0..5 {
        guest.echo(0, &[round; 4]);
    }
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 5);
    guest
        .frontend
        .set_inflight_fd(&made, file.as_raw_fd())
        .unwrap();
    guest.start(0);
    guest.echo(0, b"more");
    assert_eq!(guest.used(0), 6);
}

#[test]
fn a_file_that_cannot_be_one_is_refused() {
    let shape =
        |size, offset, rings, descriptors| VhostUserInflight::new(size, offset, rings, descriptors);
    let table = [
        shape(0x1000, 0, 3, SIZE),
        shape(0x1000, 0, 2, 0x8000),
        shape(16, 0, 2, SIZE),
        shape(0x1000, 0x10_0000, 2, SIZE),
        shape(0x1000, 0x80, 2, SIZE),
    ];
    for made in table {
        let back = Back::start();
        let mut guest = Guest::new(&back);
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let set = guest.frontend.set_inflight_fd(&made, file.as_raw_fd());
        assert!(set.is_err(), "{} {}", { made.mmap_size }, {
            made.mmap_offset
        });
    }
    // One that is too small for its ring is refused when the ring starts.
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let small = VhostUserInflight::new(0, 0, 1, 4);
    let (made, file) = guest.frontend.get_inflight_fd(&small).unwrap();
    guest
        .frontend
        .set_inflight_fd(&made, file.as_raw_fd())
        .unwrap();
    guest.set_up(0, 0);
    assert!(guest.frontend.set_vring_enable(0, true).is_err());
}
