//! The table id → device: read without a lock, replaced whole.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use umbra_slots::IoId;

use crate::MmioDevice;

/// Devices by id. An id is an index and is never used again.
#[derive(Default)]
pub struct Table {
    devices: ArcSwap<Vec<Option<MmioDevice>>>,
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
        devices.push(Some(device));
        self.devices.store(Arc::new(devices));
        id
    }

    /// Takes a device out.
    pub fn take(&self, id: IoId) -> Option<MmioDevice> {
        let _writer = self.writer.lock();
        let mut devices = Vec::clone(&self.devices.load());
        let device = devices.get_mut(id.0 as usize)?.take();
        self.devices.store(Arc::new(devices));
        device
    }

    /// Runs `f` with the device, if there is one. No lock is held.
    pub fn with<R>(&self, id: IoId, f: impl FnOnce(&MmioDevice) -> R) -> Option<R> {
        let devices = self.devices.load();
        devices.get(id.0 as usize)?.as_ref().map(f)
    }
}
