//! The translation caches in front of the shadow MMU: the TLB that the guest sees.
//!
//! ```text
//!             Pool ── Ctx (CR3 a, supervisor)      one context per address space and access class,
//!              │      Ctx (CR3 a, user)            so a CR3 write or a change of privilege moves
//!   current ───┴────> Ctx (CR3 b, supervisor)      a pointer and flushes nothing
//! ```
//! An entry holds a tag for reads, a tag for writes and the distance from guest linear to host
//! address. Everything unusual (MMIO, a guest page table, a page with decoded code, a clean page,
//! a watchpoint) is a tag that matches nothing: it leads to the one slow path in `mem`.
//!
//! Which entries survive which guest operation is decided here by the SDM (vol. 3, 4.10.4); what
//! is *in* an entry is decided by the `mmu` crate. A context remembers the MMU's epoch: when no
//! shadow entry was dropped since, a CR3 load has nothing to flush.

use std::mem::offset_of;
use std::ptr::NonNull;

use crate::code::Block;
use crate::jumps::{Jump, Jumps};
use crate::sets::{CHUNK, Chunks, Filter, Writer, Writers};

/// Data entries of a context.
pub const ENTRIES: usize = 4096;
/// Fetch entries of a context.
const FETCHES: usize = 512;
/// Contexts of a processor.
pub const CONTEXTS: usize = 24;

/// The tag of a fetch entry that holds nothing: no page-aligned address equals it.
const NONE: u64 = 1;

/// The tag of data entry `index` when it holds nothing: a page that is looked up in another entry, and
/// whose predecessor is, too, so that no access can match it by its first or its last byte. Translated
/// code compares whole addresses with tags, and for it a tag with low bits set would be the page itself.
#[inline(always)]
fn none(index: usize) -> u64 {
    (index as u64 ^ 2) << 12
}

/// A data translation.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Entry {
    /// Linear page that may be read through this entry.
    pub read: u64,
    /// Linear page that may be written through this entry.
    pub write: u64,
    /// Host address of the page.
    pub host: u64,
    /// What makes a linear address on the page a host address, added to it.
    pub delta: u64,
}

/// A page that is put into the caches for data.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// Its host address.
    pub host: u64,
    /// Guest-physical page, with [`GLOBAL`] and [`LARGE`] in the low bits.
    pub gpa: u64,
}

/// Marks a translation that a CR3 load keeps (in [`Page::gpa`] and [`Fetch::gpa`]).
pub const GLOBAL: u64 = 1;
/// Marks a 4 KiB piece of a larger page, which INVLPG of any address in it drops.
pub const LARGE: u64 = 2;

/// A fetch translation.
#[derive(Clone, Copy)]
pub struct Fetch {
    page: u64,
    /// Guest-physical page, with [`GLOBAL`] in bit 0.
    pub gpa: u64,
    /// Host address of the page.
    pub host: u64,
}

impl Fetch {
    /// Where the linear page is in one.
    pub const PAGE: usize = offset_of!(Self, page);
}

/// Entry `index`, holding nothing.
fn empty(index: usize) -> Entry {
    Entry {
        read: none(index),
        write: none(index),
        host: 0,
        delta: 0,
    }
}

const NO_FETCH: Fetch = Fetch {
    page: NONE,
    gpa: 0,
    host: 0,
};
/// Where a translation of `la` is kept. A page must never share its slot with the next one, because an
/// access is looked up by its first byte and compared by its last.
#[inline(always)]
fn slot(la: u64) -> usize {
    (la >> 12) as usize % ENTRIES
}

/// What distinguishes contexts: two accesses with the same key translate alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// CR3 without the no-flush bit; it includes the PCID.
    pub cr3: u64,
    /// The access class.
    pub class: Class,
}

/// Who accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Privilege levels 0 to 2.
    Supervisor = 0,
    /// The same with EFLAGS.AC set under SMAP.
    SupervisorAc = 1,
    /// Privilege level 3.
    User = 2,
    /// Nothing is cached: alignment checks or watchpoints must see every access.
    Uncached = 3,
}

/// One set of caches. Translated code knows that the data entries are first.
#[repr(C)]
pub struct Ctx {
    entries: [Entry; ENTRIES],
    /// The guest-physical page of each, as [`Page::gpa`]; of one that holds nothing, anything.
    gpas: [u64; ENTRIES],
    fetches: [Fetch; FETCHES],
    /// The MMU's epoch when the context was last known to agree with it.
    pub epoch: u64,
    touched: Touched,
    /// Through which data entry a page is written.
    writers: Writers,
    /// Gigabytes with data translations of pages larger than 4 KiB.
    large_data: Filter<1>,
    /// Gigabytes with fetch translations of such pages.
    large_fetches: Filter<1>,
    /// The jumps of level 3; those of the others are the processor's ([`Pool::kernel`]).
    jumps: Option<Box<Jumps>>,
}

