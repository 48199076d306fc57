//! One counter of an 8254, as a function of time (8254 data sheet, "Mode Definitions").
//!
//! Nothing counts: the counter remembers since when it runs and computes count and output for any
//! later moment. Modes 0 and 4 pause while the gate is low; 1 and 5 start at its rising edge; 2 and
//! 3 stop with the output high while it is low and start over when it rises.

/// Input clock of the counters in a PC, in Hz.
pub const HZ: u64 = 1_193_182;
const NANOS: u64 = 1_000_000_000;

/// How a sixteen-bit value passes through the eight-bit port ("Control Word Format", RW).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Low,
    High,
    Both,
}

/// One counter.
#[derive(Clone, Debug)]
pub struct Counter {
    mode: u8,
    bcd: bool,
    width: Width,
    /// The reload value, 1 to 65536 (10000 in BCD); `None` before it was written.
    count: Option<u32>,
    gate: bool,
    /// Input clocks counted before `since`.
    elapsed: u64,
    /// Since when it counts; `None` while it does not.
    since: Option<u64>,
    first_byte: Option<u8>,
    read_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

fn clocks(nanos: u64) -> u64 {
    // 584 years of nanoseconds times the frequency fit 128 bits, and the quotient 64.
    (u128::from(nanos) * u128::from(HZ) / u128::from(NANOS)) as u64
}

/// The first nanosecond at which `clocks` input clocks are over.
fn nanos(clocks: u64) -> u64 {
    (u128::from(clocks) * u128::from(NANOS)).div_ceil(u128::from(HZ)) as u64
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| {
        sum * 10 + u32::from(value >> (4 * digit) & 0xf)
    })
}

fn to_bcd(value: u32) -> u16 {
    (0..4).fold(0, |bcd, digit| {
        bcd | ((value / 10u32.pow(digit) % 10) as u16) << (4 * digit)
    })
}

