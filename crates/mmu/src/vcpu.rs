//! One processor's view of the MMU.

use std::ptr::NonNull;
use std::sync::Arc;

use umbra_slots::{Gfn, Gpa, Hold, Snapshot, Target};
use umbra_sync::atomic::{Ordering, fence};
use umbra_x86::Gva;

use crate::fault::{Outcome, Request};
use crate::flush::{Flush, Port};
use crate::last::LastMmio;
use crate::mmu::Mmu;
use crate::mode::{Mode, PagingRegs};
use crate::oracle::Registers;
use crate::rights::Access;
use crate::roots::Roots;
use crate::tables::Tables;
use crate::translation::{PageFault, Translation};
use crate::walk::{Root, Stop, Walk, pdpte_allowed, read_pdptes, walk};

/// After so many lost races the map is held still.
const RACES_MAX: u32 = 4;

/// A page-directory-pointer entry that is present has a reserved bit set: #GP
/// (SDM vol. 3, 4.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a page-directory-pointer entry at {cr3:#x} has a reserved bit set")]
pub struct BadPdpte {
    /// Where the four entries are.
    pub cr3: u64,
}

/// What a guest's flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One page, in the current address space, and wherever it is global: INVLPG.
    Page(Gva),
    /// One page of one process-context identifier: INVPCID type 0.
    PcidPage(u16, Gva),
    /// One process-context identifier: MOV CR3 without the no-flush bit, INVPCID type 1.
    Pcid(u16),
    /// Everything but global translations: MOV CR3 without CR4.PCIDE, INVPCID type 3.
    NonGlobal,
    /// Everything: INVPCID type 2, changes of CR0.PG and CR4 that flush.
    All,
}

/// One processor's end of an [`Mmu`].
///
/// How long a translation may be used:
///
/// 1. until [`take_flushes`](Self::take_flushes) names it. That call acknowledges: whoever posted
///    the flush counts on it from then on. A translation that was returned, but not yet used, is
///    no exception; drop it, and translate again.
/// 2. A call that takes `&mut self`, and a call out to a device, may wait, and while it waits the
///    processor counts as outside. What was returned *before* such a call may be used after it
///    only if [`pending`](Self::pending) is false; what the call itself returns is good.
///
/// So a processor polls `pending` between instructions; and, inside one, between a call and the
/// use of an older translation: if it is set, the access starts again.
pub struct VcpuMmu {
    mmu: Arc<Mmu>,
    port: Arc<Port>,
    regs: PagingRegs,
    mode: Mode,
    roots: Roots,
    last: LastMmio,
}

impl VcpuMmu {
    pub(crate) fn new(mmu: Arc<Mmu>, port: Arc<Port>) -> Self {
        let mode = Mode::new(&PagingRegs::default(), mmu.config.phys_bits);
        Self {
            mmu,
            port,
            regs: PagingRegs::default(),
            mode,
            roots: Roots::default(),
            last: LastMmio::default(),
        }
    }

    /// Tells the registers that translation depends on. Cheap; implies no guest flush.
    pub fn set_regs(&mut self, regs: &PagingRegs) {
        let mode = Mode::new(regs, self.mmu.config.phys_bits);
        let guest = Root {
            cr3: regs.cr3,
            ..self.roots.guest
        };
        if mode.rules != self.mode.rules || guest != self.roots.guest {
            self.roots.forget();
        }
        if *regs != self.regs {
            self.last.forget();
        }
        self.regs = *regs;
        self.mode = mode;
        self.roots.guest = guest;
    }

    /// Loads the four page-directory-pointer registers of PAE paging from the table at `cr3`.
    ///
    /// # Errors
    /// If one has a reserved bit set, or there is no RAM; nothing has then changed.
    pub fn load_pdptes(&mut self, cr3: u64) -> Result<(), BadPdpte> {
        let pdptes = self.read_pdptes(cr3)?;
        self.set_pdptes(pdptes);
        Ok(())
    }

