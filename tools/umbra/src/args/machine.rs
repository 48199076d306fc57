//! What a machine can be given, as `umbra run` and `umbra demo` have it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use umbra_vmm::{
    Backend, CpuModel, CpuTemplate, IrqchipMode, KvmSpec, OnReset, Processor, Spec, Verify,
    VirtioKind, VirtioSpec,
};

use super::{
    balloon, console, disk, fw_cfg, limit, mem, net, pmem, port, rng, vdpa, vhost_user, vsock,
};
use crate::size;
use crate::trace;

/// What every machine can be given.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// The kernel's command line [default: "console=ttyS0 panic=-1", for a multiboot kernel nothing]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Size of memory, like 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    pub memory: u64,
    /// What executes the guest
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub backend: BackendArg,
    /// Where KVM is
    #[arg(long, value_name = "PATH", default_value = umbra_vmm::KVM_DEVICE)]
    pub kvm_device: PathBuf,
    /// Which interrupt controllers are in KVM: only local APICs (split), all (full), or what the
    /// kernel offers
    #[arg(long, value_enum, default_value_t = IrqchipArg::Auto)]
    pub kvm_irqchip: IrqchipArg,
    /// Frequency of the guest's time-stamp counter [default: the host's on KVM, else 1000000]
    #[arg(long, value_name = "KHZ")]
    pub tsc_khz: Option<u32>,
    /// Add a disk (virtio-blk): PATH, then format=raw or qcow2, backing (follow a qcow2 file's backing files),
    /// readonly, direct, cache=writeback, writethrough or unsafe, serial=TEXT, queues=N, engine=io_uring or
    /// threads, bandwidth=LIMIT, ops=LIMIT, id=NAME; may be repeated. A LIMIT is SIZE[:MILLISECONDS[:BURST]]: so
    /// much in that time, which is a second if it is not said, and BURST once besides
    #[arg(long, value_name = "PATH[,KEY=VALUE...]", value_parser = disk::parse)]
    pub disk: Vec<disk::Disk>,
    /// Add a network interface (virtio-net): user (by passt, with tcp=PORTS and udp=PORTS to forward),
    /// tap=NAME (with queues=N, and vhost to have the host's kernel move the frames: /dev/vhost-net, no limits) or
    /// socket=PATH, each with mac=ADDRESS, mtu=N, id=NAME, and limits as a disk has
    /// them for what the guest receives and sends: rx-bandwidth=, rx-ops=, tx-bandwidth=, tx-ops=; by metadata=FILE
    /// the guest finds that JSON at http://169.254.169.254 (metadata-version=2: with a token; metadata-address=ADDRESS:
    /// elsewhere; metadata-text: always as text, as on EC2); may be repeated
    #[arg(long, value_name = "KIND[,KEY=VALUE...]", value_parser = net::parse)]
    pub net: Vec<net::Net>,
    /// Connect programs of the guest and of the host (virtio-vsock): cid=N and path=PATH of a unix socket that
    /// is made; who connects there says "CONNECT PORT", and who serves port N listens at PATH_N. Or vhost instead of
    /// path=PATH: the host's kernel connects them with its AF_VSOCK (/dev/vhost-vsock), and cid=N is this guest's
    /// alone on the host
    #[arg(long, value_name = "cid=N,path=PATH|vhost", value_parser = vsock::parse)]
    pub vsock: Option<vsock::Vsock>,
    /// Add a device whose work is done by a vhost-user back end, which has to be there already: block, fs
    /// (tag=NAME to mount it by, if the back end does not say), net (mac=ADDRESS), vsock, or device=TYPE with
    /// config=BYTES of configuration; then socket=PATH at which the back end listens, queues=N, queue-size=N,
    /// id=NAME; may be repeated
    #[arg(long, value_name = "KIND,socket=PATH[,KEY=VALUE...]", value_parser = vhost_user::parse)]
    pub vhost_user: Vec<vhost_user::VhostUser>,
    /// Add a virtio device of the host's (vDPA), hardware or a simulation: its node, as /dev/vhost-vdpa-0, then
    /// id=NAME; all memory of the guest is locked for it, so there is no balloon; may be repeated
    #[arg(long, value_name = "NODE[,id=NAME]", value_parser = vdpa::parse)]
    pub vdpa: Vec<vdpa::Vdpa>,
    /// Add a file of the host as persistent memory (virtio-pmem), /dev/pmem0 in the guest: PATH, whose size is
    /// a multiple of 2M, then readonly, size=SIZE, id=NAME, and limits of flushes, bandwidth= and
    /// ops=, as a disk has them; may be repeated
    #[arg(long, value_name = "PATH[,KEY=VALUE...]", value_parser = pmem::parse)]
    pub pmem: Vec<pmem::Pmem>,
    /// Add memory that the guest takes and gives back in blocks while it runs (virtio-mem): max=SIZE it may
    /// have, size=SIZE it shall take from the beginning, block=SIZE, id=NAME [default: size=0, block=2M]; may be
    /// repeated
    #[arg(long, value_name = "max=SIZE[,KEY=VALUE...]", value_parser = mem::parse)]
    pub mem: Vec<mem::Mem>,
    /// Add an entropy device (virtio-rng), with limits if some are named: bandwidth=SIZE[:MILLISECONDS[:BURST]],
    /// ops=COUNT[:MILLISECONDS[:BURST]]
    #[arg(long, value_name = "KEY=VALUE...", num_args = 0..=1, default_missing_value = "",
          value_parser = rng::parse)]
    pub rng: Option<umbra_vmm::RngSpec>,
    /// Add a memory balloon (virtio-balloon), by which the guest gives memory back: size=SIZE it shall lend
    /// from the beginning, deflate-on-oom=on or off, free-page-reporting=on or off [default: 0, on, on]
    #[arg(long, value_name = "KEY=VALUE...", num_args = 0..=1, default_missing_value = "",
          value_parser = balloon::parse)]
    pub balloon: Option<balloon::Balloon>,
    /// Add a virtio console: stdio (this terminal, which the serial port then shares for output only),
    /// socket=PATH (a unix socket that is made) or file=PATH; with name=NAME a port that the guest finds as
    /// /dev/virtio-ports/NAME instead of a console; may be repeated. The kernel takes it with console=hvc0
    #[arg(long, value_name = "END[,name=NAME]", value_parser = console::parse)]
    pub console: Vec<umbra_vmm::PortSpec>,
    /// Name virtio devices on the kernel's command line too, for kernels without ACPI
    #[arg(long)]
    pub virtio_cmdline: bool,
    /// Put virtio devices on a PCI bus, with MSI-X, where others can come and go
    #[arg(long, conflicts_with = "virtio_cmdline")]
    pub pci: bool,
    /// Drop what the guest sends by the serial port over a limit: SIZE[:MILLISECONDS[:BURST]]
    #[arg(long, value_name = "LIMIT", value_parser = limit::bandwidth)]
    pub serial_limit: Option<umbra_vmm::Bucket>,
    /// Add a keyboard, behind an 8042 controller
    #[arg(long)]
    pub keyboard: bool,
    /// Let a write to PORT end the machine, and choose the exit status (QEMU's isa-debug-exit)
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0xf4",
          value_parser = port::parse)]
    pub debug_exit: Option<u16>,
    /// Add the device by which test kernels drive interrupt lines (QEMU's pc-testdev), and an exit
    /// port at 0xf4
    #[arg(long)]
    pub test_device: bool,
    /// Add the firmware configuration device (QEMU's fw_cfg), with an item if one is named:
    /// name=NAME,file=PATH or name=NAME,string=TEXT; may be repeated
    #[arg(long, value_name = "ITEM", num_args = 0..=1, default_missing_value = "",
          value_parser = fw_cfg::parse)]
    pub fw_cfg: Option<Vec<fw_cfg::Item>>,
    /// What becomes of the machine when its guest resets it
    #[arg(long, value_enum, default_value_t = OnResetArg::End)]
    pub on_reset: OnResetArg,
    /// What the software processor claims to be
    #[arg(long, value_enum, default_value_t = CpuArg::Stock)]
    pub cpu: CpuArg,
    /// How the software processor executes guest code
    #[arg(long, value_enum, default_value_t = ProcessorArg::Translator)]
    pub processor: ProcessorArg,
    /// Hide processor features: x86-64-v2, x86-64-v3, x86-64-v4, or a file in Firecracker's format
    #[arg(long, value_name = "NAME|FILE")]
    pub cpu_template: Option<String>,
    /// Width of the generation tag in MMIO entries, 2 to 19 (for debugging)
    #[arg(long, value_name = "N", default_value_t = 19, hide = true)]
    pub tag_bits: u32,
    /// The generation of the first map, to begin near a wrap of the tag (for debugging)
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub first_generation: u64,
    /// Compare every translation with a plain page walk, and audit the MMU's structures every N
    /// slow faults (for debugging; slow)
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1000", hide = true)]
    pub audit: Option<u32>,
}

