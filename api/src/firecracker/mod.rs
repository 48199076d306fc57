//! Firecracker's interface, version 1.17: every path, verb and field.
//!
//! ```text
//!   HTTP ── request::parse ──> Action ── Instance::carry_out ──> Answer or Fault ── HTTP
//!            pure               what is     │ before: Config, which is only remembered and checked
//!                               wanted      │ start:  Config ── spec ──> umbra_vmm::Spec, a machine
//!                                           └ after:  umbra_vmm::Handle
//! ```
//! Names, defaults and statuses are Firecracker's; where this monitor does otherwise is in `docs/api.md`.

pub mod config;
pub mod described;
pub mod fault;
mod files;
pub mod instance;
pub mod metrics;
pub mod policy;
pub mod request;
pub mod resources;
mod spec;

/// The version of Firecracker whose interface this is.
pub const VERSION: &str = "1.17.0";