/// Which slots of a context may hold something, in chunks of [`CHUNK`]: a change of CR0.WP empties every
/// context, and most of the two hundred kilobytes of each are empty already.
#[derive(Clone, Copy)]
struct Touched {
    entries: Chunks<{ ENTRIES / CHUNK / 64 }>,
    fetches: Chunks<{ FETCHES / CHUNK / 64 }>,
}

impl Touched {
    const NOTHING: Self = Self {
        entries: Chunks::NONE,
        fetches: Chunks::NONE,
    };
}

impl Ctx {
    /// Holds nothing.
    pub fn new() -> Self {
        Self {
            entries: std::array::from_fn(empty),
            gpas: [0; ENTRIES],
            fetches: [NO_FETCH; FETCHES],
            epoch: 0,
            touched: Touched::NOTHING,
            writers: Writers::NONE,
            large_data: Filter::EMPTY,
            large_fetches: Filter::EMPTY,
            jumps: None,
        }
    }

    /// Returns the entry in which a translation of `la` would be.
    #[inline(always)]
    pub fn entry(&self, la: u64) -> &Entry {
        &self.entries[slot(la)]
    }

    /// Puts a data translation in.
    pub fn fill(&mut self, la: u64, page: Page) {
        if page.gpa & LARGE != 0 {
            self.large_data.insert(la >> 30);
        }
        let index = slot(la);
        if page.write {
            let place = Writers::place(page.gpa >> 12);
            let writer = match self.writers.get(place) {
                Writer::Nobody => Writer::Slot(index),
                Writer::Slot(other) if other == index || !self.writes(other, place) => {
                    Writer::Slot(index)
                }
                _ => Writer::Many,
            };
            self.writers.set(place, writer);
        }
        self.touched.entries.touch(index);
        self.gpas[index] = page.gpa;
        let first = la & !0xfff;
        let tag = |right| if right { first } else { none(index) };
        self.entries[index] = Entry {
            read: tag(page.read),
            write: tag(page.write),
            host: page.host,
            delta: page.host.wrapping_sub(first),
        };
    }

    /// Whether entry `index` may write a page of that place among the [`Writers`].
    fn writes(&self, index: usize, place: usize) -> bool {
        let written = self.entries[index].write != none(index);
        written && Writers::place(self.gpas[index] >> 12) == place
    }

    /// Takes the right to write page `gpa` out of every entry.
    fn drop_writers(&mut self, gpa: u64) {
        let place = Writers::place(gpa >> 12);
        let mut left = Writer::Nobody;
        let mut visit = |ctx: &mut Self, index: usize| {
            if ctx.gpas[index] & !0xfff == gpa {
                ctx.entries[index].write = none(index);
            } else if ctx.writes(index, place) {
                left = match left {
                    Writer::Nobody => Writer::Slot(index),
                    _ => Writer::Many,
                };
            }
        };
        match self.writers.get(place) {
            Writer::Nobody => return,
            Writer::Slot(index) => visit(self, index),
            Writer::Many => self.touched.entries.each(|index| visit(self, index)),
        }
        self.writers.set(place, left);
    }

    /// Looks a fetch translation up.
    #[inline(always)]
    pub fn fetch(&self, la: u64) -> Option<Fetch> {
        let entry = &self.fetches[(la >> 12) as usize % FETCHES];
        (entry.page == la & !0xfff).then_some(*entry)
    }

    /// Where the fetch translation of `la` would be, from the context's address.
    pub fn fetch_offset(la: u64) -> usize {
        offset_of!(Self, fetches) + (la >> 12) as usize % FETCHES * size_of::<Fetch>()
    }

    /// Puts a fetch translation in.
    pub fn fill_fetch(&mut self, la: u64, gpa: u64, host: u64) {
        if gpa & LARGE != 0 {
            self.large_fetches.insert(la >> 30);
        }
        let index = (la >> 12) as usize % FETCHES;
        self.touched.fetches.touch(index);
        self.fetches[index] = Fetch {
            page: la & !0xfff,
            gpa,
            host,
        };
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        let touched = std::mem::replace(&mut self.touched, Touched::NOTHING);
        touched
            .entries
            .each(|index| self.entries[index] = empty(index));
        for slots in touched.fetches.slots() {
            self.fetches[slots].fill(NO_FETCH);
        }
        self.writers = Writers::NONE;
        self.large_data = Filter::EMPTY;
        self.large_fetches = Filter::EMPTY;
        if let Some(jumps) = &mut self.jumps {
            jumps.clear();
        }
    }

