//! Random accesses to a PCI root bus and to virtio devices on it, which come and go, by memory, by ports and by the
//! way around a BAR, while BARs are moved anywhere: nothing panics or hangs, nothing is written outside guest memory,
//! the map has the windows that the configuration registers say, and after a reset a device works.
#![no_main]

mod driver;
mod machine;

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
