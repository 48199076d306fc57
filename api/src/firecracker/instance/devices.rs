//! Disks, files as memory and interfaces of a machine: before it starts, and while it runs.

use std::time::Duration;

use umbra_vmm::{BlockControl, RemoveError, VirtioKind, VirtioSpec};

use super::Instance;
use crate::firecracker::config;
use crate::firecracker::fault::{Fault, chain};
use crate::firecracker::policy::State;
use crate::firecracker::resources::drive::{Drive, PartialDrive, check_file};
use crate::firecracker::resources::net::{NetworkInterface, PartialNetworkInterface};
use crate::firecracker::resources::pmem::{PartialPmem, Pmem};

/// How long a guest that was asked to let a device go has for it, before it is taken away.
const LET_GO: Duration = Duration::from_secs(1);
/// How long what a device had of the host may take to be given back.
const GIVE_BACK: Duration = Duration::from_secs(5);

impl Instance {
    /// Adds a device to a machine that runs.
    fn add(&self, id: String, kind: VirtioKind) -> Result<(), String> {
        let handle = self.handle().map_err(|fault| fault.to_string())?;
        let added = handle.add_device(&VirtioSpec { id, kind });
        added.map_err(|error| chain(&error))
    }

    /// Removes a device: a guest that uses it is asked, and has a moment.
    pub(super) fn remove(&self, id: &str) -> Result<(), Fault> {
        let handle = self.handle()?;
        let device = handle.devices().into_iter().find(|device| device.id == id);
        let failed = |error: RemoveError| Fault::Device(chain(&error));
        if device.is_some_and(|device| device.in_use) && self.state() == State::Running {
            handle.remove_device(id).map_err(failed)?;
            if handle.wait_removed(id, LET_GO) {
                return Ok(());
            }
        }
        handle.remove_device_at_once(id).map_err(failed)?;
        match handle.wait_removed(id, GIVE_BACK) {
            true => Ok(()),
            false => Err(Fault::Device(format!(
                "the device {id:?} is taken away, and has not given its files back yet"
            ))),
        }
    }

    pub(super) fn put_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        if self.state() == State::Before {
            return self.config.set_drive(drive);
        }
        if drive.is_root_device {
            return Err(Fault::DriveConfig(
                "A root block device cannot come later.".into(),
            ));
        }
        drive.check()?;
        let added = self.add(config::drive_id(&drive.drive_id), drive.kind()?);
        added.map_err(Fault::DriveConfig)?;
        self.config.remember_drive(drive);
        Ok(())
    }

    pub(super) fn put_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        if self.state() == State::Before {
            return self.config.set_pmem(pmem);
        }
        if pmem.root_device {
            return Err(Fault::PmemDevice(
                "A root pmem device cannot come later.".into(),
            ));
        }
        pmem.check()?;
        let added = self.add(config::pmem_id(&pmem.id), pmem.kind());
        added.map_err(Fault::PmemDevice)?;
        self.config.remember_pmem(pmem);
        Ok(())
    }

    pub(super) fn put_net(&mut self, net: NetworkInterface) -> Result<(), Fault> {
        if self.state() == State::Before {
            return self.config.set_net(net);
        }
        let added = self.add(config::net_id(&net.iface_id), net.kind(None));
        added.map_err(Fault::NetworkConfig)?;
        self.config.remember_net(net);
        Ok(())
    }

    fn disk(&self, id: &str) -> Result<BlockControl, Fault> {
        let disk = self.handle()?.disk(&config::drive_id(id));
        disk.ok_or_else(|| Fault::DriveConfig(format!("there is no drive {id:?} with a file")))
    }

    pub(super) fn patch_drive(&mut self, change: PartialDrive) -> Result<(), Fault> {
        let id = &change.drive_id;
        let Some(drive) = self.config.drive_mut(id) else {
            return Err(Fault::DriveConfig(format!("there is no drive {id:?}")));
        };
        if drive.socket.is_some() {
            return match (&change.path_on_host, &change.rate_limiter) {
                // A back end says by itself when it has another size.
                (None, None) => Ok(()),
                _ => Err(Fault::DriveConfig(format!(
                    "the drive {id:?} is that of a vhost-user back end; change it there"
                ))),
            };
        }
        let mut new = drive.clone();
        let disk = self.disk(id)?;
        if let Some(path) = change.path_on_host {
            check_file(&path, new.is_read_only())?;
            new.path_on_host = Some(path.clone());
            let replaced = self.handle()?.replace_disk(&config::drive_id(id), &path);
            replaced.map_err(|error| Fault::DriveConfig(chain(&error)))?;
        }
        if let Some(limiter) = change.rate_limiter {
            disk.set_limits(limiter.over(disk.limits()));
            new.rate_limiter = Some(limiter.merged(new.rate_limiter));
        }
        if let Some(drive) = self.config.drive_mut(id) {
            *drive = new;
        }
        Ok(())
    }

    pub(super) fn patch_pmem(&mut self, change: PartialPmem) -> Result<(), Fault> {
        let id = &change.id;
        let missing = || Fault::PmemDevice(format!("there is no pmem device {id:?}"));
        let control = self
            .handle()?
            .pmem(&config::pmem_id(id))
            .ok_or_else(missing)?;
        let pmem = self.config.pmem_mut(id).ok_or_else(missing)?;
        if let Some(limiter) = change.rate_limiter {
            control.set_limits(limiter.over(control.limits()));
            pmem.rate_limiter = Some(limiter.merged(pmem.rate_limiter));
        }
        Ok(())
    }

    pub(super) fn patch_net(&mut self, change: PartialNetworkInterface) -> Result<(), Fault> {
        let id = &change.iface_id;
        let missing = || Fault::NetworkConfig(format!("there is no network interface {id:?}"));
        let control = self
            .handle()?
            .network(&config::net_id(id))
            .ok_or_else(missing)?;
        let net = self.config.net_mut(id).ok_or_else(missing)?;
        if let Some(limiter) = change.rx_rate_limiter {
            control.set_receive_limits(limiter.over(control.receive_limits()));
            net.rx_rate_limiter = Some(limiter.merged(net.rx_rate_limiter));
        }
        if let Some(limiter) = change.tx_rate_limiter {
            control.set_transmit_limits(limiter.over(control.transmit_limits()));
            net.tx_rate_limiter = Some(limiter.merged(net.tx_rate_limiter));
        }
        Ok(())
    }
}
