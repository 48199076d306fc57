//! Random requests for blocks of memory, while their owner changes his mind and the map refuses: nothing panics or
//! hangs, the map hears of blocks exactly when they come and go, no more are there than were requested when they
//! came, and after a reset the device works.
#![no_main]

mod driver;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    Driver::new,
    Driver::step,
    Driver::finish
));
