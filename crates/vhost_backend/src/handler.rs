//! The library's messages as calls of a [`Backend`]: nothing is decided here.

use std::fs::File;

use umbra_slots::Gpa;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    self, Backend as Channel, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    VhostUserProtocolFeatures as Protocol,
};

use crate::memory::{MAX_REGIONS, Shown};
use crate::ring::Addresses;
use crate::{Backend, Error};

/// What is offered of the protocol. STATUS is not: the library does not know its messages.
const OFFERED: Protocol = Protocol::MQ
    .union(Protocol::LOG_SHMFD)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIG)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS);

/// At which address the front end's region is mapped here: who asks for it wants to resolve faults.
type Base = u64;

fn shown(region: &VhostUserMemoryRegion) -> Shown {
    Shown {
        gpa: Gpa(region.guest_phys_addr),
        len: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

fn not_offered<T>(what: &'static str) -> Result<T> {
    Err(Error::NotOffered(what).into())
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(self.disown()?)
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered().low())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(self.accept(features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<Base>>> {
        let regions = regions.iter().map(shown).zip(files).collect();
        self.set_memory(regions)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.set_size(index, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let addresses = Addresses {
            table,
            available,
            used,
        };
        Ok(self.set_addresses(index, addresses)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.stop(index)?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_kick(index.into(), fd.map(Into::into))?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_call(index.into(), fd.map(Into::into))?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_error(index.into(), fd.map(Into::into))?)
    }

    fn get_protocol_features(&mut self) -> Result<Protocol> {
        Ok(OFFERED)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !OFFERED.bits() != 0 {
            return not_offered("a protocol feature");
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.count() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.enable(index, enable)?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.read_config(offset, size))
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.write_config(offset, bytes);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _: Channel) {
        self.use_channel();
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        not_offered("a socket for graphics")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        not_offered("a shared object")
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (file, len) = self.make_inflight(wanted.num_queues, wanted.queue_size)?;
        let made = VhostUserInflight::new(len, 0, wanted.num_queues, wanted.queue_size);
        Ok((made, file))
    }

    fn set_inflight_fd(&mut self, made: &VhostUserInflight, file: File) -> Result<()> {
        let shape = (made.num_queues, made.queue_size);
        Ok(self.set_inflight(file, made.mmap_offset, made.mmap_size, shape)?)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _: Option<bool>,
    ) -> Result<Option<Base>> {
        self.add_memory(valid(region)?, fd)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Ok(self.remove_memory(valid(region)?)?)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        not_offered("the transfer of a device's state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered("the transfer of a device's state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered("shared memory of the device")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        Ok(self.set_log(file, log.mmap_offset, log.mmap_size)?)
    }
}

/// The library looks at a single region less closely than at those of a table.
fn valid(region: &VhostUserSingleMemoryRegion) -> Result<Shown> {
    let shown = shown(region);
    let ends = [shown.gpa.0, shown.user, shown.offset].map(|at| at.checked_add(shown.len));
    if shown.len == 0 || ends.contains(&None) {
        return Err(vhost_user::Error::InvalidMessage);
    }
    Ok(shown)
}