    /// Drops what a CR3 load drops: all but global translations.
    fn clear_non_global(&mut self) {
        self.touched.entries.each(|index| {
            if self.gpas[index] & GLOBAL == 0 {
                self.entries[index] = empty(index);
            }
        });
        self.touched.fetches.each(|index| {
            if self.fetches[index].gpa & GLOBAL == 0 {
                self.fetches[index] = NO_FETCH;
            }
        });
        if let Some(jumps) = &mut self.jumps {
            jumps.clear_non_global();
        }
    }

    /// Drops what INVLPG of `la` drops. A larger page has at most 1 GiB, so its pieces are looked
    /// for in the same gigabyte.
    fn drop_page(&mut self, la: u64) {
        let (page, gigabyte) = (la & !0xfff, la >> 30);
        let index = slot(la);
        let entry = &mut self.entries[index];
        if entry.read == page || entry.write == page {
            *entry = empty(index);
        }
        let fetch = &mut self.fetches[(la >> 12) as usize % FETCHES];
        if fetch.page == page {
            *fetch = NO_FETCH;
        }
        if self.large_data.may_have(gigabyte) {
            self.drop_large_data(gigabyte);
        }
        if self.large_fetches.may_have(gigabyte) {
            self.drop_large_fetches(gigabyte);
        }
        if let Some(jumps) = &mut self.jumps {
            jumps.drop_page(la);
        }
    }

    fn drop_large_data(&mut self, gigabyte: u64) {
        for (index, (entry, gpa)) in self.entries.iter_mut().zip(&self.gpas).enumerate() {
            if gpa & LARGE != 0 && entry.page(index) >> 30 == gigabyte {
                *entry = empty(index);
            }
        }
        let left = self.entries.iter().zip(&self.gpas).enumerate();
        let left =
            left.filter(|(index, (entry, gpa))| *gpa & LARGE != 0 && !entry.is_empty(*index));
        let left = left.map(|(index, (entry, _))| entry.page(index) >> 30);
        self.large_data.remove(gigabyte, left);
    }

    fn drop_large_fetches(&mut self, gigabyte: u64) {
        for index in self.touched.fetches.slots().flatten() {
            let fetch = &mut self.fetches[index];
            if fetch.gpa & LARGE != 0 && fetch.page >> 30 == gigabyte {
                *fetch = NO_FETCH;
            }
        }
        let left = self.fetches.iter().filter(|f| f.gpa & LARGE != 0);
        self.large_fetches
            .remove(gigabyte, left.map(|f| f.page >> 30));
    }
}

impl Entry {
    /// The host address for linear address `la`, which is on its page.
    #[inline(always)]
    pub fn at(&self, la: u64) -> u64 {
        la.wrapping_add(self.delta)
    }

    fn is_empty(&self, index: usize) -> bool {
        self.read == none(index) && self.write == none(index)
    }

    /// The page that it, entry `index`, translates; its right to read may have gone, or that to write.
    fn page(&self, index: usize) -> u64 {
        if self.read == none(index) {
            self.write
        } else {
            self.read
        }
    }
}

/// A context, and what it is looked for by: beside it, for each context begins on pages of its own.
struct Place {
    key: Option<Key>,
    stamp: u64,
    /// Stays where it is.
    ctx: Box<Ctx>,
}

impl Place {
    fn new() -> Self {
        Self {
            key: None,
            stamp: 0,
            ctx: Box::new(Ctx::new()),
        }
    }
}

/// A context, and the jumps for code that executes in it. Both stay where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected {
    /// The context.
    pub ctx: NonNull<Ctx>,
    /// The jumps.
    pub jumps: NonNull<Jumps>,
}

/// The contexts of one processor.
pub struct Pool {
    /// As many as were needed so far.
    contexts: Vec<Place>,
    /// The jumps of the levels 0 to 2.
    kernel: Box<Jumps>,
    clock: u64,
}

impl Pool {
    /// All empty.
    pub fn new() -> Self {
        Self {
            contexts: vec![Place::new()],
            kernel: Jumps::new(),
            clock: 0,
        }
    }