/// What is no part of the machine: how it is watched.
#[derive(Debug, Args)]
pub struct Watch {
    /// Print the machine as JSON, as --config, `umbra serve --config` and the API take it, and end
    #[arg(long)]
    pub print_config: bool,
    /// Write the MMU's events to FILE, for Perfetto or Chrome's about:tracing: mmu=FILE
    #[arg(long, value_name = "mmu=FILE", value_parser = trace::parse)]
    pub trace: Option<trace::Request>,
    /// Answer `ptdump` on this unix socket
    #[arg(long, value_name = "SOCKET")]
    pub inspect: Option<PathBuf>,
    /// Print counters when the guest has ended
    #[arg(long)]
    pub stats: bool,
    /// Tell the host's `perf` what translated code stands for, in /tmp/perf-PID.map
    #[arg(long)]
    pub perf_map: bool,
}

/// `--on-reset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnResetArg {
    /// It ends, with status 3
    End,
    /// It begins again, with the devices that it has then
    Restart,
}

/// `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// KVM where it is there and runs stock systems, else the software processor
    Auto,
    /// The software processor
    Soft,
    /// The host's KVM, whatever it can do
    Kvm,
}

impl From<BackendArg> for Backend {
    fn from(argument: BackendArg) -> Self {
        match argument {
            BackendArg::Auto => Self::Auto,
            BackendArg::Soft => Self::Soft,
            BackendArg::Kvm => Self::Kvm,
        }
    }
}

