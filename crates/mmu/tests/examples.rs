//! The crate's example runs, and is read at one glance.

use std::error::Error;

#[path = "../examples/shadow.rs"]
mod shadow;

#[test]
fn the_example_runs() -> Result<(), Box<dyn Error>> {
    shadow::main()
}

#[test]
fn the_example_has_at_most_fifty_lines() {
    assert!(include_str!("../examples/shadow.rs").lines().count() <= 50);
}
