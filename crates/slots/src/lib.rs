//! The guest-physical map: RAM slots, I/O windows, the generation, the dirty log.
//!
//! ```text
//!   AddressSpace ── load() ──> Snapshot (immutable): sorted slots + generation
//!        │                        └─ resolve(gpa) -> Ram | Io | Nothing
//!        └─ update(|editor| …)    one publication: generation + 1, one atomic swap
//!              listeners are shown the change before and after the swap
//!              and say what must still be waited for (Stale)
//! ```
//!
//! This crate owns [the generation](Generation). Every change of the map is one call of
//! [`AddressSpace::update`], which is the only place that advances it; a change of the device bus
//! is a change of this map. Slots, windows and generation travel in one object, so an answer
//! cannot carry the number of another map than the one it came from (rules R5, R6, R7).
//!
//! It knows that I/O windows exist ([`IoId`]), never what a device is, and knows no other crate
//! of the workspace. Start reading at [`AddressSpace`].
//!
//! ```
//! use umbra_slots::{AddressSpace, Gpa, GpaRange, IoId, Options, Target};
//!
//! let space = AddressSpace::new(Options::default());
//! let window = GpaRange::new(Gpa(0xd000_0000), 0x1000).expect("it is not empty and does not wrap");
//! let id = space.update("a device appears", |map| map.add_io(window, IoId(7)))?.wait();
//! let old = space.load_full();
//! space.update("it moves", |map| map.move_to(id, Gpa(0xe000_0000)))?.wait();
//!
//! assert!(matches!(old.resolve(Gpa(0xd000_0010)), Target::Io { id: IoId(7), offset: 0x10, .. }));
//! assert!(matches!(space.load().resolve(Gpa(0xd000_0010)), Target::Nothing));
//! assert_eq!(space.generation().0, old.generation().0 + 1);
//! # Ok::<(), umbra_slots::SlotError>(())
//! ```
#![deny(unsafe_code)]

mod addr;
mod advise;
mod dirty;
mod discard;
mod dma;
mod dma_memory;
mod editor;
mod error;
mod listener;
mod ram;
mod range;
mod slot;
mod snapshot;
mod space;
mod volatile;

pub use addr::{Generation, Gfn, Gpa, IoId};
pub use dirty::{DirtyLog, DirtyPages, DirtyRef};
pub use discard::Discarded;
pub use dma::Dma;
pub use dma_memory::{DmaMark, DmaMemory, DmaSpace};
pub use editor::Editor;
pub use error::{AccessError, RamError, SlotError};
pub use listener::{Change, Listener, Wait};
pub use ram::{FileAccess, HugePages, MappingWatch, RamOptions, RamRegion};
pub use range::GpaRange;
pub use slot::{Backing, Flags, Slot, SlotId};
pub use snapshot::{GuestMemory, RamTarget, Snapshot, Target};
pub use space::{AddressSpace, Guard, Hold, Options, Stale, Updated};

#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod file_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
