//! Random accesses to the registers of a virtio device with random rings, while memory comes and goes:
//! nothing panics or hangs, nothing is written outside guest memory or where the guest may only read,
//! and after a reset the device works.
#![no_main]

mod driver;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    |_| Driver::new(),
    Driver::step,
    Driver::finish
));
