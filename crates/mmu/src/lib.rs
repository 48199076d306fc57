//! A shadow-paging MMU for x86 guests: where does this linear address land?
//!
//! ```text
//!   processor ── translate(gva, access) ──> VcpuMmu ──> Tables (one lock a machine)
//!   own TLB  <── Ram | Tracked | Mmio | #PF ──┘   │        shadow pages by (frame, role),
//!      ^                                          │        reverse map, write tracking
//!      └── Flush::All | Flush::Writers ── Hub     │
//!                                                 └── miss: walk the guest's tables in one
//!   umbra_slots::AddressSpace ── the map ───────────  Snapshot, then install what was found
//! ```
//!
//! The guest's page tables map linear to guest-physical addresses, the map of `umbra-slots` maps
//! those to host memory or to nothing; shadow tables remember both steps in one. An address
//! without RAM is remembered too, by an entry that carries the map's generation: it is valid as
//! long as the map is the same, and stale all at once, with no walk, when it is not
//! (`entry`, `fault`, `mmu`).
//!
//! No hardware reads these tables. Entries keep what the *guest* allows, and whether the access
//! is allowed under CR0.WP, SMEP, SMAP, NX and PKRU is computed when it is asked; the processor's
//! own cache in front is the TLB that the guest knows of.
//!
//! This crate does not know what a device is, what an instruction is, or who runs the guest.
//! Not handled: nested paging, shadow stacks, system-management mode, memory types (PAT, MTRR).
//! Writes to guest tables that are made from outside go through [`Mmu::write_for_device`], or are
//! reported to [`Mmu::follow_device`]; one that is not is not noticed while the table is protected.
//!
//! Start reading at [`VcpuMmu::translate`], then `fault`, `tables`, `mmu`.
//!
//! ```
//! use umbra_mmu::{Access, AccessKind, Config, Kind, Mmu, PagingRegs};
//! use umbra_slots::{AddressSpace, Gpa, Options};
//! use umbra_x86::Gva;
//!
//! let space = AddressSpace::new(Options::default()); // there is no RAM
//! let mmu = Mmu::new(space.clone(), Config::default());
//! let mut vcpu = mmu.attach(Box::new(|| {}));
//! vcpu.set_regs(&PagingRegs::default()); // paging is off
//! let read = Access { kind: AccessKind::Read, user: false, ac: false };
//! let found = vcpu.translate(Gva(0xfee0_0020), read).expect("nothing faults without paging");
//! assert_eq!(found.gpa, Gpa(0xfee0_0020));
//! assert_eq!(found.kind, Kind::Mmio { generation: space.generation() });
//! ```
#![deny(unsafe_code)]

mod age;
mod audit;
mod config;
mod device;
mod dump;
mod entry;
mod fault;
mod flush;
mod guest_entry;
#[cfg(test)]
mod hook;
mod last;
mod memory;
mod mmu;
mod mode;
mod oracle;
mod page;
mod plain;
mod rights;
mod rival;
mod rmap;
mod roots;
mod shadowed;
mod statistics;
mod sync;
mod tables;
mod translation;
mod vcpu;
mod walk;

pub use config::{Audit, Config, Unsync};
pub use flush::Flush;
pub use mmu::Mmu;
pub use mode::PagingRegs;
pub use plain::PlainWalk;
pub use rights::{Access, AccessKind};
pub use translation::{Kind, PageFault, RamPage, Translation};
pub use vcpu::{BadPdpte, Scope, VcpuMmu};

#[cfg(test)]
mod tests;
