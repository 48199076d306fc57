//! From what was said to the machine that is meant.

use umbra_vmm::{Metadata, NetMetadata, Spec, VirtioKind};

use super::config::{
    BALLOON_ID, Config, ENTROPY_ID, MEMORY_ID, Options, VSOCK_ID, drive_id, net_id, pmem_id,
};
use super::fault::Fault;
use super::resources::boot_source::{BootSource, DEFAULT_BOOT_ARGS};
use super::resources::machine_config::{CpuTemplate, HugePages};

impl Config {
    /// The machine that was asked for, whose metadata is `data`.
    pub fn spec(&self, options: &Options, data: &Metadata) -> Result<Spec, Fault> {
        let boot = self.boot_source.as_ref().ok_or_else(|| {
            Fault::Start("Cannot start microvm without kernel configuration.".into())
        })?;
        let machine = &self.machine;
        self.check_start()?;
        let mut spec = Spec::new(&boot.kernel_image_path)
            .cpus(machine.vcpu_count.into())
            .memory(machine.mem_size_mib << 20)
            .backend(options.backend)
            .command_line(self.command_line(boot, options));
        spec.initrd = boot.initrd_path.clone();
        spec.cpu_template = self.template.clone();
        spec.pci = options.pci;
        spec.keyboard = true;
        spec.serial_limit = self.serial.limit();
        Ok(self
            .devices(data)?
            .into_iter()
            .fold(spec, |spec, (id, kind)| spec.virtio(id, kind)))
    }

    /// What Firecracker has and this monitor has not.
    fn check_start(&self) -> Result<(), Fault> {
        if self.machine.huge_pages == HugePages::Hugetlbfs2M {
            return Err(Fault::Start(
                "huge_pages 2M: guest memory of hugetlbfs is not possible here; say Transparent"
                    .into(),
            ));
        }
        match self.machine.cpu_template {
            None | Some(CpuTemplate::None) => Ok(()),
            Some(name) => Err(Fault::Start(format!(
                "cpu_template {name:?}: the current CPU vendor has no such template; leave it out, or describe \
                 one with /cpu-config"
            ))),
        }
    }

    fn command_line(&self, boot: &BootSource, options: &Options) -> String {
        let mut line = boot
            .boot_args
            .clone()
            .unwrap_or_else(|| DEFAULT_BOOT_ARGS.into());
        if !options.pci && !line.split_whitespace().any(|word| word.starts_with("pci=")) {
            line.push_str(" pci=off");
        }
        let mode = |read_only: bool| if read_only { "ro" } else { "rw" };
        if let Some(root) = self.drives.iter().find(|drive| drive.is_root_device) {
            let device = match &root.partuuid {
                Some(uuid) => format!("PARTUUID={uuid}"),
                None => "/dev/vda".into(),
            };
            line.push_str(&format!(" root={device} {}", mode(root.is_read_only())));
        } else if let Some(at) = self.pmem.iter().position(|pmem| pmem.root_device) {
            line.push_str(&format!(
                " root=/dev/pmem{at} {}",
                mode(self.pmem[at].read_only)
            ));
        }
        line
    }

    /// The devices, in the order in which the guest finds them.
    fn devices(&self, data: &Metadata) -> Result<Vec<(String, VirtioKind)>, Fault> {
        let mut all = Vec::new();
        for drive in &self.drives {
            all.push((drive_id(&drive.drive_id), drive.kind()?));
        }
        for net in &self.nets {
            all.push((
                net_id(&net.iface_id),
                net.kind(self.service(&net.iface_id, data)),
            ));
        }
        all.extend(
            self.pmem
                .iter()
                .map(|pmem| (pmem_id(&pmem.id), pmem.kind())),
        );
        all.extend(
            self.vsock
                .iter()
                .map(|vsock| (VSOCK_ID.into(), vsock.kind())),
        );
        all.extend(
            self.balloon
                .iter()
                .map(|balloon| (BALLOON_ID.into(), balloon.kind())),
        );
        all.extend(
            self.entropy
                .iter()
                .map(|entropy| (ENTROPY_ID.into(), entropy.kind())),
        );
        all.extend(
            self.memory_hotplug
                .iter()
                .map(|memory| (MEMORY_ID.into(), memory.kind())),
        );
        Ok(all)
    }

    /// The metadata service, if it is reached by this interface.
    fn service(&self, id: &str, data: &Metadata) -> Option<NetMetadata> {
        let config = self.mmds_config.as_ref()?;
        let reached = config.network_interfaces.iter().any(|other| other == id);
        reached.then(|| config.service(data))
    }
}
