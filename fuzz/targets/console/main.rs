//! Random buffers and messages for a console with ports, while memory comes and goes and clients of the ports
//! come, go, and do not read: nothing panics or hangs, nothing is written outside guest memory or where the guest may
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
