//! Random packets to a socket device, in chains that are mostly right, while programs of the host connect,
//! speak, read or not, and go: nothing panics or hangs, nothing is written outside guest memory or where the
//! guest may only read, and after a reset the device works.
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
    let mut driver = Driver::new();
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        driver.step(&mut source);
    }
    driver.finish();
});
