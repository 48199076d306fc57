//! Comparing FXSAVE images of two processors (SDM vol. 1, table 10-2).

/// The first byte that differs, and what it should be and is. `vector` is what ended the code.
pub fn difference(
    expected: &[u8; 512],
    found: &[u8; 512],
    vector: u8,
) -> Option<(usize, u64, u64)> {
    // Whether an instruction that raises has made the x87 registers MMX ones before is open: then
    // the top of the stack is 0, and all are in use.
    let open = vector != 3 && is_mmx(expected) != is_mmx(found);
    (0..512).find_map(|at| {
        let mask = match at {
            // Instruction, data and opcode pointers differ between makes; MXCSR_MASK too.
            6..24 | 28..32 | 464..512 => 0,
            3 if open => !0x38,
            4 if open => 0,
            _ => 0xff,
        };
        let byte = |image: &[u8; 512]| match at {
            32..160 if open => image[physical(image, at)] & mask,
            _ => image[at] & mask,
        };
        let (e, f) = (byte(expected), byte(found));
        (e != f).then(|| (at, e.into(), f.into()))
    })
}

fn top(image: &[u8; 512]) -> usize {
    usize::from(image[3] >> 3 & 7)
}

fn is_mmx(image: &[u8; 512]) -> bool {
    top(image) == 0 && image[4] == 0xff
}

/// Where in the image, which begins at the top of the x87 stack, a byte of a physical register is.
fn physical(image: &[u8; 512], at: usize) -> usize {
    let (register, byte) = ((at - 32) / 16, (at - 32) % 16);
    32 + 16 * ((register + 8 - top(image)) % 8) + byte
}
