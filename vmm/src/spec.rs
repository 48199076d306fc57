//! What somebody wants: plain data, unchecked. It has a JSON form, in which what has a default need not be said, and
//! what is not known is refused; sizes are bytes.

mod wire;

pub use wire::Limits as LimitsForm;

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::own::OwnDevice;
pub use umbra_block::{BackingFiles, EngineKind, Format};
use umbra_cpu::template::{Template, TemplateError};
pub use umbra_cpu_kvm::IrqchipMode;
pub use umbra_cpu_soft::Processor;
pub use umbra_devices::virtio::block::Cache;
pub use umbra_devices::virtio::{Bucket, Limits};
pub use umbra_mmds::{Metadata, MetadataConfig};
pub use umbra_net::Mac;
pub use umbra_vhost::Kind as VhostKind;

/// Which processor executes the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// KVM where it is there and runs stock systems, else the software processor.
    #[default]
    Auto,
    /// The software processor.
    Soft,
    /// The host's KVM.
    Kvm,
}

/// How a machine uses the host's KVM, where it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KvmSpec {
    /// The device.
    pub device: PathBuf,
    /// Which interrupt controllers are in the kernel.
    #[serde(with = "wire::IrqchipMode")]
    #[schemars(with = "wire::IrqchipMode")]
    pub irqchip: IrqchipMode,
    /// Dirty pages come by rings of so many entries, a power of two; by bitmaps if there is no number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_ring: Option<u32>,
    /// Frequency of the guest's time-stamp counter in kHz; the host's if there is none. Where the
    /// software processor is taken only its own, 1,000,000, is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u32>,
}

impl Default for KvmSpec {
    fn default() -> Self {
        Self {
            device: umbra_cpu_kvm::DEVICE.into(),
            irqchip: IrqchipMode::Auto,
            dirty_ring: None,
            tsc_khz: None,
        }
    }
}

/// What the software processor claims to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuModel {
    /// What stock systems run fastest on.
    #[default]
    Stock,
    /// Everything that works, for those who write systems.
    Maximal,
}

/// Self-verification of the software processor's MMU, for tests and debug boots. Slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// None.
    #[default]
    Off,
    /// Every translation is compared with a plain walk of the guest's tables, and all structures
    /// are audited every so many slow faults. A violation panics in the processor's thread, which
    /// ends the machine with [`RunError::Panicked`](crate::RunError::Panicked).
    EveryFault(u32),
}

/// What CPUID shows less than the processor has ([`umbra_cpu::template`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuTemplate {
    /// The template of this name, or else the file of this path; it is read when the machine is built.
    Load(String),
    /// One that was read.
    Read(Template),
}

impl CpuTemplate {
    /// Reads a template's text; `name` is for messages.
    ///
    /// # Errors
    /// If the text is no template.
    pub fn parse(name: &str, text: &str) -> Result<Self, TemplateError> {
        Template::parse(name, text).map(Self::Read)
    }
}

/// A module of a multiboot kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// The file.
    pub path: PathBuf,
    /// The string that the kernel gets with it.
    #[serde(default)]
    pub command_line: String,
}

/// What an item of the firmware configuration holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The bytes of a file.
    File(PathBuf),
    /// These bytes.
    Text(String),
}

/// An item of the firmware configuration, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Its name; one's own begin with `opt/`.
    pub name: String,
    /// What it holds.
    pub content: Content,
}

/// What a virtio device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VirtioKind {
    /// Gives the host's random bytes.
    Rng(RngSpec),
    /// A disk.
    #[serde(rename = "blk")]
    Block(DiskSpec),
    /// A network interface.
    Net(NetSpec),
    /// Sockets between programs of the guest and of the host.
    Vsock(VsockSpec),
    /// A device whose work is done by another process.
    #[serde(rename = "vhost-user")]
    VhostUser(VhostUserSpec),
    /// Sockets between programs of the guest and of the host, which the host's kernel connects.
    #[serde(rename = "vhost-vsock")]
    VhostVsock(VhostVsockSpec),
    /// A virtio device of the host's.
    Vdpa(VdpaSpec),
    /// A memory balloon.
    Balloon(BalloonSpec),
    /// Consoles, and ports of bytes.
    Console(ConsoleSpec),
    /// A file of the host as memory.
    Pmem(PmemSpec),
    /// Memory that comes and goes.
    Mem(MemSpec),
    /// One of the embedder's own. It has no JSON form.
    #[serde(skip)]
    Own(OwnDevice),
}