/// `--kvm-irqchip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IrqchipArg {
    /// Split where the kernel offers it, else full
    Auto,
    /// Only local APICs
    Split,
    /// All
    Full,
}

/// `--processor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProcessorArg {
    /// Instruction by instruction
    Interpreter,
    /// What is hot runs as host code
    Translator,
    /// Everything runs as host code (for debugging)
    #[value(hide = true)]
    Eager,
    /// Both, and a difference ends the machine (to find defects of this program)
    Both,
}

/// `--cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuArg {
    /// What stock kernels boot fastest on
    Stock,
    /// Everything that works: XSAVE, protection keys, 57-bit addresses and more
    Max,
}

impl MachineArgs {
    /// Makes the specification of a machine that boots `kernel`.
    pub fn spec(&self, kernel: PathBuf, initrd: Option<PathBuf>) -> Spec {
        Spec {
            initrd,
            command_line: self.cmdline.clone(),
            cpus: self.cpus,
            memory: self.memory,
            backend: self.backend.into(),
            kvm: KvmSpec {
                device: self.kvm_device.clone(),
                irqchip: match self.kvm_irqchip {
                    IrqchipArg::Auto => IrqchipMode::Auto,
                    IrqchipArg::Split => IrqchipMode::Split,
                    IrqchipArg::Full => IrqchipMode::Full,
                },
                tsc_khz: self.tsc_khz,
                ..KvmSpec::default()
            },
            cpu_model: match self.cpu {
                CpuArg::Stock => CpuModel::Stock,
                CpuArg::Max => CpuModel::Maximal,
            },
            processor: match self.processor {
                ProcessorArg::Interpreter => Processor::Interpreter,
                ProcessorArg::Translator => Processor::Translator,
                ProcessorArg::Eager => Processor::Eager,
                ProcessorArg::Both => Processor::Both,
            },
            cpu_template: self.cpu_template.clone().map(CpuTemplate::Load),
            tag_bits: self.tag_bits,
            first_generation: self.first_generation,
            virtio: self.virtio(),
            virtio_on_command_line: self.virtio_cmdline,
            pci: self.pci,
            keyboard: self.keyboard,
            serial_limit: self.serial_limit,
            verify: self.audit.map_or(Verify::Off, Verify::EveryFault),
            debug_exit: self.debug_exit,
            test_device: self.test_device,
            fw_cfg: self
                .fw_cfg
                .as_ref()
                .map(|items| items.iter().filter_map(|item| item.0.clone()).collect()),
            on_reset: match self.on_reset {
                OnResetArg::End => OnReset::End,
                OnResetArg::Restart => OnReset::Restart,
            },
            ..Spec::new(kernel)
        }
    }
}

impl MachineArgs {
    fn virtio(&self) -> Vec<VirtioSpec> {
        let rng = self.rng.map(|spec| VirtioSpec {
            id: "rng".into(),
            kind: VirtioKind::Rng(spec),
        });
        let nets = (0..).zip(&self.net).map(|(number, net)| net.device(number));
        let disks = (0..)
            .zip(&self.disk)
            .map(|(number, disk)| disk.device(number));
        let pmems = (0..)
            .zip(&self.pmem)
            .map(|(number, pmem)| pmem.device(number));
        let mems = (0..).zip(&self.mem).map(|(number, mem)| mem.device(number));
        let vhosts = (0..).zip(&self.vhost_user);
        let vhosts = vhosts.map(|(number, vhost)| vhost.device(number));
        let vdpas = (0..).zip(&self.vdpa);
        let vdpas = vdpas.map(|(number, vdpa)| vdpa.device(number));
        let vsock = self.vsock.as_ref().map(vsock::Vsock::device);
        let balloon = self.balloon.as_ref().map(balloon::Balloon::device);
        let consoles = console::devices(&self.console);
        disks
            .chain(nets)
            .chain(vhosts)
            .chain(vdpas)
            .chain(pmems)
            .chain(mems)
            .chain(rng)
            .chain(vsock)
            .chain(balloon)
            .chain(consoles)
            .collect()
    }
}
