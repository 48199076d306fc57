//! What a processor sees around itself: the map and the bus, composed.
//!
//! Neither knows the other's business: the map says who is at an address, the bus who that is.

use std::sync::Arc;

use umbra_bus::{Bus, Ports};
use umbra_cpu::{Io, Served};
use umbra_slots::{AddressSpace, Gpa, Target};

/// The machine around its processors. Runs on their threads, under no lock but the device's own.
pub struct MachineIo {
    pub space: Arc<AddressSpace>,
    pub bus: Arc<Bus>,
    pub ports: Arc<Ports>,
}

impl Io for MachineIo {
    // The map is held for the whole access (`load_full`, not a guard): a device may change the map
    // from inside its own access, when the guest moves a window.
    fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> Served {
        let map = self.space.load_full();
        if matches!(map.resolve(gpa), Target::Ram(_)) {
            return Served::Memory;
        }
        self.bus.read(&map, gpa, data);
        Served::Done
    }

    fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> Served {
        let map = self.space.load_full();
        if matches!(map.resolve(gpa), Target::Ram(ram) if !ram.read_only) {
            return Served::Memory;
        }
        self.bus.write(&map, gpa, data);
        Served::Done
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port, data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port, data);
    }
}
