//! The controllers of a PC, wired to each other.

use std::sync::Arc;

use umbra_clock::Clock;
use umbra_irq::{Chip, Controller, Line};

use crate::apics::Apics;
use crate::ioapic::{IoApic, PINS};
use crate::message::Messages;
use crate::pic::Pic;
use crate::pit::Pit;

/// The pin of the IOAPIC to which interrupt 0 is wired; pin 0 takes the output of the 8259 pair.
/// The ACPI tables must say so (an interrupt source override).
const TIMER_PIN: usize = 2;

/// First address of the IOAPIC.
const IOAPIC_START: u64 = 0xfec0_0000;
/// Bytes that it answers to.
const IOAPIC_LEN: u64 = 0x1000;
/// Ports of the 8259 pair and its edge/level registers: first and number.
const PIC_PORTS: [(u16, u16); 3] = [(0x20, 2), (0xa0, 2), (0x4d0, 2)];
/// Ports of the 8254, and of the register that gates its third counter.
const PIT_PORTS: [(u16, u16); 2] = [(0x40, 4), (0x61, 1)];

/// The controllers of a PC outside its processors: IOAPIC, 8259 pair and 8254, wired to each other.
pub struct Chips {
    /// The IOAPIC.
    pub ioapic: Arc<IoApic>,
    /// The 8259 pair.
    pub pic: Arc<Pic>,
    /// The 8254.
    pub pit: Arc<Pit>,
}

impl Chips {
    /// Makes the controllers in front of some local APICs.
    pub fn new(apics: Arc<dyn Messages>, clock: Clock) -> Self {
        let ioapic = IoApic::new(apics);
        let pic = Pic::new();
        let timer = IsaLine {
            pic: Arc::clone(&pic),
            ioapic: Arc::clone(&ioapic),
            number: 0,
        };
        let pit = Pit::new(clock, Arc::new(timer));
        Self { ioapic, pic, pit }
    }

    /// Sets who hears, beside pin 0 of the IOAPIC, that the output of the 8259 pair changed; once.
    /// Called without any lock of these chips.
    pub fn on_pic_change(&self, listener: Box<dyn Fn(bool) + Send + Sync>) {
        // Weak: the chips must not keep each other alive.
        let ioapic = Arc::downgrade(&self.ioapic);
        self.pic.on_change(Box::new(move |level| {
            listener(level);
            if let Some(ioapic) = ioapic.upgrade() {
                ioapic.set_pin(0, level);
            }
        }));
    }

    /// Returns the chips as devices, each at its place in a PC.
    pub fn controllers(&self) -> Vec<Controller> {
        let pic = PIC_PORTS.map(|(first, len)| Controller::Ports {
            first,
            len,
            device: self.pic.clone(),
        });
        let pit = PIT_PORTS.map(|(first, len)| Controller::Ports {
            first,
            len,
            device: self.pit.clone(),
        });
        let ioapic = Controller::Memory {
            start: IOAPIC_START,
            len: IOAPIC_LEN,
            device: self.ioapic.clone(),
        };
        pic.into_iter().chain(pit).chain([ioapic]).collect()
    }
}

impl Chip for Chips {
    /// Returns the wire of interrupt `number`: below 16 it leads to the 8259 pair and the IOAPIC,
    /// from there to 23 to the IOAPIC alone.
    fn line(&self, number: u32) -> Option<Arc<dyn Line>> {
        match number {
            2 => None,
            0..16 => Some(Arc::new(IsaLine {
                pic: Arc::clone(&self.pic),
                ioapic: Arc::clone(&self.ioapic),
                number: number as u8,
            })),
            _ => self.ioapic.line(number),
        }
    }
}

/// Every controller of one machine, in software.
pub struct Chipset {
    /// The local APICs.
    pub apics: Arc<Apics>,
    /// What is around them.
    pub chips: Chips,
}

