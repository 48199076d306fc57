//! The MMU of a machine: the shared shadow tables, and how they follow the map.
//!
//! ```text
//!   an ordinary change of the map     one atomic swap; no MMU lock. MMIO entries made before it
//!                                     carry another tag and are stale
//!   generation / 2^T changes          MMU lock: all pages obsolete, swap; unlock. Reaped later
//!     (the tag wraps, rule R15)
//!   RAM left the map                  swap; then, under the MMU lock, in steps: leaves into it
//!     (rule R19)                      and shadows of tables in it go; Flush::All to everybody;
//!                                     Stale::wait waits for them
//!   RAM became read-only or logged    swap; write rights go; Flush::All; wait
//! ```
//!
//! An install that races with a swap is refused, because it happens only if the map that decided
//! it is still current under the lock (rule R8). So after the swap nothing of the old map can be
//! installed, and the steps that follow may give the lock up in between.
//!
//! Order of locks: the map's writer lock, then this lock, then ports. Nobody waits for a processor
//! with one of them held.

use std::sync::{Arc, Weak};

use umbra_slots::{AddressSpace, Change, DirtyPages, Gfn, GpaRange, Listener, Snapshot, Wait};
use umbra_sync::Mutex;
use umbra_sync::atomic::Ordering;

use crate::config::{Audit, Config};
use crate::flush::{Flush, Hub};
use crate::tables::{Protection, Published, Tables};
use crate::vcpu::VcpuMmu;

/// How much is done before the MMU lock is given up for a moment.
const STEP: usize = 256;

/// The shadow-paging MMU of one machine.
pub struct Mmu {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) config: Config,
    pub(crate) hub: Arc<Hub>,
    pub(crate) published: Arc<Published>,
    pub(crate) tables: Mutex<Tables>,
    #[cfg(test)]
    pub(crate) hook: crate::hook::Hook,
}

impl Mmu {
    /// Makes an MMU for a map, and makes it follow the map's changes.
    ///
    /// # Panics
    /// If a field of `config` is outside the range that it states.
    pub fn new(space: Arc<AddressSpace>, config: Config) -> Arc<Self> {
        config.assert_valid();
        let hub = Arc::new(Hub::new());
        let published = Arc::new(Published::default());
        let tables = Tables::new(config, hub.clone(), published.clone());
        let mmu = Arc::new(Self {
            space: space.clone(),
            config,
            hub,
            published,
            tables: Mutex::new(tables),
            #[cfg(test)]
            hook: crate::hook::Hook::default(),
        });
        space.add_listener(Arc::new(Follower(Arc::downgrade(&mmu))));
        mmu
    }

    /// Adds a processor. `wake` makes it look at [`VcpuMmu::pending`] soon; it is called with
    /// locks held and must only set a flag or unpark a thread.
    pub fn attach(self: &Arc<Self>, wake: Box<dyn Fn() + Send + Sync>) -> VcpuMmu {
        let port = self.hub.attach(wake);
        VcpuMmu::new(self.clone(), port)
    }

