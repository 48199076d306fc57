//! Decoded code: blocks, and who must hear when their bytes change.
//!
//! Each processor decodes for itself ([`Blocks`], no locks); one registry per machine
//! ([`CodePages`]) knows which 64-byte granules of which pages were decoded by anybody. A page in
//! the registry is never writable through a translation cache, so each write to it comes to the
//! slow path, which asks the registry.
//!
//! ```text
//!   decoding processor                        writing processor
//!   mark granules                             store the bytes
//!   (others drop write translations, waited)  full barrier
//!   full barrier                              granules marked? clear them, tell every processor
//!   read the bytes, decode
//! ```
//! One of the two sees the other, whatever the order. The writer drops its own stale blocks before
//! its next instruction; the others do so before their next block, which is earlier than the
//! serialising instruction or interrupt that cross-modifying code needs (SDM vol. 3, 8.1.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;

use crate::op::{Handler, Op, stale};
use crate::wake::Waker;

/// A run of decoded instructions on one page, or one instruction across two.
pub struct Block {
    /// The operations; the last one leaves.
    pub ops: Box<[Op]>,
    /// Linear address of the first byte.
    pub rip: u64,
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Guest-physical address of the second page, for an instruction that crosses.
    pub second: Option<u64>,
    /// Bytes of code.
    pub len: u16,
    /// Instructions.
    pub count: u16,
    /// The decoding mode.
    pub mode: u8,
    /// The last instruction reaches beyond the limit that CS had.
    pub limited: bool,
}

/// Bit mask of the 64-byte granules that `len` bytes at `offset` in a page touch.
pub(crate) fn granules(offset: u64, len: u64) -> u64 {
    let first = offset >> 6 & 63;
    let last = (offset + len.max(1) - 1).min(0xfff) >> 6;
    (u64::MAX >> (63 - (last - first))) << first
}

impl Block {
    /// Linear address (without the base of CS) of the last byte.
    pub fn last(&self) -> u64 {
        self.rip.saturating_add(u64::from(self.len) - 1)
    }

    /// Tells whether any byte of the block lies in `mask` of page `page` (a page address).
    fn touches(&self, page: u64, mask: u64) -> bool {
        let offset = self.gpa & 0xfff;
        let in_first = (0x1000 - offset).min(u64::from(self.len));
        (self.gpa & !0xfff == page && granules(offset, in_first) & mask != 0)
            || (self.second == Some(page)
                && granules(0, u64::from(self.len) - in_first) & mask != 0)
    }
}

/// Key of a block: physical address, linear address, mode.
type BlockKey = (u64, u64, u8);

/// The blocks of one processor.
#[derive(Default)]
pub struct Blocks {
    map: FxHashMap<BlockKey, Box<Block>>,
    by_page: FxHashMap<u64, Vec<BlockKey>>,
    /// Blocks that died while they may be executing; emptied between blocks.
    #[expect(
        clippy::vec_box,
        reason = "a block that may be executing must not move"
    )]
    graveyard: Vec<Box<Block>>,
    /// Operations that were made to stop, and what executes them else.
    parked: Vec<(*const Op, Handler)>,
    ops: usize,
}

/// Makes operations stop, those that are not dead already.
fn park(parked: &mut Vec<(*const Op, Handler)>, ops: &[Op]) {
    for op in ops {
        let handler = op.handler.replace(stale);
        parked.push((op, handler));
    }
}

/// Operations kept before everything is thrown away and decoded anew: 64 MiB.
const MAX_OPS: usize = 2 << 20;

impl Blocks {
    /// Looks a block up.
    pub fn get(&self, key: BlockKey) -> Option<&Block> {
        self.map.get(&key).map(|b| &**b)
    }

    /// Tells whether the cache is full: the caller drops all blocks and the jumps to them.
    pub fn full(&self) -> bool {
        self.ops >= MAX_OPS
    }

    /// Adds a block.
    pub fn insert(&mut self, block: Block) -> *const Block {
        let key = (block.gpa, block.rip, block.mode);
        self.ops += block.ops.len();
        self.by_page
            .entry(block.gpa & !0xfff)
            .or_default()
            .push(key);
        if let Some(page) = block.second {
            self.by_page.entry(page).or_default().push(key);
        }
        let block = Box::new(block);
        let pointer: *const Block = &raw const *block;
        if let Some(old) = self.map.insert(key, block) {
            self.ops -= old.ops.len();
            self.graveyard.push(old);
        }
        pointer
    }

