//! The crate's example runs, and is read at one glance.

use std::error::Error;

#[path = "../examples/device.rs"]
mod device;

#[test]
fn the_example_runs() -> Result<(), Box<dyn Error>> {
    device::main()
}

#[test]
fn the_example_has_at_most_fifty_lines() {
    assert!(include_str!("../examples/device.rs").lines().count() <= 50);
}
