//! The table id → device: read without a lock, replaced whole.

use std::sync::Arc;

use umbra_slots::IoId;
use umbra_sync::{Mutex, Swap};

use crate::MmioDevice;
use crate::gate::{Gate, Removed};

/// A device and who is inside it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub device: MmioDevice,
    pub gate: Arc<Gate>,
}

/// Devices by id. An id is an index and is never used again.
#[derive(Default)]
pub struct Table {
    devices: Swap<Vec<Option<Entry>>>,
    writer: Mutex<()>,
}

impl Table {
    /// Adds a device under a new id.
    pub fn add(&self, device: MmioDevice) -> IoId {
        let _writer = self.writer.lock();
        let mut devices = Vec::clone(&self.devices.load());
        let id = IoId(
            u32::try_from(devices.len()).expect("four thousand million devices came and went"),
        );
        let gate = Arc::new(Gate::new());
        devices.push(Some(Entry { device, gate }));
        self.devices.store(Arc::new(devices));
        id
    }

    /// Takes a device out: nobody enters it any more.
    pub fn take(&self, id: IoId) -> Option<Removed<MmioDevice>> {
        let _writer = self.writer.lock();
        let mut devices = Vec::clone(&self.devices.load());
        let Entry { device, gate } = devices.get_mut(id.0 as usize)?.take()?;
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
        Some(f(device))
    }
}
