//! Random page numbers, reports and statistics for a balloon, while memory comes and goes and its owner
//! changes his mind: nothing panics or hangs, nothing is discarded outside guest memory or where the guest may
//! only read, and after a reset the device works.
#![no_main]

mod driver;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    Driver::new,
    Driver::step,
    Driver::finish
));
