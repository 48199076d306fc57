//! A guest's driver, its device, and a back end.
#![allow(clippy::unwrap_used, reason = "in a test it is the failure")]

mod hostile;
mod memory;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_virtio::Features;
use umbra_virtio::testing::{Driver, INDIRECT, Memory, NEXT, RAM, ROM, WRITE};

use crate::testing::{BackEnd, Options, alone, descriptors, socket};
use crate::{BackEndError, Hub, Kind, VhostUser, VhostUserControl, VhostUserOptions};

const DATA: u64 = 0x7_0000;
const TABLE: u64 = 0x6_1000;
const RESULT: u64 = 0x8_0000;

/// A device of 60 bytes of configuration and two queues.
const OTHER: Kind = Kind::Other {
    id: 42,
    config_len: 60,
};

fn options(path: &std::path::Path) -> VhostUserOptions {
    VhostUserOptions {
        name: "test".into(),
        socket: path.to_owned(),
        kind: OTHER,
        queues: Some(2),
        queue_size: Some(16),
        wait: Duration::from_secs(5),
    }
}

struct Rig {
    driver: Driver,
    control: VhostUserControl,
    back_end: Option<BackEnd>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new(with: Options) -> Self {
        Self::of_kind(OTHER, with)
    }

    fn of_kind(kind: Kind, with: Options) -> Self {
        let (folder, path) = socket();
        let back_end = BackEnd::start(&path, with);
        let memory = Memory::new();
        let hub = Hub::new(&memory.space).unwrap();
        let options = VhostUserOptions {
            kind,
            ..options(&path)
        };
        let device = VhostUser::connect(options, &hub).unwrap();
        let control = device.control();
        Self {
            driver: Driver::with_memory(memory, Box::new(device), 16),
            control,
            back_end: Some(back_end),
            path,
            _folder: folder,
        }
    }

    fn started(with: Options) -> Self {
        let mut rig = Self::new(with);
        rig.driver.start(Features::RINGS.with(Features::bit(2)));
        rig
    }

    fn back_end(&self) -> &BackEnd {
        self.back_end.as_ref().unwrap()
    }

    fn kill(&mut self) {
        self.back_end.take().unwrap().kill();
        self.driver.wait(|_| !self.control.state().connected);
    }

    fn come_back(&mut self, with: Options) {
        self.back_end = Some(BackEnd::start(&self.path, with));
        self.driver.wait(|_| self.control.state().connected);
    }

    /// Offers a chain of two: `byte` four times, to be copied to a place of its own.
    fn offer(&mut self, head: u16, byte: u8) {
        let at = u64::from(head) * 0x100;
        self.driver.memory.put(DATA + at, &[byte; 4]);
        self.driver.memory.put(RESULT + at, &[0; 4]);
        self.driver.describe(head, (DATA + at, 4, NEXT, head + 1));
        self.driver.describe(head + 1, (RESULT + at, 4, WRITE, 0));
        self.driver.offer(head);
    }

    fn result(&self, head: u16) -> [u8; 4] {
        self.driver.memory.get(RESULT + u64::from(head) * 0x100)
    }
}

#[test]
fn a_request_is_done_by_the_back_end_and_what_it_wrote_is_followed() {
    let mut rig = Rig::new(Options::default());
    // A driver with event indexes would have to say which it waits for.
    let features = Features::INDIRECT_DESC.with(Features::bit(2));
    rig.driver.start(features);
    let seen = rig.back_end().seen.clone();
    rig.driver.wait(|_| !seen.lock().pieces.is_empty());
    assert_eq!(seen.lock().features & 0xff_ffff, 4, "what the driver took");
    let reports = rig.driver.memory.reports();
    for round in 0..100u16 {
        rig.offer(0, round as u8 + 1);
        rig.driver
            .wait(|d| d.used_in(0) == round + 1 && d.line.is_high());
        rig.driver.write(0x64, 1);
        assert_eq!(rig.result(0), [round as u8 + 1; 4]);
        assert_eq!(rig.driver.used(round), (0, 4));
    }
    // What the back end wrote, and the used ring.
    assert!(rig.driver.memory.reports() >= reports + 200);
    let slot = rig.driver.memory.space.load().slots()[0].id();
    let pages = rig.driver.memory.space.harvest(slot).unwrap();
    assert!(pages.iter().any(|page| page.gpa().0 == RESULT));
    assert!(!pages.iter().any(|page| page.gpa().0 == 0x9_0000));
}

