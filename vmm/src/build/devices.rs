//! The devices of the default platform, each at its place and on its wire.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use umbra_boot::layout::HOLE;
use umbra_bus::{Bus, Ports};
use umbra_clock::Clock;
use umbra_devices::{Cmos, Keyboard, MemorySizes, Power, PowerEvent, PowerListener, Serial};
use umbra_irq::{Chip, Line, Unconnected};
use umbra_irqchip::Chipset;
use umbra_slots::{Gpa, GpaRange};

use crate::console::Output;
use crate::error::BuildError;
use crate::layout;
use crate::policy::{Event, Outcome};

/// What devices are made of.
pub struct Parts<'a> {
    pub chipset: &'a Chipset,
    pub bus: &'a Bus,
    pub ports: &'a Ports,
    pub clock: Clock,
    pub memory: u64,
    pub output: Output,
    pub to_driver: Sender<Event>,
}

/// Adds all devices; returns the one that the console needs.
pub fn add(parts: Parts<'_>) -> Result<Arc<Serial>, BuildError> {
    let Parts {
        chipset,
        bus,
        ports,
        clock,
        memory,
        output,
        to_driver,
    } = parts;
    interrupt_controllers(chipset, bus, ports)?;
    let wake = to_driver.clone();
    chipset.pit.set_wake(Box::new(move || {
        // A driver that has gone needs no timer.
        let _ = wake.send(Event::Timer);
    }));

    let power = listener(to_driver);
    ports.insert(
        layout::POWER,
        Power::PORTS,
        Arc::new(Power::new(clock, power.clone())),
    )?;
    let keyboard = Arc::new(Keyboard::new(power));
    ports.insert(Keyboard::DATA, 1, keyboard.clone())?;
    ports.insert(Keyboard::COMMAND, 1, keyboard)?;

    let low = memory.min(HOLE);
    let sizes = MemorySizes {
        low,
        high: memory - low,
    };
    ports.insert(layout::CMOS, Cmos::PORTS, Arc::new(Cmos::new(sizes)))?;

    let line = chipset.line(layout::SERIAL_INTERRUPT);
    let line = line.unwrap_or_else(|| Arc::new(Unconnected) as Arc<dyn Line>);
    let serial = Arc::new(Serial::new(line, Box::new(output)));
    ports.insert(layout::SERIAL, Serial::PORTS, serial.clone())?;
    Ok(serial)
}

fn interrupt_controllers(chipset: &Chipset, bus: &Bus, ports: &Ports) -> Result<(), BuildError> {
    if let Some(range) = GpaRange::new(Gpa(layout::IOAPIC.into()), layout::IOAPIC_LEN) {
        bus.insert(range, chipset.ioapic.clone())?;
    }
    for (first, len) in layout::PIC {
        ports.insert(first, len, chipset.pic.clone())?;
    }
    for (first, len) in layout::PIT {
        ports.insert(first, len, chipset.pit.clone())?;
    }
    Ok(())
}

/// Tells the driver what the guest asks of the machine.
fn listener(to_driver: Sender<Event>) -> PowerListener {
    Arc::new(move |event| {
        tracing::debug!(?event, "the guest asks");
        let outcome = match event {
            PowerEvent::Off => Outcome::PowerOff,
            PowerEvent::Reset => Outcome::Reset,
        };
        // A driver that has gone is ending the machine already.
        let _ = to_driver.send(Event::End(outcome));
    })
}
