//! The devices of the default platform, each at its place and on its wire.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use umbra_boot::layout::HOLE;
use umbra_bus::{Bus, PioDevice, Ports};
use umbra_clock::Clock;
use umbra_cpu::Backend;
use umbra_devices::{
    Cmos, DebugExit, FwCfg, I8042, Keyboard, MemorySizes, PanicPort, Power, PowerButton,
    PowerEvent, PowerListener, ResetControl, Serial, TestDevice,
};
use umbra_irq::{Controller, Line, PulsedLine, Unconnected};
use umbra_slots::{Gpa, GpaRange};

use crate::console::Output;
use crate::error::BuildError;
use crate::journal::{Journal, News};
use crate::layout;
use crate::policy::{Event, Outcome};
use crate::spec::{Bucket, Spec};

/// What devices are made of.
pub struct Parts<'a> {
    pub backend: &'a dyn Backend,
    pub bus: &'a Bus,
    pub ports: &'a Ports,
    pub clock: Clock,
    pub memory: u64,
    pub keyboard: bool,
    pub serial_limit: Option<Bucket>,
    pub output: Output,
    pub to_driver: Sender<Event>,
    pub journal: Arc<Journal>,
}

/// What the host presses.
#[derive(Clone)]
pub struct Buttons {
    /// The keyboard, where there is one.
    pub keyboard: Option<Arc<I8042>>,
    /// The power button.
    pub power: Arc<PowerButton>,
}

/// Devices of the default platform that somebody needs.
pub struct Added {
    /// The console needs it.
    pub serial: Arc<Serial>,
    /// It has no place yet: its port is among those of a PCI bus, where there is one.
    pub reset: (u16, PioDevice),
    /// Where the host presses.
    pub buttons: Buttons,
    /// The line by which the guest is told of events.
    pub events: Arc<dyn Line>,
}

/// Adds the devices that every machine has.
pub fn add(parts: Parts<'_>, power: &PowerListener) -> Result<Added, BuildError> {
    let Parts {
        backend,
        bus,
        ports,
        clock,
        memory,
        keyboard,
        serial_limit,
        output,
        to_driver,
        journal,
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
    let keyboard = add_keyboard(keyboard, backend, ports, power)?;
    let events = line(backend, layout::EVENT_INTERRUPT);
    let events: Arc<dyn Line> = Arc::new(PulsedLine::new(events));
    let button = Arc::new(PowerButton::new(events.clone()));
    ports.insert(layout::POWER_BUTTON, PowerButton::PORTS, button.clone())?;
    let panic = PanicPort::new(move || journal.note(News::GuestPanic));
    ports.insert(PanicPort::PORT, 1, Arc::new(panic))?;
    let reset = Arc::new(ResetControl::new(power.clone()));
    ports.insert(ResetControl::PORT_A, 1, reset.clone())?;

    let low = memory.min(HOLE);
    let sizes = MemorySizes {
        low,
        high: memory - low,
    };
    ports.insert(layout::CMOS, Cmos::PORTS, Arc::new(Cmos::new(sizes)))?;

    let interrupt = line(backend, layout::SERIAL_INTERRUPT);
    let serial = Arc::new(Serial::limited(interrupt, Box::new(output), serial_limit));
    ports.insert(layout::SERIAL, Serial::PORTS, serial.clone())?;
    Ok(Added {
        serial,
        reset: (ResetControl::CONTROL, reset),
        buttons: Buttons {
            keyboard,
            power: button,
        },
        events,
    })
}

/// Returns an interrupt line; one that leads nowhere if the backend has none of this number.
fn line(backend: &dyn Backend, number: u32) -> Arc<dyn Line> {
    let line = backend.chip().line(number);
    line.unwrap_or_else(|| Arc::new(Unconnected))
}

/// Adds a keyboard with its controller, where one is wanted, else the one command of a controller's that all
/// machines have.
fn add_keyboard(
    wanted: bool,
    backend: &dyn Backend,
    ports: &Ports,
    power: &PowerListener,
) -> Result<Option<Arc<I8042>>, BuildError> {
    let add = |device: PioDevice| {
        ports.insert(I8042::DATA, 1, device.clone())?;
        ports.insert(I8042::COMMAND, 1, device)
    };
    if !wanted {
        add(Arc::new(Keyboard::new(power.clone())))?;
        return Ok(None);
    }
    let interrupt = line(backend, layout::KEYBOARD_INTERRUPT);
    let controller = Arc::new(I8042::new(interrupt, power.clone()));
    add(controller.clone())?;
    Ok(Some(controller))
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
