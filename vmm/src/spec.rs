//! What somebody wants: plain data, unchecked. It has a JSON form, in which what has a default need not be said, and
//! what is not known is refused; sizes are bytes.

#[cfg(test)]
mod tests;
mod virtio;
mod wire;

pub use virtio::*;
pub use wire::Limits as LimitsForm;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

fn one_cpu() -> u32 {
    1
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