impl VirtioKind {
    /// Its name, as in `virtio-NAME`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rng(_) => "rng",
            Self::Block(_) => "blk",
            Self::Net(_) => "net",
            Self::Vsock(_) => "vsock",
            Self::VhostUser(_) => "vhost-user",
            Self::VhostVsock(_) => "vhost-vsock",
            Self::Vdpa(_) => "vdpa",
            Self::Balloon(_) => "balloon",
            Self::Console(_) => "console",
            Self::Pmem(_) => "pmem",
            Self::Mem(_) => "mem",
            Self::Own(_) => "own",
        }
    }
}

/// A source of entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RngSpec {
    /// How much the guest may take in what time.
    #[serde(with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub limits: Limits,
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The file, or the host's block device.
    pub path: PathBuf,
    /// Its format, which is never guessed.
    #[serde(default, with = "wire::Format")]
    #[schemars(with = "wire::Format")]
    pub format: Format,
    /// Whether the files are opened that its header names.
    #[serde(default, with = "wire::As::<wire::Follow>")]
    #[schemars(with = "bool")]
    pub backing: BackingFiles,
    /// The guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// The host's page cache is passed by.
    #[serde(default)]
    pub direct: bool,
    /// What becomes of writes.
    #[serde(default, with = "wire::Cache")]
    #[schemars(with = "wire::Cache")]
    pub cache: Cache,
    /// What it says its serial number is; 20 bytes at most.
    #[serde(default)]
    #[schemars(length(max = 20))]
    pub serial: String,
    /// Queues, 1 to 64, with a thread each.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: u16,
    /// What serves it.
    #[serde(default, with = "wire::EngineKind")]
    #[schemars(with = "wire::EngineKind")]
    pub engine: EngineKind,
    /// How much the guest may do in what time; [`Handle::disk`](crate::Handle::disk) changes it.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub limits: Limits,
}

impl DiskSpec {
    /// A raw disk that can be written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Raw,
            backing: BackingFiles::Refuse,
            read_only: false,
            direct: false,
            cache: Cache::Writeback,
            serial: String::new(),
            queues: 1,
            engine: EngineKind::default(),
            limits: Limits::default(),
        }
    }
}

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Where its frames go.
    pub host: NetHost,
    /// Its address; a random one if there is none.
    #[serde(default, with = "wire::Maybe::<wire::Mac>")]
    #[schemars(with = "Option<wire::Mac>")]
    pub mac: Option<Mac>,
    /// The largest frame without its Ethernet header, 68 to 65535; the guest's own idea if there is none.
    #[serde(default)]
    #[schemars(range(min = 68))]
    pub mtu: Option<u16>,
    /// How much the guest may receive in what time; [`Handle::network`](crate::Handle::network) changes both.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub receive: Limits,
    /// How much it may send.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub transmit: Limits,
    /// What the guest can ask about itself by this interface, if it can.
    #[serde(default, with = "wire::Maybe::<wire::MetadataForm>")]
    #[schemars(with = "Option<wire::MetadataForm>")]
    pub metadata: Option<NetMetadata>,
}

/// A metadata service that is reached by an interface. Several interfaces can have the same data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetMetadata {
    /// What it says; it can be changed at any time.
    pub data: Metadata,
    /// How it is asked.
    pub config: MetadataConfig,
}

impl NetSpec {
    /// An interface with nothing of its own but an address.
    pub fn new(host: NetHost) -> Self {
        Self {
            host,
            mac: None,
            mtu: None,
            receive: Limits::default(),
            transmit: Limits::default(),
            metadata: None,
        }
    }
}

