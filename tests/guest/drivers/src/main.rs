//! A kernel that drives virtio devices with the drivers of the `virtio-drivers` crate: what somebody
//! else understood from the specification.
//!
//! ```text
//!   boot ── 64-bit mode, memory mapped one to one ──> main ── the command ──> exit
//!                 pages, heap: memory                  serial: what came of it
//! ```
//! Like the polling guest it executes the one command on its command line; unlike it, it uses vector
//! registers, as `core` does.
#![no_std]
#![no_main]

extern crate alloc;

mod block;
mod boot;
mod console;
mod cpu;
mod device;
mod heap;
#[path = "../../src/memory.rs"]
mod memory;
mod net;
mod pages;
mod rng;
#[path = "../../src/serial.rs"]
mod serial;
mod vsock;

use device::Place;

/// The exit port (QEMU's `isa-debug-exit`).
const EXIT: u16 = 0xf4;

/// Where the boot code arrives.
fn main(command_line: &str) -> ! {
    match execute(command_line) {
        Ok(()) => exit(0),
        Err(what) => {
            println!("FAIL {what}");
            exit(1)
        }
    }
}

fn execute(command_line: &str) -> Result<(), &'static str> {
    // Whatever follows is not ours: QEMU's `microvm` appends its devices.
    let mut words = command_line.split_ascii_whitespace();
    let command = words.next().unwrap_or_default();
    if !["block", "console", "net", "rng", "vsock"].contains(&command) {
        return Err("unknown command");
    }
    let place = words.next().and_then(Place::parse);
    let place = place.ok_or("a place is missing: an address, or pci:NUMBER")?;
    match command {
        "block" => block::run(place),
        "console" => console::run(place),
        "net" => net::run(place),
        "rng" => rng::run(place),
        _ => {
            let port = words.next().and_then(number);
            vsock::run(place, port.ok_or("a number is missing")?)
        }
    }
}

/// Reads a number, decimal or with 0x.
fn number(word: &str) -> Option<usize> {
    match word.strip_prefix("0x") {
        Some(digits) => usize::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

fn exit(status: u8) -> ! {
    cpu::out8(EXIT, status);
    cpu::halt_for_ever()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAIL the guest itself: {info}");
    exit(2)
}
