//! Memory that comes and goes.

use umbra_vmm::{MemControl, SizeError};

use super::Instance;
use crate::firecracker::config::MEMORY_ID;
use crate::firecracker::fault::Fault;
use crate::firecracker::resources::memory_hotplug::{MemoryHotplugConfig, MemoryHotplugStatus};

impl Instance {
    fn memory(&self) -> Result<(MemoryHotplugConfig, MemControl), Fault> {
        let missing = || Fault::Device("Memory hotplug device is not configured.".into());
        let config = self.config.memory_hotplug().ok_or_else(missing)?;
        let control = self.handle()?.memory(MEMORY_ID).ok_or_else(missing)?;
        Ok((config, control))
    }

    /// `GET /hotplug/memory`
    pub(super) fn memory_status(&self) -> Result<MemoryHotplugStatus, Fault> {
        let (config, control) = self.memory()?;
        Ok(MemoryHotplugStatus {
            total_size_mib: config.total_size_mib,
            slot_size_mib: config.slot_size_mib,
            block_size_mib: config.block_size_mib,
            plugged_size_mib: control.plugged() >> 20,
            requested_size_mib: control.requested() >> 20,
        })
    }

    /// `PATCH /hotplug/memory`
    pub(super) fn resize_memory(&self, mib: u64) -> Result<(), Fault> {
        let refused = |why: String| {
            Fault::MemoryHotplugUpdate(format!("Failed to create memory hotplug device: {why}"))
        };
        let (_, control) = self.memory()?;
        if !self.is_in_use(MEMORY_ID) {
            return Err(refused("Device is not active".into()));
        }
        let bytes = mib
            .checked_mul(1 << 20)
            .ok_or_else(|| refused(format!("{mib} MiB are too many")))?;
        control
            .request(bytes)
            .map_err(|error: SizeError| refused(error.to_string()))
    }
}
