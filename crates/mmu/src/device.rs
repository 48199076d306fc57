//! Writes by devices, which the shadow must follow like a processor's own.

use umbra_slots::{AccessError, Gfn, Gpa, GpaRange, Target};

use crate::mmu::Mmu;

/// How many pages are followed before processors get the lock again.
const BATCH: u64 = 32;

impl Mmu {
    /// Writes guest RAM for a device: page by page under the MMU lock, with the dirty log marked
    /// and the shadow of any table there brought up to date before the lock is given up. So no
    /// walk, and no audit, ever sees a table that its shadow has not followed.
    ///
    /// May be called from any thread, also inside a device; waits for nobody.
    ///
    /// # Errors
    /// If some byte is no RAM, or may only be read. Pages before it have been written.
    pub fn write_for_device(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        let mut done = 0;
        while done < data.len() {
            // An address that wraps is beyond every slot before it does: slots end below 2^52.
            let at = Gpa(gpa.0.wrapping_add(done as u64));
            let offset = at.page_offset() as usize;
            let len = (data.len() - done).min(0x1000 - offset);
            let mut tables = self.tables.lock();
            let map = self.space.load();
            match map.resolve(at) {
                Target::Ram(ram) if ram.read_only => return Err(AccessError::ReadOnly(at)),
                Target::Ram(_) => map.write(at, &data[done..done + len])?,
                Target::Io { .. } | Target::Nothing => return Err(AccessError::NotRam(at)),
            }
            tables.follow_write(&map, at.gfn(), offset, len);
            done += len;
        }
        Ok(())
    }

    /// Brings the shadow of any table in `range` up to date, after a device has stored there by
    /// itself and marked the dirty log.
    ///
    /// A walk that read the table before the store installs nothing after this: it compares the
    /// guest's entries again under the lock. One that installed before is corrected here. In between,
    /// the shadow is as good as a TLB that nobody has flushed yet.
    ///
    /// May be called from any thread, also inside a device; waits for nobody.
    pub fn follow_device(&self, range: GpaRange) {
        let (first, last) = (range.first_gfn().0, range.last_gfn().0);
        for begin in (first..=last).step_by(BATCH as usize) {
            let mut tables = self.tables.lock();
            let map = self.space.load();
            for gfn in (begin..=last.min(begin + BATCH - 1)).map(Gfn) {
                let from = range.start().0.max(gfn.gpa().0) - gfn.gpa().0;
                let to = range.last().0.min(gfn.gpa().0 + 0xfff) - gfn.gpa().0;
                tables.follow_write(&map, gfn, from as usize, (to - from + 1) as usize);
            }
        }
    }
}
