//! What was said before the start: remembered, checked, and in the end a specification. It opens files to see that it
//! could, and leaves nothing behind.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use umbra_vmm::{Backend, CpuTemplate};

use super::fault::{Fault, chain};
use super::resources::balloon::Balloon;
use super::resources::boot_source::BootSource;
use super::resources::cpu_config;
use super::resources::drive::Drive;
use super::resources::entropy::Entropy;
use super::resources::logger::LoggerConfig;
use super::resources::machine_config::{MachineConfiguration, PatchMachineConfiguration};
use super::resources::memory_hotplug::MemoryHotplugConfig;
use super::resources::metrics::MetricsConfig;
use super::resources::mmds::MmdsConfig;
use super::resources::net::NetworkInterface;
use super::resources::pmem::Pmem;
use super::resources::serial::SerialDevice;
use super::resources::vm::FullVmConfiguration;
use super::resources::vsock::Vsock;
use crate::strict;

/// What devices without a name of their own are called.
pub const VSOCK_ID: &str = "vsock";
/// See [`VSOCK_ID`].
pub const BALLOON_ID: &str = "balloon";
/// See [`VSOCK_ID`].
pub const ENTROPY_ID: &str = "rng";
/// See [`VSOCK_ID`].
pub const MEMORY_ID: &str = "memory";

/// The prefixes of names that two kinds of devices may have in common.
pub fn drive_id(id: &str) -> String {
    format!("drive-{id}")
}

/// See [`drive_id`].
pub fn net_id(id: &str) -> String {
    format!("net-{id}")
}

/// See [`drive_id`].
pub fn pmem_id(id: &str) -> String {
    format!("pmem-{id}")
}

/// What the command line says of every machine of this process.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the machine is called.
    pub id: String,
    /// Which processor executes it.
    pub backend: Backend,
    /// It has a PCI bus.
    pub pci: bool,
    /// Most bytes of its metadata.
    pub mmds_limit: usize,
}

/// What was said.
#[derive(Debug, Default)]
pub struct Config {
    pub(super) boot_source: Option<BootSource>,
    pub(super) machine: MachineConfiguration,
    pub(super) template: Option<CpuTemplate>,
    pub(super) drives: Vec<Drive>,
    pub(super) pmem: Vec<Pmem>,
    pub(super) nets: Vec<NetworkInterface>,
    pub(super) vsock: Option<Vsock>,
    pub(super) entropy: Option<Entropy>,
    pub(super) balloon: Option<Balloon>,
    pub(super) memory_hotplug: Option<MemoryHotplugConfig>,
    pub(super) mmds_config: Option<MmdsConfig>,
    pub(super) serial: SerialDevice,
    /// Something was said of the machine, which a snapshot would say otherwise.
    pub(super) touched: bool,
}

/// A configuration in a file, all at once (`--config-file`).
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[allow(missing_docs)]
pub struct ConfigFile {
    pub boot_source: BootSource,
    #[serde(default)]
    pub balloon: Option<Balloon>,
    #[serde(default)]
    pub drives: Vec<Drive>,
    #[serde(default)]
    pub cpu_config: Option<PathBuf>,
    #[serde(default)]
    pub logger: Option<LoggerConfig>,
    #[serde(default)]
    pub machine_config: Option<PatchMachineConfiguration>,
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,
    #[serde(default)]
    pub mmds_config: Option<MmdsConfig>,
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    #[serde(default)]
    pub vsock: Option<Vsock>,
    #[serde(default)]
    pub entropy: Option<Entropy>,
    #[serde(default)]
    pub pmem: Vec<Pmem>,
    #[serde(default)]
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    #[serde(default)]
    pub serial: Option<SerialDevice>,
}

impl ConfigFile {
    /// Reads one.
    ///
    /// # Errors
    /// If it is not what it has to be.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        strict::from_str(text).map_err(|error| Fault::Json(error.to_string()))
    }
}

impl Config {
    /// Takes over what a file says of the machine. Log and metrics are somebody else's.
    pub fn load(&mut self, file: ConfigFile) -> Result<(), Fault> {
        if let Some(machine) = file.machine_config {
            self.change_machine(&machine)?;
        }
        if let Some(path) = &file.cpu_config {
            self.set_template(read_template(path)?);
        }
        self.set_boot_source(file.boot_source)?;
        file.drives
            .into_iter()
            .try_for_each(|drive| self.set_drive(drive))?;
        file.pmem
            .into_iter()
            .try_for_each(|pmem| self.set_pmem(pmem))?;
        for net in file.network_interfaces {
            self.set_net(net)?;
        }
        file.vsock.map_or(Ok(()), |vsock| self.set_vsock(vsock))?;
        file.balloon
            .map_or(Ok(()), |balloon| self.set_balloon(balloon))?;
        file.mmds_config
            .map_or(Ok(()), |config| self.set_mmds_config(config))?;
        file.memory_hotplug
            .map_or(Ok(()), |memory| self.set_memory_hotplug(memory))?;
        if let Some(entropy) = file.entropy {
            self.set_entropy(entropy);
        }
        if let Some(serial) = file.serial {
            self.set_serial(serial);
        }
        Ok(())
    }

