//! Random requests to a block device, in chains that are mostly right, while memory comes and goes and
//! the disk changes its size: nothing panics or hangs, nothing is written outside guest memory, where
//! the guest may only read, or to a disk that may only be read, and after a reset the device works.
#![no_main]

mod disk;
mod driver;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    Driver::new,
    Driver::step,
    Driver::finish
));
