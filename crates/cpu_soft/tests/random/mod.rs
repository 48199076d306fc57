//! Random numbers: reproducible, and no crate to depend on.

/// The number in environment variable `name`.
pub fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `UMBRA_NATIVE_SEED`, or a number that no other run has; printed, so that the run can be repeated.
pub fn seed() -> u64 {
    let seed = setting("UMBRA_NATIVE_SEED").unwrap_or_else(|| {
        use std::hash::BuildHasher;
        // The keys of the standard library's hash maps come from the system's randomness.
        std::hash::RandomState::new().hash_one(std::process::id())
    });
    println!("UMBRA_NATIVE_SEED={seed}");
    seed
}

/// A xorshift generator.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    #[allow(dead_code, reason = "not every test that shares this asks")]
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A value with a liking for borders.
    #[allow(dead_code, reason = "not every test that shares this asks")]
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(256),
            _ => self.next(),
        }
    }
}
