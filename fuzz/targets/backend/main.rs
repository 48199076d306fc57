//! A vhost-user front end that says what the input says, and a guest that writes anything into its rings, against a
//! disk behind its own socket: nothing panics or hangs, no memory is written that was not shown, the next front end
//! finds the device as new, and neither memory nor a descriptor of one that has gone is left.
#![no_main]

mod front_end;
mod guest;
mod messages;

use front_end::FrontEnd;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let before = umbra_fuzz::descriptors();
    umbra_fuzz::steps(input, |_| FrontEnd::new(), FrontEnd::step, FrontEnd::finish);
    umbra_fuzz::none_is_left(before);
});