#[test]
fn a_back_end_without_indirect_tables_or_event_indexes_does_as_well() {
    let plain = Options {
        features: 1 << 32 | 1 << 30,
        ..Options::default()
    };
    let mut rig = Rig::new(plain);
    rig.driver.start(Features::RINGS);
    let at = TABLE;
    for index in 0..10u16 {
        let place = at + 16 * u64::from(index);
        let more = if index < 9 { NEXT } else { 0 };
        let write = if index < 5 { 0 } else { WRITE };
        let buffer = DATA + 0x100 * u64::from(index);
        rig.driver.memory.put(buffer, &[index as u8 + 1; 8]);
        let links = (more | write, index + 1);
        rig.driver.describe_at(place, (buffer, 8, links.0, links.1));
    }
    rig.driver.describe(3, (at, 160, INDIRECT, 0));
    for round in 1..50 {
        rig.driver.offer(3);
        rig.driver.wait(|d| d.used_in(0) == round);
        assert_eq!(rig.driver.used(round - 1), (3, 40));
    }
    for index in 0..5u64 {
        let copy: [u8; 8] = rig.driver.memory.get(DATA + 0x100 * (index + 5));
        assert_eq!(copy, [index as u8 + 1; 8]);
    }
}

#[test]
fn what_a_dead_back_end_had_is_done_by_the_next_one_in_the_same_order() {
    let mut rig = Rig::started(Options::default());
    rig.offer(0, 1);
    rig.driver.wait(|d| d.used_in(0) == 1);
    rig.back_end().seen.lock().holds = true;
    for head in [2, 4, 6] {
        rig.offer(head, head as u8);
    }
    rig.back_end().wait(|seen| seen.taken.len() == 4);
    rig.kill();
    for head in [8, 10] {
        rig.offer(head, head as u8);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.driver.used_in(0), 1, "the guest waits");
    assert!(!rig.driver.needs_reset());
    let begin = Instant::now();
    rig.come_back(Options::default());
    rig.driver.wait(|d| d.used_in(0) == 6);
    println!("back after {:?}", begin.elapsed());
    assert_eq!(rig.back_end().seen.lock().taken, [2, 4, 6, 8, 10]);
    for head in [2, 4, 6, 8, 10] {
        assert_eq!(rig.result(head), [head as u8; 4]);
    }
    assert_eq!(rig.control.state().losses, 1);
}

#[test]
fn one_that_dies_over_and_over_loses_nothing() {
    let mut rig = Rig::started(Options::default());
    for round in 1..=60u16 {
        let holds = round % 3 == 0;
        rig.back_end().seen.lock().holds = holds;
        for head in [0, 2, 4, 6] {
            rig.offer(head, (round ^ head) as u8);
        }
        if holds {
            std::thread::sleep(Duration::from_millis(u64::from(round % 5)));
            rig.kill();
            rig.come_back(Options::default());
        }
        rig.driver.wait(|d| d.used_in(0) == 4 * round);
        for head in [0, 2, 4, 6] {
            assert_eq!(rig.result(head), [(round ^ head) as u8; 4], "{round}");
        }
    }
    assert_eq!(rig.control.state().losses, 20);
}

