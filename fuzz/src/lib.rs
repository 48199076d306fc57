//! What the fuzz targets share: the decoding of inputs, memory that is watched on both sides, a
//! machine with a virtio device in such memory, and a driver for it.
//!
//! An input is a stream of numbers; one that has come to its end reads as zeros. The same input
//! makes a target do the same again, so that a finding can be replayed.

mod descriptors;
mod driver;
mod guard;
mod machine;
mod memory;
mod seeds;
mod source;
mod steps;
pub mod wire;

pub use descriptors::{descriptors, none_is_left};
pub use driver::{NEXT, VirtioDriver, WRITE};
pub use guard::{GUARD, Guard};
pub use machine::Machine;
pub use memory::{MORE, Memory, RAM, ROM, region};
pub use seeds::write_seeds;
pub use source::Source;
pub use steps::steps;
