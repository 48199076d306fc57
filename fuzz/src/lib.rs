//! What the fuzz targets share: the decoding of inputs, memory that is watched on both sides, and a
//! machine with a virtio device in such memory.
//!
//! An input is a stream of numbers; one that has come to its end reads as zeros. The same input
//! makes a target do the same again, so that a finding can be replayed.

mod guard;
mod machine;
mod source;

pub use guard::{GUARD, Guard};
pub use machine::{MORE, Machine, RAM, ROM};
pub use source::Source;