/// The host's end of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum NetHost {
    /// A TAP interface of this name, with so many queues, 1 to 16.
    Tap {
        /// Its name.
        name: String,
        /// Pairs of queues.
        #[serde(default = "one_pair")]
        #[schemars(range(min = 1, max = 16))]
        queues: usize,
    },
    /// A TAP interface whose frames the host's kernel moves (vhost-net): there are no limits, and nothing is counted.
    Vhost {
        /// The interface's name.
        name: String,
        /// Pairs of queues, 1 to 16.
        #[serde(default = "one_pair")]
        #[schemars(range(min = 1, max = 16))]
        queues: usize,
    },
    /// User-mode networking: a `passt` that is started for it, with arguments of one's own.
    User {
        /// The program.
        #[serde(default = "passt")]
        passt: PathBuf,
        /// More arguments, such as `-t 8022:22` for a port that is forwarded.
        #[serde(default)]
        arguments: Vec<String>,
    },
    /// A unix socket that somebody serves: QEMU's stream protocol, as `passt --socket` speaks it.
    Stream {
        /// The socket.
        path: PathBuf,
    },
}

impl NetHost {
    /// User-mode networking with what `passt` does by itself.
    pub fn user() -> Self {
        Self::User {
            passt: umbra_net::Passt::PROGRAM.into(),
            arguments: Vec::new(),
        }
    }
}

/// Sockets of the guest, and where the host has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context identifier, 3 to 0xfffffffe.
    #[schemars(range(min = 3, max = 0xffff_fffeu64))]
    pub cid: u64,
    /// A unix socket that is made: programs connect there, and say `CONNECT PORT`. Who serves port N for the
    /// guest has a unix socket at this path with `_N` behind it.
    pub path: PathBuf,
    /// The socket's file is still there when the device has gone.
    #[serde(default)]
    pub stays: bool,
}

impl VsockSpec {
    /// A device whose socket goes with it.
    pub fn new(cid: u64, path: impl Into<PathBuf>) -> Self {
        Self {
            cid,
            path: path.into(),
            stays: false,
        }
    }
}

/// A device whose work is done by a vhost-user back end, which is there before the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VhostUserSpec {
    /// Which device it is.
    #[serde(rename = "device", with = "wire::VhostKind")]
    #[schemars(with = "wire::VhostKind")]
    pub kind: VhostKind,
    /// The unix socket at which the back end listens.
    pub socket: PathBuf,
    /// Its queues; as many as one processor needs if there is no number, or as the back end has of another type, 16
    /// at most. A file system has one more than
    /// processors use at a time.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<u16>,
    /// Descriptors of each queue, a power of two up to 1024; what is usual if there is no number.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1024))]
    pub queue_size: Option<u16>,
}

impl VhostUserSpec {
    /// A device with the usual queues.
    pub fn new(kind: VhostKind, socket: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            socket: socket.into(),
            queues: None,
            queue_size: None,
        }
    }
}

/// Sockets of the guest that are `AF_VSOCK` on the host, as between it and any other virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VhostVsockSpec {
    /// The guest's context identifier, 3 to 0xfffffffe, which no other guest of the host has.
    #[schemars(range(min = 3, max = 0xffff_fffeu64))]
    pub cid: u64,
}

/// A virtio device of the host's (vDPA), hardware or a simulation. What it is, and has, it says itself. All of the
/// guest's memory is locked for it, so there is no balloon beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdpaSpec {
    /// Its node, as `/dev/vhost-vdpa-0`.
    pub node: PathBuf,
}

