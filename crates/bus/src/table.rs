//! The table id → device: read without a lock, replaced whole.
//!
//! Whoever looks something up holds a whole table for as long as the access takes. So a table only refers to devices: a
//! strong reference is taken inside the gate, and dropped before the gate is left. Else one slow device would keep all
//! those alive that are removed meanwhile.

use std::sync::{Arc, Weak};

use umbra_slots::IoId;
use umbra_sync::{Mutex, Swap};
use vm_device::DeviceMmio;

use crate::MmioDevice;
use crate::gate::{Gate, Removed};

/// A device and who is inside it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub device: Weak<dyn DeviceMmio + Send + Sync>,
    pub gate: Arc<Gate>,
}

/// Devices by id. An id is an index and is never used again.
#[derive(Default)]
pub struct Table {
    devices: Swap<Vec<Option<Entry>>>,
    /// The devices themselves, by the same numbers. Who changes the table holds the lock.
    owned: Mutex<Vec<Option<MmioDevice>>>,
}

impl Table {
    /// Adds a device under a new id.
    pub fn add(&self, device: MmioDevice) -> IoId {
        let mut owned = self.owned.lock();
        let mut devices = Vec::clone(&self.devices.load());
        let id = IoId(
            u32::try_from(devices.len()).expect("four thousand million devices came and went"),
        );
        let gate = Arc::new(Gate::new());
        let entry = Entry {
            device: Arc::downgrade(&device),
            gate,
        };
        owned.push(Some(device));
        devices.push(Some(entry));
        self.devices.store(Arc::new(devices));
        id
    }

    /// Takes a device out: nobody enters it any more.
    pub fn take(&self, id: IoId) -> Option<Removed<MmioDevice>> {
        let mut owned = self.owned.lock();
        let device = owned.get_mut(id.0 as usize)?.take()?;
        let mut devices = Vec::clone(&self.devices.load());
        let Entry { gate, .. } = devices.get_mut(id.0 as usize)?.take()?;
        self.devices.store(Arc::new(devices));
        gate.close();
        Some(Removed { device, gate })
    }

    /// Returns a device and its gate, to be kept.
    pub fn get(&self, id: IoId) -> Option<Entry> {
        self.devices.load().get(id.0 as usize)?.clone()
    }

    /// Runs `f` with the device, if there is one. No lock is held.
    pub fn with<R>(&self, id: IoId, f: impl FnOnce(&MmioDevice) -> R) -> Option<R> {
        let devices = self.devices.load();
        let Entry { device, gate } = devices.get(id.0 as usize)?.as_ref()?;
        let _inside = gate.enter()?;
        // Dropped before the gate is left: whoever waits there gets the last reference.
        let device = device.upgrade()?;
        Some(f(&device))
    }
}
