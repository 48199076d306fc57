//! The one piece of firmware: what a kernel finds that restarts the machine through the BIOS.
//!
//! Linux takes a hardware-reduced machine for one with UEFI, does not find that, and then jumps to
//! F000:FFF0 in real mode (`machine_real_restart`), as every kernel may that knows nothing better.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::acpi::Platform;
use crate::error::Error;
use crate::layout::RESET_VECTOR;

/// Writes code that writes the reset register.
pub fn write<M: GuestMemoryBackend>(memory: &M, platform: &Platform) -> Result<(), Error> {
    let (port, value) = platform.reset;
    let [low, high] = port.to_le_bytes();
    // mov al, value; mov dx, port; out dx, al; cli; again: hlt; jmp again
    let code = [0xb0, value, 0xba, low, high, 0xee, 0xfa, 0xf4, 0xeb, 0xfd];
    memory
        .write_slice(&code, GuestAddress(RESET_VECTOR))
        .map_err(Error::memory("the reset vector"))
}
