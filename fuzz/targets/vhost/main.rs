//! A vhost-user back end that answers, writes into its rings and asks what the input says, while a driver makes
//! requests and memory comes and goes: nothing panics, every call returns in time, a request is completed once at
//! most and with no more than there was room for, the monitor writes no guest memory that was not lent, the next
//! back end that does its work finds all of it, and no descriptor is left.
//!
//! Half of an input is the back end's, the other half the driver's. Threads of both sides race: a finding may need to
//! be replayed more than once.
#![no_main]

mod back_end;
mod driver;
mod mischief;
mod rings;

use driver::Driver;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let before = umbra_fuzz::descriptors();
    let (theirs, ours) = input.split_at(input.len() / 2);
    umbra_fuzz::steps(
        ours,
        |source| Driver::new(source, theirs),
        Driver::step,
        Driver::finish,
    );
    umbra_fuzz::none_is_left(before);
});
