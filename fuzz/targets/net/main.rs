//! Random frames and commands for a network device of one pair of queues or two, while memory comes and goes and the
//! other ends of its sockets send anything, do not read, and close: nothing panics or hangs, nothing is written
//! outside guest memory or where the guest may only read, what the host reads are whole frames, and after a reset
//! frames go out and come in.
#![no_main]

mod driver;
mod host;

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::Source;

use driver::Driver;

/// More steps than this only make an input slow.
const STEPS: usize = 256;

fuzz_target!(|input: &[u8]| {
    let mut source = Source::new(input);
    let mut driver = Driver::new(&mut source);
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        driver.step(&mut source);
    }
    driver.finish();
});
