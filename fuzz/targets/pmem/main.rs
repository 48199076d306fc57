//! Random requests to a persistent-memory device whose flushes last, fail, or come while it is paused or reset,
//! in chains that are mostly right: nothing panics or hangs, nothing is written outside guest memory or where
//! the guest may only read, a request is answered only when a flush that began after it is over, and after a
//! reset the device works.
#![no_main]

mod driver;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    |_| Driver::new(),
    Driver::step,
    Driver::finish
));
