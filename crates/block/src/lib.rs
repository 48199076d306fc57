//! Disks, and what serves requests for them. Knows files and guest memory; not what a virtio device is.
//!
//! ```text
//!   open(path, options) ──> Disk      raw file or block device, qcow2
//!                             │
//!   Job { tag, Operation } ─> Engine ──> Completion { tag, result }      in any order
//!                             ├─ io_uring
//!                             └─ threads that call the disk
//! ```
//!
//! **Who waits where.** An [`Engine`] belongs to one thread, which submits jobs, polls
//! [`Engine::event`], and takes what has completed; it never blocks on a disk. The calls of a
//! [`Disk`] block, and are made on threads of the engine; with io_uring, reads, writes and flushes of a
//! plain file need none.
//!
//! **Memory.** A request's bytes go between host file and guest memory without a copy where the disk
//! allows it. [`Buffers`] are the pieces of memory of one request, and keep them mapped until it has
//! completed, even if the guest's memory map changes meanwhile: the bytes then go where no guest sees
//! them, as those of real hardware into a module that was pulled.
//!
//! **The format of a file is said, never guessed.** A guest that may write a raw disk can write there
//! what looks like the header of another format, which names any file of the host as its backing file.
//!
//! **Unsafe code** is in `memory` (pieces of memory under raw pointers), `sys` (system calls on
//! them) and `uring` (the kernel works on them later).
//!
//! ```
//! use umbra_block::{DiskOptions, Format, open};
//!
//! let file = tempfile::NamedTempFile::new()?;
//! file.as_file().set_len(1 << 20)?;
//! let options = DiskOptions { format: Format::Raw, ..DiskOptions::default() };
//! let disk = open(file.path(), &options)?;
//! assert_eq!((disk.len(), disk.is_read_only()), (1 << 20, false));
//! assert!(open(file.path(), &options).is_err()); // one writer, alone
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod disk;
mod engine;
mod error;
mod memory;
mod open;
mod pool;
mod qcow2;
mod raw;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod uring;
mod wake;
mod zeroes;

pub use disk::{Disk, Extent, PlainFile, SECTOR, Topology, Unmap};
pub use engine::{Completion, Durability, Engine, EngineKind, Job, Operation};
pub use error::OpenError;
pub use memory::{Access, Buffers, OutOfReach};
pub use open::{BackingFiles, DiskOptions, Format, open, open_file};