impl Chipset {
    /// Makes the controllers for `count` processors.
    pub fn new(count: u32, clock: Clock) -> Self {
        let apics = Apics::new(count, clock);
        let chips = Chips::new(apics.clone(), clock);
        // Weak: the chips must not keep each other alive.
        let listener = Arc::downgrade(&chips.ioapic);
        apics.on_end_of_interrupt(Box::new(move |vector| {
            if let Some(ioapic) = listener.upgrade() {
                ioapic.end_of_interrupt(vector);
            }
        }));
        apics.connect_pic(&chips.pic);
        let to_apics = Arc::downgrade(&apics);
        chips.on_pic_change(Box::new(move |_| {
            if let Some(apics) = to_apics.upgrade() {
                apics.pic_changed();
            }
        }));
        Self { apics, chips }
    }
}

/// An ISA interrupt: one wire to both controllers.
struct IsaLine {
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    number: u8,
}

impl Line for IsaLine {
    fn set(&self, high: bool) {
        self.pic.set_input(self.number, high);
        let pin = if self.number == 0 {
            TIMER_PIN
        } else {
            usize::from(self.number)
        };
        debug_assert!(pin < PINS);
        self.ioapic.set_pin(pin, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_device::bus::{MmioAddress, PioAddress};
    use vm_device::{DeviceMmio, DevicePio};

    /// Programs the master with vectors from 0x20 on and nothing masked.
    fn program_pic(pic: &Pic) {
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
            pic.pio_write(PioAddress(port), 0, &[value]);
        }
    }

    #[test]
    fn virtual_wire_mode_brings_the_8259_to_the_boot_processor() {
        let chipset = Chipset::new(2, Clock::start());
        program_pic(&chipset.chips.pic);
        let (boot, other) = (chipset.apics.apic(0), chipset.apics.apic(1));
        boot.set_virtual_wire();
        chipset.chips.line(4).unwrap().set(true);
        assert!(boot.work() && !other.work());
        assert_eq!(boot.pending(), Some(0x24));
        assert_eq!(boot.acknowledge(), Some(0x24));
        assert!(!boot.work());
    }

    #[test]
    fn the_8259_reaches_a_processor_through_pin_0_as_extint() {
        let chipset = Chipset::new(1, Clock::start());
        program_pic(&chipset.chips.pic);
        let apic = chipset.apics.apic(0);
        apic.mmio_write(0xf0, 0x1ff);
        chipset.chips.ioapic.mmio_write(MmioAddress(0), 0, &[0x10]);
        chipset
            .chips
            .ioapic
            .mmio_write(MmioAddress(0), 0x10, &0x700u32.to_le_bytes());
        chipset.chips.line(1).unwrap().set(true);
        assert_eq!(apic.acknowledge(), Some(0x21));
        assert_eq!(apic.acknowledge(), None);
    }

    #[test]
    fn an_isa_line_reaches_the_ioapic_and_interrupt_0_is_pin_2() {
        let chipset = Chipset::new(1, Clock::start());
        let apic = chipset.apics.apic(0);
        apic.mmio_write(0xf0, 0x1ff);
        for (register, vector) in [(0x14u8, 0x50u32), (0x18, 0x54)] {
            chipset
                .chips
                .ioapic
                .mmio_write(MmioAddress(0), 0, &[register]);
            chipset
                .chips
                .ioapic
                .mmio_write(MmioAddress(0), 0x10, &vector.to_le_bytes());
        }
        chipset.chips.line(0).unwrap().pulse();
        chipset.chips.line(4).unwrap().pulse();
        assert_eq!(apic.acknowledge(), Some(0x54));
        assert_eq!(apic.acknowledge(), None, "0x50 is of the same class");
        apic.mmio_write(0xb0, 0);
        assert_eq!(apic.acknowledge(), Some(0x50));
        assert!(chipset.chips.line(2).is_none() && chipset.chips.line(24).is_none());
    }

    #[test]
    fn dropping_the_chipset_frees_every_chip() {
        let chipset = Chipset::new(2, Clock::start());
        let (apics, ioapic, pic) = (
            Arc::downgrade(&chipset.apics),
            Arc::downgrade(&chipset.chips.ioapic),
            Arc::downgrade(&chipset.chips.pic),
        );
        drop(chipset);
        assert_eq!(
            (
                apics.strong_count(),
                ioapic.strong_count(),
                pic.strong_count()
            ),
            (0, 0, 0)
        );
    }
}
