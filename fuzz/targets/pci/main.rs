//! Random accesses to a PCI root bus and to virtio devices on it, which come and go, by memory, by ports and by the
//! way around a BAR, while BARs are moved anywhere: nothing panics or hangs, nothing is written outside guest memory,
//! the map has the windows that the configuration registers say, and after a reset a device works.
#![no_main]

mod driver;
mod machine;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    |_| Driver::new(),
    Driver::step,
    Driver::finish
));
