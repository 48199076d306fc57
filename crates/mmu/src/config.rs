//! What can be chosen when an MMU is made.

/// How an [`Mmu`](crate::Mmu) behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Width of the generation tag in MMIO entries, 2 to 19. The generation wraps the tag every
    /// 2^`tag_bits` publications; tests use 2.
    pub tag_bits: u32,
    /// Maps large guest pages by one entry where that is possible.
    pub large_pages: bool,
    /// When leaf tables of the guest may get out of sync.
    pub unsync: Unsync,
    /// How many shadow pages there may be, at least 64; the oldest go when more are needed.
    pub max_pages: usize,
    /// Each processor answers repeated MMIO accesses from a record of its own, without the lock.
    pub last_mmio: bool,
    /// What is verified while running.
    pub audit: Audit,
    /// MAXPHYADDR, 32 to 52: frame bits from here on are reserved in guest entries.
    pub phys_bits: u32,
}

/// Whether writes to leaf tables (level 1) always trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsync {
    /// Every write to a shadowed table traps.
    Never,
    /// After this many trapped writes a leaf table becomes writable; it is read again when the
    /// guest flushes.
    After(u32),
}

/// Self-verification, for tests and debug boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// None.
    Off,
    /// Every answer is compared with a plain walk of the guest's tables (rule R40), and all
    /// structures are audited after this many slow faults (rule R37); 0 leaves the audit out.
    /// A violation panics.
    EveryFault(u32),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tag_bits: 19,
            large_pages: true,
            unsync: Unsync::Never,
            max_pages: 16 * 1024,
            last_mmio: true,
            audit: Audit::Off,
            phys_bits: 46,
        }
    }
}

impl Config {
    /// Checks the ranges that the fields state.
    pub(crate) fn assert_valid(&self) {
        assert!(
            (2..=crate::entry::TAG_BITS_MAX).contains(&self.tag_bits),
            "tag_bits {} is not in 2..=19",
            self.tag_bits
        );
        assert!(self.max_pages >= 64, "max_pages {} < 64", self.max_pages);
        assert!(
            (32..=52).contains(&self.phys_bits),
            "phys_bits {} is not in 32..=52",
            self.phys_bits
        );
    }
}
