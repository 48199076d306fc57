//! The PCI root bus, for a machine that wants one: configuration registers, host bridge, hot-plug.

use std::sync::Arc;

use umbra_boot::PciRoot;
use umbra_bus::{Bus, PioDevice, Ports};
use umbra_cpu::Backend;
use umbra_devices::PciHotplug;
use umbra_irq::Line;
use umbra_pci::{Address, ConfigPorts, Ecam, HostBridge, RootBus, Windows};
use umbra_slots::{AddressSpace, Gpa, GpaRange};

use super::high::HighMemory;
use crate::console::Output;
use crate::devices::Devices;
use crate::error::{AddError, BuildError};
use crate::journal::Journal;
use crate::layout;
use crate::spec::Spec;

/// Says in the tables where it is.
pub fn place() -> PciRoot {
    PciRoot {
        ecam: layout::PCI_CONFIG,
        window: layout::PCI_WINDOW,
        hotplug: layout::PCI_HOTPLUG,
    }
}

/// Adds the bus with the devices that are wanted. `reset` is the device of the port among those of the
/// configuration registers, `events` the line by which the guest is told of what comes and goes.
#[expect(
    clippy::too_many_arguments,
    reason = "each is another part of the machine"
)]
pub fn add(
    spec: &Spec,
    backend: &Arc<dyn Backend>,
    bus: &Arc<Bus>,
    ports: &Ports,
    space: &Arc<AddressSpace>,
    output: &Output,
    reset: (u16, PioDevice),
    events: Arc<dyn Line>,
    journal: Arc<Journal>,
) -> Result<Arc<Devices>, BuildError> {
    let (first, last) = layout::PCI_WINDOW;
    let window = GpaRange::new(Gpa(first.into()), u64::from(last - first) + 1);
    let windows = Windows {
        low: window.expect("a window of the layout"),
        high: None,
    };
    let root = Arc::new(RootBus::new(bus, windows));
    let bridge = Address::new(0, 0).expect("there is device 0");
    root.add(bridge, Arc::new(HostBridge::new()))
        .expect("it is the first one");
    let config = GpaRange::new(Gpa(layout::PCI_CONFIG.into()), Ecam::LEN);
    let config = config.expect("a window of the layout");
    bus.insert(config, Arc::new(Ecam::new(root.clone())))?;
    let config = Arc::new(ConfigPorts::new(root.clone(), Some(reset)));
    ports.insert(ConfigPorts::FIRST, ConfigPorts::LEN, config)?;

    let high = HighMemory::new(spec.memory, backend.physical_bits());
    let devices = Devices::on_pci(
        backend.clone(),
        (space.clone(), high),
        root,
        events,
        (spec.memory, output.clone()),
        journal,
    )?;
    if let Some(hotplug) = devices.hotplug() {
        ports.insert(layout::PCI_HOTPLUG, PciHotplug::PORTS, hotplug.clone())?;
    }
    for wanted in &spec.virtio {
        devices.add_first(wanted).map_err(|error| match error {
            AddError::Build(error) => error,
            // The plan was checked: there are names and places for all.
            other => unreachable!("{other}"),
        })?;
    }
    Ok(devices)
}
