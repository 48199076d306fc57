//! Random page numbers, reports and statistics for a balloon, while memory comes and goes and its owner
//! changes his mind: nothing panics or hangs, nothing is discarded outside guest memory or where the guest may
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
