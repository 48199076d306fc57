//! Random frames and commands for a network device of one pair of queues or two, while memory comes and goes and the
//! other ends of its sockets send anything, do not read, and close: nothing panics or hangs, nothing is written
//! outside guest memory or where the guest may only read, what the host reads are whole frames, and after a reset
//! frames go out and come in.
#![no_main]

mod driver;
mod host;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    Driver::new,
    Driver::step,
    Driver::finish
));
