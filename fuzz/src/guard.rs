//! A pattern on both sides of guest memory, to see whether somebody wrote outside.

/// Bytes of the pattern on each side.
pub const GUARD: usize = 0x4000;

const PATTERN: u8 = 0xa5;
static WHOLE: [u8; GUARD] = [PATTERN; GUARD];

/// The two sides of a piece of memory.
///
/// It sees a write that misses by less than [`GUARD`] bytes; one that misses by more meets memory
/// of something else, or nothing, and ends the process.
pub struct Guard {
    low: *mut u8,
    high: *mut u8,
}

impl Guard {
    /// Fills both sides of the `len` bytes that begin [`GUARD`] bytes behind `start`.
    ///
    /// # Safety
    /// 1. `start` is the first of `2 * GUARD + len` bytes that are mapped and writable until the
    ///    last call of [`Guard::check`];
    /// 2. nobody has a Rust reference to the two sides.
    pub unsafe fn new(start: *mut u8, len: usize) -> Self {
        let high = start.wrapping_add(GUARD + len);
        for side in [start, high] {
            // SAFETY: by 1. both sides are mapped and writable, by 2. not aliased by a reference.
            unsafe { side.write_bytes(PATTERN, GUARD) };
        }
        Self { low: start, high }
    }

    /// Checks both sides.
    ///
    /// # Panics
    /// If a byte has changed.
    pub fn check(&self) {
        for (side, name) in [(self.low, "below"), (self.high, "above")] {
            // SAFETY: mapped by what `new` was promised (1); not written during this call, because
            // whoever could write has finished, and by (2) not borrowed elsewhere.
            let bytes = unsafe { std::slice::from_raw_parts(side, GUARD) };
            // One comparison of everything: it comes after every input.
            if bytes != WHOLE {
                let changed = bytes.iter().position(|byte| *byte != PATTERN);
                panic!("a write outside guest memory, {name} it, at byte {changed:?}");
            }
        }
    }
}
