//! The IOAPIC: 24 pins, a redirection table, two windows into the registers (82093AA, chapter 3).
//!
//! A level-triggered pin sends its message once and then waits, remote IRR set, until a local APIC
//! tells the end of that vector; if the pin is still asserted then, it sends again. An
//! edge-triggered pin sends at each rising edge and forgets edges that come while it is masked
//! (82093AA, 3.2.4, "Interrupt Mask").
//!
//! A line here is *asserted*, not high: the polarity bit of an entry is kept and ignored, as KVM
//! does, because every device of this machine drives the wire that its entry describes.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use umbra_irq::Line;
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::message::{Delivery, Destination, Message, Messages};

/// How many pins the chip has.
pub const PINS: usize = 24;

/// Offsets of the two windows.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

/// Register numbers.
const ID: u32 = 0;
const VERSION: u32 = 1;
const ARBITRATION: u32 = 2;
const TABLE: u32 = 0x10;
const TABLE_END: u32 = TABLE + 2 * PINS as u32;

/// Version 0x11 (82093AA: no EOI register), highest entry 23.
const VERSION_VALUE: u32 = 0x11 | (PINS as u32 - 1) << 16;

/// One entry of the redirection table (82093AA, 3.2.4).
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    const LOGICAL: u64 = 1 << 11;
    /// Delivery status reads as zero: a message is never under way.
    const READ_ONLY: u64 = 1 << 12 | Self::REMOTE_IRR;
    const DEFINED: u64 = 0xff00_0000_0001_ffff & !(1 << 12);

    fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn message(self) -> Option<Message> {
        let delivery = Delivery::from_bits((self.0 >> 8) as u32)?;
        let vectored = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        Some(Message {
            delivery,
            vector: self.vector(),
            // Only vectored messages can be level-triggered: the others have no EOI.
            level: vectored && self.has(Self::LEVEL),
            destination: Destination::from_byte((self.0 >> 56) as u8, self.has(Self::LOGICAL)),
        })
    }

    /// What the pin sends when it is asserted; `None` while it is masked.
    fn route(self) -> Option<Message> {
        if self.has(Self::MASKED) {
            return None;
        }
        self.message()
    }

    /// Replaces the half that `value` is for; read-only bits stay.
    fn write(&mut self, high: bool, value: u32) {
        let (shift, keep) = if high {
            (32, 0xffff_ffff)
        } else {
            (0, !0xffff_ffff)
        };
        let read_only = self.0 & Self::READ_ONLY;
        let new = (self.0 & keep | u64::from(value) << shift) & Self::DEFINED;
        self.0 = new & !Self::READ_ONLY | read_only;
        if !self.has(Self::LEVEL) {
            // An edge-triggered entry has no remote IRR; Linux clears a stuck one that way.
            self.0 &= !Self::REMOTE_IRR;
        }
    }
}

#[derive(Debug)]
struct State {
    select: u8,
    id: u32,
    table: [Entry; PINS],
    /// Which pins are asserted, by bit.
    asserted: u32,
}

impl State {
    fn is_asserted(&self, pin: usize) -> bool {
        self.asserted & 1 << pin != 0
    }

    fn read(&self) -> u32 {
        match u32::from(self.select) {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            n @ TABLE..TABLE_END => {
                let entry = self.table[((n - TABLE) / 2) as usize].0;
                (if n & 1 == 0 { entry } else { entry >> 32 }) as u32
            }
            _ => u32::MAX,
        }
    }
}

/// An IOAPIC.
pub struct IoApic {
    apics: Arc<dyn Messages>,
    state: Mutex<State>,
    routes: OnceLock<RouteListener>,
}

/// See [`IoApic::on_route`].
pub type RouteListener = Box<dyn Fn(usize, Option<Message>) + Send + Sync>;

impl IoApic {
    /// Makes an IOAPIC with every pin masked, that sends to `apics`.
    pub fn new(apics: Arc<dyn Messages>) -> Arc<Self> {
        Arc::new(Self {
            apics,
            state: Mutex::new(State {
                select: 0,
                id: 0,
                table: [Entry(Entry::MASKED); PINS],
                asserted: 0,
            }),
            routes: OnceLock::new(),
        })
    }

    /// Sets who hears what a pin sends from now on, whenever the guest changes it; once. It hears
    /// nothing (`None`) of a pin that is masked, is called with the chip's lock held, and must not
    /// call the chip.
    pub fn on_route(&self, listener: RouteListener) {
        // The chip has one owner, who wires it once.
        let _ = self.routes.set(listener);
    }

