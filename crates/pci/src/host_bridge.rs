//! The host bridge as a function of its own bus: it is there to be found, and does nothing.

use parking_lot::Mutex;

use crate::{ConfigSpace, Function, Identity};

/// QEMU's generic host bridge with ECAM: what kernels know no quirks of.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_00_00,
    subsystem: (0x1af4, 0x1100),
};

/// Device 0 of the root bus.
pub struct HostBridge(Mutex<ConfigSpace>);

impl HostBridge {
    /// Makes one.
    pub fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(IDENTITY)))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for HostBridge {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.0.lock().read(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        self.0.lock().write(register, data);
    }
}
