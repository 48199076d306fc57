//! What the translator counts.

use umbra_cpu::Statistics;

/// Counters of a translator.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Units made.
    pub units: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Bytes of host code made.
    pub bytes: u64,
    /// Units that died with their bytes.
    pub dropped: u64,
    /// Times everything was thrown away, for lack of room.
    pub cleared: u64,
    /// Entries from the loop.
    pub entries: u64,
    /// Links led to their target.
    pub links: u64,
    /// Instructions left to the interpreter.
    pub singles: u64,
    /// Of those, after how many other code was gone to.
    pub transfers: u64,
}

impl Counts {
    /// Lists them.
    pub fn statistics(&self) -> Statistics {
        vec![
            ("units translated", self.units),
            ("instructions translated", self.instructions),
            ("bytes translated", self.bytes),
            ("units dropped", self.dropped),
            ("translations cleared", self.cleared),
            ("entries to translated code", self.entries),
            ("links between units", self.links),
            ("instructions left to the interpreter", self.singles),
            ("of them with code elsewhere behind", self.transfers),
        ]
    }
}