/// A memory balloon: by it the guest lends memory to the host.
/// [`Handle::balloon`](crate::Handle::balloon) changes it while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonSpec {
    /// How many bytes the guest shall lend from the beginning, less than it has; rounded down to pages.
    pub size: u64,
    /// The guest may take pages back rather than end a process when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest says which pages it does not use, and the host has them until it does.
    pub free_page_reporting: bool,
    /// The guest may be asked which pages it does not use
    /// ([`BalloonControl::start_hinting`](crate::BalloonControl::start_hinting)).
    pub free_page_hinting: bool,
    /// How often the guest is asked for statistics from the beginning, 100 ms at the least; never if there is no
    /// interval. [`BalloonControl::set_polling`](crate::BalloonControl::set_polling) changes it.
    #[serde(rename = "polling_ms", with = "wire::Maybe::<wire::Millis>")]
    #[schemars(with = "Option<wire::Millis>")]
    pub polling: Option<Duration>,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self {
            size: 0,
            deflate_on_oom: true,
            free_page_reporting: true,
            free_page_hinting: false,
            polling: None,
        }
    }
}

/// A file of the host that the guest has as memory, above its RAM. Nobody may truncate it meanwhile: that ends
/// the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemSpec {
    /// The file, or the host's block device.
    pub path: PathBuf,
    /// The guest may only read it. What it writes all the same is lost, without a word to it.
    #[serde(default)]
    pub read_only: bool,
    /// How many bytes of it, from its beginning, are shown; all if there is no number. A multiple of 2 MiB.
    #[serde(default)]
    pub size: Option<u64>,
    /// How often the guest may have it flushed in what time: a flush is one operation, and as many bytes as are shown.
    /// [`Handle::pmem`](crate::Handle::pmem) changes it. Nothing limits what the guest reads and writes.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub limits: Limits,
}

impl PmemSpec {
    /// All of a file that can be written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            size: None,
            limits: Limits::default(),
        }
    }
}

/// Memory above the guest's RAM that it takes and gives back in blocks.
/// [`Handle::memory`](crate::Handle::memory) changes how much while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemSpec {
    /// The most, in bytes; a multiple of a block. It costs addresses, and nothing else.
    pub max: u64,
    /// How many bytes the guest shall take from the beginning, a multiple of a block.
    #[serde(default)]
    pub size: u64,
    /// Bytes of a block: a power of two, 2 MiB to 1 GiB. Linux takes 128 MiB at a time where it can, and gives
    /// back blocks.
    #[serde(default = "block")]
    pub block: u64,
}

impl MemSpec {
    /// Up to `max` bytes, of which the guest has none at the beginning, in blocks of 2 MiB.
    pub fn new(max: u64) -> Self {
        Self {
            max,
            size: 0,
            block: 2 << 20,
        }
    }
}

/// A console device: 1 to 31 ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// Its ports.
    pub ports: Vec<PortSpec>,
}

/// A port of a console device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// What the guest calls it, as in Linux's `/dev/virtio-ports/NAME`. Without a name it is a console, as
    /// `/dev/hvc0`.
    #[serde(default)]
    pub name: Option<String>,
    /// The host's end.
    pub end: PortEnd,
}

/// The host's end of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum PortEnd {
    /// The machine's [`Console`](crate::Console), whose input goes here then, and no longer to the serial port.
    /// Output of both is shown. One port of a machine can have it.
    Console,
    /// A unix socket that is made at this path, for one client at a time.
    Socket(PathBuf),
    /// A file that is made or emptied; it gives no input.
    File(PathBuf),
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtioSpec {
    /// What it is called from outside; no two have the same.
    pub id: String,
    /// What it is.
    #[serde(rename = "device")]
    pub kind: VirtioKind,
}

impl VirtioSpec {
    /// Chooses an address where none was said.
    pub(crate) fn settle(&mut self) {
        if let VirtioKind::Net(net) = &mut self.kind {
            net.mac.get_or_insert_with(Mac::random);
        }
    }
}

/// What becomes of a machine when its guest resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnReset {
    /// It ends with [`Outcome::Reset`](crate::Outcome::Reset).
    #[default]
    End,
    /// It begins again.
    Restart,
}

