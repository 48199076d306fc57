//! The host's KVM as a processor backend.
//!
//! ```text
//!   Host::open ── checked ──> KvmBackend ──> KvmVcpu: the loop around KVM_RUN
//!                                │              │ exits: memory, ports ──> Io
//!   map ── Mirror ── slots ──────┤              │ kick: immediate_exit and a signal
//!          └── doorbells ────────┤              └ pen: out of the guest while slots are replaced
//!   lines, messages, events ── irq
//! ```
//! Guest-physical memory is what the map of `umbra-slots` says, mirrored into KVM's slots; what is no
//! RAM there leaves the guest and is asked of [`umbra_cpu::Io`]. This crate must never learn what a
//! bus is.
//!
//! No signal handler is installed and no global state kept (`signal`). Start reading at `backend`, then
//! `vcpu`, then `slots`.
//!
//! Source: the kernel's Documentation/virt/kvm/api.rst, named "KVM API" here.
//!
//! ```no_run
//! use umbra_clock::Clock;
//! use umbra_cpu::Backend;
//! use umbra_cpu_kvm::{DEVICE, Host, IrqchipMode, KvmBackend, KvmConfig};
//! use umbra_slots::{AddressSpace, Options};
//!
//! let space = AddressSpace::new(Options::default());
//! let config = KvmConfig {
//!     cpus: 1,
//!     irqchip: IrqchipMode::Auto,
//!     dirty_ring: None,
//!     tsc_khz: None,
//!     template: None,
//! };
//! let host = Host::open(DEVICE.as_ref())?;
//! let backend = KvmBackend::new(host, space, Clock::start(), config)?;
//! let vcpu = backend.vcpu(0)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg(target_arch = "x86_64")]
#![deny(unsafe_code)]

mod backend;
mod coalesced;
mod convert;
mod cpuid;
mod dirty;
mod doorbell;
mod host;
mod irq;
mod kick;
mod pen;
pub mod probe;
mod raw;
mod report;
mod run_page;
mod saved;
mod signal;
mod slots;
mod vcpu;
mod vm;

pub use backend::{KvmBackend, KvmConfig, KvmError};
pub use host::{DEVICE, Host, HostError};
pub use irq::IrqchipMode;