    /// Returns the index of the context for `key`; takes the one unused for longest if there is
    /// none. The second value tells whether it was there already.
    pub fn select(&mut self, key: Key) -> (usize, bool) {
        self.clock += 1;
        let clock = self.clock;
        if let Some(at) = self.contexts.iter().position(|c| c.key == Some(key)) {
            self.contexts[at].stamp = clock;
            return (at, true);
        }
        let oldest = self
            .contexts
            .iter()
            .enumerate()
            .min_by_key(|(_, c)| c.stamp);
        let at = match oldest {
            Some((at, ctx)) if ctx.key.is_none() || self.contexts.len() == CONTEXTS => at,
            _ => {
                self.contexts.push(Place::new());
                self.contexts.len() - 1
            }
        };
        let place = &mut self.contexts[at];
        place.ctx.clear();
        place.key = Some(key);
        place.stamp = clock;
        (at, false)
    }

    /// Returns a context.
    pub fn get(&mut self, at: usize) -> &mut Ctx {
        &mut self.contexts[at].ctx
    }

    /// Context `at`, and its jumps.
    pub fn selected(&mut self, at: usize) -> Selected {
        let place = &mut self.contexts[at];
        let class = place.key.map_or(Class::Supervisor, |key| key.class);
        let ctx = &mut *place.ctx;
        let jumps = match class {
            Class::Supervisor | Class::SupervisorAc => NonNull::from(&mut *self.kernel),
            Class::User | Class::Uncached => {
                NonNull::from(&mut **ctx.jumps.get_or_insert_with(Jumps::new))
            }
        };
        let ctx = NonNull::from(ctx);
        Selected { ctx, jumps }
    }

    /// Another address space: of what the levels 0 to 2 jump to, only global pages are still there.
    pub fn leave_address_space(&mut self) {
        self.kernel.clear_non_global();
    }

    /// Tells whether any of what the levels 0 to 2 jump to was dropped since the last call.
    pub fn take_forgot(&mut self) -> bool {
        self.kernel.take_forgot()
    }

    fn in_use(&mut self) -> impl Iterator<Item = &mut Ctx> {
        let used = self.contexts.iter_mut().filter(|c| c.key.is_some());
        used.map(|place| &mut *place.ctx)
    }

    /// The contexts of the address spaces that `pick` chooses by their CR3.
    fn of(&mut self, pick: impl Fn(u64) -> bool) -> impl Iterator<Item = &mut Ctx> {
        let chosen = move |c: &&mut Place| c.key.is_some_and(|key| pick(key.cr3));
        let places = self.contexts.iter_mut().filter(chosen);
        places.map(|place| &mut *place.ctx)
    }

    /// Drops all translations of all contexts.
    pub fn clear(&mut self) {
        self.kernel.clear();
        self.in_use().for_each(Ctx::clear);
    }

    /// INVLPG: drops the page in every context, for global pages are in many.
    pub fn drop_page(&mut self, la: u64) {
        self.kernel.drop_page(la);
        self.in_use().for_each(|c| c.drop_page(la));
    }

    /// Drops the non-global translations of every context that `pick` chooses by its CR3.
    pub fn clear_non_global(&mut self, pick: impl Fn(u64) -> bool) {
        self.kernel.clear_non_global();
        self.of(pick).for_each(Ctx::clear_non_global);
    }

    /// A CR3 load that flushes: drops the non-global translations of the contexts of `cr3`,
    /// unless no shadow entry was dropped since they were last clean. Returns how many it flushed.
    pub fn load(&mut self, cr3: u64, epoch: u64) -> u64 {
        let mut flushed = 0;
        for ctx in self.of(|known| known == cr3) {
            if ctx.epoch != epoch {
                ctx.clear_non_global();
                ctx.epoch = epoch;
                flushed += 1;
            }
        }
        flushed
    }

    /// Takes the right to write page `gpa` out of every entry.
    pub fn drop_writers(&mut self, gpa: u64) {
        self.in_use().for_each(|c| c.drop_writers(gpa));
    }

    /// Forgets `block` wherever a jump leads to it.
    pub fn drop_block(&mut self, block: &Block) {
        let first = block.ops.as_ptr();
        self.drop_jump(block.rip, |jump| std::ptr::eq(jump.first(), first));
    }

    /// Forgets translated `code` for `rip` wherever a jump leads to it.
    pub fn drop_code_at(&mut self, rip: u64, code: u64) {
        self.drop_jump(rip, |jump| jump.packed == code);
    }

    fn drop_jump(&mut self, rip: u64, is: impl Fn(&Jump) -> bool) {
        self.kernel.drop_jump(rip, &is);
        for jumps in self
            .contexts
            .iter_mut()
            .filter_map(|c| c.ctx.jumps.as_mut())
        {
            jumps.drop_jump(rip, &is);
        }
    }
}

#[cfg(test)]
mod tests;
