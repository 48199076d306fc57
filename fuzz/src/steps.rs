//! How most targets read their input: one step after the other.

use crate::Source;

/// More steps than this only make an input slow.
const STEPS: usize = 256;

/// Makes a driver, and lets it take steps until the input has come to its end; `finish` says whether all is well.
pub fn steps<D>(
    input: &[u8],
    new: impl FnOnce(&mut Source<'_>) -> D,
    step: impl Fn(&mut D, &mut Source<'_>),
    finish: impl FnOnce(D),
) {
    let mut source = Source::new(input);
    let mut driver = new(&mut source);
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        step(&mut driver, &mut source);
    }
    finish(driver);
}
