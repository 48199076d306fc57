//! The one place through which devices reach guest memory by themselves.
//!
//! A write has four readers that must not be left behind: the memory, the dirty log, the shadow of
//! a page table, and blocks that a processor has decoded. The MMU takes care of the first three in
//! one step under its lock; then the processors are told. All of it is done before the call
//! returns, so before a device can tell the guest that its data are there.
//!
//! A device that stores by itself, through [`umbra_slots::DmaMemory`], has done the first two when it
//! reports; the others follow then, which is still before it tells the guest.

use std::sync::Arc;

use umbra_mmu::Mmu;
use umbra_slots::{AccessError, AddressSpace, Dma, Gpa, GpaRange};

use crate::CodePages;

/// Guest memory, for devices.
pub struct DeviceMemory {
    pub space: Arc<AddressSpace>,
    pub mmu: Arc<Mmu>,
    pub code: Arc<CodePages>,
}

impl Dma for DeviceMemory {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        self.space.load().read(gpa, data)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        let result = self.mmu.write_for_device(gpa, data);
        // After an error, too: what lies before the bad address may have been written.
        self.code.written_by_device(gpa.0, data.len() as u64);
        result
    }

    fn written(&self, range: GpaRange) {
        self.mmu.follow_device(range);
        self.code.written_by_device(range.start().0, range.len());
    }
}
