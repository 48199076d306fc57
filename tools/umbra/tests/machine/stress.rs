//! The bare-metal guest's `stress`: locks, code and pages that change under other processors, faults, timers and
//! messages at once, while the device that all processors read comes and goes.
//!
//! What the guest must have counted at its end is computed here, from the number of processors and rounds; a value
//! that differs earlier ends it with a line that says which.
//!
//! `UMBRA_STRESS_ROUNDS` says how many rounds the guest runs on the translator; other ways to execute run a part of
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use umbra_bus::Bus;
use umbra_slots::{Gpa, GpaRange};
use umbra_vmm::{Backend, Console, Ended, Machine, Outcome, Plan, Processor, Spec};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::support::bare_metal;
use crate::support::restless::counter;
use crate::support::screen::Screen;

/// Where the guest looks for the device.
const WINDOW: Gpa = Gpa(0xd000_0000);
/// Time between two changes of the map: at least, and how much more every other time.
const STEP: Duration = Duration::from_micros(50);
/// So narrow that the generation's tag wraps every sixteen changes.
const TAG_BITS: u32 = 4;
/// How often the guest does things in a round; see its modules.
const LOCKED: u64 = 256;
const REWRITES: u64 = 8;
const TOUCHES: u64 = 8;
const DEVICE_READS: u64 = 32;
const REPEATS: u64 = 64;

/// Rounds on the translator, where the environment does not say.
const ROUNDS: u64 = 2500;

fn rounds() -> u64 {
    let text = std::env::var("UMBRA_STRESS_ROUNDS").unwrap_or_else(|_| ROUNDS.to_string());
    text.parse().expect("UMBRA_STRESS_ROUNDS is a number")
}

/// A device whose bytes say where they are.
#[derive(Default)]
struct Offsets {
    reads: AtomicU64,
}

impl DeviceMmio for Offsets {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for (at, byte) in (offset..).zip(data) {
            *byte = (at ^ at >> 8 ^ 0x5a) as u8;
        }
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// Has the device come and go until `ended`; returns how often it came.
fn come_and_go(bus: &Bus, device: &Arc<Offsets>, ended: &AtomicBool) -> u64 {
    let mut times = 0;
    while !ended.load(Ordering::Relaxed) {
        let page = GpaRange::new(WINDOW, 0x1000).unwrap();
        let id = bus.insert(page, device.clone()).unwrap();
        std::thread::sleep(STEP * (1 + times as u32 % 4));
        drop(bus.remove(id).unwrap().wait());
        std::thread::sleep(STEP * (1 + times as u32 % 3));
        times += 1;
    }
    times
}

/// A number of a processor and a round, as the guest makes it.
fn mix(cpu: u64, round: u64) -> u64 {
    let number = (cpu + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (number ^ round.wrapping_mul(0xbf58_476d_1ce4_e5b9)).rotate_left(29)
}

/// What the guest must have counted, where that does not depend on time.
fn expected(cpus: u64, rounds: u64) -> BTreeMap<&'static str, u64> {
    let each = cpus * rounds;
    let sum = |value: &dyn Fn(u64) -> u64| {
        let numbers = (0..cpus).flat_map(|cpu| (1..=rounds).map(move |round| mix(cpu, round)));
        numbers.map(value).fold(0, u64::wrapping_add)
    };
    BTreeMap::from([
        ("processors", cpus),
        ("rounds", rounds),
        ("added", each * LOCKED),
        ("exchanged", each * LOCKED),
        ("guarded", each * LOCKED),
        (
            "guarded_sum",
            sum(&|number| {
                (0..LOCKED).fold(0, |sum: u64, time| {
                    sum.wrapping_add(number.wrapping_add(time))
                })
            }),
        ),
        ("function_messages", each * (cpus - 1)),
        ("last_functions", each),
        (
            "own_code_sum",
            sum(&|number| {
                (0..REWRITES)
                    .map(|time| u64::from(number.wrapping_add(time) as u32))
                    .sum()
            }),
        ),
        ("page_messages", each * (cpus - 1)),
        ("last_pages", each),
        ("locked_writes", each * cpus * TOUCHES),
        ("plain_writes", each * cpus * TOUCHES),
        ("faults", 2 * each),
        ("own_messages", each),
        ("registers_sum", sum(&|number| number.wrapping_add(REPEATS))),
    ])
}

/// What the guest printed: names and values.
fn counts(text: &str) -> BTreeMap<&str, u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("stress "));
    lines
        .map(|line| {
            let (name, value) = line.split_once(' ').unwrap();
            (name, value.trim().parse().unwrap())
        })
        .collect()
}

