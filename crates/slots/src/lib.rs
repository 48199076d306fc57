//! The guest-physical map: RAM slots, I/O windows, the generation, the dirty log.
#![forbid(unsafe_code)]

mod addr;

pub use addr::{Generation, Gfn, Gpa, IoId};
