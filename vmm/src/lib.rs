//! Composition: from a specification to a running machine, as a library.
//!
//! ```text
//!   Spec ── Builder ── build ──> Vm ── start, run, wait ──────────────────────────────> Ended
//!   what is wanted, files        │     one machine, all of its lives                    how, and what was counted
//!   and devices of one's own     └─ handle() ─> Handle: stop, pause, reset, devices come and go, events, a look inside
//!
//!   a life:  Plan::new ──> Machine ── the driver's thread ──> over ─┬─> Ended
//!            checked       what exists       mailbox <── Event      └─> reset: the next life (`vm`)
//!                                            policy: state × event → action
//!                          vcpu 0..n, one thread each: exit, power-off, reset ── Event ──> the driver
//!                            io: snapshot.resolve → bus → device
//! ```
//!
//! Only the driver changes the state of a machine. The library keeps no global state, installs no signal handler, never
//! ends the process and prints nothing; whatever a machine took is given back when its [`Vm`] is dropped, whoever still
//! has a [`Handle`].
//!
//! # Embedding it
//! A guest that reads a device of the program's own, and powers off:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use umbra_slots::{Gpa, GpaRange};
//! use umbra_vmm::{Backend, Builder, HandleError, News, Outcome, Spec};
//! use vm_device::DeviceMmio;
//! use vm_device::bus::{MmioAddress, MmioAddressOffset};
//!
//! /// Answers 5 << 2 | 1 << 5: what the guest writes to its sleep register to power off.
//! struct SoftOff;
//! impl DeviceMmio for SoftOff {
//!     fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
//!         data.fill(0x34);
//!     }
//!     fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
//! }
//!
//! // mov al, [0xfea00000]; mov dx, 0x600; out dx, al; jmp $
//! let code = b"\xa0\0\0\xa0\xfe\x66\xba\0\x06\xee\xeb\xfe";
//! # let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
//! # let end = 0x10_0020 + code.len() as u32;
//! # let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
//! # let header = [magic, flags, sum, 0x10_0000, 0x10_0000, end, end, 0x10_0020];
//! # let mut kernel_bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
//! # kernel_bytes.extend(code);
//! # let folder = tempfile::tempdir()?;
//! # let kernel = folder.path().join("kernel");
//! # std::fs::write(&kernel, kernel_bytes)?;
//! let spec = Spec::new(kernel).memory(16 << 20).backend(Backend::Soft);
//! let place = GpaRange::new(Gpa(0xfea0_0000), 0x1000).expect("a page");
//! let mut vm = Builder::new(spec).mmio(place, Arc::new(SoftOff)).build()?;
//! let handle = vm.handle();
//! // A descriptor for an event loop; here it is just waited for.
//! let mut events = handle.events(Some(0))?;
//! vm.start()?;
//! let mut all = Vec::new();
//! while !matches!(all.last(), Some(News::Ended { .. })) {
//!     let taken = events.wait(Duration::from_secs(60), 100);
//!     all.extend(taken.entries.into_iter().map(|entry| entry.news));
//! }
//! assert!(matches!(all[0], News::Started { boot: 1, .. }));
//! assert_eq!(vm.wait()?.outcome, Outcome::PowerOff);
//! // The handle is still there; the machine, its threads, descriptors and memory are not.
//! assert_eq!(handle.pause().err(), Some(HandleError::Ended));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What executes the guest can be one's own, too: whatever implements [`umbra_cpu::Backend`]. Here it is the software
//! processor, chosen by hand; the guest is one that does nothing for ever, and goes when the [`Vm`] is dropped:
//!
//! ```
//! # use umbra_vmm::{Builder, Processor, Spec};
//! use umbra_cpu_soft::{MmuConfig, SoftBackend, SoftConfig, model};
//!
//! # let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
//! # let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
//! # let header = [magic, flags, sum, 0x10_0000, 0x10_0000, 0x10_0022, 0x10_0022, 0x10_0020];
//! # let mut kernel_bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
//! # kernel_bytes.extend(b"\xeb\xfe");
//! # let folder = tempfile::tempdir()?;
//! # let kernel = folder.path().join("kernel");
//! # std::fs::write(&kernel, kernel_bytes)?;
//! let builder = Builder::new(Spec::new(kernel).memory(16 << 20)).backend(|parts| {
//!     let config = SoftConfig {
//!         cpus: parts.cpus,
//!         cpuid: (0..parts.cpus).map(|id| model::x86_64_v2(id, parts.cpus)).collect(),
//!         mmu: MmuConfig::default(),
//!         processor: Processor::default(),
//!         measure: false,
//!     };
//!     Ok(SoftBackend::new(parts.space, parts.clock, config) as _)
//! });
//! let mut vm = builder.build()?;
//! let handle = vm.handle();
//! vm.start()?;
//! assert_eq!(handle.inspect()?.cpus.len(), 1);
//! drop(vm);
//! assert!(handle.inspect().is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/embed.rs` has three machines in one process, in one event loop, with devices that come and go.
//!
//! Start reading at [`Spec`], then `vm`, `build`, `driver`.
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
pub use umbra_cpu_soft::perf_map;
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
