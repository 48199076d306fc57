//! An input as a stream of numbers.

/// Takes numbers from the front of an input; past its end there are zeros.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    left: &'a [u8],
}

impl<'a> Source<'a> {
    /// Begins at the front.
    pub fn new(input: &'a [u8]) -> Self {
        Self { left: input }
    }

    /// Tells whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, left) = self.left.split_at(len.min(self.left.len()));
        self.left = left;
        taken
    }

    /// Takes everything.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn number(&mut self, len: usize) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.bytes(len);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// Takes one byte.
    pub fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// Takes two bytes.
    pub fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    /// Takes four bytes.
    pub fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    /// Takes eight bytes.
    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    /// Takes one byte and makes it a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }

    /// Takes one byte and picks by it.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
