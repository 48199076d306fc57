//! What the generation replaces, for the benchmark that compares the two.

use crate::entry::Entry;
use crate::mmu::Mmu;
use crate::page::PageId;

impl Mmu {
    /// Throws away every shadow page that holds an MMIO entry, by a walk over all pages with the lock
    /// held, as KVM did at each change of its slots before 2013. Returns how many pages went.
    ///
    /// Nothing needs this: it is here to be measured.
    #[doc(hidden)]
    pub fn zap_mmio_by_walk(&self) -> usize {
        let mut tables = self.tables.lock();
        // KVM kept a flag in the page. Here the first entry stands for it, so that the looking
        // costs no more than a flag would.
        let flagged: Vec<PageId> = tables
            .pages
            .iter()
            .filter(|(_, page)| matches!(page.entry(0), Entry::Mmio(_)))
            .map(|(id, _)| id)
            .collect();
        for &id in &flagged {
            tables.zap(id);
        }
        flagged.len()
    }
}