    /// Tells whether something was said that a snapshot would say otherwise.
    pub fn is_touched(&self) -> bool {
        self.touched
    }

    /// Tells whether a kernel was named.
    pub fn has_kernel(&self) -> bool {
        self.boot_source.is_some()
    }

    /// Forgets the disk, file or interface whose device has this name; `false` if there is none.
    pub fn forget(&mut self, device: &str) -> bool {
        let count = |this: &Self| this.drives.len() + this.pmem.len() + this.nets.len();
        let before = count(self);
        self.drives
            .retain(|drive| drive_id(&drive.drive_id) != device);
        self.pmem.retain(|pmem| pmem_id(&pmem.id) != device);
        self.nets.retain(|net| net_id(&net.iface_id) != device);
        count(self) != before
    }

    /// Returns processors and memory.
    pub fn machine(&self) -> MachineConfiguration {
        self.machine
    }

    /// Returns the balloon, if there is one.
    pub fn balloon(&self) -> Option<Balloon> {
        self.balloon
    }

    /// Returns the balloon as it is now.
    pub fn balloon_mut(&mut self) -> Option<&mut Balloon> {
        self.balloon.as_mut()
    }

    /// Returns the memory that comes and goes, if there is some.
    pub fn memory_hotplug(&self) -> Option<MemoryHotplugConfig> {
        self.memory_hotplug
    }

    /// Returns where the serial port's output goes.
    pub fn serial(&self) -> &SerialDevice {
        &self.serial
    }

    /// Returns the unix socket of the socket device, if there is one.
    pub fn vsock_path(&self) -> Option<&Path> {
        self.vsock.as_ref().map(|vsock| vsock.uds_path.as_path())
    }

