//! Random requests to a persistent-memory device whose flushes last, fail, or come while it is paused or reset,
//! in chains that are mostly right: nothing panics or hangs, nothing is written outside guest memory or where
//! the guest may only read, a request is answered only when a flush that began after it is over, and after a
//! reset the device works.
#![no_main]

mod driver;

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
