//! The two 8259A interrupt controllers of a PC and their edge/level registers.
//!
//! Ports 0x20–0x21 and 0xa0–0xa1 are the two chips (8259A data sheet), 0x4d0–0x4d1 choose edge or
//! level for each input (82371SB, 3.3). The slave's output is the master's input 2.
//!
//! One leniency, shared with KVM and QEMU: an edge-triggered input that falls before it was
//! acknowledged stays requested. The data sheet answers such a request with vector 7; pulses as
//! short as a function call would then be lost.

mod chip;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use chip::Chip8259;

/// The master's input to which the slave is wired.
const CASCADE: u8 = 2;
/// What a chip answers when the request has gone away.
const SPURIOUS: u8 = 7;

#[derive(Debug)]
struct Pair {
    master: Chip8259,
    slave: Chip8259,
}

impl Pair {
    /// Brings the cascade up to date; tells the level of the master's output.
    fn settle(&mut self) -> bool {
        let slave = self.slave.request().is_some();
        self.master.set_input(CASCADE, slave);
        self.master.request().is_some()
    }

    /// Returns the vector that an acknowledge cycle would get.
    fn vector(&self) -> u8 {
        match self.master.request() {
            None => self.master.vector(SPURIOUS),
            Some(CASCADE) => self.slave.vector(self.slave.request().unwrap_or(SPURIOUS)),
            Some(input) => self.master.vector(input),
        }
    }

    /// One acknowledge cycle: two INTA pulses (8259A, "Interrupt Sequence").
    fn acknowledge(&mut self) -> u8 {
        let vector = self.vector();
        match self.master.request() {
            None => {}
            Some(CASCADE) => {
                if let Some(input) = self.slave.request() {
                    self.slave.acknowledge(input);
                }
                self.master.acknowledge(CASCADE);
            }
            Some(input) => self.master.acknowledge(input),
        }
        vector
    }
}

/// The pair of 8259A.
pub struct Pic {
    pair: Mutex<Pair>,
    /// The master's output.
    intr: AtomicBool,
    changed: OnceLock<Box<dyn Fn(bool) + Send + Sync>>,
}

impl Pic {
    /// Makes a pair in its state after power-up: nothing is requested before it is programmed.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            pair: Mutex::new(Pair {
                master: Chip8259::new(true, 0xf8),
                slave: Chip8259::new(false, 0xde),
            }),
            intr: AtomicBool::new(false),
            changed: OnceLock::new(),
        })
    }

    /// Sets who hears that the output changed; once. Called without any lock held.
    pub(crate) fn on_change(&self, listener: Box<dyn Fn(bool) + Send + Sync>) {
        // The output is one wire: the first listener stays.
        let _ = self.changed.set(listener);
    }

    /// Returns the level of the output, INTR. One load.
    pub fn intr(&self) -> bool {
        self.intr.load(Ordering::Acquire)
    }

    /// Returns the vector that [`Pic::acknowledge`] would return, and changes nothing.
    pub fn peek(&self) -> u8 {
        self.pair.lock().vector()
    }

    /// Runs an acknowledge cycle and returns the vector; the spurious one if nothing is requested.
    pub fn acknowledge(&self) -> u8 {
        self.with(Pair::acknowledge)
    }

    /// Drives input `number`, 0 to 15. Input 2 is the cascade and cannot be driven.
    pub fn set_input(&self, number: u8, high: bool) {
        match number {
            CASCADE => {}
            0..8 => self.with(|pair| pair.master.set_input(number, high)),
            8..16 => self.with(|pair| pair.slave.set_input(number - 8, high)),
            _ => {}
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Pair) -> R) -> R {
        let (result, changed, level) = {
            let mut pair = self.pair.lock();
            let result = f(&mut pair);
            let level = pair.settle();
            // Stored under the lock, so that the last store is the last level; listeners look at
            // the level themselves, so their order does not matter.
            (
                result,
                self.intr.swap(level, Ordering::AcqRel) != level,
                level,
            )
        };
        if changed && let Some(listener) = self.changed.get() {
            listener(level);
        }
        result
    }

    fn read_port(&self, port: u16) -> u8 {
        self.with(|pair| match port {
            0x20 => pair.master.read_command(),
            0x21 => pair.master.read_data(),
            0xa0 => pair.slave.read_command(),
            0xa1 => pair.slave.read_data(),
            0x4d0 => pair.master.levels(),
            0x4d1 => pair.slave.levels(),
            _ => 0xff,
        })
    }

    fn write_port(&self, port: u16, value: u8) {
        self.with(|pair| match port {
            0x20 => pair.master.write_command(value),
            0x21 => pair.master.write_data(value),
            0xa0 => pair.slave.write_command(value),
            0xa1 => pair.slave.write_data(value),
            0x4d0 => pair.master.set_levels(value),
            0x4d1 => pair.slave.set_levels(value),
            _ => {}
        });
    }
}

