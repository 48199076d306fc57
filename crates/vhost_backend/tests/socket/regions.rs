//! Memory that comes and goes.

use std::sync::atomic::Ordering;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::back::Back;
use crate::guest::{Guest, RAM, mappings, memory, negotiate, region, wait};
use umbra_virtio::testing::{NEXT, WRITE};

const MORE: u64 = 0x100_0000;

/// A request whose buffers are at some address.
fn ask(guest: &mut Guest, at: u64) -> u16 {
    guest.describe(0, 0, at, 4, NEXT, 1);
    guest.describe(0, 1, at + 0x100, 4, WRITE, 0);
    let used = guest.used(0);
    guest.offer(0, 0);
    guest.kick(0);
    used
}

#[test]
fn memory_is_found_at_its_place_in_its_file() {
    let back = Back::start();
    let mut guest = Guest::silent(back.connect(), memory(RAM));
    negotiate(&mut guest.frontend, crate::guest::FEATURES);
    let table = [
        region(0x8_0000, &guest.ram, 0x8_0000, 0x8_0000),
        region(0, &guest.ram, 0, 0x1_8000),
        region(0x1_8000, &guest.ram, 0x1_8000, 0x6_8000),
    ];
    guest.frontend.set_mem_table(&table).unwrap();
    guest.start(0);
    guest.echo(0, b"used");
    // Across the border of two regions.
    guest.put(0x7_fffe, b"edge");
    let used = ask(&mut guest, 0x7_fffe);
    wait("an answer", || guest.used(0) != used);
    assert_eq!(guest.get::<4>(0x7_fffe + 0x100), *b"edge");
}

#[test]
fn memory_that_is_added_is_there_at_once_and_what_is_removed_is_mapped_no_more() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    let more = memory(0x4000);
    let info = region(MORE, &more, 0x1000, 0x2000);
    let before = back.knobs.count();
    for _ in 0..50 {
        guest.frontend.add_mem_region(&info).unwrap();
        assert_eq!(mappings(more.file()), 2);
        let used = ask(&mut guest, MORE);
        wait("an answer", || guest.used(0) != used);
        guest.frontend.remove_mem_region(&info).unwrap();
        assert_eq!(mappings(more.file()), 1, "here, and not there");
    }
    assert_eq!(back.knobs.count(), before, "the device was never stopped");
    guest.echo(0, b"last");
}

#[test]
fn a_region_that_a_request_is_at_goes_when_the_request_has_ended() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    let more = memory(0x1000);
    let info = region(MORE, &more, 0, 0x1000);
    guest.frontend.add_mem_region(&info).unwrap();
    back.knobs.delay_ms.store(300, Ordering::SeqCst);
    let used = ask(&mut guest, MORE);
    wait("a request", || back.knobs.busy.load(Ordering::SeqCst));
    guest.frontend.remove_mem_region(&info).unwrap();
    assert_eq!(guest.used(0), used + 1, "it was waited for");
    assert_eq!(mappings(more.file()), 1);
}

#[test]
fn a_new_table_replaces_the_old_one() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    let more = memory(0x1000);
    let table = [
        region(0, &guest.ram, 0, RAM),
        region(MORE, &more, 0, 0x1000),
    ];
    guest.frontend.set_mem_table(&table).unwrap();
    assert_eq!((mappings(guest.ram.file()), mappings(more.file())), (2, 2));
    guest.echo(0, b"more");
    guest.frontend.set_mem_table(&table[..1]).unwrap();
    assert_eq!((mappings(guest.ram.file()), mappings(more.file())), (2, 1));
    guest.echo(0, b"less");
}

#[test]
fn rings_follow_their_memory_to_another_address() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    // The front end moves the guest's memory up, with buffers and all.
    let table = [region(MORE, &guest.ram, 0, RAM)];
    guest.frontend.set_mem_table(&table).unwrap();
    guest.put(crate::guest::DATA, b"move");
    let used = ask(&mut guest, MORE + crate::guest::DATA);
    wait("an answer", || guest.used(0) != used);
    assert_eq!(guest.get::<4>(crate::guest::DATA + 0x100), *b"move");
}

#[test]
fn as_many_regions_as_are_said_can_be_had() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    let more = memory(0x1000);
    let most = guest.frontend.get_max_mem_slots().unwrap();
    let at = |n: u64| region(MORE + 0x2000 * n, &more, 0, 0x1000);
    for n in 1..most {
        guest.frontend.add_mem_region(&at(n)).unwrap();
    }
    guest.echo(0, b"many");
    for n in 1..most {
        guest.frontend.remove_mem_region(&at(n)).unwrap();
    }
    for n in 1..most {
        guest.frontend.add_mem_region(&at(n)).unwrap();
    }
    assert!(guest.frontend.add_mem_region(&at(most)).is_err());
}

#[test]
fn nothing_stays_mapped_of_a_front_end_that_has_gone() {
    let back = Back::start();
    let mut guest = Guest::new(&back);
    guest.start(0);
    guest.echo(0, b"once");
    let ram = guest.ram.clone();
    drop(guest);
    wait("the end", || mappings(ram.file()) == 1);
}
