//! Makes slices of RAM with a mark of one's own. Unsafe because `vm-memory` lets only a raw pointer be
//! joined with a bitmap; a [`RamTarget`] is what makes that pointer good.
#![allow(unsafe_code)]

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::RamTarget;

/// Returns the first `len` bytes from `ram` on.
///
/// # Panics
/// If that reaches past the slot.
pub(crate) fn volatile<'a, B: BitmapSlice>(
    ram: &RamTarget<'a>,
    len: usize,
    mark: B,
) -> VolatileSlice<'a, B> {
    assert!(
        len as u64 <= ram.remaining,
        "{len:#x} bytes reach past a slot"
    );
    // SAFETY: `host` is the address of a byte in the region of the slot, which the editor let no slot
    // reach past, so `len` bytes are mapped there. The slot borrowed for 'a holds the region, which
    // stays mapped as long. All accesses to guest RAM are volatile or atomic, by pointers.
    unsafe { VolatileSlice::with_bitmap(ram.host.as_ptr(), len, mark, None) }
}
