//! A guest's frames to the metadata service: nonsense, ARP, and TCP whose numbers are near to right, so that connections
//! come about and requests get through. Nothing panics or hangs, what is not for the service goes on unchanged, what it
//! sends is bounded, and afterwards a guest that behaves can still ask.
#![no_main]

mod guest;

use guest::Guest;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    |_| Guest::new(),
    Guest::step,
    Guest::finish
));
