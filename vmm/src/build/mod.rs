//! From a plan to a machine: one function a step, in the order in which things need each other.

mod backend;
mod devices;
mod fw_cfg;
mod images;
mod memory;

use std::sync::Arc;
use std::sync::mpsc::channel;

use umbra_boot::{Platform, Request};
use umbra_bus::{Bus, Ports};
use umbra_clock::Clock;
use umbra_devices::{FwCfg, Power};
use umbra_irqchip::Chipset;
use umbra_slots::{AddressSpace, Generation, Options};

use crate::console::{Console, Writer};
use crate::dma::DeviceMemory;
use crate::error::BuildError;
use crate::handle::ConsoleInput;
use crate::layout;
use crate::machine::Machine;
use crate::plan::Plan;
use crate::spec::Spec;

/// Builds the machine.
pub fn machine(plan: Plan, console: Console) -> Result<Machine, BuildError> {
    let spec = plan.spec;
    // Files first: what the user most likely got wrong costs nothing yet.
    let images = images::open(&spec)?;

    let clock = Clock::start();
    let space = AddressSpace::new(Options {
        first_generation: Generation(spec.first_generation),
        ..Options::default()
    });
    memory::add(&space, spec.memory)?;
    let platform = platform(&spec);
    let request = Request {
        kernel: images.kernel,
        initrd: images.initrd,
        modules: images.modules,
        command_line: &images.command_line,
        platform: platform.clone(),
    };
    let loaded = umbra_boot::load(&space.load().guest_memory(), request)?;
    let shared = backend::shared(&spec, &space);

    let chipset = Chipset::new(spec.cpus, clock);
    chipset.apics.apic(0).set_virtual_wire();
    let (bus, ports) = (Arc::new(Bus::new(space.clone())), Arc::new(Ports::new()));
    let (to_driver, events) = channel();
    let (output, writer) = Writer::start(console)?;
    let parts = devices::Parts {
        chipset: &chipset,
        bus: &bus,
        ports: &ports,
        clock,
        memory: spec.memory,
        output,
        to_driver: to_driver.clone(),
    };
    let power = devices::listener(to_driver.clone());
    let serial = devices::add(parts, &power)?;
    devices::add_for_tests(&spec, &chipset, &bus, &ports, &power)?;
    if let Some(files) = &spec.fw_cfg {
        let line = &images.command_line;
        let items = fw_cfg::items(&spec, files, &loaded, line, &platform, &space)?;
        let memory = Arc::new(DeviceMemory {
            space: space.clone(),
            mmu: shared.mmu.clone(),
            code: shared.code.clone(),
        });
        devices::add_fw_cfg(&ports, FwCfg::new(items, memory))?;
    }
    let input = ConsoleInput::new(serial.clone());
    let vcpus = backend::soft(&spec, &space, &shared, &chipset, clock, &loaded.state)?;
    Ok(Machine {
        vcpus,
        protocol: loaded.protocol,
        mmu: shared.mmu,
        chipset,
        serial,
        bus,
        ports,
        space,
        clock,
        writer,
        input,
        to_driver,
        events,
    })
}

/// What the tables say about the machine.
fn platform(spec: &Spec) -> Platform {
    Platform {
        cpus: spec.cpus,
        local_apic: layout::LOCAL_APIC,
        ioapic: layout::IOAPIC,
        serial: Some((layout::SERIAL, layout::SERIAL_INTERRUPT)),
        cmos: Some(layout::CMOS),
        sleep_control: layout::POWER + Power::SLEEP_CONTROL,
        timer: layout::POWER + Power::TIMER,
        reset: (layout::POWER + Power::RESET, Power::RESET_VALUE),
    }
}
