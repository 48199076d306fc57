//! Pausing a busy machine, again and again.
//!
//! `UMBRA_PAUSES` says how often.

use std::time::{Duration, Instant};

use umbra_slots::{Gpa, GpaRange};
use umbra_vmm::{Backend, HandleError, Outcome};

use crate::support::backend::{backend, on_each_backend};
use crate::support::restless::Pattern;
use crate::support::watched::{PATIENCE, Watched, spec};

/// Where the guest reads a device, and the port that it writes.
const DEVICE: u64 = 0xd000_0000;
const LOAD: &str = "load 0xd0000000 0x80";

fn pauses() -> u32 {
    let text = std::env::var("UMBRA_PAUSES").unwrap_or_else(|_| "500".into());
    text.parse().expect("UMBRA_PAUSES is a number")
}

/// Where the guest says that its counter is.
fn counter(guest: &Watched) -> u64 {
    let start = Instant::now();
    loop {
        let text = guest.screen.text();
        if let Some(line) = text.lines().next()
            && text.ends_with('\n')
        {
            let address = line.strip_prefix("counter 0x").unwrap();
            return u64::from_str_radix(address, 16).unwrap();
        }
        assert!(start.elapsed() < PATIENCE, "the guest said {text:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn a_busy_machine_stands_still_and_goes_on_as_often_as_it_is_told(name: &str) {
    let backend: Backend = backend(name);
    // The second processor waits to be started, which must not keep anybody waiting.
    let spec = spec(LOAD).backend(backend).cpus(2);
    let (guest, _id) = Watched::start(spec, |machine| {
        let range = GpaRange::new(Gpa(DEVICE), 0x1000).unwrap();
        let device = Pattern::answering_after(Duration::ZERO);
        machine.bus().insert(range, device).unwrap()
    });
    let counter = counter(&guest);

    let mut took = Vec::new();
    for _ in 0..pauses() {
        let before = guest.word(counter);
        let start = Instant::now();
        let paused = guest.handle.pause().unwrap();
        took.push(start.elapsed());
        assert_eq!((paused.states.len(), paused.already), (2, false));
        let stood = guest.word(counter);
        std::thread::yield_now();
        assert_eq!(guest.word(counter), stood, "it goes on while it is paused");
        guest.handle.resume();
        // It has gone on before it is paused again.
        guest.wait(counter, |now| now > stood.max(before));
    }
    took.sort_unstable();
    let (middle, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{backend:?}: {} pauses, median {middle:?}, longest {longest:?}",
        took.len()
    );
    // How long it takes is for whoever reads this line; that it ends is asserted.
    assert!(longest < Duration::from_secs(10));

    guest.handle.pause().unwrap();
    guest.handle.stop();
    assert_eq!(guest.finish().outcome, Outcome::Stopped);
}

/// The first processor counts; the second one waits to be started.
fn one_processor_stands_still_by_itself_and_through_a_pause_of_all(name: &str) {
    let spec = spec(LOAD).backend(backend(name)).cpus(2);
    let (guest, _id) = Watched::start(spec, |machine| {
        let range = GpaRange::new(Gpa(DEVICE), 0x1000).unwrap();
        let device = Pattern::answering_after(Duration::ZERO);
        machine.bus().insert(range, device).unwrap()
    });
    let counter = counter(&guest);
    let handle = guest.handle.clone();
    let stands = || {
        let stood = guest.word(counter);
        std::thread::sleep(Duration::from_millis(5));
        guest.word(counter) == stood
    };
    for _ in 0..pauses() / 10 {
        let held = handle.pause_cpu(0).unwrap();
        assert!(!held.already && stands());
        let again = handle.pause_cpu(0).unwrap();
        assert!(again.already);
        assert_eq!(again.state, held.state, "it has not moved");
        assert!(!handle.pause_cpu(1).unwrap().already);
        // All stand still, and only the second one may go on.
        let paused = handle.pause().unwrap();
        assert_eq!((&paused.states[0], paused.already), (&held.state, false));
        handle.resume_cpu(1).unwrap();
        handle.resume();
        assert!(stands());
        assert_eq!(handle.pause_cpu(0).unwrap().state, held.state);

        handle.pause().unwrap();
        handle.resume_cpu(0).unwrap();
        assert!(stands(), "the machine is still paused");
        let stood = guest.word(counter);
        handle.resume();
        guest.wait(counter, |now| now > stood);
    }
    handle.resume_cpu(0).unwrap();
    let none = HandleError::NoSuchCpu { cpu: 2, last: 1 };
    assert_eq!(handle.pause_cpu(2).unwrap_err(), none);
    assert_eq!(handle.resume_cpu(2).unwrap_err(), none);
    handle.pause_cpu(0).unwrap();
    handle.stop();
    assert_eq!(guest.finish().outcome, Outcome::Stopped);
    assert_eq!(handle.pause_cpu(0).unwrap_err(), HandleError::Ended);
    assert_eq!(handle.resume_cpu(0).unwrap_err(), HandleError::Ended);
}

/// Several at a time, while the machine is stopped: all get an answer.
fn pausing_from_several_threads_while_it_ends_leaves_nobody_waiting(name: &str) {
    for round in 0..20 {
        let spec = spec(LOAD).backend(backend(name)).cpus(2);
        let (guest, ()) = Watched::start(spec, |_| ());
        let pausers: Vec<_> = (0..3)
            .map(|_| {
                let handle = guest.handle.clone();
                std::thread::spawn(move || {
                    while handle.pause().is_ok() {
                        handle.resume();
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(round));
        guest.handle.stop();
        let ended = guest.finish();
        assert_eq!(ended.outcome, Outcome::Stopped);
        for pauser in pausers {
            pauser.join().unwrap();
        }
    }
}

on_each_backend! {
    one_processor_stands_still_by_itself_and_through_a_pause_of_all,
    a_busy_machine_stands_still_and_goes_on_as_often_as_it_is_told,
    pausing_from_several_threads_while_it_ends_leaves_nobody_waiting,
}