    /// Returns counters by name.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let tables = self.tables.lock();
        let mut list = tables.stats.list();
        list.push(("mmio_record_hits", self.hub.record_hits()));
        list.push(("pages", tables.pages.len() as u64));
        list.push(("unsettled", tables.unsettled.len() as u64));
        list
    }

    /// Counts every drop, or loss of rights, of a present shadow entry, and every change of the
    /// map. As long as it stands still, what a processor cached before is what it would be told
    /// again, except for what the guest wrote and did not flush.
    pub fn epoch(&self) -> u64 {
        self.published.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn audits(&self) -> bool {
        self.config.audit != Audit::Off
    }

    /// Names a step of the slow path, for tests that do something in between.
    #[inline]
    pub(crate) fn step(&self, name: &'static str) {
        #[cfg(test)]
        self.hook.run(name);
        #[cfg(not(test))]
        let _ = name;
    }

    fn wraps(&self, change: &Change) -> bool {
        let bits = self.config.tag_bits;
        change.old.generation().0 >> bits != change.new.generation().0 >> bits
    }

    fn around_swap(&self, change: &Change, swap: &mut dyn FnMut()) {
        if !self.wraps(change) {
            return swap();
        }
        // One lock section for both (rule R15): an entry installed before it is obsolete, one
        // installed after it has a tag of the new cycle.
        let mut tables = self.tables.lock();
        tables.make_obsolete();
        swap();
        tracing::debug!(
            generation = change.new.generation().0,
            "the tag wraps, all pages are obsolete"
        );
    }

    fn after_swap(&self, change: &Change) -> Option<Wait> {
        self.published.bump_epoch();
        if self.wraps(change) {
            while self.tables.lock().reap(STEP) {}
        }
        let mut flush = false;
        for range in change.removed_ram() {
            self.zap_range(range);
            flush = true;
        }
        for range in change.restricted_ram() {
            let flags = change
                .new
                .slot_at(range.start())
                .and_then(|s| s.ram_flags());
            let flags = flags.unwrap_or_default();
            let how = Protection {
                split_large: flags.dirty_log,
                read_only: flags.read_only,
            };
            self.protect_range(range, how);
            flush = true;
        }
        flush.then(|| self.flush_all(Some(&change.old)))
    }

    fn harvested(&self, pages: &DirtyPages) -> Option<Wait> {
        let frames: Vec<Gfn> = pages.iter().collect();
        if frames.is_empty() {
            return None;
        }
        for some in frames.chunks(STEP) {
            let mut tables = self.tables.lock();
            for &gfn in some {
                tables.protect_leaves(gfn, Protection::SPLIT);
            }
        }
        Some(self.flush_all(None))
    }

    /// Posts a flush of everything, under the lock: every answer given before it is covered.
    fn flush_all(&self, keep: Option<&Arc<Snapshot>>) -> Wait {
        let ticket = {
            let _tables = self.tables.lock();
            self.hub.post(Flush::All, keep)
        };
        let hub = self.hub.clone();
        Box::new(move || hub.wait(ticket))
    }

    /// Throws away leaves into a range, and the shadows of tables that lie in it.
    fn zap_range(&self, range: GpaRange) {
        let frames = self.frames_in(range);
        for some in frames.chunks(STEP) {
            let mut tables = self.tables.lock();
            for &gfn in some {
                tables.zap_frame(gfn);
            }
        }
    }

    fn protect_range(&self, range: GpaRange, how: Protection) {
        let frames = self.frames_in(range);
        for some in frames.chunks(STEP) {
            let mut tables = self.tables.lock();
            for &gfn in some {
                tables.protect_leaves(gfn, how);
            }
        }
    }

    /// The frames of a range that the shadow knows: mapped, first of a large mapping, or tables.
    fn frames_in(&self, range: GpaRange) -> Vec<Gfn> {
        let tables = self.tables.lock();
        let small = tables.rmap.small_frames();
        let shadowed = tables.shadowed.iter().map(|(gfn, _)| gfn);
        // A large mapping may begin up to 1 GiB below the range.
        let reach =
            |gfn: &Gfn| gfn.0 <= range.last_gfn().0 && gfn.0 + 0x4_0000 > range.first_gfn().0;
        let large = tables.rmap.large_frames().filter(reach);
        let inside = small.chain(shadowed).filter(|&gfn| range.touches(gfn));
        inside.chain(large).collect()
    }
}

impl Tables {
    /// Throws away every leaf that maps a frame, and every shadow of a table there.
    pub(crate) fn zap_frame(&mut self, gfn: Gfn) {
        for at in self.rmap.small(gfn) {
            self.clear(at);
        }
        for at in self.large_leaves(gfn) {
            self.clear(at);
        }
        let pages = self.shadowed.get(gfn).map(|s| s.pages.clone());
        for id in pages.unwrap_or_default() {
            self.zap(id);
        }
    }
}

impl std::fmt::Debug for Mmu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mmu").field("config", &self.config).finish()
    }
}

/// What the map keeps: it must not keep the MMU alive, which keeps the map alive.
struct Follower(Weak<Mmu>);

impl Listener for Follower {
    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        match self.0.upgrade() {
            Some(mmu) => mmu.around_swap(change, swap),
            None => swap(),
        }
    }

    fn published(&self, change: &Change) -> Option<Wait> {
        self.0.upgrade()?.after_swap(change)
    }

    fn harvested(&self, _map: &Snapshot, pages: &DirtyPages) -> Option<Wait> {
        self.0.upgrade()?.harvested(pages)
    }
}