#[test]
fn one_that_says_it_cannot_go_on_is_as_good_as_dead() {
    let mut rig = Rig::started(Options::default());
    rig.back_end().seen.lock().holds = true;
    rig.offer(0, 1);
    rig.back_end().wait(|seen| seen.taken.len() == 1);
    rig.back_end().fault();
    rig.driver.wait(|_| rig.control.state().losses == 1);
    let why = rig.control.state().error.unwrap();
    assert!(why.contains("cannot go on"), "{why}");
    rig.kill();
    rig.come_back(Options::default());
    rig.driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(rig.control.state().losses, 1);
}

#[test]
fn a_device_that_stands_still_goes_on_with_what_was_not_done() {
    let mut rig = Rig::started(Options::default());
    rig.back_end().seen.lock().holds = true;
    rig.offer(0, 1);
    rig.offer(2, 2);
    rig.back_end().wait(|seen| seen.taken.len() == 2);
    umbra_virtio::Transport::pause(&*rig.driver.transport);
    assert_eq!(rig.driver.used_in(0), 0);
    rig.back_end().seen.lock().holds = false;
    umbra_virtio::Transport::resume(&*rig.driver.transport);
    rig.driver.wait(|d| d.used_in(0) == 2);
    assert_eq!((rig.result(0), rig.result(2)), ([1; 4], [2; 4]));
}

#[test]
fn a_disk_stands_still_when_it_has_nothing_more_to_do() {
    let mut rig = Rig::of_kind(Kind::Block, Options::default());
    rig.driver.start(Features::RINGS);
    rig.back_end().seen.lock().holds = true;
    rig.offer(0, 1);
    rig.offer(2, 2);
    rig.back_end().wait(|seen| seen.taken.len() == 2);
    let seen = rig.back_end().seen.clone();
    let soon = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        seen.lock().holds = false;
    });
    umbra_virtio::Transport::pause(&*rig.driver.transport);
    assert_eq!(rig.driver.used_in(0), 2, "all that it had is done");
    assert_eq!((rig.result(0), rig.result(2)), ([1; 4], [2; 4]));
    soon.join().unwrap();
    // One that takes too long is not waited for without end, and loses nothing.
    umbra_virtio::Transport::resume(&*rig.driver.transport);
    rig.back_end().seen.lock().holds = true;
    rig.offer(4, 3);
    rig.back_end().wait(|seen| seen.taken.len() == 3);
    umbra_virtio::Transport::pause(&*rig.driver.transport);
    assert_eq!(rig.driver.used_in(0), 2);
    rig.back_end().seen.lock().holds = false;
    umbra_virtio::Transport::resume(&*rig.driver.transport);
    rig.driver.wait(|d| d.used_in(0) == 3);
    assert_eq!(rig.result(4), [3; 4]);
    assert_eq!(rig.control.state().losses, 0);
}

#[test]
fn a_driver_that_resets_begins_anew() {
    let mut rig = Rig::started(Options::default());
    rig.back_end().seen.lock().holds = true;
    rig.offer(0, 1);
    rig.back_end().wait(|seen| seen.taken.len() == 1);
    rig.driver.write(0x70, 0);
    rig.back_end().seen.lock().holds = false;
    rig.back_end().seen.lock().taken.clear();
    rig.driver.start(Features::RINGS);
    rig.offer(4, 9);
    rig.driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(rig.driver.used(0), (4, 4));
    assert_eq!(rig.back_end().seen.lock().taken, [9], "nothing of before");
}

