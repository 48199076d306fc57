//! Random requests for blocks of memory, while their owner changes his mind and the map refuses: nothing panics or
//! hangs, the map hears of blocks exactly when they come and go, no more are there than were requested when they
//! came, and after a reset the device works.
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
