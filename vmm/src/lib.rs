//! Composition: from a specification to a running machine, as a library.
//!
//! Each phase is a type, and nothing flows backwards:
//!
//! ```text
//!   Spec ──Plan::new──> Plan ──build──> Machine ──run──> Ended { outcome, statistics }
//!   what is wanted      checked         what exists      blocks: the caller is the driver
//!                                          └─ handle() ─> Handle: stop, console input
//!
//!   driver (the thread in Machine::run)      vcpu 0..n, one thread each
//!     mailbox <── Event ───────────────────── exit, power-off, reset
//!     policy: state × event → action           io: snapshot.resolve → bus → device
//!     kick, join ────────────────────────────>
//! ```
//!
//! Only the driver changes the state of a machine. The library keeps no global state, installs no
//! signal handler, never ends the process and prints nothing; whatever a machine took is given
//! back when it is dropped.
//!
//! ```no_run
//! use umbra_vmm::{Console, Machine, Outcome, Plan, Spec};
//!
//! let spec = Spec::new("vmlinuz").initrd("initrd.cpio").memory(512 << 20);
//! let machine = Machine::build(Plan::new(spec)?, Console::to(std::io::stdout()))?;
//! let ended = machine.run()?;
//! assert_eq!(ended.outcome, Outcome::PowerOff);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Start reading at [`Spec`], then `build`, then `driver`.
#![forbid(unsafe_code)]

mod apart;
mod build;
mod console;
mod devices;
mod driver;
mod error;
mod handle;
mod inspect;
mod io;
mod journal;
mod layout;
mod look;
mod machine;
mod own;
mod plan;
mod policy;
mod spec;
mod terminal;
mod vcpu;
mod vm;

#[cfg(test)]
mod tests;

pub use apart::{ApartError, Helpers, device_apart};
pub use console::Console;
pub use devices::VirtioInfo;
pub use driver::Ended;
pub use error::{
    AddError, BuildError, DiskError, MemError, NetError, PlanError, PmemError, PortError,
    RemoveError, RunError,
};
pub use handle::{ConsoleClosed, ConsoleInput, Handle, HandleError, MapError};
pub use inspect::{BackEndReport, Bump, Counters, CpuCounters, DeviceReport, Inspection, MapEntry};
pub use journal::{Entry, EventLog, Events, News, Taken};
pub use machine::Machine;
pub use own::{BackendParts, OwnDevice};
pub use plan::Plan;
pub use policy::{Outcome, Paused, PausedCpu};
pub use spec::LimitsForm;
pub use spec::{
    Backend, BackingFiles, BalloonSpec, Bucket, Cache, ConfigFile, ConsoleSpec, Content, CpuModel,
    CpuTemplate, DiskSpec, EngineKind, Format, IrqchipMode, KvmSpec, Limits, Mac, MemSpec,
    Metadata, MetadataConfig, Module, NetHost, NetMetadata, NetSpec, OnReset, PmemSpec, PortEnd,
    PortSpec, Processor, RngSpec, Spec, VdpaSpec, Verify, VhostKind, VhostUserSpec, VhostVsockSpec,
    VirtioKind, VirtioSpec, VsockSpec,
};
pub use vm::{Builder, Error, Vm};

pub use build::{check_tap, probe};
pub use umbra_block::OpenError;
pub use umbra_boot::{Error as BootError, Protocol};
pub use umbra_cpu::Crash;
pub use umbra_cpu::template::{Template, TemplateError};
pub use umbra_cpu_kvm::{DEVICE as KVM_DEVICE, HostError, KvmError};
pub use umbra_devices::KeyError;
pub use umbra_devices::virtio::balloon::{
    BalloonCounters, BalloonStatistics, HintingError, HintingStatus, TargetError,
};
pub use umbra_devices::virtio::block::{ReplaceError, Statistics as DiskStatistics};
pub use umbra_devices::virtio::mem::SizeError;
pub use umbra_devices::virtio::net::NetStatistics;
pub use umbra_devices::virtio::{
    BalloonControl, BlockControl, MemControl, NetControl, PmemControl,
};
pub use umbra_mmds::{MetadataError, Version as MetadataVersion};
pub use umbra_net::{MacError, TapError};
pub use umbra_vhost::{BackEndError, BackEndState};
pub use umbra_virtio::Device;