    /// Returns pin `number` as a wire, or `None` where the chip has no such pin.
    pub fn line(self: &Arc<Self>, number: u32) -> Option<Arc<dyn Line>> {
        let number = usize::try_from(number).ok().filter(|n| *n < PINS)?;
        Some(Arc::new(Pin {
            chip: Arc::clone(self),
            number,
        }))
    }

    /// Asserts or releases a pin. Pins that do not exist are ignored.
    pub fn set_pin(&self, pin: usize, asserted: bool) {
        if pin >= PINS {
            return;
        }
        let mut state = self.state.lock();
        let was = state.is_asserted(pin);
        state.asserted = state.asserted & !(1 << pin) | u32::from(asserted) << pin;
        if asserted && !was {
            self.send(&mut state, pin);
        }
    }

    /// Hears from a local APIC that a level-triggered vector was finished (82093AA, 3.2.4,
    /// "Remote IRR").
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.state.lock();
        for pin in 0..PINS {
            let entry = &mut state.table[pin];
            if entry.vector() == vector && entry.has(Entry::LEVEL) {
                // Also without remote IRR: another pin's interrupt with the same vector may have
                // been in the way of this one's message.
                entry.0 &= !Entry::REMOTE_IRR;
                self.send_if_level(&mut state, pin);
            }
        }
    }

    fn send_if_level(&self, state: &mut State, pin: usize) {
        if state.table[pin].has(Entry::LEVEL) && state.is_asserted(pin) {
            self.send(state, pin);
        }
    }

    /// Sends the message of an asserted pin unless it is masked or still waits for its end.
    fn send(&self, state: &mut State, pin: usize) {
        let entry = state.table[pin];
        if entry.has(Entry::REMOTE_IRR) {
            return;
        }
        let Some(message) = entry.route() else {
            return;
        };
        if self.apics.deliver(&message) && message.level {
            state.table[pin].0 |= Entry::REMOTE_IRR;
        }
    }

    fn write_window(&self, value: u32) {
        let mut state = self.state.lock();
        match u32::from(state.select) {
            ID => state.id = value & 0x0f00_0000,
            n @ TABLE..TABLE_END => {
                let pin = ((n - TABLE) / 2) as usize;
                let entry = &mut state.table[pin];
                let before = entry.route();
                entry.write(n & 1 != 0, value);
                let route = entry.route();
                if route != before
                    && let Some(listener) = self.routes.get()
                {
                    listener(pin, route);
                }
                self.send_if_level(&mut state, pin);
            }
            _ => {}
        }
    }
}

impl DeviceMmio for IoApic {
    /// Registers are 32 bits wide (82093AA, 3.1); a wider read finds zeros beyond them.
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            IOREGSEL => u32::from(self.state.lock().select),
            IOWIN => self.state.lock().read(),
            _ => return,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// The selector takes any width; the window only whole registers.
    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        match (offset, data) {
            (IOREGSEL, [select, ..]) => self.state.lock().select = *select,
            (IOWIN, [a, b, c, d, ..]) => self.write_window(u32::from_le_bytes([*a, *b, *c, *d])),
            _ => {}
        }
    }
}

/// One pin as a wire.
struct Pin {
    chip: Arc<IoApic>,
    number: usize,
}

