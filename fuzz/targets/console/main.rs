//! Random buffers and messages for a console with ports, while memory comes and goes and clients of the ports
//! come, go, and do not read: nothing panics or hangs, nothing is written outside guest memory or where the guest may
//! only read, and after a reset the device works.
#![no_main]

mod driver;

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