/// A machine as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[must_use]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The kernel: bzImage, ELF with a PVH note, or multiboot 1.
    pub kernel: PathBuf,
    /// The initial RAM disk. For a multiboot kernel a list of modules, `FILE STRING,FILE STRING`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// More modules for a multiboot kernel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<Module>,
    /// The kernel's command line. Without one a multiboot kernel gets none, any other
    /// [`Spec::COMMAND_LINE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    /// Number of processors.
    #[serde(default = "one_cpu")]
    #[schemars(range(min = 1, max = 255))]
    pub cpus: u32,
    /// Bytes of RAM.
    #[serde(default = "memory")]
    pub memory: u64,
    /// Which processor executes the guest.
    #[serde(default)]
    pub backend: Backend,
    /// How KVM is used, if it is.
    #[serde(default)]
    pub kvm: KvmSpec,
    /// What the software processor claims to be.
    #[serde(default)]
    pub cpu_model: CpuModel,
    /// How the software processor executes guest code. KVM has nothing to do with it.
    #[serde(default, with = "wire::Processor")]
    #[schemars(with = "wire::Processor")]
    pub processor: Processor,
    /// What CPUID shows less, on either backend.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "wire::Maybe::<wire::TemplateName>"
    )]
    #[schemars(with = "Option<wire::TemplateName>")]
    pub cpu_template: Option<CpuTemplate>,
    /// Width of the generation tag in MMIO entries, 2 to 19; narrow ones are for tests.
    #[serde(default = "tag_bits")]
    pub tag_bits: u32,
    /// The number of the first map; tests start near a wrap of the tag.
    #[serde(default)]
    pub first_generation: u64,
    /// Self-verification.
    #[serde(default)]
    pub verify: Verify,
    /// Virtio devices. The first ones have interrupts of their own.
    #[serde(default)]
    pub virtio: Vec<VirtioSpec>,
    /// The kernel's command line names them, besides the ACPI tables: for kernels that are built with
    /// `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES` and without ACPI. One with both takes each device once, and
    /// complains.
    #[serde(default)]
    pub virtio_on_command_line: bool,
    /// They are functions on a PCI root bus, with MSI-X, and more of them can come and go while the machine
    /// runs ([`Handle::add_device`](crate::Handle::add_device)). Without, each has a page of memory and a pin.
    #[serde(default)]
    pub pci: bool,
    /// It has a keyboard, behind an 8042 ([`Handle::press_ctrl_alt_del`](crate::Handle::press_ctrl_alt_del)).
    /// Without, the tables say that there is none, and kernels do not look for one.
    #[serde(default)]
    pub keyboard: bool,
    /// How many bytes the guest may send by the serial port in what time. What is over it is dropped and counted
    /// ([`Handle::serial_dropped`](crate::Handle::serial_dropped)).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "wire::Maybe::<wire::TokenBucket>"
    )]
    #[schemars(with = "Option<wire::TokenBucket>")]
    pub serial_limit: Option<Bucket>,
    /// First of four ports whose write ends the machine with
    /// [`Outcome::Exit`](crate::Outcome::Exit) (QEMU's `isa-debug-exit`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debug_exit: Option<u16>,
    /// The device by which test kernels drive interrupt lines (QEMU's `pc-testdev`). It brings an
    /// exit port at 0xf4 where `debug_exit` names none.
    #[serde(default)]
    pub test_device: bool,
    /// The firmware configuration device (QEMU's `fw_cfg`), with these items of the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fw_cfg: Option<Vec<ConfigFile>>,
    /// What becomes of the machine when the guest resets it ([`Vm`](crate::Vm)).
    #[serde(default)]
    pub on_reset: OnReset,
}

fn one() -> u16 {
    1
}

fn one_pair() -> usize {
    1
}

fn one_cpu() -> u32 {
    1
}

fn passt() -> PathBuf {
    umbra_net::Passt::PROGRAM.into()
}

fn block() -> u64 {
    2 << 20
}

fn memory() -> u64 {
    512 << 20
}

fn tag_bits() -> u32 {
    19
}

impl Spec {
    /// The command line of a machine that says nothing else: console on the serial port, and a
    /// panic restarts the machine at once, so that it ends instead of hanging.
    pub const COMMAND_LINE: &'static str = "console=ttyS0 panic=-1";

