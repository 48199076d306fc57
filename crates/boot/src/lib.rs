//! Puts a kernel and everything it expects to find into guest memory, and says with which
//! registers the boot processor starts.
//!
//! ```text
//!   Image::open ─> Kind ─┬─ BzImage    64-bit entry (32-bit if the kernel has no other), zero page
//!                        ├─ Elf + PVH  32-bit entry, hvm_start_info
//!                        └─ Multiboot  32-bit entry, multiboot information, modules
//!   load(memory, request) ─> Loaded { state, rsdp, … }
//! ```
//!
//! Images come from outside and are not trusted: every offset and length is checked, and what is
//! wrong with one is an [`Error`] of one line that says what to do about it.
//!
//! Where things are put is in [`layout`]; the ACPI tables are made in `acpi`. This crate must not
//! know devices, the bus or the processor: addresses of devices come in with [`Platform`].
//! Start reading at [`load`].
//!
//! Sources: Linux `Documentation/arch/x86/boot.rst`, Xen `docs/misc/pvh.pandoc`, Multiboot
//! Specification 0.6.96, ACPI Specification 6.5.
//!
//! ```
//! use umbra_boot::{Usage, memory_map};
//!
//! // 64 MiB at 0: what a kernel is told about it.
//! let map = memory_map([(0, 64 << 20)]);
//! let free: Vec<_> = map.iter().filter(|region| region.usage == Usage::Ram).collect();
//! assert_eq!((free[0].start, free[1].start), (0, 1 << 20));
//! assert_eq!(free[1].start + free[1].len, 64 << 20);
//! ```
#![forbid(unsafe_code)]

mod acpi;
mod bzimage;
mod elf32;
mod elf64;
mod error;
mod image;
mod info;
mod initrd;
pub mod layout;
mod load;
mod memory_map;
mod multiboot;
mod registers;
mod reset_vector;

pub use acpi::{KeyboardController, Linkable, PciRoot, Platform, VirtioMmio};
pub use error::{Error, Role};
pub use image::{Image, Kind};
pub use load::{Loaded, Module, Protocol, Request, load};
pub use memory_map::{Region, Usage, memory_map};

#[cfg(test)]
mod tests;