    /// Removes the blocks that touch `mask` of `page`; calls `gone` for each.
    pub fn invalidate(&mut self, page: u64, mask: u64, mut gone: impl FnMut(&Block)) -> usize {
        let Some(keys) = self.by_page.get_mut(&page) else {
            return 0;
        };
        let (map, graveyard, ops) = (&mut self.map, &mut self.graveyard, &mut self.ops);
        let before = keys.len();
        keys.retain(|key| match map.get(key) {
            None => false,
            Some(block) if !block.touches(page, mask) => true,
            Some(_) => {
                if let Some(block) = map.remove(key) {
                    gone(&block);
                    // It may be executing: what follows the storing instruction must not run.
                    block.ops.iter().for_each(|op| op.handler.set(stale));
                    *ops -= block.ops.len();
                    graveyard.push(block);
                }
                false
            }
        });
        before - keys.len()
    }

    /// Removes all blocks. The caller has dropped every jump.
    pub fn clear(&mut self) {
        self.graveyard
            .extend(self.map.drain().map(|(_, block)| block));
        self.by_page.clear();
        self.ops = 0;
    }

    /// Makes the blocks at `rip` stop before their next instruction, until [`Blocks::resume`]. The
    /// caller asks for attention, so that no other block executes before that.
    pub fn park(&mut self, rip: u64, mode: u8) {
        let (map, parked) = (&self.map, &mut self.parked);
        for block in map.values().filter(|b| b.rip == rip && b.mode == mode) {
            park(parked, &block.ops);
        }
    }

    /// The same for one block, whose operations are `ops`.
    pub fn park_ops(&mut self, ops: &[Op]) {
        park(&mut self.parked, ops);
    }

    /// Lets parked blocks run again. Only while no block is executing.
    pub fn resume(&mut self) {
        for (op, handler) in self.parked.drain(..) {
            // SAFETY: a block that dies goes to the graveyard, which is emptied by `bury` only, and
            // `bury` comes here first; so every parked operation is still there.
            unsafe { &*op }.handler.set(handler);
        }
    }

    /// Tells whether a block waits for [`Blocks::resume`].
    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Frees what died. Only while no block is executing.
    pub fn bury(&mut self) {
        self.resume();
        self.graveyard.clear();
    }

    /// Tells whether there is something to free.
    pub fn has_dead(&self) -> bool {
        !self.graveyard.is_empty()
    }
}

/// A stretch of code that was overwritten: page address and granules.
pub type Overwritten = (u64, u64);

/// What one processor has yet to throw away.
pub struct CodePort {
    queue: Mutex<Vec<Overwritten>>,
    wake: Arc<Waker>,
}

impl CodePort {
    /// Takes everything that was reported since the last call.
    pub fn take(&self) -> Vec<Overwritten> {
        std::mem::take(&mut self.queue.lock())
    }

    /// Tells whether anything was.
    pub fn has_any(&self) -> bool {
        !self.queue.lock().is_empty()
    }
}

/// A page with decoded code.
#[derive(Default)]
struct CodePage {
    /// The granules that somebody decoded.
    marks: AtomicU64,
    /// Writes that hit none of them.
    misses: AtomicU32,
}

/// Writes beside the code of a page after which the page is taken for data: its blocks are thrown
/// away and it becomes writable at full speed, until code on it executes again.
const PATIENCE: u32 = 256;

/// Which pages of a machine hold decoded code.
#[derive(Default)]
pub struct CodePages {
    pages: RwLock<FxHashMap<u64, CodePage>>,
    ports: RwLock<Vec<Arc<CodePort>>>,
}

impl CodePages {
    /// No page holds code.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a processor.
    pub(crate) fn attach(&self, wake: Arc<Waker>) -> Arc<CodePort> {
        let port = Arc::new(CodePort {
            queue: Mutex::default(),
            wake,
        });
        self.ports.write().push(port.clone());
        port
    }

    /// Tells whether writes to the page at `page` must be looked at.
    pub(crate) fn contains(&self, page: u64) -> bool {
        self.pages.read().contains_key(&page)
    }

