//! Random packets to a socket device, in chains that are mostly right, while programs of the host connect,
//! speak, read or not, and go: nothing panics or hangs, nothing is written outside guest memory or where the
//! guest may only read, and after a reset the device works.
#![no_main]

mod driver;
mod host;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    |_| Driver::new(),
    Driver::step,
    Driver::finish
));
