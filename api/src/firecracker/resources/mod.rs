//! The resources of the interface, a file each: what they are on the wire, what is checked of them by themselves, and
//! which device of [`umbra_vmm`] they ask for. Field names and defaults are those of Firecracker 1.17.

pub mod balloon;
pub mod boot_source;
pub mod cpu_config;
pub mod drive;
pub mod entropy;
pub mod limits;
pub mod logger;
pub mod machine_config;
pub mod memory_hotplug;
pub mod metrics;
pub mod mmds;
pub mod net;
pub mod pmem;
pub mod serial;
pub mod snapshot;
pub mod vm;
pub mod vsock;

/// What the names of resources are made of.
pub const ID_PATTERN: &str = "^[A-Za-z0-9_]+$";