impl DevicePio for Pic {
    /// The chips are eight bits wide: each byte of a wider access is a port of its own.
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

    fn out(pic: &Pic, port: u16, value: u8) {
        pic.pio_write(PioAddress(port), 0, &[value]);
    }

    fn inb(pic: &Pic, port: u16) -> u8 {
        let mut data = [0];
        pic.pio_read(PioAddress(port), 0, &mut data);
        data[0]
    }

    /// Programs the pair as a PC's firmware does: vectors 0x20 and 0x28, nothing masked.
    fn programmed(icw4: u8) -> Arc<Pic> {
        let pic = Pic::new();
        for (base, vector, wiring) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            out(&pic, base, 0x11);
            out(&pic, base + 1, vector);
            out(&pic, base + 1, wiring);
            out(&pic, base + 1, icw4);
            out(&pic, base + 1, 0);
        }
        pic
    }

    #[test]
    fn lower_inputs_have_priority_and_nest() {
        let pic = programmed(1);
        pic.set_input(4, true);
        pic.set_input(1, true);
        assert!(pic.intr());
        assert_eq!(pic.peek(), 0x21);
        assert_eq!(pic.acknowledge(), 0x21);
        assert!(!pic.intr(), "input 4 waits for the end of input 1");
        out(&pic, 0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn the_slave_comes_through_input_two() {
        let pic = programmed(1);
        pic.set_input(12, true);
        assert_eq!(pic.acknowledge(), 0x2c);
        out(&pic, 0x20, 0x0b);
        assert_eq!(inb(&pic, 0x20), 1 << CASCADE, "in service in the master");
        out(&pic, 0xa0, 0x20);
        out(&pic, 0x20, 0x20);
        assert_eq!(inb(&pic, 0x20), 0);
    }

    #[test]
    fn an_edge_requests_once() {
        let pic = programmed(1);
        pic.set_input(3, true);
        pic.acknowledge();
        out(&pic, 0x20, 0x20);
        assert!(!pic.intr());
        pic.set_input(3, false);
        pic.set_input(3, true);
        assert!(pic.intr());
    }

    #[test]
    fn a_level_requests_until_it_falls() {
        let pic = programmed(1);
        out(&pic, 0x4d0, 0xff);
        assert_eq!(
            inb(&pic, 0x4d0),
            0xf8,
            "inputs 0 to 2 are always edge-triggered"
        );
        pic.set_input(3, true);
        pic.acknowledge();
        out(&pic, 0x20, 0x20);
        assert!(pic.intr());
        pic.set_input(3, false);
        assert!(!pic.intr());
    }

    #[test]
    fn a_request_that_went_away_is_answered_with_input_seven() {
        let pic = programmed(1);
        assert_eq!(pic.acknowledge(), 0x27);
        out(&pic, 0x20, 0x0b);
        assert_eq!(inb(&pic, 0x20), 0, "and is not in service");
    }

    #[test]
    fn masked_inputs_wait() {
        let pic = programmed(1);
        out(&pic, 0x21, 1 << 3);
        pic.set_input(3, true);
        assert!(!pic.intr());
        assert_eq!(inb(&pic, 0x20), 1 << 3, "IRR shows it");
        out(&pic, 0x21, 0);
        assert!(pic.intr());
    }

    #[test]
    fn automatic_end_of_interrupt_leaves_nothing_in_service() {
        let pic = programmed(3);
        pic.set_input(3, true);
        assert_eq!(pic.acknowledge(), 0x23);
        out(&pic, 0x20, 0x0b);
        assert_eq!(inb(&pic, 0x20), 0);
    }

    #[test]
    fn rotation_makes_the_served_input_the_lowest() {
        let pic = programmed(1);
        pic.set_input(3, true);
        pic.acknowledge();
        out(&pic, 0x20, 0xa0); // rotate on non-specific EOI
        pic.set_input(4, true);
        pic.set_input(1, true);
        assert_eq!(pic.acknowledge(), 0x24);
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_through() {
        let pic = programmed(1);
        pic.set_input(1, true);
        pic.acknowledge();
        pic.set_input(5, true);
        assert!(!pic.intr());
        out(&pic, 0x21, 1 << 1);
        out(&pic, 0x20, 0x68);
        assert_eq!(pic.acknowledge(), 0x25);
    }

    #[test]
    fn polling_is_an_acknowledge_cycle_by_read() {
        let pic = programmed(1);
        out(&pic, 0x20, 0x0c);
        assert_eq!(inb(&pic, 0x20), 0);
        pic.set_input(6, true);
        out(&pic, 0x20, 0x0c);
        assert_eq!(inb(&pic, 0x20), 0x86);
        out(&pic, 0x20, 0x0b);
        assert_eq!(inb(&pic, 0x20), 1 << 6);
    }

    #[test]
    fn an_unprogrammed_pair_requests_nothing() {
        let pic = Pic::new();
        pic.set_input(0, true);
        assert!(!pic.intr());
    }
}