#[test]
fn the_driver_sees_the_back_ends_configuration_and_hears_when_it_changes() {
    let mut rig = Rig::started(Options::default());
    assert_eq!(rig.driver.read(0x100), 0x0403_0201);
    let generation = rig.driver.read(0xfc);
    // Said, but not so.
    rig.back_end().config_changed();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(rig.driver.read(0xfc), generation);
    assert!(!rig.driver.line.is_high());
    rig.driver.write(0x104, 0xaabb_ccdd);
    assert_eq!(rig.driver.read(0x104), 0xaabb_ccdd);
    let written = rig.back_end().seen.lock().written_config.clone();
    assert_eq!(written, [(4, vec![0xdd, 0xcc, 0xbb, 0xaa])]);
    // Outside of it, and half outside.
    rig.driver.write(0x100 + 60, 1);
    assert_eq!(rig.back_end().seen.lock().written_config.len(), 1);
    rig.kill();
    rig.driver.write(0x64, 3);
    let generation = rig.driver.read(0xfc);
    rig.come_back(Options {
        config: vec![7; 60],
        ..Options::default()
    });
    rig.driver.wait(|d| d.line.is_high());
    assert_eq!(rig.driver.read(0x60) & 2, 2);
    assert_ne!(rig.driver.read(0xfc), generation);
    assert_eq!(rig.driver.read(0x100), 0x0707_0707);
}

#[test]
fn one_that_comes_back_with_less_is_not_taken() {
    let mut rig = Rig::started(Options::default());
    rig.kill();
    let less = Options {
        features: 1 << 32 | 1 << 30,
        ..Options::default()
    };
    rig.back_end = Some(BackEnd::start(&rig.path, less));
    let said = |rig: &Rig| rig.control.state().error.unwrap_or_default();
    rig.driver.wait(|_| said(&rig).contains("was offered"));
    assert!(!rig.control.state().connected);
    rig.back_end.take().unwrap().kill();
    rig.come_back(Options::default());
    rig.offer(0, 5);
    rig.driver.wait(|d| d.used_in(0) == 1);
}

#[test]
fn memory_that_no_back_end_has_is_a_fault_of_the_drivers() {
    for at in [ROM, RAM - 2, 0x30_0000, u64::MAX - 1] {
        let mut rig = Rig::started(Options::default());
        rig.driver.describe(0, (at, 4, 0, 0));
        rig.driver.offer(0);
        rig.driver.wait(Driver::needs_reset);
        rig.driver.start(Features::RINGS);
        rig.offer(0, 1);
        rig.driver.wait(|d| d.used_in(0) == 1);
    }
}

#[test]
fn a_back_end_that_is_not_there_is_named() {
    let (_folder, path) = socket();
    let hub = Hub::new(&Memory::new().space).unwrap();
    let soon = VhostUserOptions {
        wait: Duration::from_millis(30),
        ..options(&path)
    };
    let refused = VhostUser::connect(soon, &hub).err().unwrap();
    assert!(matches!(refused, BackEndError::Connect { .. }));
    assert!(refused.to_string().contains(path.to_str().unwrap()));
}

#[test]
fn one_that_lacks_what_is_needed_is_refused() {
    let table = [
        (
            Options {
                features: 1 << 30,
                ..Options::default()
            },
            "VERSION_1",
        ),
        (
            Options {
                features: 1 << 32,
                ..Options::default()
            },
            "PROTOCOL_FEATURES",
        ),
        (
            Options {
                protocol: 1 << 3,
                ..Options::default()
            },
            "CONFIG",
        ),
        (
            Options {
                queues: 1,
                ..Options::default()
            },
            "1 queues",
        ),
    ];
    for (with, why) in table {
        let (_folder, path) = socket();
        let _back_end = BackEnd::start(&path, with);
        let hub = Hub::new(&Memory::new().space).unwrap();
        let refused = VhostUser::connect(options(&path), &hub).err().unwrap();
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

#[test]
fn a_device_that_goes_leaves_nothing_behind() {
    alone(come_and_go);
}

fn come_and_go() {
    let before = descriptors();
    let memory = {
        let mut rig = Rig::started(Options::default());
        rig.offer(0, 1);
        rig.driver.wait(|d| d.used_in(0) == 1);
        rig.driver.memory.clone()
    };
    drop(memory);
    // A thread may be on its way out.
    let begin = Instant::now();
    while descriptors() > before {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{}",
            descriptors()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