fn run(processor: Processor, cpus: u32, rounds: u64) {
    let image = bare_metal::build("tests/guest", "guest", &["--offline"]).join("umbra-guest");
    let spec = Spec {
        debug_exit: Some(0xf4),
        tag_bits: TAG_BITS,
        backend: Backend::Soft,
        processor,
        ..Spec::new(image)
            .command_line(format!("stress {rounds}"))
            .memory(64 << 20)
            .cpus(cpus)
    };
    let screen = Screen::default();
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone())).unwrap();
    let (bus, device, over) = (
        machine.bus().clone(),
        Arc::<Offsets>::default(),
        AtomicBool::new(false),
    );
    let start = Instant::now();
    let (ended, times): (Ended, u64) = std::thread::scope(|scope| {
        let host = scope.spawn(|| come_and_go(&bus, &device, &over));
        let ended = machine.run();
        over.store(true, Ordering::Relaxed);
        (ended.unwrap(), host.join().unwrap())
    });

    let text = screen.text();
    assert_eq!(ended.outcome, Outcome::Exit(0), "{text}");
    let mut counts = counts(&text);
    let mut take = |name: &str| {
        counts
            .remove(name)
            .unwrap_or_else(|| panic!("no {name}: {text}"))
    };
    let timers = take("timer_interrupts");
    let (answered, missed) = (take("device_answered"), take("device_missed"));
    assert_eq!(counts, expected(cpus.into(), rounds));
    assert_eq!(answered + missed, u64::from(cpus) * rounds * DEVICE_READS);
    assert_eq!(
        answered,
        device.reads.load(Ordering::Relaxed),
        "reads that the device answered"
    );
    assert_eq!(missed, counter(&ended, "memory accesses that hit nothing"));
    // All of it was really at work.
    assert!(
        answered > 0 && missed > 0,
        "answered {answered}, missed {missed}"
    );
    assert!(
        timers > u64::from(cpus) * rounds / 4,
        "{timers} timer interrupts"
    );
    assert!(times > rounds / 8, "the device came {times} times");
    let translated = counter(&ended, "units translated");
    match processor {
        Processor::Interpreter => assert_eq!(translated, 0),
        // Again and again, for the code changes.
        _ => assert!(translated > rounds, "{translated} units translated"),
    }
    println!(
        "{processor:?} x{cpus}: {rounds} rounds in {:.1} s; {timers} timer interrupts; the device came {times} times, \
         answered {answered} reads and missed {missed}; the first processor translated {translated} units",
        start.elapsed().as_secs_f64()
    );
}

#[test]
fn the_translator_on_two_processors() {
    run(Processor::Translator, 2, rounds());
}

#[test]
fn the_translator_on_four_processors() {
    run(Processor::Translator, 4, rounds());
}

#[test]
fn the_interpreter_on_two_processors() {
    run(Processor::Interpreter, 2, rounds() / 4);
}

#[test]
fn the_interpreter_on_four_processors() {
    run(Processor::Interpreter, 4, rounds() / 4);
}

#[test]
fn what_translates_at_once_on_two_processors() {
    run(Processor::Eager, 2, rounds() / 4);
}

#[test]
fn both_on_two_processors() {
    run(Processor::Both, 2, rounds() / 8);
}