impl Counter {
    /// A counter that nobody has programmed.
    pub fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            width: Width::Both,
            count: None,
            gate,
            elapsed: 0,
            since: None,
            first_byte: None,
            read_high: false,
            latched: None,
            latched_status: None,
        }
    }

    /// Writes the mode part of a control word; `access` is not zero.
    pub fn set_mode(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = Self {
            // 6 and 7 are other names of 2 and 3.
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: control & 1 != 0,
            width: match control >> 4 & 3 {
                1 => Width::Low,
                2 => Width::High,
                _ => Width::Both,
            },
            ..Self::new(self.gate)
        };
    }

    /// Writes a byte of the count.
    pub fn write(&mut self, value: u8, now: u64) {
        let word = match self.width {
            Width::Low => u16::from(value),
            Width::High => u16::from(value) << 8,
            Width::Both => match self.first_byte.take() {
                None => {
                    self.first_byte = Some(value);
                    if self.mode == 0 {
                        // "Writing the first byte disables counting."
                        self.since = None;
                    }
                    return;
                }
                Some(low) => u16::from_le_bytes([low, value]),
            },
        };
        self.load(word, now);
    }

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn load(&mut self, word: u16, now: u64) {
        let value = if self.bcd {
            from_bcd(word)
        } else {
            u32::from(word)
        };
        let first = self.count.is_none();
        // A count of zero is the largest one.
        self.count = Some(if value == 0 { self.modulus() } else { value });
        match self.mode {
            0 | 4 => {
                self.elapsed = 0;
                self.since = self.gate.then_some(now);
            }
            // A running rate generator takes the new count at the end of its period; starting the
            // new period now differs by less than one period.
            2 | 3 => {
                self.elapsed = 0;
                self.since = self.gate.then_some(now);
            }
            _ if first => self.since = None,
            _ => {}
        }
    }

    /// Drives the gate.
    pub fn set_gate(&mut self, high: bool, now: u64) {
        if high == self.gate {
            return;
        }
        self.gate = high;
        match (self.mode, high) {
            (0 | 4, true) => self.since = self.count.map(|_| now),
            (0 | 4, false) => {
                self.elapsed = self.clocks(now);
                self.since = None;
            }
            (1 | 5, true) | (2 | 3, true) => {
                self.elapsed = 0;
                self.since = self.count.map(|_| now);
            }
            (2 | 3, false) => {
                self.elapsed = 0;
                self.since = None;
            }
            _ => {}
        }
    }

    /// Input clocks since the count was loaded or triggered.
    fn clocks(&self, now: u64) -> u64 {
        self.elapsed
            + self
                .since
                .map_or(0, |since| clocks(now.saturating_sub(since)))
    }

    /// Returns the level of the output.
    pub fn output(&self, now: u64) -> bool {
        let Some(count) = self.count else {
            return self.mode != 0;
        };
        let (count, passed) = (u64::from(count), self.clocks(now));
        let idle = self.since.is_none() && self.elapsed == 0;
        match self.mode {
            0 => passed >= count,
            1 => idle || passed >= count,
            2 => idle || passed % count != count - 1,
            3 => idle || passed % count < count.div_ceil(2),
            _ => idle || passed != count,
        }
    }

    /// Returns the counting element as the guest reads it.
    fn current(&self, now: u64) -> u16 {
        let modulus = u64::from(self.modulus());
        let count = u64::from(self.count.unwrap_or(0));
        let passed = self.clocks(now);
        let value = match self.mode {
            _ if count == 0 => 0,
            2 => count - passed % count,
            // Mode 3 counts by two.
            3 => count - 2 * passed % count,
            _ => (count + modulus - passed % modulus) % modulus,
        };
        if self.bcd {
            to_bcd((value % modulus) as u32)
        } else {
            value as u16
        }
    }

    /// Latches the count ("Counter Latch Command"); a second latch before the read is ignored.
    pub fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.current(now));
        }
    }

    /// Latches the status ("Read-Back Command").
    pub fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let width = match self.width {
                Width::Low => 1,
                Width::High => 2,
                Width::Both => 3,
            };
            let null = u8::from(self.count.is_none());
            self.latched_status = Some(
                u8::from(self.output(now)) << 7
                    | null << 6
                    | width << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    /// Reads a byte: the latched status, then the latched or the running count.
    pub fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched
            .unwrap_or_else(|| self.current(now))
            .to_le_bytes();
        let (byte, last) = match self.width {
            Width::Low => (low, true),
            Width::High => (high, true),
            Width::Both => {
                self.read_high = !self.read_high;
                if self.read_high {
                    (low, false)
                } else {
                    (high, true)
                }
            }
        };
        if last {
            self.latched = None;
        }
        byte
    }

    /// Returns when the output rises next after `now`, in nanoseconds.
    pub fn next_rise(&self, now: u64) -> Option<u64> {
        let (count, since) = (u64::from(self.count?), self.since?);
        let passed = self.clocks(now);
        let at = match self.mode {
            0 | 1 => (passed < count).then_some(count)?,
            2 | 3 => (passed / count + 1) * count,
            _ => (passed <= count).then_some(count + 1)?,
        };
        Some(since.saturating_add(nanos(at - self.elapsed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter in `mode` with a count of 1000 loaded at time zero.
    fn loaded(mode: u8) -> Counter {
        let mut counter = Counter::new(true);
        counter.set_mode(0x30 | mode << 1);
        counter.write(0xe8, 0);
        counter.write(0x03, 0);
        counter
    }

    /// The first nanosecond of input clock `n`.
    fn at(n: u64) -> u64 {
        nanos(n)
    }

    #[test]
    fn mode_0_rises_at_terminal_count_and_stays() {
        let counter = loaded(0);
        assert!(!counter.output(at(999)));
        assert!(counter.output(at(1000)) && counter.output(at(70_000)));
        assert_eq!(counter.next_rise(0), Some(at(1000)));
        assert_eq!(counter.next_rise(at(1000)), None);
    }

    #[test]
    fn mode_1_is_a_pulse_from_the_gate_on() {
        let mut counter = Counter::new(false);
        counter.set_mode(0x32);
        counter.write(0xe8, 0);
        counter.write(0x03, 0);
        assert!(counter.output(at(5000)));
        counter.set_gate(true, at(5000));
        assert!(!counter.output(at(5500)));
        assert!(counter.output(at(6001)));
    }

    #[test]
    fn mode_2_is_low_for_one_clock_a_period() {
        let counter = loaded(2);
        let low: Vec<u64> = (0..3000).filter(|n| !counter.output(at(*n))).collect();
        assert_eq!(low, [999, 1999, 2999]);
        assert_eq!(counter.next_rise(at(1500)), Some(at(2000)));
    }

    #[test]
    fn mode_3_is_a_square_wave() {
        let counter = loaded(3);
        assert!(counter.output(at(499)) && !counter.output(at(500)));
        assert!(!counter.output(at(999)) && counter.output(at(1000)));
    }

    #[test]
    fn mode_4_strobes_once() {
        let counter = loaded(4);
        let low: Vec<u64> = (0..5000).filter(|n| !counter.output(at(*n))).collect();
        assert_eq!(low, [1000]);
    }

    #[test]
    fn the_gate_pauses_mode_0() {
        let mut counter = loaded(0);
        counter.set_gate(false, at(400));
        assert_eq!(counter.current(at(9000)), 600);
        counter.set_gate(true, at(9000));
        assert!(!counter.output(at(9590)));
        assert!(counter.output(at(9601)));
    }

    #[test]
    fn a_latched_count_stands_still_until_read() {
        let mut counter = loaded(2);
        counter.latch(at(100));
        counter.latch(at(300));
        assert_eq!([counter.read(at(500)), counter.read(at(500))], [0x84, 0x03]);
        assert_eq!(counter.read(at(500)), 0xf4);
    }

    #[test]
    fn the_status_tells_output_null_count_and_mode() {
        let mut counter = Counter::new(true);
        counter.set_mode(0x34);
        counter.latch_status(0);
        assert_eq!(counter.read(0), 0xf4);
        counter.write(0, 0);
        counter.write(0, 0);
        counter.latch_status(0);
        assert_eq!(counter.read(0), 0xb4);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut counter = Counter::new(true);
        counter.set_mode(0x31);
        counter.write(0x00, 0);
        counter.write(0x10, 0);
        assert_eq!(counter.current(at(1)), 0x0999);
        assert_eq!(counter.current(at(1001)), 0x9999);
    }

    #[test]
    fn a_count_of_zero_is_the_largest() {
        let mut counter = Counter::new(true);
        counter.set_mode(0x30);
        counter.write(0, 0);
        counter.write(0, 0);
        assert_eq!(counter.next_rise(0), Some(at(0x1_0000)));
    }
}
