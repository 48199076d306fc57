//! The 8254 timer of a PC, and port 0x61 which gates its third counter.
//!
//! Counter 0 is wired to interrupt 0, counter 1 to nothing (it refreshed memory once), counter 2 to
//! the speaker; its gate and its output are bits of port 0x61 (82371SB, 3.5). The chip does not wait
//! for anything itself: its owner sleeps until [`Timer::next_event`] and then calls [`Timer::tick`].

mod counter;

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use umbra_clock::{Clock, Timer};
use umbra_irq::Line;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use counter::Counter;

/// First of the four ports of the chip, and the port beside it.
const FIRST: u16 = 0x40;
const CONTROL: u16 = 0x43;
const PORT_B: u16 = 0x61;

/// Bits of port 0x61.
const GATE_2: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const WRITABLE: u8 = 0x0f;
const REFRESH: u8 = 1 << 4;
const OUTPUT_2: u8 = 1 << 5;
/// The refresh bit toggles at this period, in nanoseconds.
const REFRESH_NANOS: u64 = 15_085;

/// Interrupts come no faster than this, whatever the guest programs.
const MIN_PERIOD: u64 = 100_000;

#[derive(Debug)]
struct State {
    counters: [Counter; 3],
    port_b: u8,
    /// When the output of counter 0 rises next.
    next: Option<u64>,
}

/// The 8254.
pub struct Pit {
    clock: Clock,
    line: Arc<dyn Line>,
    state: Mutex<State>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Pit {
    /// Makes an unprogrammed timer whose counter 0 drives `line`.
    pub fn new(clock: Clock, line: Arc<dyn Line>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            line,
            state: Mutex::new(State {
                counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
                port_b: 0,
                next: None,
            }),
            wake: OnceLock::new(),
        })
    }

    fn read_port(&self, port: u16) -> u8 {
        let now = self.clock.now();
        let mut state = self.state.lock();
        match port {
            FIRST..CONTROL => state.counters[usize::from(port - FIRST)].read(now),
            PORT_B => {
                let refresh = if (now / REFRESH_NANOS) & 1 != 0 {
                    REFRESH
                } else {
                    0
                };
                let output = if state.counters[2].output(now) {
                    OUTPUT_2
                } else {
                    0
                };
                state.port_b & WRITABLE | refresh | output
            }
            _ => 0xff,
        }
    }

    fn write_port(&self, port: u16, value: u8) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        match port {
            FIRST..CONTROL => state.counters[usize::from(port - FIRST)].write(value, now),
            CONTROL => control(&mut state, value, now),
            PORT_B => {
                state.port_b = value & (WRITABLE | SPEAKER);
                state.counters[2].set_gate(value & GATE_2 != 0, now);
            }
            _ => {}
        }
        let next = state.counters[0].next_rise(now);
        if port != PORT_B && next != state.next {
            state.next = next;
            drop(state);
            if let Some(wake) = self.wake.get() {
                wake();
            }
        }
    }
}

/// The control port: a mode, a latch, or a read-back command.
fn control(state: &mut State, value: u8, now: u64) {
    match (value >> 6, value >> 4 & 3) {
        (3, _) => {
            for (index, counter) in state.counters.iter_mut().enumerate() {
                if value & 2 << index == 0 {
                    continue;
                }
                // Bits 4 and 5 are active low: status and count.
                if value & 1 << 5 == 0 {
                    counter.latch(now);
                }
                if value & 1 << 4 == 0 {
                    counter.latch_status(now);
                }
            }
        }
        (index, 0) => state.counters[usize::from(index)].latch(now),
        (index, _) => state.counters[usize::from(index)].set_mode(value),
    }
}

impl Timer for Pit {
    fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        // One owner sleeps for the timer; a second would be a bug, and the first is served.
        let _ = self.wake.set(wake);
    }

    fn next_event(&self) -> Option<u64> {
        self.state.lock().next
    }

    /// Edges that were missed are merged into one.
    fn tick(&self, now: u64) {
        let due = {
            let mut state = self.state.lock();
            let due = state.next.is_some_and(|at| at <= now);
            if due {
                let next = state.counters[0].next_rise(now);
                state.next = next.map(|at| at.max(now.saturating_add(MIN_PERIOD)));
            }
            due
        };
        if due {
            self.line.pulse();
        }
    }
}

impl DevicePio for Pit {
    /// The chip is eight bits wide: each byte of a wider access is a port of its own.
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        for (port, byte) in (base.0.wrapping_add(offset)..).zip(data) {
            *byte = self.read_port(port);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        for (port, byte) in (base.0.wrapping_add(offset)..).zip(data) {
            self.write_port(port, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Counting(AtomicU32);

    impl Line for Counting {
        fn set(&self, high: bool) {
            self.0.fetch_add(u32::from(high), Ordering::Relaxed);
        }
    }

    fn out(pit: &Pit, port: u16, value: u8) {
        pit.pio_write(PioAddress(port), 0, &[value]);
    }

    #[test]
    fn counter_0_pulses_its_line_once_a_period() {
        let line = Arc::new(Counting::default());
        let pit = Pit::new(Clock::start(), line.clone());
        assert_eq!(pit.next_event(), None);
        out(&pit, 0x43, 0x34);
        out(&pit, 0x40, 0x9c);
        out(&pit, 0x40, 0x2e); // 11932: 10 ms
        let first = pit.next_event().unwrap();
        pit.tick(first - 1);
        assert_eq!(line.0.load(Ordering::Relaxed), 0);
        pit.tick(first);
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        let second = pit.next_event().unwrap();
        assert!((9_999_000..10_001_000).contains(&(second - first)));
        pit.tick(second + 55_000_000);
        assert_eq!(
            line.0.load(Ordering::Relaxed),
            2,
            "missed periods are merged"
        );
    }

    #[test]
    fn a_tiny_period_is_served_at_the_minimum() {
        let pit = Pit::new(Clock::start(), Arc::new(Counting::default()));
        out(&pit, 0x43, 0x14);
        out(&pit, 0x40, 1);
        let first = pit.next_event().unwrap();
        pit.tick(first);
        assert_eq!(pit.next_event(), Some(first + MIN_PERIOD));
    }

    #[test]
    fn programming_wakes_the_owner() {
        let pit = Pit::new(Clock::start(), Arc::new(Counting::default()));
        let woken = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&woken);
        pit.set_wake(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        out(&pit, 0x43, 0x14);
        out(&pit, 0x40, 100);
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn port_0x61_gates_counter_2_and_shows_its_output() {
        let pit = Pit::new(Clock::start(), Arc::new(Counting::default()));
        out(&pit, 0x61, 1);
        out(&pit, 0x43, 0xb0);
        out(&pit, 0x42, 1);
        out(&pit, 0x42, 0);
        std::thread::sleep(std::time::Duration::from_millis(1));
        let mut port = [0];
        pit.pio_read(PioAddress(0x61), 0, &mut port);
        assert_eq!(port[0] & (OUTPUT_2 | GATE_2), OUTPUT_2 | GATE_2);
    }
}
