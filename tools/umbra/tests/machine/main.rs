//! Whole machines: the `umbra` command, and the library where a test has to reach into a machine.
//!
//! Guests are Debian's own kernels and programs, fetched with the distribution's package client
//! and kept in the user's cache directory, as `umbra demo` does. Where they cannot be had a test
//! says SKIPPED and why, and fails, unless `UMBRA_ALLOW_SKIP` is set.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod api_devices;
mod audit;
mod bad_input;
mod balloon;
mod bare_metal;
mod boot;
mod buttons;
mod churn;
mod console;
mod crash;
mod dirty;
mod disk_change;
mod drivers;
mod faults;
mod firecracker_clients;
mod hot_memory;
mod hotplug;
mod inspect;
mod interrupts;
mod kernel_vhost;
mod limits;
mod live;
mod metadata;
mod network;
mod no_kvm;
mod openapi_clients;
mod pause;
mod pmem_ext4;
mod poll;
mod qemu_img;
mod slots;
mod stock_drivers;
mod storm;
mod stress;
mod support;
mod terminal;
mod trace;
mod userland;
mod vhost_slots;
mod vhost_user;
mod virtio;
mod vsock;