    /// Marks `len` bytes at `gpa` (within one page) as about to be decoded. Returns whether the
    /// page was unknown: then the caller has all processors drop their write translations of it
    /// before it reads a byte.
    pub(crate) fn mark(&self, gpa: u64, len: u64) -> bool {
        let (page, mask) = (gpa & !0xfff, granules(gpa & 0xfff, len));
        // Marks are set under the lock, shared or not: no page is forgotten meanwhile.
        let known = self.pages.read().get(&page).map(|code| {
            if code.marks.load(Ordering::Relaxed) & mask != mask {
                code.marks.fetch_or(mask, Ordering::SeqCst);
            }
        });
        if known.is_none() {
            let mut pages = self.pages.write();
            pages
                .entry(page)
                .or_default()
                .marks
                .fetch_or(mask, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
        known.is_none()
    }

    /// Reports that `len` bytes at `gpa` (within one page) were written. Returns what the calling
    /// processor has to throw away itself; the others are told.
    pub(crate) fn written(&self, gpa: u64, len: u64, own: &Arc<CodePort>) -> Option<Overwritten> {
        self.overwritten(gpa, len, Some(own))
    }

    /// Reports that a device wrote `len` bytes at `gpa`, anywhere in memory. Every processor throws
    /// away what it decoded there before its next block. To be called after the bytes are in
    /// memory and before the guest can hear that they are.
    pub fn written_by_device(&self, gpa: u64, len: u64) {
        let mut done = 0;
        while done < len {
            let at = gpa.wrapping_add(done);
            let piece = (len - done).min(0x1000 - (at & 0xfff));
            self.overwritten(at, piece, None);
            done += piece;
        }
    }

    fn overwritten(&self, gpa: u64, len: u64, own: Option<&Arc<CodePort>>) -> Option<Overwritten> {
        fence(Ordering::SeqCst);
        let (page, mask) = (gpa & !0xfff, granules(gpa & 0xfff, len));
        let (hit, idle) = {
            let pages = self.pages.read();
            let code = pages.get(&page)?;
            let before = code.marks.fetch_and(!mask, Ordering::SeqCst);
            let idle = before & !mask == 0
                || before & mask == 0 && code.misses.fetch_add(1, Ordering::Relaxed) > PATIENCE;
            (before & mask, idle)
        };
        let hit = if idle { hit | self.forget(page) } else { hit };
        if hit == 0 {
            return None;
        }
        let is_own = |port: &Arc<CodePort>| own.is_some_and(|own| Arc::ptr_eq(port, own));
        for port in self.ports.read().iter().filter(|p| !is_own(p)) {
            port.queue.lock().push((page, hit));
            port.wake.poke();
        }
        Some((page, hit))
    }
}

impl CodePages {
    /// Takes `page` for data again; returns the granules that were still marked.
    fn forget(&self, page: u64) -> u64 {
        let code = self.pages.write().remove(&page);
        code.map_or(0, |code| code.marks.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_code_left_is_data_again() {
        let pages = CodePages::new();
        let a = pages.attach(Arc::default());
        pages.mark(0x5000, 64);
        assert_eq!(pages.written(0x5000, 8, &a), Some((0x5000, 1)));
        assert!(!pages.contains(0x5000));
    }

    #[test]
    fn a_page_that_is_mostly_written_is_data_again() {
        let pages = CodePages::new();
        let a = pages.attach(Arc::default());
        pages.mark(0x5000, 64);
        let lost = (0..PATIENCE + 2)
            .filter_map(|_| pages.written(0x5800, 8, &a))
            .last();
        assert_eq!(lost, Some((0x5000, 1)), "its blocks are thrown away");
        assert!(!pages.contains(0x5000));
        assert!(pages.mark(0x5000, 64), "executing there again starts anew");
    }

    #[test]
    fn a_devices_write_is_reported_to_every_processor() {
        let pages = CodePages::new();
        let (a, b) = (pages.attach(Arc::default()), pages.attach(Arc::default()));
        pages.mark(0x5fc0, 64);
        pages.mark(0x6000, 64);
        pages.mark(0x7000, 64);
        pages.written_by_device(0x5ff0, 0x20);
        assert_eq!(a.take(), [(0x5000, 1 << 63), (0x6000, 1)]);
        assert_eq!(b.take(), [(0x5000, 1 << 63), (0x6000, 1)]);
        assert!(pages.contains(0x7000));
    }

    #[test]
    fn granules_cover_exactly_the_bytes() {
        assert_eq!(granules(0, 1), 1);
        assert_eq!(granules(63, 2), 3);
        assert_eq!(granules(0xfc0, 64), 1 << 63);
        assert_eq!(granules(0, 4096), u64::MAX);
        assert_eq!(granules(0xfff, 8), 1 << 63, "clipped to the page");
    }

    #[test]
    fn a_write_is_reported_to_the_others_once() {
        let pages = CodePages::new();
        let (a, b) = (pages.attach(Arc::default()), pages.attach(Arc::default()));
        assert!(pages.mark(0x5010, 4));
        assert!(!pages.mark(0x5010, 4));
        assert_eq!(pages.written(0x5800, 8, &a), None, "another granule");
        assert_eq!(pages.written(0x5000, 32, &a), Some((0x5000, 1)));
        assert_eq!(b.take(), [(0x5000, 1)]);
        assert!(a.take().is_empty(), "the writer throws away its own");
        assert_eq!(
            pages.written(0x5000, 32, &a),
            None,
            "nothing decoded there any more"
        );
    }
}
