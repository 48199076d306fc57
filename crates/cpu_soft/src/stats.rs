//! Counters of a processor, and how they are listed for people. What each means is in `docs/processor.md`.
//!
//! All of them are counted where the processor is slow anyway. What translated code itself does is counted only where
//! somebody looks at where time goes ([`Meter`](crate::Meter)), for it is slower then.

use umbra_cpu::Statistics;

use crate::cpu::Cpu;

/// What the processor counts, without the translator ([`Counts`](crate::translator::Counts)).
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Instructions that the interpreter started in blocks of its own (they are counted whole).
    pub instructions: u64,
    /// Blocks decoded.
    pub blocks_decoded: u64,
    /// Blocks thrown away because their bytes changed.
    pub blocks_dropped: u64,
    /// Writes to pages that hold decoded code.
    pub code_writes: u64,
    /// Writes to page tables.
    pub tracked: u64,
    /// Translation contexts flushed by CR3 loads.
    pub context_flushes: u64,
    /// Accesses that missed the translation caches.
    pub tlb_misses: u64,
    /// Blocks that no jump led to.
    pub jump_misses: u64,
    /// Accesses to what is no RAM.
    pub mmio: u64,
    /// Port accesses.
    pub ports: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
    /// Interrupts delivered.
    pub interrupts: u64,
    /// Times halted.
    pub halts: u64,
    /// Times that the MMU had translations dropped.
    pub flushes: u64,
}

impl Cpu {
    /// Lists all counters.
    pub fn statistics(&self) -> Statistics {
        let s = &self.stats;
        let mut all = vec![
            ("instructions interpreted", s.instructions),
            ("blocks decoded", s.blocks_decoded),
            ("blocks dropped", s.blocks_dropped),
            ("translation cache misses", s.tlb_misses),
            ("block lookups", s.jump_misses),
            ("writes to code pages", s.code_writes),
            ("writes to page tables", s.tracked),
            ("contexts flushed", s.context_flushes),
            ("flushes by the MMU", s.flushes),
            ("device accesses", s.mmio),
            ("port accesses", s.ports),
            ("exceptions", s.exceptions),
            ("interrupts", s.interrupts),
            ("halts", s.halts),
        ];
        let counts = &self.translator.counts;
        all.extend(counts.statistics());
        if self.meter.is_some() {
            all.extend(counts.chain(self.shared.crossings));
            all.extend(self.gauge.statistics());
        }
        if let Some(both) = &self.translator.both {
            all.extend(both.counts.statistics());
        }
        all
    }
}
