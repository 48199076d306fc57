//! The devices of the default platform, each at its place and on its wire.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use umbra_boot::layout::HOLE;
use umbra_bus::{Bus, PioDevice, Ports};
use umbra_clock::Clock;
use umbra_cpu::Backend;
use umbra_devices::{
    Cmos, DebugExit, FwCfg, Keyboard, MemorySizes, Power, PowerEvent, PowerListener, ResetControl,
    Serial, TestDevice,
};
use umbra_irq::{Controller, Line, Unconnected};
use umbra_slots::{Gpa, GpaRange};

use crate::console::Output;
use crate::error::BuildError;
use crate::layout;
use crate::policy::{Event, Outcome};
use crate::spec::Spec;

/// What devices are made of.
pub struct Parts<'a> {
    pub backend: &'a dyn Backend,
    pub bus: &'a Bus,
    pub ports: &'a Ports,
    pub clock: Clock,
    pub memory: u64,
    pub output: Output,
    pub to_driver: Sender<Event>,
}

/// Adds the devices that every machine has. Returns the one that the console needs, and one that has no
/// place yet: its port is among those of a PCI bus, where there is one.
pub fn add(
    parts: Parts<'_>,
    power: &PowerListener,
) -> Result<(Arc<Serial>, (u16, PioDevice)), BuildError> {
    let Parts {
        backend,
        bus,
        ports,
        clock,
        memory,
        output,
        to_driver,
    } = parts;
    controllers(backend, bus, ports)?;
    if let Some(timer) = backend.timer() {
        timer.set_wake(Box::new(move || {
            // A driver that has gone needs no timer.
            let _ = to_driver.send(Event::Timer);
        }));
    }

    ports.insert(
        layout::POWER,
        Power::PORTS,
        Arc::new(Power::new(clock, power.clone())),
    )?;
    let keyboard = Arc::new(Keyboard::new(power.clone()));
    ports.insert(Keyboard::DATA, 1, keyboard.clone())?;
    ports.insert(Keyboard::COMMAND, 1, keyboard)?;
    let reset = Arc::new(ResetControl::new(power.clone()));
    ports.insert(ResetControl::PORT_A, 1, reset.clone())?;

    let low = memory.min(HOLE);
    let sizes = MemorySizes {
        low,
        high: memory - low,
    };
    ports.insert(layout::CMOS, Cmos::PORTS, Arc::new(Cmos::new(sizes)))?;

    let line = backend.chip().line(layout::SERIAL_INTERRUPT);
    let line = line.unwrap_or_else(|| Arc::new(Unconnected) as Arc<dyn Line>);
    let serial = Arc::new(Serial::new(line, Box::new(output)));
    ports.insert(layout::SERIAL, Serial::PORTS, serial.clone())?;
    Ok((serial, (ResetControl::CONTROL, reset)))
}

/// Lets output wait in the backend as long as the guest sends much and without interrupts: half of the
/// exits of a console that is polled. A guest that takes the interrupt waits for it after every few bytes,
/// so from then on each is heard at once. Not from the start: a machine whose bus in the kernel was ever
/// changed takes some ten milliseconds longer to go. The driver, which collects what a guest that falls
/// silent leaves behind, may be asleep without a time by then: it is woken.
pub fn coalesce(backend: &Arc<dyn Backend>, serial: &Serial, to_driver: Sender<Event>) {
    if backend.coalesced_ports().is_none() {
        return;
    }
    // Weak: the port is part of what the backend's processors use.
    let (begins, ends) = (Arc::downgrade(backend), Arc::downgrade(backend));
    serial.on_polled_output(
        move || {
            let backend = begins.upgrade();
            let ports = backend.as_ref().and_then(|b| b.coalesced_ports());
            match ports.map(|ports| ports.add(layout::SERIAL)) {
                Some(Ok(())) => {
                    // A driver that has gone has nothing to collect.
                    let _ = to_driver.send(Event::Timer);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "serial output leaves the guest byte by byte");
                }
                None => {}
            }
        },
        move || {
            let backend = ends.upgrade();
            if let Some(ports) = backend.as_ref().and_then(|b| b.coalesced_ports())
                && ports.is_active()
            {
                ports.remove(layout::SERIAL);
            }
        },
    );
}

/// Adds what test kernels look for, where it is wanted.
pub fn add_for_tests(
    spec: &Spec,
    backend: &dyn Backend,
    bus: &Bus,
    ports: &Ports,
    power: &PowerListener,
) -> Result<(), BuildError> {
    if spec.test_device {
        // Line 2 leads to no device of a PC, but to a pin of the IOAPIC.
        let line = |n| backend.chip().line(n).or_else(|| backend.pin(n));
        let device = Arc::new(TestDevice::new(line));
        ports.insert(TestDevice::ECHO, TestDevice::ECHO_PORTS, device.clone())?;
        ports.insert(TestDevice::LINES, TestDevice::LINE_COUNT, device.clone())?;
        let window = GpaRange::new(Gpa(TestDevice::MEMORY), TestDevice::MEMORY_LEN);
        if let Some(range) = window {
            bus.insert(range, device)?;
        }
    }
    let implied = spec.test_device.then_some(DebugExit::DEFAULT_PORT);
    if let Some(port) = spec.debug_exit.or(implied) {
        ports
            .insert(
                port,
                DebugExit::PORTS,
                Arc::new(DebugExit::new(power.clone())),
            )
            .map_err(|source| BuildError::DebugExit { port, source })?;
    }
    Ok(())
}

/// Adds the firmware configuration device.
pub fn add_fw_cfg(ports: &Ports, device: FwCfg) -> Result<(), BuildError> {
    let device = Arc::new(device);
    ports.insert(FwCfg::SELECTOR, FwCfg::SELECTOR_PORTS, device.clone())?;
    ports.insert(FwCfg::ADDRESS, FwCfg::ADDRESS_PORTS, device)?;
    Ok(())
}

fn controllers(backend: &dyn Backend, bus: &Bus, ports: &Ports) -> Result<(), BuildError> {
    for controller in backend.controllers() {
        match controller {
            Controller::Memory { start, len, device } => {
                if let Some(range) = GpaRange::new(Gpa(start), len) {
                    bus.insert(range, device)?;
                }
            }
            Controller::Ports { first, len, device } => ports.insert(first, len, device)?,
        }
    }
    Ok(())
}

/// Tells the driver what the guest asks of the machine.
pub fn listener(to_driver: Sender<Event>) -> PowerListener {
    Arc::new(move |event| {
        tracing::debug!(?event, "the guest asks");
        let outcome = match event {
            PowerEvent::Off => Outcome::PowerOff,
            PowerEvent::Reset => Outcome::Reset,
            PowerEvent::Exit(value) => Outcome::Exit(value),
        };
        // A driver that has gone is ending the machine already.
        let _ = to_driver.send(Event::End(outcome));
    })
}