    /// Reads what [`load_pdptes`](Self::load_pdptes) would load, and loads nothing.
    ///
    /// # Errors
    /// As there.
    pub fn read_pdptes(&self, cr3: u64) -> Result<[u64; 4], BadPdpte> {
        let map = self.mmu.space.load();
        read_pdptes(&map, cr3, self.mmu.config.phys_bits).ok_or(BadPdpte { cr3 })
    }

    /// Returns the four page-directory-pointer registers; they count in PAE paging only.
    pub fn pdptes(&self) -> [u64; 4] {
        self.roots.guest.pdptes
    }

    /// Tells whether an entry can be loaded: it is not present, or has no reserved bit set.
    pub fn allows_pdpte(&self, pdpte: u64) -> bool {
        pdpte_allowed(pdpte, self.mmu.config.phys_bits)
    }

    /// Sets the four registers, to entries that are allowed.
    pub fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        debug_assert!(pdptes.iter().all(|pdpte| self.allows_pdpte(*pdpte)));
        if pdptes != self.roots.guest.pdptes {
            self.roots.forget();
            self.last.forget();
            self.roots.guest.pdptes = pdptes;
        }
    }

    /// Makes the shadow honour a flush by the guest: tables that the guest could write without a
    /// trap are read again. What the processor cached itself is its own business; it compares
    /// [`Mmu::epoch`] after this call, not before.
    pub fn guest_flush(&mut self, scope: Scope) {
        // Pairs with the fence in `Tables::table_page`: this processor's writes to tables come
        // before this look at the marks (rule R36).
        fence(Ordering::SeqCst);
        let unsettled = self.mmu.published.unsettled.load(Ordering::SeqCst) != 0;
        if !matches!(scope, Scope::Page(_) | Scope::PcidPage(..)) {
            self.last.forget();
        }
        match scope {
            Scope::Page(gva) | Scope::PcidPage(_, gva) => {
                let gva = Gva(self.mode.format().truncate(gva.0));
                self.last.forget_page(gva);
                let mut tables = self.mmu.tables.lock();
                let map = self.mmu.space.load();
                let root = self.roots.current(&tables, &self.mode, gva.0);
                tables.flush_page(&map, root, gva, &self.port);
            }
            _ if !unsettled => {}
            Scope::Pcid(_) | Scope::NonGlobal | Scope::All => {
                let mut tables = self.mmu.tables.lock();
                let map = self.mmu.space.load();
                tables.flush(&map, &self.port);
            }
        }
    }

    /// Translates an address for one access, and sets accessed and dirty bits on the way.
    ///
    /// The address is canonical. Blocks only on short locks.
    ///
    /// # Errors
    /// The page fault that the guest gets.
    pub fn translate(&mut self, gva: Gva, access: Access) -> Result<Translation, PageFault> {
        let answer = self.ask(gva, access);
        if self.mmu.audits() {
            return self.verify(gva, access, answer);
        }
        answer
    }

    /// [`translate`](Self::translate) without the oracle.
    pub(crate) fn ask(&mut self, gva: Gva, access: Access) -> Result<Translation, PageFault> {
        let gva = Gva(self.mode.format().truncate(gva.0));
        if let Some(hit) = self.ask_last(gva, access) {
            self.port.count_record_hit();
            return Ok(hit);
        }
        self.ask_shadow(gva, access)
    }

    /// Answers from the last MMIO translation, which takes no lock. The one path ahead of the
    /// shadow, so it compares the generation itself (rule R10).
    pub(crate) fn ask_last(&mut self, gva: Gva, access: Access) -> Option<Translation> {
        if !self.mmu.config.last_mmio {
            return None;
        }
        let space = &self.mmu.space;
        self.last.hit(gva, access, || space.generation())
    }

    /// Makes the next answer come from the shadow.
    pub(crate) fn forget_last(&mut self) {
        self.last.forget();
    }

    fn ask_shadow(&mut self, gva: Gva, access: Access) -> Result<Translation, PageFault> {
        let Some(found) = self.look_up(gva, access) else {
            return self.slow(gva, access);
        };
        self.mmu.step("hit");
        // Only what the shadow remembers is remembered once more (rule R14).
        self.last.note(gva, access, &found);
        Ok(found)
    }

    fn look_up(&mut self, gva: Gva, access: Access) -> Option<Translation> {
        let mut tables = self.mmu.tables.lock();
        let root = self.roots.find(&mut tables, &self.mode, gva.0)?;
        let request = self.request(gva, access);
        tables.lookup(root, &request, || self.mmu.space.generation())
    }

    /// Walks the guest's tables and remembers what came of it: one map for the whole decision
    /// (rule R7), remembered only if that map is still current under the lock (rule R8).
    fn slow(&mut self, gva: Gva, access: Access) -> Result<Translation, PageFault> {
        let mmu = self.mmu.clone();
        let _span = tracing::trace_span!("slow fault", gva = gva.0, ?access).entered();
        for attempt in 0.. {
            let found = if attempt < RACES_MAX {
                let map = mmu.space.load();
                self.attempt(&map, gva, access)
            } else {
                // Publications come faster than walks.
                let map = self.hold(&mmu);
                mmu.tables.lock().stats.holds += 1;
                self.attempt(&map, gva, access)
            };
            if let Some(answer) = found {
                return answer;
            }
        }
        unreachable!("the loop ends with an answer only")
    }

    /// Holds the map still. The writer lock is taken from outside, so that nobody waits for this
    /// processor meanwhile.
    pub(crate) fn hold<'a>(&self, mmu: &'a Mmu) -> Hold<'a> {
        let inside = self.port.is_inside();
        self.leave();
        let map = mmu.space.hold();
        if inside {
            self.enter();
        }
        map
    }

    fn attempt(
        &mut self,
        map: &Snapshot,
        gva: Gva,
        access: Access,
    ) -> Option<Result<Translation, PageFault>> {
        self.mmu.step("loaded");
        let walked = walk(map, &self.mode, &self.roots.guest, gva, access);
        self.mmu.step("walked");
        match walked {
            Ok(walk) => {
                let translation = self.remember(map, &walk, gva, access)?;
                tracing::trace!(gva = gva.0, ?access, ?translation, "fault");
                Some(Ok(translation))
            }
            Err(Stop::Raced) => {
                self.mmu.tables.lock().stats.table_races += 1;
                None
            }
            Err(Stop::Fault(error)) => {
                self.mmu.tables.lock().stats.guest_faults += 1;
                tracing::trace!(gva = gva.0, ?access, error = error.0, "guest fault");
                Some(Err(PageFault { gva, error }))
            }
        }
    }

    fn remember(
        &mut self,
        map: &Snapshot,
        walk: &Walk<'_>,
        gva: Gva,
        access: Access,
    ) -> Option<Translation> {
        let mmu = self.mmu.clone();
        let mut tables = mmu.tables.lock();
        if mmu.space.generation() != map.generation() {
            tables.stats.map_races += 1;
            return None;
        }
        if walk.uncached {
            return Some(tables.uncached(map, walk, &self.request(gva, access)));
        }
        tables.prepare();
        let root = self
            .roots
            .make(&mut tables, map, &self.mode, gva.0, &self.port)
            .expect("the walk began at the guest's root");
        let request = self.request(gva, access);
        match tables.install(map, root, walk, &request) {
            Outcome::Done(translation) => {
                tables.stats.slow_faults += 1;
                Some(translation)
            }
            Outcome::Raced => {
                tables.stats.table_races += 1;
                None
            }
        }
    }

    fn request(&self, gva: Gva, access: Access) -> Request<'_> {
        Request {
            mode: &self.mode,
            gva,
            access,
            port: &self.port,
        }
    }

    /// Does a write to RAM that [`Kind::Tracked`](crate::Kind::Tracked) announced: runs `write`
    /// with the host address of the byte at `gpa`, under the MMU lock, and brings the shadow up
    /// to date. `write` may read and write `len` bytes and must not call anything of this crate.
    ///
    /// Returns `None`, without running it, if there is no writable RAM any more: translate again.
    ///
    /// # Panics
    /// If the bytes cross the end of a 4 KiB page.
    pub fn tracked<R>(
        &mut self,
        gpa: Gpa,
        len: usize,
        write: impl FnOnce(NonNull<u8>) -> R,
    ) -> Option<R> {
        let offset = gpa.page_offset() as usize;
        assert!(offset + len <= 0x1000, "{len} bytes at {gpa} cross a page");
        let mut tables = self.mmu.tables.lock();
        let map = self.mmu.space.load();
        let Target::Ram(ram) = map.resolve(gpa) else {
            return None;
        };
        if ram.read_only {
            return None;
        }
        let result = write(ram.host);
        if ram.dirty_log {
            ram.mark_dirty(len);
        }
        tables.follow_write(&map, gpa.gfn(), offset, len);
        Some(result)
    }

    /// Makes every other processor drop its cached write translations of a frame, and returns
    /// when they have, or will before they use one.
    pub fn flush_writers(&mut self, gfn: Gfn) {
        let ticket = self.mmu.hub.post(Flush::Writers(gfn), None);
        self.mmu.hub.wait(ticket);
    }

    /// Tells whether cached translations must be dropped. One load; cheap enough for every block.
    pub fn pending(&self) -> bool {
        self.port.pending()
    }

    /// Hands over what must be dropped, and acknowledges when `drop_cached` has seen it all.
    pub fn take_flushes(&mut self, drop_cached: impl FnMut(Flush)) {
        self.mmu.hub.take(&self.port, drop_cached);
    }

    /// Marks the processor as running guest code: whoever flushes waits for its acknowledgement.
    /// Called on its own thread. [`pending`](Self::pending) must be checked after it.
    pub fn enter(&self) {
        self.mmu.hub.enter(&self.port);
    }

    /// Marks the processor as outside: it uses no cached translation before it enters again.
    pub fn leave(&self) {
        self.mmu.hub.leave(&self.port);
    }

    /// Describes the walk for an address, one line a level, for crash reports. Changes nothing.
    pub fn describe_walk(&self, gva: Gva) -> Vec<String> {
        let map = self.mmu.space.load();
        self.registers().describe(&map, gva)
    }

    /// Reads up to `len` bytes of RAM from an address on, for crash reports: as many as there are,
    /// whoever may read them. Changes nothing.
    pub fn peek_bytes(&self, gva: Gva, len: usize) -> Vec<u8> {
        let map = self.mmu.space.load();
        self.registers().peek_bytes(&map, gva, len)
    }

    pub(crate) fn mmu(&self) -> &Arc<Mmu> {
        &self.mmu
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// What the oracle needs.
    pub(crate) fn registers(&self) -> Registers {
        Registers {
            regs: self.regs,
            pdptes: self.roots.guest.pdptes,
            phys_bits: self.mmu.config.phys_bits,
        }
    }

    /// Answers from the shadow only, for the oracle; changes nothing but counters.
    pub(crate) fn peek(
        &self,
        tables: &mut Tables,
        gva: Gva,
        access: Access,
    ) -> Option<Translation> {
        let root = self.roots.current(tables, &self.mode, gva.0)?;
        let request = self.request(gva, access);
        tables.lookup(root, &request, || self.mmu.space.generation())
    }
}

impl Drop for VcpuMmu {
    fn drop(&mut self) {
        self.roots.unpin(&mut self.mmu.tables.lock());
        self.mmu.hub.detach(&self.port);
    }
}