    /// Finds a disk.
    pub fn drive_mut(&mut self, id: &str) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|drive| drive.drive_id == id)
    }

    /// Finds a file that is memory.
    pub fn pmem_mut(&mut self, id: &str) -> Option<&mut Pmem> {
        self.pmem.iter_mut().find(|pmem| pmem.id == id)
    }

    /// Finds an interface.
    pub fn net_mut(&mut self, id: &str) -> Option<&mut NetworkInterface> {
        self.nets.iter_mut().find(|net| net.iface_id == id)
    }

    /// Forgets a disk that has gone.
    pub fn remove_drive(&mut self, id: &str) {
        self.drives.retain(|drive| drive.drive_id != id);
    }

    /// Forgets a file that has gone.
    pub fn remove_pmem(&mut self, id: &str) {
        self.pmem.retain(|pmem| pmem.id != id);
    }

    /// Forgets an interface that has gone.
    pub fn remove_net(&mut self, id: &str) {
        self.nets.retain(|net| net.iface_id != id);
    }

    /// `PUT /boot-source`
    pub fn set_boot_source(&mut self, boot_source: BootSource) -> Result<(), Fault> {
        self.touched = true;
        boot_source.check()?;
        self.boot_source = Some(boot_source);
        Ok(())
    }

    /// `PUT` and `PATCH /machine-config`
    pub fn change_machine(&mut self, change: &PatchMachineConfiguration) -> Result<(), Fault> {
        self.touched = true;
        let machine = change.apply(&self.machine)?;
        if let Some(balloon) = self.balloon
            && machine.mem_size_mib < balloon.amount_mib.into()
        {
            return Err(Fault::MachineConfig(
                "The memory size (MiB) is smaller than the previously set balloon device target size.".into(),
            ));
        }
        self.machine = machine;
        Ok(())
    }

    /// `PUT /cpu-config`
    pub fn set_template(&mut self, template: CpuTemplate) {
        self.touched = true;
        self.template = Some(template);
    }

    /// `PUT /drives/{id}`
    pub fn set_drive(&mut self, drive: Drive) -> Result<(), Fault> {
        self.touched = true;
        let others = |other: &&Drive| other.drive_id != drive.drive_id;
        let root = self
            .drives
            .iter()
            .filter(others)
            .any(|drive| drive.is_root_device);
        if drive.is_root_device && root {
            return Err(Fault::DriveConfig(
                "A root block device already exists!".into(),
            ));
        }
        if drive.is_root_device && self.pmem.iter().any(|pmem| pmem.root_device) {
            return Err(Fault::DriveConfig(
                "A root pmem device already exists, and one device has the root file system."
                    .into(),
            ));
        }
        drive.check()?;
        put(&mut self.drives, drive.normalized(), |drive| {
            &drive.drive_id
        });
        // The guest finds them in this order.
        self.drives.sort_by_key(|drive| !drive.is_root_device);
        Ok(())
    }

    /// `PUT /pmem/{id}`
    pub fn set_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        self.touched = true;
        let root_drive = self.drives.iter().any(|drive| drive.is_root_device);
        let root_pmem = self
            .pmem
            .iter()
            .any(|other| other.root_device && other.id != pmem.id);
        if pmem.root_device && (root_drive || root_pmem) {
            return Err(Fault::PmemDevice(
                "Attempt to add pmem as a root device while the root device defined as a block device or another \
                 pmem"
                    .into(),
            ));
        }
        pmem.check()?;
        put(&mut self.pmem, pmem, |pmem| &pmem.id);
        Ok(())
    }

    /// `PUT /network-interfaces/{id}`
    pub fn set_net(&mut self, net: NetworkInterface) -> Result<(), Fault> {
        self.touched = true;
        let mut others = self
            .nets
            .iter()
            .filter(|other| other.iface_id != net.iface_id);
        if let Some(mac) = net.guest_mac
            && others.any(|other| other.guest_mac == Some(mac))
        {
            return Err(Fault::NetworkConfig(format!(
                "The MAC address is already in use: {}",
                mac.0
            )));
        }
        umbra_vmm::check_tap(&net.host_dev_name).map_err(|error| {
            Fault::NetworkConfig(format!(
                "Cannot open/create the tap device: {}",
                chain(&error)
            ))
        })?;
        put(&mut self.nets, net, |net| &net.iface_id);
        Ok(())
    }

    /// Remembers what came while the machine runs.
    pub fn remember_drive(&mut self, drive: Drive) {
        put(&mut self.drives, drive.normalized(), |drive| {
            &drive.drive_id
        });
    }

    /// See [`remember_drive`](Self::remember_drive).
    pub fn remember_pmem(&mut self, pmem: Pmem) {
        put(&mut self.pmem, pmem, |pmem| &pmem.id);
    }

    /// See [`remember_drive`](Self::remember_drive).
    pub fn remember_net(&mut self, net: NetworkInterface) {
        put(&mut self.nets, net, |net| &net.iface_id);
    }

    /// `PUT /vsock`
    pub fn set_vsock(&mut self, vsock: Vsock) -> Result<(), Fault> {
        self.touched = true;
        vsock.check()?;
        self.vsock = Some(vsock);
        Ok(())
    }

    /// `PUT /entropy`
    pub fn set_entropy(&mut self, entropy: Entropy) {
        self.touched = true;
        self.entropy = Some(entropy);
    }

    /// `PUT /serial`
    pub fn set_serial(&mut self, serial: SerialDevice) {
        self.serial = serial;
    }

    /// `PUT /balloon`
    pub fn set_balloon(&mut self, balloon: Balloon) -> Result<(), Fault> {
        self.touched = true;
        if u64::from(balloon.amount_mib) > self.machine.mem_size_mib {
            return Err(Fault::BalloonConfig(
                "Amount of pages requested cannot be greater than the guest memory.".into(),
            ));
        }
        self.balloon = Some(balloon);
        Ok(())
    }

    /// `PUT /hotplug/memory`
    pub fn set_memory_hotplug(&mut self, memory: MemoryHotplugConfig) -> Result<(), Fault> {
        self.touched = true;
        memory.check()?;
        self.memory_hotplug = Some(memory);
        Ok(())
    }

    /// `PUT /mmds/config`
    pub fn set_mmds_config(&mut self, config: MmdsConfig) -> Result<(), Fault> {
        self.touched = true;
        config.check(|id| self.nets.iter().any(|net| net.iface_id == id))?;
        self.mmds_config = Some(config);
        Ok(())
    }

    /// `GET /vm/config`
    pub fn full(&self) -> FullVmConfiguration {
        FullVmConfiguration {
            balloon: self.balloon,
            drives: self.drives.clone(),
            boot_source: self.boot_source.clone().unwrap_or_default(),
            machine_config: self.machine,
            mmds_config: self.mmds_config.clone(),
            network_interfaces: self.nets.clone(),
            vsock: self.vsock.clone().map(|vsock| Vsock {
                vsock_id: None,
                ..vsock
            }),
            entropy: self.entropy,
            pmem: self.pmem.clone(),
            memory_hotplug: self.memory_hotplug,
            ..FullVmConfiguration::default()
        }
    }
}

/// Replaces the one of the same name, or appends.
fn put<T>(all: &mut Vec<T>, new: T, id: fn(&T) -> &String) {
    match all.iter().position(|old| id(old) == id(&new)) {
        Some(at) => all[at] = new,
        None => all.push(new),
    }
}

fn read_template(path: &Path) -> Result<CpuTemplate, Fault> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Fault::Start(format!(
            "cannot read the CPU template {}: {error}",
            path.display()
        ))
    })?;
    cpu_config::parse(&text)
}
