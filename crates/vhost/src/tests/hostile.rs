//! Back ends that do what they must not.

use super::*;
use crate::patience::PATIENCE;
use crate::testing::Twist::{self, *};
use crate::testing::request::*;

const TWISTS: [Twist; 9] = [
    Silence, Close, No, Other, Size, Half, Files, ManyFiles, Endless,
];

/// Whatever a back end answers to whatever request: there is no device, for a reason that is said, soon, and no
/// descriptor is left.
#[test]
fn one_that_answers_wrongly_at_the_beginning_is_refused() {
    alone(answer_wrongly_at_the_beginning);
}

fn answer_wrongly_at_the_beginning() {
    let before = descriptors();
    for request in [
        GET_FEATURES,
        GET_PROTOCOL_FEATURES,
        GET_QUEUE_NUM,
        GET_MAX_MEM_SLOTS,
        GET_CONFIG,
    ] {
        for twist in TWISTS {
            let (_folder, path) = socket();
            let with = Options {
                twist: Some((request, twist)),
                ..Options::default()
            };
            let back_end = BackEnd::start(&path, with);
            let memory = Memory::new();
            let hub = Hub::new(&memory.space).unwrap();
            let begin = Instant::now();
            let refused = VhostUser::connect(options(&path), &hub);
            let waited = begin.elapsed();
            assert!(waited < PATIENCE + Duration::from_secs(5), "{waited:?}");
            match refused {
                Ok(_) => assert_eq!(twist, No, "a number as any other: {request}"),
                Err(error) => println!("{request} {twist:?}: {error}"),
            }
            back_end.kill();
        }
    }
    let begin = Instant::now();
    while descriptors() > before {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{} of {before}",
            descriptors()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same while it works: the driver waits, the map changes all the same, and the next back end goes on.
#[test]
fn one_that_answers_wrongly_later_loses_its_connection_and_no_more() {
    for request in [SET_VRING_KICK, SET_VRING_ENABLE, ADD_MEM_REG] {
        for twist in TWISTS {
            let with = Options {
                twist: Some((request, twist)),
                ..Options::default()
            };
            let mut rig = Rig::started(with);
            rig.offer(0, 1);
            rig.driver.wait(|_| rig.control.state().losses > 0);
            assert!(!rig.driver.needs_reset());
            rig.kill();
            rig.come_back(Options::default());
            rig.driver.wait(|d| d.used_in(0) == 1);
            assert_eq!(rig.result(0), [1; 4], "{request} {twist:?}");
        }
    }
}

#[test]
fn one_that_does_not_stop_is_not_waited_for() {
    for twist in TWISTS {
        let with = Options {
            twist: Some((GET_VRING_BASE, twist)),
            ..Options::default()
        };
        let mut rig = Rig::started(with);
        rig.offer(0, 1);
        rig.driver.wait(|d| d.used_in(0) == 1);
        let begin = Instant::now();
        rig.driver.write(0x70, 0);
        assert_eq!(rig.driver.status(), 0);
        let waited = begin.elapsed();
        assert!(waited < PATIENCE + Duration::from_secs(5), "{waited:?}");
    }
}

#[test]
fn one_that_asks_without_end_interrupts_the_guest_now_and_then() {
    let rig = Rig::started(Options::default());
    for _ in 0..2000 {
        rig.back_end().config_changed();
    }
    let asked = |rig: &Rig| {
        let seen = rig.back_end().seen.lock();
        let configs = seen
            .requests
            .iter()
            .filter(|request| **request == GET_CONFIG);
        configs.count()
    };
    rig.driver.wait(|_| asked(&rig) > 1);
    std::thread::sleep(Duration::from_millis(100));
    assert!(asked(&rig) < 200, "{} questions", asked(&rig));
    assert!(rig.control.state().connected);
}
