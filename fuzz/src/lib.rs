//! What the fuzz targets share: the decoding of inputs, and memory that is watched on both sides.
//!
//! An input is a stream of numbers; one that has come to its end reads as zeros. The same input
//! makes a target do the same again, so that a finding can be replayed.

mod guard;
mod source;

pub use guard::{GUARD, Guard};
pub use source::Source;
