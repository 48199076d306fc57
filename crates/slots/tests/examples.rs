//! The crate's example runs, and is read at one glance.

use std::error::Error;

#[path = "../examples/map.rs"]
mod map;

#[test]
fn the_example_runs() -> Result<(), Box<dyn Error>> {
    map::main()
}

#[test]
fn the_example_has_at_most_fifty_lines() {
    assert!(include_str!("../examples/map.rs").lines().count() <= 50);
}
