//! What a processor sees around itself: the map and the bus, composed.
//!
//! Neither knows the other's business: the map says who is at an address, the bus who that is.

use std::cell::RefCell;
use std::sync::Arc;

use umbra_bus::{Bus, LastHit, Ports};
use umbra_cpu::{Io, Served};
use umbra_slots::{AddressSpace, Gpa, Target};

/// The machine around its processors.
#[derive(Clone)]
pub struct MachineIo {
    pub space: Arc<AddressSpace>,
    pub bus: Arc<Bus>,
    pub ports: Arc<Ports>,
}

/// The machine around one of them. Runs on its thread, under no lock but the device's own.
pub struct VcpuIo {
    machine: MachineIo,
    last: RefCell<LastHit>,
}

impl VcpuIo {
    /// Makes the surroundings of one processor.
    pub fn new(machine: MachineIo) -> Self {
        Self {
            machine,
            last: RefCell::default(),
        }
    }

    /// Returns how many accesses needed no lookup, and how often what was remembered was stale.
    pub fn counts(&self) -> (u64, u64) {
        self.last.borrow().counts()
    }
}

impl Io for VcpuIo {
    // The map is held for the whole access (`load_full`, not a guard): a device may change the map
    // from inside its own access, when the guest moves a window. No device calls back into here,
    // so the record can stay borrowed.
    fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> Served {
        let MachineIo { space, bus, .. } = &self.machine;
        let mut last = self.last.borrow_mut();
        if last.read(space, gpa, data) {
            return Served::Done;
        }
        let map = space.load_full();
        if matches!(map.resolve(gpa), Target::Ram(_)) {
            return Served::Memory;
        }
        last.fill(space, bus, &map, gpa);
        bus.read(&map, gpa, data);
        Served::Done
    }

    fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> Served {
        let MachineIo { space, bus, .. } = &self.machine;
        let mut last = self.last.borrow_mut();
        if last.write(space, gpa, data) {
            return Served::Done;
        }
        let map = space.load_full();
        if matches!(map.resolve(gpa), Target::Ram(ram) if !ram.read_only) {
            return Served::Memory;
        }
        last.fill(space, bus, &map, gpa);
        bus.write(&map, gpa, data);
        Served::Done
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.machine.ports.read(port, data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.machine.ports.write(port, data);
    }
}
