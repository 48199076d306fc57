//! The CMOS clock and the memory beside it (MC146818A; PC/AT Technical Reference).
//!
//! The time is the host's, in UTC, plus whatever the guest has set it off by. Alarms and the
//! periodic interrupt do not exist: the interrupt flags read as zero, and nobody is wired to
//! interrupt 8.

mod date;

use std::time::Duration;

use parking_lot::Mutex;
use umbra_clock::Clock;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use date::Date;

/// Registers.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Status A: an update is less than 244 µs away.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const BEFORE_UPDATE: Duration = Duration::from_micros(1_000_000 - 244);
/// Status B: updates stopped, binary instead of BCD, 24 instead of 12 hours.
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Status D: the battery is good.
const VALID: u8 = 1 << 7;
const PM: u8 = 1 << 7;

/// How much RAM the memory beside the clock tells firmware and old kernels of.
#[derive(Clone, Copy, Debug)]
pub struct MemorySizes {
    /// Bytes of RAM from address zero.
    pub low: u64,
    /// Bytes of RAM from 4 GiB on.
    pub high: u64,
}

struct State {
    index: u8,
    memory: [u8; 128],
    /// What the guest has set the clock off by, in seconds.
    offset: i64,
    /// The time as the guest is setting it, while status B says SET.
    setting: Option<Date>,
}

/// The clock and its memory, at two ports: index and data.
pub struct Cmos {
    now: fn() -> Duration,
    state: Mutex<State>,
}

impl Cmos {
    /// How many ports the device takes.
    pub const PORTS: u16 = 2;

    /// Makes a clock that shows the host's time.
    pub fn new(sizes: MemorySizes) -> Self {
        Self::with_time(sizes, Clock::wall)
    }

    fn with_time(sizes: MemorySizes, now: fn() -> Duration) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_A)] = 0x26; // 32,768 Hz, periodic rate 1,024 Hz
        memory[usize::from(STATUS_B)] = HOURS_24;
        for (at, value) in memory_sizes(sizes) {
            memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        memory[0x5d] = (sizes.high >> 32) as u8;
        Self {
            now,
            state: Mutex::new(State {
                index: 0,
                memory,
                offset: 0,
                setting: None,
            }),
        }
    }

    fn read(&self) -> u8 {
        let state = self.state.lock();
        let (index, now) = (state.index, (self.now)());
        let date = || {
            state
                .setting
                .unwrap_or_else(|| Date::at(now.as_secs() as i64 + state.offset))
        };
        let status_b = state.memory[usize::from(STATUS_B)];
        match index {
            SECONDS => encode(date().second, status_b),
            MINUTES => encode(date().minute, status_b),
            HOURS => encode_hour(date().hour, status_b),
            WEEKDAY => encode(date().weekday(), status_b),
            DAY => encode(date().day, status_b),
            MONTH => encode(date().month, status_b),
            YEAR => encode((date().year % 100) as u8, status_b),
            CENTURY => encode((date().year / 100 % 100) as u8, status_b),
            STATUS_A => {
                let near = now.subsec_nanos() >= BEFORE_UPDATE.subsec_nanos();
                let updating = near && state.setting.is_none();
                state.memory[usize::from(STATUS_A)] | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_C => 0,
            STATUS_D => VALID,
            _ => state.memory[usize::from(index)],
        }
    }

    fn write(&self, value: u8) {
        let mut state = self.state.lock();
        let now = (self.now)().as_secs() as i64;
        let index = state.index;
        match index {
            SECONDS | MINUTES | HOURS | DAY | MONTH | YEAR | CENTURY => state.set_time(value, now),
            // The day of the week follows from the date.
            WEEKDAY | STATUS_C | STATUS_D => {}
            STATUS_A => state.memory[usize::from(index)] = value & !UPDATE_IN_PROGRESS,
            STATUS_B => {
                state.memory[usize::from(index)] = value;
                match (value & SET != 0, state.setting) {
                    (true, None) => state.setting = Some(Date::at(now + state.offset)),
                    (false, Some(date)) => {
                        state.offset = date.seconds() - now;
                        state.setting = None;
                    }
                    _ => {}
                }
            }
            _ => state.memory[usize::from(index)] = value,
        }
    }
}

impl State {
    /// Writes a field of the time: into the time being set, or into the running clock.
    fn set_time(&mut self, value: u8, now: i64) {
        let status_b = self.memory[usize::from(STATUS_B)];
        let mut date = self.setting.unwrap_or_else(|| Date::at(now + self.offset));
        let number = decode(value, status_b);
        match self.index {
            SECONDS => date.second = number,
            MINUTES => date.minute = number,
            HOURS => date.hour = decode_hour(value, status_b),
            DAY => date.day = number,
            MONTH => date.month = number,
            YEAR => date.year = date.year / 100 * 100 + i64::from(number),
            _ => date.year = i64::from(number) * 100 + date.year % 100,
        }
        match self.setting {
            Some(_) => self.setting = Some(date),
            None => self.offset = date.seconds() - now,
        }
    }
}