    /// A machine with one processor and 512 MiB that boots `kernel`.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            modules: Vec::new(),
            command_line: None,
            cpus: 1,
            memory: 512 << 20,
            backend: Backend::Auto,
            kvm: KvmSpec::default(),
            cpu_model: CpuModel::Stock,
            processor: Processor::default(),
            cpu_template: None,
            tag_bits: 19,
            first_generation: 0,
            verify: Verify::Off,
            virtio: Vec::new(),
            virtio_on_command_line: false,
            pci: false,
            keyboard: false,
            serial_limit: None,
            debug_exit: None,
            test_device: false,
            fw_cfg: None,
            on_reset: OnReset::End,
        }
    }

    /// Chooses addresses where none were said, so that they are the same after a reset.
    pub(crate) fn settle(mut self) -> Self {
        self.virtio.iter_mut().for_each(VirtioSpec::settle);
        self
    }

    /// Sets the initial RAM disk.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.initrd = Some(path.into());
        self
    }

    /// Sets the command line.
    pub fn command_line(mut self, line: impl Into<String>) -> Self {
        self.command_line = Some(line.into());
        self
    }

    /// Sets the number of processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the bytes of RAM.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets the processor.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Adds a keyboard.
    pub fn keyboard(mut self) -> Self {
        self.keyboard = true;
        self
    }

    /// Puts virtio devices on a PCI bus.
    pub fn pci(mut self) -> Self {
        self.pci = true;
        self
    }

    /// Adds a virtio device.
    pub fn virtio(mut self, id: impl Into<String>, kind: VirtioKind) -> Self {
        let id = id.into();
        self.virtio.push(VirtioSpec { id, kind });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Spec, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_has_a_default_need_not_be_said() {
        assert_eq!(read(r#"{"kernel": "k"}"#), Ok(Spec::new("k")));
        let device = |json: &str| {
            let device: VirtioSpec = serde_json::from_str(json).unwrap();
            device.kind
        };
        let table = [
            (
                r#"{"id": "a", "device": {"kind": "blk", "path": "d"}}"#,
                VirtioKind::Block(DiskSpec::new("d")),
            ),
            (
                r#"{"id": "a", "device": {"kind": "net", "host": {"type": "user"}}}"#,
                VirtioKind::Net(NetSpec::new(NetHost::user())),
            ),
            (
                r#"{"id": "a", "device": {"kind": "vsock", "cid": 3, "path": "v"}}"#,
                VirtioKind::Vsock(VsockSpec::new(3, "v")),
            ),
            (
                r#"{"id": "a", "device": {"kind": "vhost-user", "device": {"type": "block"}, "socket": "s"}}"#,
                VirtioKind::VhostUser(VhostUserSpec::new(VhostKind::Block, "s")),
            ),
            (
                r#"{"id": "a", "device": {"kind": "balloon"}}"#,
                VirtioKind::Balloon(BalloonSpec::default()),
            ),
            (
                r#"{"id": "a", "device": {"kind": "pmem", "path": "p"}}"#,
                VirtioKind::Pmem(PmemSpec::new("p")),
            ),
            (
                r#"{"id": "a", "device": {"kind": "mem", "max": 1048576}}"#,
                VirtioKind::Mem(MemSpec::new(1 << 20)),
            ),
            (
                r#"{"id": "a", "device": {"kind": "rng"}}"#,
                VirtioKind::Rng(RngSpec::default()),
            ),
        ];
        for (json, kind) in table {
            assert_eq!(device(json), kind, "{json}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let bucket = Bucket {
            size: 1 << 20,
            one_time_burst: 7,
            refill_time: Duration::from_millis(100),
        };
        let limits = Limits {
            bandwidth: Some(bucket),
            operations: None,
        };
        let disk = DiskSpec {
            format: Format::Qcow2,
            backing: BackingFiles::Follow,
            cache: Cache::Unsafe,
            engine: EngineKind::Threads,
            limits,
            ..DiskSpec::new("/d")
        };
        let net = NetSpec {
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            mtu: Some(1400),
            receive: limits,
            ..NetSpec::new(NetHost::Tap {
                name: "tap0".into(),
                queues: 2,
            })
        };
        let other = VhostKind::Other {
            id: 18,
            config_len: 8,
        };
        let ports = vec![
            PortSpec {
                name: None,
                end: PortEnd::Console,
            },
            PortSpec {
                name: Some("log".into()),
                end: PortEnd::File("/log".into()),
            },
        ];
        let spec = Spec {
            processor: Processor::Interpreter,
            cpu_template: Some(CpuTemplate::Load("T2".into())),
            serial_limit: Some(bucket),
            verify: Verify::EveryFault(5),
            fw_cfg: Some(vec![ConfigFile {
                name: "opt/x".into(),
                content: Content::Text("y".into()),
            }]),
            on_reset: OnReset::Restart,
            ..Spec::new("/k").cpus(3).pci().keyboard()
        };
        let spec = spec
            .virtio("disk", VirtioKind::Block(disk))
            .virtio("net", VirtioKind::Net(net))
            .virtio(
                "own",
                VirtioKind::VhostUser(VhostUserSpec::new(other, "/s")),
            )
            .virtio(
                "balloon",
                VirtioKind::Balloon(BalloonSpec {
                    polling: Some(Duration::from_secs(1)),
                    ..BalloonSpec::default()
                }),
            )
            .virtio("console", VirtioKind::Console(ConsoleSpec { ports }))
            .virtio("vdpa", VirtioKind::Vdpa(VdpaSpec { node: "/n".into() }));
        let json = serde_json::to_string_pretty(&spec).unwrap();
        assert_eq!(read(&json), Ok(spec), "{json}");
    }

    #[test]
    fn metadata_is_written_with_what_it_says() {
        let json = r#"{"kernel": "k", "virtio": [{"id": "n", "device": {"kind": "net",
            "host": {"type": "user"}, "metadata": {"data": {"a": 1}, "version": 2}}}]}"#;
        let spec = read(json).unwrap();
        let VirtioKind::Net(net) = &spec.virtio[0].kind else {
            panic!("{spec:?}");
        };
        let metadata = net.metadata.as_ref().unwrap();
        assert_eq!(metadata.data.get()["a"], 1);
        let written = serde_json::to_value(&spec).unwrap();
        let metadata = &written["virtio"][0]["device"]["metadata"];
        assert_eq!(metadata["data"]["a"], 1);
        assert_eq!(metadata["address"], "169.254.169.254");
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_by_name() {
        let device = |text: &str| {
            format!(r#"{{"kernel": "k", "virtio": [{{"id": "a", "device": {text}}}]}}"#)
        };
        let net = |text: &str| {
            device(&format!(
                r#"{{"kind": "net", "host": {{"type": "user"}}, {text}}}"#
            ))
        };
        for (json, said) in [
            (r#"{}"#.to_owned(), "missing field `kernel`"),
            (r#"{"kernel": "k", "cpu": 1}"#.into(), "unknown field `cpu`"),
            (
                device(r#"{"kind": "disk", "path": "d"}"#),
                "unknown variant `disk`",
            ),
            (device(r#"{"kind": "own"}"#), "unknown variant `own`"),
            (device(r#"{"kind": "blk"}"#), "missing field `path`"),
            (
                device(r#"{"kind": "blk", "path": "d", "size": 1}"#),
                "unknown field `size`",
            ),
            (
                net(r#""mac": "01:00:00:00:00:01""#),
                "the first byte of one interface's is even",
            ),
            (
                net(r#""metadata": {"data": [], "version": 1}"#),
                "a JSON object",
            ),
            (
                net(r#""metadata": {"data": {}, "address": "1.2.3.4"}"#),
                "169.254.1.0",
            ),
        ] {
            let error = read(&json).unwrap_err();
            assert!(error.contains(said), "{json}: {error}");
        }
    }
}
