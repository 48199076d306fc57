//! A guest's driver of the keyboard controller.

use super::*;
use crate::tests::power_recorder;
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts rising edges.
#[derive(Default)]
struct Edges(AtomicU32);

impl Line for Edges {
    fn set(&self, high: bool) {
        self.0.fetch_add(high.into(), Ordering::Relaxed);
    }
}

struct Bench {
    device: I8042,
    edges: Arc<Edges>,
    events: Arc<Mutex<Vec<PowerEvent>>>,
}

impl Bench {
    fn new() -> Self {
        let edges = Arc::new(Edges::default());
        let (events, listener) = power_recorder();
        Self {
            device: I8042::new(edges.clone(), listener),
            edges,
            events,
        }
    }

    fn read(&self, port: u16) -> u8 {
        let mut data = [0];
        self.device.pio_read(PioAddress(port), 0, &mut data);
        data[0]
    }

    fn command(&self, value: u8) {
        self.device.pio_write(PioAddress(0x64), 0, &[value]);
    }

    fn data(&self, value: u8) {
        self.device.pio_write(PioAddress(0x60), 0, &[value]);
    }

    /// Reads until the output buffer is empty.
    fn all(&self) -> Vec<u8> {
        std::iter::from_fn(|| (self.read(0x64) & 1 != 0).then(|| self.read(0x60))).collect()
    }
}

#[test]
fn tests_pass_but_that_of_the_port_that_is_missing() {
    let bench = Bench::new();
    for (command, reply) in [(0xaa, 0x55), (0xab, 0), (0xa9, 1), (0xc0, 0x80)] {
        bench.command(command);
        assert_eq!(bench.all(), [reply], "{command:#x}");
    }
}

#[test]
fn the_command_byte_is_what_was_written() {
    let bench = Bench::new();
    bench.command(0x20);
    assert_eq!(bench.all(), [0x65]);
    bench.command(0x60);
    bench.data(0x34);
    bench.command(0x20);
    assert_eq!(bench.all(), [0x34]);
    bench.command(0x7f);
    bench.data(9);
    bench.command(0x3f);
    assert_eq!(bench.all(), [9]);
}

#[test]
fn a_keyboard_says_who_it_is_with_and_without_translation() {
    let bench = Bench::new();
    bench.data(0xf2);
    assert_eq!(bench.all(), [0xfa, 0xab, 0x41]);
    bench.command(0x60);
    bench.data(0x25);
    bench.data(0xf2);
    assert_eq!(bench.all(), [0xfa, 0xab, 0x83]);
}

#[test]
fn ctrl_alt_del_comes_in_set_1_an_interrupt_a_byte() {
    let bench = Bench::new();
    bench.device.press_ctrl_alt_del().unwrap();
    let down = [0x1d, 0x38, 0xe0, 0x53];
    let up = [0xe0, 0xd3, 0xb8, 0x9d];
    assert_eq!(bench.all(), [down, up].concat());
    assert_eq!(bench.edges.0.load(Ordering::Relaxed), 8);
}

#[test]
fn nobody_is_interrupted_by_a_keyboard_that_may_not() {
    let bench = Bench::new();
    bench.command(0x60);
    bench.data(0x44);
    bench.device.press_ctrl_alt_del().unwrap();
    assert_eq!(bench.edges.0.load(Ordering::Relaxed), 0);
    assert_eq!(bench.read(0x64) & 1, 1);
    // Allowed afterwards, the byte that is there interrupts.
    bench.command(0x60);
    bench.data(0x45);
    assert_eq!(bench.edges.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_keyboard_that_is_switched_off_waits_and_replies_go_first() {
    let bench = Bench::new();
    bench.command(0xad);
    bench.device.press_ctrl_alt_del().unwrap();
    assert_eq!(bench.read(0x64) & 1, 0);
    bench.command(0x20);
    assert_eq!(bench.read(0x60), 0x75);
    bench.command(0xae);
    assert_eq!(bench.read(0x60), 0x1d);
    // The next key is in the buffer already; the reply comes behind it.
    bench.command(0xaa);
    assert_eq!((bench.read(0x60), bench.read(0x60)), (0x38, 0x55));
}

#[test]
fn the_processor_is_reset_by_a_pulse_and_by_the_output_port() {
    let bench = Bench::new();
    for harmless in [0xff, 0xf1, 0xd1] {
        bench.command(harmless);
    }
    bench.data(3);
    bench.data(0xfe);
    assert!(bench.events.lock().is_empty());
    bench.command(0xfe);
    bench.command(0xd1);
    bench.data(2);
    assert_eq!(*bench.events.lock(), [PowerEvent::Reset; 2]);
}

#[test]
fn a_guest_that_never_reads_costs_no_memory() {
    let bench = Bench::new();
    for n in 0..100_000u32 {
        bench.command(n as u8 & 0xef);
        bench.data((n >> 8) as u8);
        let _ = bench.device.press_ctrl_alt_del();
    }
    assert!(bench.all().len() <= 24);
}

proptest::proptest! {
    #[test]
    fn no_access_panics(accesses in proptest::collection::vec((0u8..4, 0u8..), 0..500)) {
        let bench = Bench::new();
        for (kind, value) in accesses {
            match kind {
                0 => bench.command(value),
                1 => bench.data(value),
                2 => { bench.read(0x60); }
                _ => { bench.read(0x64); }
            }
        }
    }
}
