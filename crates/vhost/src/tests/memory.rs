//! Back ends have what the map has.

use super::*;
use crate::ring::RINGS_AT;
use crate::testing::{MEM_SLOTS, PROTOCOL, REPLY_ACK};
use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, RamOptions, RamRegion, SlotError, SlotId};

const MORE: u64 = 0x100_0000;

fn region(len: u64) -> Arc<RamRegion> {
    let options = RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    };
    RamRegion::new(options).unwrap()
}

fn add(space: &AddressSpace, at: u64, region: &Arc<RamRegion>) -> Result<SlotId, SlotError> {
    let len = region.len();
    let added = space.update("test", |map| {
        map.add_ram(Gpa(at), region.clone(), 0, len, Flags::default())
    });
    added.map(umbra_slots::Updated::wait)
}

/// Memory of the guest that a back end has.
fn has(rig: &Rig) -> Vec<(u64, u64)> {
    let seen = rig.back_end().seen.lock();
    let pieces = seen.pieces.iter().map(|(at, len)| (*at, *len));
    pieces.filter(|(at, _)| *at < RINGS_AT).collect()
}

/// With pieces that come and go one by one, with and without acknowledgements, and with whole tables.
fn protocols() -> [u64; 4] {
    [
        PROTOCOL,
        PROTOCOL & !REPLY_ACK,
        PROTOCOL & !MEM_SLOTS,
        PROTOCOL & !MEM_SLOTS & !REPLY_ACK,
    ]
}

#[test]
fn a_back_end_has_what_the_map_has_when_an_update_returns() {
    for protocol in protocols() {
        let mut rig = Rig::started(Options {
            protocol,
            ..Options::default()
        });
        let space = rig.driver.memory.space.clone();
        rig.offer(0, 1);
        rig.driver.wait(|d| d.used_in(0) == 1);
        let first = (0, RAM);
        assert_eq!(has(&rig), [first]);
        let more = region(0x4000);
        let id = add(&space, MORE, &more).unwrap();
        assert_eq!(has(&rig), [first, (MORE, 0x4000)]);
        space
            .update("test", |map| map.resize(id, 0x2000))
            .unwrap()
            .wait();
        assert_eq!(has(&rig), [first, (MORE, 0x2000)]);
        // It goes on in all of it.
        rig.driver.memory.put(MORE, &[7; 4]);
        rig.driver.describe(0, (MORE, 4, NEXT, 1));
        rig.driver.describe(1, (MORE + 0x1ffc, 4, WRITE, 0));
        rig.driver.offer(0);
        rig.driver.wait(|d| d.used_in(0) == 2);
        assert_eq!(rig.driver.memory.get(MORE + 0x1ffc), [7; 4]);
        space
            .update("test", |map| map.resize(id, 0x4000))
            .unwrap()
            .wait();
        let total: u64 = has(&rig).iter().map(|(_, len)| len).sum();
        assert_eq!(total, RAM + 0x4000);
        space.update("test", |map| map.remove(id)).unwrap().wait();
        assert_eq!(has(&rig), [first], "protocol {protocol:#x}");
        rig.offer(0, 2);
        rig.driver.wait(|d| d.used_in(0) == 3);
        assert_eq!(rig.result(0), [2; 4]);
    }
}

#[test]
fn memory_comes_and_goes_while_requests_are_done() {
    for protocol in protocols() {
        let mut rig = Rig::started(Options {
            protocol,
            ..Options::default()
        });
        let space = rig.driver.memory.space.clone();
        let changes = std::thread::spawn(move || {
            let more = region(0x8000);
            for round in 0..60u64 {
                let id = add(&space, MORE, &more).unwrap();
                let len = 0x1000 * (1 + round % 8);
                space
                    .update("test", |map| map.resize(id, len))
                    .unwrap()
                    .wait();
                space.update("test", |map| map.remove(id)).unwrap().wait();
            }
        });
        let mut round = 0u16;
        while !changes.is_finished() || round < 10 {
            round += 1;
            rig.offer(0, round as u8);
            rig.driver.wait(|d| d.used_in(0) == round);
            assert_eq!(rig.result(0), [round as u8; 4]);
        }
        changes.join().unwrap();
        assert_eq!(has(&rig), [(0, RAM)]);
        assert_eq!(rig.control.state().losses, 0);
    }
}

#[test]
fn more_pieces_than_a_back_end_takes_are_refused_and_nothing_changes() {
    let mut rig = Rig::started(Options {
        slots: 4,
        ..Options::default()
    });
    rig.offer(0, 1);
    rig.driver.wait(|d| d.used_in(0) == 1);
    let space = rig.driver.memory.space.clone();
    let regions: Vec<_> = (0..3).map(|_| region(0x1000)).collect();
    // Of four pieces the guest's RAM is one, and the rings are another one.
    for (at, region) in (0..2).zip(&regions) {
        add(&space, MORE + 0x10_0000 * at, region).unwrap();
    }
    let generation = space.generation();
    let refused = add(&space, MORE + 0x80_0000, &regions[2]).unwrap_err();
    assert!(refused.to_string().contains("the back end of test"));
    assert_eq!(space.generation(), generation);
    assert_eq!(has(&rig).len(), 3);
}

#[test]
fn a_change_that_a_back_end_refuses_is_taken_back_everywhere() {
    let with = |slots, twist| Options {
        slots,
        twist,
        ..Options::default()
    };
    let mut rig = Rig::started(Options::default());
    let space = rig.driver.memory.space.clone();
    let first = add(&space, MORE, &region(0x1000)).unwrap();
    rig.offer(0, 1);
    rig.driver.wait(|d| d.used_in(0) == 1);
    rig.kill();
    // This one takes what is there when it comes, and then no more.
    rig.come_back(with(16, None));
    rig.offer(0, 1);
    rig.driver.wait(|d| d.used_in(0) == 2);
    rig.back_end().refuse_more();
    let refused = add(&space, MORE + 0x10_0000, &region(0x1000)).unwrap_err();
    assert!(matches!(refused, SlotError::Follower { .. }), "{refused}");
    assert_eq!(
        space
            .load()
            .slots()
            .iter()
            .filter(|s| s.id() == first)
            .count(),
        1
    );
    assert_eq!(has(&rig), [(0, RAM), (MORE, 0x1000)]);
    rig.offer(0, 3);
    rig.driver.wait(|d| d.used_in(0) == 3);
    assert_eq!(rig.control.state().losses, 1, "the one that was killed");
}

#[test]
fn one_that_is_away_gets_the_map_of_its_return() {
    let mut rig = Rig::started(Options::default());
    let space = rig.driver.memory.space.clone();
    rig.kill();
    add(&space, MORE, &region(0x1000)).unwrap();
    rig.come_back(Options::default());
    rig.offer(0, 3);
    rig.driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(has(&rig), [(0, RAM), (MORE, 0x1000)]);
}