/// The fields that hold sizes: conventional memory and memory from 1 MiB in KiB, memory from
/// 16 MiB and from 4 GiB in 64 KiB.
fn memory_sizes(sizes: MemorySizes) -> [(usize, u16); 5] {
    let clamp = |units: u64| u16::try_from(units).unwrap_or(u16::MAX);
    let above_1_mib = clamp(sizes.low.saturating_sub(1 << 20) >> 10);
    let above_16_mib = clamp(sizes.low.saturating_sub(16 << 20) >> 16);
    // Three bytes: the highest is set beside these.
    let above_4_gib = (sizes.high >> 16) as u16;
    [
        (0x15, 640),
        (0x17, above_1_mib),
        (0x30, above_1_mib),
        (0x34, above_16_mib),
        (0x5b, above_4_gib),
    ]
}

fn encode(number: u8, status_b: u8) -> u8 {
    if status_b & BINARY != 0 {
        number
    } else {
        ((number / 10) << 4) | (number % 10)
    }
}

fn decode(value: u8, status_b: u8) -> u8 {
    if status_b & BINARY != 0 {
        value
    } else {
        (value >> 4) * 10 + (value & 0xf)
    }
}

fn encode_hour(hour: u8, status_b: u8) -> u8 {
    if status_b & HOURS_24 != 0 {
        return encode(hour, status_b);
    }
    let pm = if hour >= 12 { PM } else { 0 };
    encode((hour + 11) % 12 + 1, status_b) | pm
}

fn decode_hour(value: u8, status_b: u8) -> u8 {
    if status_b & HOURS_24 != 0 {
        return decode(value, status_b);
    }
    let pm = if value & PM != 0 { 12 } else { 0 };
    decode(value & !PM, status_b) % 12 + pm
}

impl DevicePio for Cmos {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            // The index is write-only.
            *byte = if port == 1 { self.read() } else { 0xff };
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            match port {
                // Bit 7 masks NMI on a PC; nothing here raises one.
                0 => self.state.lock().index = byte & 0x7f,
                _ => self.write(*byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22 19:47:31, a Sunday.
    fn then() -> Duration {
        Duration::from_secs(1_795_376_851)
    }

    fn cmos() -> Cmos {
        Cmos::with_time(
            MemorySizes {
                low: 3 << 30,
                high: 5 << 30,
            },
            then,
        )
    }

    fn get(cmos: &Cmos, index: u8) -> u8 {
        let mut data = [0];
        cmos.pio_write(PioAddress(0x70), 0, &[index]);
        cmos.pio_read(PioAddress(0x70), 1, &mut data);
        data[0]
    }

    fn set(cmos: &Cmos, index: u8, value: u8) {
        cmos.pio_write(PioAddress(0x70), 0, &[index, value]);
    }

    fn time(cmos: &Cmos) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| get(cmos, index))
    }

    #[test]
    fn the_time_reads_in_every_format() {
        let cmos = cmos();
        assert_eq!(time(&cmos), [0x20, 0x26, 0x11, 0x22, 1, 0x19, 0x47, 0x31]);
        set(&cmos, STATUS_B, BINARY | HOURS_24);
        assert_eq!(time(&cmos), [20, 26, 11, 22, 1, 19, 47, 31]);
        set(&cmos, STATUS_B, 0);
        assert_eq!(get(&cmos, HOURS), 0x07 | PM);
    }

    #[test]
    fn a_time_that_was_set_goes_on_from_there() {
        let cmos = cmos();
        set(&cmos, STATUS_B, HOURS_24 | SET);
        for (index, value) in [
            (CENTURY, 0x19),
            (YEAR, 0x99),
            (MONTH, 0x12),
            (DAY, 0x31),
            (HOURS, 0x23),
        ] {
            set(&cmos, index, value);
        }
        set(&cmos, STATUS_B, HOURS_24);
        assert_eq!(time(&cmos), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x47, 0x31]);
    }

    #[test]
    fn nonsense_that_was_set_does_no_harm() {
        let cmos = cmos();
        set(&cmos, STATUS_B, SET | BINARY);
        for index in [SECONDS, MINUTES, HOURS, DAY, MONTH, YEAR, CENTURY] {
            set(&cmos, index, 0xff);
        }
        set(&cmos, STATUS_B, 0);
        time(&cmos);
    }

    #[test]
    fn status_registers_read_as_the_data_sheet_says() {
        let cmos = cmos();
        assert_eq!(
            [STATUS_A, STATUS_B, STATUS_C, STATUS_D].map(|i| get(&cmos, i)),
            [0x26, 2, 0, 0x80]
        );
        let late = || then() + Duration::from_micros(999_900);
        let cmos = Cmos::with_time(MemorySizes { low: 0, high: 0 }, late);
        assert_eq!(get(&cmos, STATUS_A), 0xa6);
    }

    #[test]
    fn memory_sizes_are_where_firmware_looks() {
        let cmos = cmos();
        let word = |low: u8| u16::from_le_bytes([get(&cmos, low), get(&cmos, low + 1)]);
        assert_eq!((word(0x15), word(0x17), word(0x30)), (640, 0xffff, 0xffff));
        assert_eq!(u64::from(word(0x34)) << 16, (3 << 30) - (16 << 20));
        let high = u64::from(word(0x5b)) | u64::from(get(&cmos, 0x5d)) << 16;
        assert_eq!(high << 16, 5 << 30);
    }
}