impl Line for Pin {
    fn set(&self, high: bool) {
        self.chip.set_pin(self.number, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::LocalApic;
    use crate::apics::Apics;
    use umbra_clock::Clock;

    const VECTOR: u8 = 0x41;

    struct Bench {
        chip: Arc<IoApic>,
        apic: Arc<LocalApic>,
    }

    fn bench() -> Bench {
        let apics = Apics::new(1, Clock::start());
        let chip = IoApic::new(apics.clone());
        let listener = Arc::downgrade(&chip);
        apics.on_end_of_interrupt(Box::new(move |vector| {
            if let Some(chip) = listener.upgrade() {
                chip.end_of_interrupt(vector);
            }
        }));
        let apic = apics.apic(0);
        apic.mmio_write(0xf0, 0x1ff);
        Bench { chip, apic }
    }

    impl Bench {
        fn register(&self, number: u8) -> u32 {
            let mut data = [0; 4];
            self.chip.mmio_write(MmioAddress(0), IOREGSEL, &[number]);
            self.chip.mmio_read(MmioAddress(0), IOWIN, &mut data);
            u32::from_le_bytes(data)
        }

        fn set_register(&self, number: u8, value: u32) {
            self.chip.mmio_write(MmioAddress(0), IOREGSEL, &[number]);
            self.chip
                .mmio_write(MmioAddress(0), IOWIN, &value.to_le_bytes());
        }

        /// Programs pin 5.
        fn entry(&self, low: u64) {
            self.set_register(0x1b, (low >> 32) as u32);
            self.set_register(0x1a, low as u32 | u32::from(VECTOR));
        }

        fn takes(&self) -> bool {
            self.apic.acknowledge() == Some(VECTOR)
        }

        fn ends(&self) {
            self.apic.mmio_write(0xb0, 0);
        }
    }

    #[test]
    fn it_is_an_82093aa_with_24_masked_pins() {
        let bench = bench();
        assert_eq!(bench.register(1), 0x0017_0011);
        for pin in 0..24 {
            assert_eq!(bench.register(0x10 + 2 * pin), 0x1_0000);
            assert_eq!(bench.register(0x11 + 2 * pin), 0);
        }
        assert_eq!(bench.register(0x40), u32::MAX);
    }

    #[test]
    fn an_edge_sends_once_and_needs_no_end() {
        let bench = bench();
        bench.entry(0);
        bench.chip.set_pin(5, true);
        assert!(bench.takes());
        bench.ends();
        assert!(!bench.takes());
        bench.chip.set_pin(5, false);
        bench.chip.set_pin(5, true);
        assert!(bench.takes());
    }

    #[test]
    fn an_edge_while_masked_is_lost() {
        let bench = bench();
        bench.entry(Entry::MASKED);
        bench.chip.set_pin(5, true);
        bench.entry(0);
        assert!(!bench.takes());
    }

    #[test]
    fn a_level_waits_for_its_end_and_comes_back_while_asserted() {
        let bench = bench();
        bench.entry(Entry::LEVEL);
        bench.chip.set_pin(5, true);
        assert_ne!(bench.register(0x1a) as u64 & Entry::REMOTE_IRR, 0);
        assert!(bench.takes());
        bench.chip.set_pin(5, false);
        bench.chip.set_pin(5, true);
        assert!(!bench.takes(), "remote IRR holds it back");
        bench.ends();
        assert!(bench.takes(), "still asserted at the end of interrupt");
        bench.chip.set_pin(5, false);
        bench.ends();
        assert!(!bench.takes());
        assert_eq!(bench.register(0x1a) as u64 & Entry::REMOTE_IRR, 0);
    }

    #[test]
    fn a_level_while_masked_is_sent_when_unmasked() {
        let bench = bench();
        bench.entry(Entry::LEVEL | Entry::MASKED);
        bench.chip.set_pin(5, true);
        assert!(!bench.takes());
        bench.entry(Entry::LEVEL);
        assert!(bench.takes());
    }

    #[test]
    fn remote_irr_is_read_only_and_goes_with_level_mode() {
        let bench = bench();
        bench.entry(Entry::LEVEL | Entry::REMOTE_IRR);
        assert_eq!(
            bench.register(0x1a) as u64 & Entry::REMOTE_IRR,
            0,
            "cannot be set"
        );
        bench.chip.set_pin(5, true);
        bench.entry(Entry::LEVEL);
        assert_ne!(
            bench.register(0x1a) as u64 & Entry::REMOTE_IRR,
            0,
            "cannot be cleared"
        );
        bench.entry(Entry::MASKED);
        bench.entry(Entry::MASKED | Entry::LEVEL);
        assert_eq!(bench.register(0x1a) as u64 & Entry::REMOTE_IRR, 0);
    }

    #[test]
    fn a_message_to_nobody_leaves_no_remote_irr() {
        let bench = bench();
        bench.entry(Entry::LEVEL | 7 << 56);
        bench.chip.set_pin(5, true);
        assert_eq!(bench.register(0x1a) as u64 & Entry::REMOTE_IRR, 0);
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let bench = bench();
        let mut data = [0xaa; 8];
        bench.chip.mmio_read(MmioAddress(0), 4, &mut data);
        assert_eq!(data, [0; 8]);
        bench.chip.mmio_write(MmioAddress(0), IOWIN, &[1]);
        bench.chip.mmio_write(MmioAddress(0), IOREGSEL, &[]);
        bench.chip.set_pin(24, true);
        assert!(bench.chip.line(24).is_none());
    }
}
