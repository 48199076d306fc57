//! What exists: a machine that was built, and the order in which it goes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use umbra_boot::Protocol;
use umbra_bus::{Bus, Ports};
use umbra_clock::Clock;
use umbra_cpu::{Backend, Vcpu};
use umbra_devices::Serial;
use umbra_slots::AddressSpace;

use crate::build;
use crate::console::{Console, Writer};
use crate::devices::Devices;
use crate::driver::{Driver, Ended};
use crate::error::{BuildError, RunError};
use crate::handle::{Handle, Input, Seat};
use crate::io::MachineIo;
use crate::own::Own;
use crate::plan::Plan;
use crate::policy::Event;
use crate::spec::{Spec, VirtioSpec};
use crate::vcpu::VcpuThread;

/// A machine that is built and has not run.
///
/// Fields are dropped in their order: processors before what they use.
#[must_use]
pub struct Machine {
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) protocol: Protocol,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) fallback: Option<String>,
    pub(crate) serial: Arc<Serial>,
    pub(crate) virtio: Arc<Devices>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) clock: Clock,
    pub(crate) writer: Writer,
    pub(crate) input: Input,
    pub(crate) spec: Spec,
    pub(crate) seated: Seated,
    pub(crate) to_driver: Sender<Event>,
    pub(crate) events: Receiver<Event>,
}

impl Machine {
    /// Builds a machine: takes memory, wires devices, loads the kernel.
    ///
    /// # Errors
    ///
    /// If a file is wrong or the host refuses something; nothing is left behind then.
    pub fn build(plan: Plan, console: Console) -> Result<Self, BuildError> {
        Self::assemble(plan, console, &Own::default(), Arc::default())
    }

    /// Builds a machine with parts that are no part of its plan, and gives it its seat.
    pub(crate) fn assemble(
        plan: Plan,
        console: Console,
        own: &Own,
        seat: Arc<Seat>,
    ) -> Result<Self, BuildError> {
        build::machine(plan, console, own, seat)
    }

    /// Returns what other threads may do with the machine.
    pub fn handle(&self) -> Handle {
        Handle { seat: self.seat() }
    }

    /// Returns what was asked for, with the addresses that were chosen.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn seat(&self) -> Arc<Seat> {
        self.seated.seat.clone()
    }

    /// Returns how the kernel is entered.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Returns what executes the guest, and what comes with it.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Returns why the software processor executes the guest where KVM would have been preferred
    /// ([`spec::Backend::Auto`](crate::Backend::Auto)).
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Returns the guest-physical map.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Returns the devices behind it.
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// Returns the devices behind ports.
    pub fn ports(&self) -> &Arc<Ports> {
        &self.ports
    }

    /// Runs the guest until it ends, on this thread and one thread a processor. All threads have
    /// ended when this returns, and the console has been written.
    ///
    /// # Errors
    ///
    /// If a processor fails or a thread cannot be started. A guest that crashes is no error.
    pub fn run(self) -> Result<Ended, RunError> {
        self.begin();
        self.live().result
    }

    /// Notes that the guest begins.
    pub(crate) fn begin(&self) {
        self.seated.seat.begin(self.backend.name());
    }

    /// Runs the guest as [`run`](Self::run) does, and tells which devices it had in the end.
    pub(crate) fn live(self) -> Life {
        let Self {
            vcpus,
            backend,
            seated,
            serial,
            virtio,
            bus,
            ports,
            space,
            clock,
            writer,
            input,
            to_driver,
            events,
            ..
        } = self;
        let seat = &seated.seat;
        let io = MachineIo {
            space: space.clone(),
            bus: bus.clone(),
            ports: ports.clone(),
        };
        let mut threads = Vec::new();
        let mut started = Ok(());
        for (id, vcpu) in (0..).zip(vcpus) {
            match VcpuThread::start(id, vcpu, io.clone(), to_driver.clone()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    started = Err(error);
                    break;
                }
            }
        }
        let end = || {
            input.close();
            writer.close();
            threads.iter().for_each(VcpuThread::leave);
        };
        let result = match started {
            Ok(()) => Driver {
                events: &events,
                clock,
                timer: backend.timer(),
                backend: &*backend,
                processors: &threads,
                virtio: &virtio,
                journal: &seat.journal,
            }
            .run(end),
            Err(error) => {
                end();
                Err(error)
            }
        };
        let mut statistics = Vec::new();
        for (id, thread) in threads.into_iter().enumerate() {
            add(&mut statistics, &format!("vcpu {id}"), thread.join());
        }
        let devices = virtio.specs();
        virtio.shut_down();
        add(&mut statistics, backend.name(), backend.statistics());
        let machine = vec![
            ("map generation", space.generation().0),
            ("memory accesses that hit nothing", bus.misses()),
            ("port accesses that hit nothing", ports.misses()),
            ("console bytes lost", serial.lost()),
            ("console bytes over the limit", serial.dropped()),
        ];
        add(&mut statistics, "machine", machine);
        Life {
            result: result.map(|outcome| Ended {
                outcome,
                statistics,
            }),
            devices,
            seated,
        }
    }
}

/// A life of a machine, when it is over.
pub(crate) struct Life {
    pub result: Result<Ended, RunError>,
    /// The devices that it had in the end.
    pub devices: Vec<VirtioSpec>,
    pub seated: Seated,
}

/// A machine's seat, which it leaves when it goes.
pub(crate) struct Seated {
    pub seat: Arc<Seat>,
    /// Another life follows.
    pub again: bool,
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.seat.leave(self.again);
    }
}

fn add(all: &mut Vec<(String, &'static str, u64)>, who: &str, counters: Vec<(&'static str, u64)>) {
    all.extend(
        counters
            .into_iter()
            .map(|(name, value)| (who.to_owned(), name, value)),
    );
}
