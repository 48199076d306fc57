//! Rings that come, go and stand still.

use std::sync::atomic::Ordering;

use umbra_virtio::echo::OWN;
use umbra_virtio::testing::NEXT;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::back::Back;
use crate::guest::{FEATURES, Guest, SIZE, memory, negotiate, region, wait};

#[test]
fn requests_are_answered_and_the_driver_hears_of_it() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.start(1);
    // Those were told when they were set.
    wait("a first call", || {
        guest.ends.iter().all(|ends| ends.call.read().is_ok())
    });
    for round in 0..2000u32 {
        let ring = round as usize % 2;
        guest.echo(ring, &round.to_le_bytes());
        assert_eq!(guest.ends[ring].call.read().unwrap(), 1);
    }
}

#[test]
fn all_that_the_device_offers_is_offered() {
    let back = Back::start();
    let mut guest = Guest::silent(back.connect(), memory(crate::guest::RAM));
    negotiate(&mut guest.frontend, FEATURES);
    let features = guest.frontend.get_features().unwrap();
    let rings = 1 << 28 | 1 << 29;
    assert_eq!(features, FEATURES | 1 << 26 | rings | OWN.low());
    assert_eq!(guest.frontend.get_queue_num().unwrap(), 2);
    assert!(guest.frontend.get_max_mem_slots().unwrap() >= 509);
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.start(1);
    for round in 0..20u16 {
        guest.echo(0, &[1, 2, 3, round as u8]);
        let base = guest.frontend.get_vring_base(0).unwrap();
        assert_eq!(base, u32::from(round) + 1);
        // It is not looked at now, and the other one is.
        guest.request(0, 1, b"late");
        guest.kick(0);
        guest.echo(1, b"else");
        assert_eq!(guest.used(0), round + 1);
        guest.set_up(0, base as u16);
    }
    guest.echo(0, b"last");
}

#[test]
fn requests_from_while_a_ring_was_stopped_are_found_when_it_goes_on() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    let base = guest.frontend.get_vring_base(0).unwrap();
    for n in 0..3 {
        guest.request(0, n, b"more");
        guest.offer(0, 2 * n);
    }
    guest.set_up(0, base as u16);
    wait("answers", || guest.used(0) == 4);
}

#[test]
fn a_ring_may_begin_anywhere_and_go_round() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    let begin = 0xfffe;
    guest.available[0] = begin;
    let [_, available, used] = Guest::place(0);
    guest.put(available + 2, &begin.to_le_bytes());
    guest.put(used + 2, &begin.to_le_bytes());
    guest.start(0);
    for round in 0..3 * SIZE {
        guest.echo(0, &[7, 7, 7, round as u8]);
    }
    let base = guest.frontend.get_vring_base(0).unwrap();
    assert_eq!(base, u32::from(begin.wrapping_add(3 * SIZE)));
}

#[test]
fn a_ring_that_is_disabled_stands_still() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"runs");
    guest.frontend.set_vring_enable(0, false).unwrap();
    guest.request(0, 0, b"wait");
    guest.offer(0, 0);
    guest.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.used(0), 1);
    guest.frontend.set_vring_enable(0, true).unwrap();
    wait("an answer", || guest.used(0) == 2);
}

#[test]
fn rings_run_at_once_where_there_are_no_protocol_features() {
    let back = Back::start();
    let mut guest = Guest::silent(back.connect(), memory(crate::guest::RAM));
    guest.frontend.set_owner().unwrap();
    guest.frontend.get_features().unwrap();
    guest.frontend.set_features(1 << 32).unwrap();
    let memory = [region(0, &guest.ram, 0, crate::guest::RAM)];
    guest.frontend.set_mem_table(&memory).unwrap();
    guest.set_up(0, 0);
    guest.echo(0, b"bare");
}

#[test]
fn a_reset_makes_everything_as_it_was() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    guest.frontend.reset_device().unwrap();
    assert_eq!(back.knobs.count()[2], 1);
    guest.request(0, 0, b"none");
    guest.offer(0, 0);
    guest.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.used(0), 1);
    guest.start(0);
    wait("an answer", || guest.used(0) == 2);
}

#[test]
fn a_driver_that_breaks_its_ring_is_told_and_may_begin_anew() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.start(1);
    // A chain without an end.
    guest.describe(0, 0, 0, 4, NEXT, 0);
    guest.offer(0, 0);
    guest.kick(0);
    assert!(guest.ends[0].error.read().unwrap() > 0);
    assert!(guest.ends[1].error.read().unwrap() > 0);
    // One ring alone does not bring the device back.
    guest.frontend.get_vring_base(0).unwrap();
    let calls = back.knobs.count();
    guest.set_up(0, 1);
    assert_eq!(back.knobs.count()[0], calls[0]);
    for ring in 0..2 {
        guest.frontend.get_vring_base(ring).unwrap();
    }
    let [_, _, used] = Guest::place(0);
    guest.put(used + 2, &1u16.to_le_bytes());
    guest.set_up(0, 1);
    guest.echo(0, b"anew");
}

#[test]
fn a_device_that_panics_is_one_that_needs_a_reset() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    back.knobs.panics.store(true, Ordering::SeqCst);
    guest.request(0, 0, b"bang");
    guest.offer(0, 0);
    guest.kick(0);
    assert!(guest.ends[0].error.read().unwrap() > 0);
    back.knobs.panics.store(false, Ordering::SeqCst);
    // It goes on behind what it has answered: nothing is lost.
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 1);
    guest.set_up(0, 1);
    wait("an answer", || guest.used(0) == 2);
}
