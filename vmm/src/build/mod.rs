//! From a plan to a machine: one function a step, in the order in which things need each other.

mod backend;
mod balloon;
mod console;
mod devices;
mod fw_cfg;
mod high;
mod images;
mod mem;
mod memory;
mod pci;
mod pmem;
mod vhost;
mod virtio;
mod vsock;

use std::sync::Arc;
use std::sync::mpsc::channel;

use umbra_boot::{KeyboardController, Platform, Request};
use umbra_bus::{Bus, Ports};
use umbra_clock::Clock;
use umbra_cpu::{Backend, Vcpu};
use umbra_devices::{FwCfg, I8042, PanicPort, Power};
use umbra_slots::{AddressSpace, Generation, Options};
use umbra_x86::state::CpuState;

use crate::build::backend::Chosen;
use crate::build::devices::Added;
use crate::console::{Console, Writer};
use crate::devices::Devices;
use crate::error::BuildError;
use crate::handle::{Input, Parts, Seat, Sink};
use crate::inspect::Bumps;
use crate::layout;
use crate::machine::{Machine, Seated};
use crate::own::Own;
use crate::plan::Plan;
use crate::policy::{Event, Outcome};
use crate::spec::Spec;

pub use backend::probe;
pub use devices::Buttons;
pub use high::HighMemory;
pub use vhost::Vhost;
pub use virtio::{Control, Helper, Surroundings, check_tap, make, make_apart, open_disk};

/// Builds the machine.
pub fn machine(
    plan: Plan,
    console: Console,
    own: &Own,
    seat: Arc<Seat>,
) -> Result<Machine, BuildError> {
    let spec = plan.spec.settle();
    // Files first: what the user most likely got wrong costs nothing yet.
    let mut images = images::open(&spec)?;
    if spec.virtio_on_command_line {
        images.command_line = virtio::announce(&images.command_line, &virtio::places(&spec));
    }

    let clock = Clock::start();
    let space = AddressSpace::new(Options {
        first_generation: Generation(spec.first_generation),
        ..Options::default()
    });
    let bumps = Bumps::of(&space);
    memory::add(&space, spec.memory)?;
    let Chosen { backend, fallback } = backend::choose(&spec, own, &space, clock)?;
    let platform = platform(&spec);
    let request = Request {
        kernel: images.kernel,
        initrd: images.initrd,
        modules: images.modules,
        command_line: &images.command_line,
        platform: platform.clone(),
    };
    let loaded = umbra_boot::load(&space.load().guest_memory(), request)?;

    let (bus, ports) = (Arc::new(Bus::new(space.clone())), Arc::new(Ports::new()));
    let (to_driver, events) = channel();
    let (output, writer) = Writer::start(console)?;
    let parts = devices::Parts {
        backend: &*backend,
        bus: &bus,
        ports: &ports,
        clock,
        memory: spec.memory,
        keyboard: spec.keyboard,
        serial_limit: spec.serial_limit,
        output: output.clone(),
        to_driver: to_driver.clone(),
        journal: seat.journal.clone(),
    };
    let power = devices::listener(to_driver.clone());
    let Added {
        serial,
        reset,
        buttons,
        events: event_line,
    } = devices::add(parts, &power)?;
    devices::coalesce(&backend, &serial, to_driver.clone());
    devices::add_for_tests(&spec, &*backend, &bus, &ports, &power)?;
    if let Some(files) = &spec.fw_cfg {
        let line = &images.command_line;
        let items = fw_cfg::items(&spec, files, &loaded, line, &platform, &space)?;
        devices::add_fw_cfg(&ports, FwCfg::new(items, backend.dma()))?;
    }
    let virtio = if spec.pci {
        pci::add(
            &spec,
            &backend,
            &bus,
            &ports,
            &space,
            &output,
            reset,
            event_line,
            seat.journal.clone(),
        )?
    } else {
        let (port, device) = reset;
        ports.insert(port, 1, device)?;
        let attached = virtio::add(&spec, &backend, &bus, &space, &output)?;
        Devices::fixed(
            backend.clone(),
            space.clone(),
            attached,
            seat.journal.clone(),
        )
    };
    let input = Input::new(match virtio.console_input() {
        Some(port) => Sink::Port(port),
        None => Sink::Serial(serial.clone()),
    });
    own.add(&bus, &ports)?;
    let vcpus = processors(&*backend, spec.cpus, &loaded.state)?;
    let parts = Parts {
        events: to_driver.clone(),
        input: input.clone(),
        backend: backend.clone(),
        devices: virtio.clone(),
        buttons,
        serial: serial.clone(),
        bus: bus.clone(),
        ports: ports.clone(),
        space: space.clone(),
        bumps,
        cpus: vcpus.len(),
        memory: spec.memory,
    };
    if seat.take(parts) {
        // Somebody asked while it was built: it ends as soon as it begins.
        let _ = to_driver.send(Event::End(Outcome::Stopped));
    }
    Ok(Machine {
        vcpus,
        protocol: loaded.protocol,
        backend,
        fallback,
        serial,
        virtio,
        bus,
        ports,
        space,
        clock,
        writer,
        input,
        spec,
        seated: Seated { seat, again: false },
        to_driver,
        events,
    })
}

/// Makes the processors; number 0 starts in `state`, the others wait for it to wake them.
fn processors(
    backend: &dyn Backend,
    count: u32,
    state: &CpuState,
) -> Result<Vec<Box<dyn Vcpu>>, BuildError> {
    let mut vcpus = Vec::new();
    for id in 0..count {
        let mut vcpu = backend.vcpu(id)?;
        if id == 0 {
            vcpu.set_state(state)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// What the tables say about the machine.
fn platform(spec: &Spec) -> Platform {
    Platform {
        cpus: spec.cpus,
        local_apic: layout::LOCAL_APIC,
        ioapic: layout::IOAPIC,
        serial: Some((layout::SERIAL, layout::SERIAL_INTERRUPT)),
        cmos: Some(layout::CMOS),
        virtio_mmio: virtio::places(spec),
        keyboard: spec.keyboard.then_some(KeyboardController {
            data: I8042::DATA,
            command: I8042::COMMAND,
            interrupt: layout::KEYBOARD_INTERRUPT,
        }),
        pci: spec.pci.then(pci::place),
        power_button: Some(layout::POWER_BUTTON),
        panic_port: Some(PanicPort::PORT),
        event_interrupt: layout::EVENT_INTERRUPT,
        sleep_control: layout::POWER + Power::SLEEP_CONTROL,
        timer: layout::POWER + Power::TIMER,
        reset: (layout::POWER + Power::RESET, Power::RESET_VALUE),
    }
}
