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

use crate::code::Block;
use crate::op::Op;

/// Data entries of a context.
pub const ENTRIES: usize = 4096;
/// Block entries of a context.
pub const JUMPS: usize = 4096;
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
    /// Guest-physical page, with [`GLOBAL`] and [`LARGE`] in the low bits.
    pub gpa: u64,
}

/// Marks a translation that a CR3 load keeps (in [`Entry::gpa`] and [`Fetch::gpa`]).
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

/// Where the code at a linear address was decoded to. It has all that the loop needs, so that the
/// block's own header is not touched.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Jump {
    /// Linear address and mode, see [`jump_tag`]; with [`TRANSLATED`] where it leads to host code.
    pub tag: u64,
    /// The first operation, and the number of instructions in the upper 16 bits, which no user-space
    /// address needs. Or the host code.
    pub packed: u64,
}

/// Entry `index`, holding nothing.
fn empty(index: usize) -> Entry {
    Entry {
        read: none(index),
        write: none(index),
        host: 0,
        gpa: 0,
    }
}

const NO_FETCH: Fetch = Fetch {
    page: NONE,
    gpa: 0,
    host: 0,
};
/// In a tag: the jump leads to translated code. The modes leave that bit free.
pub const TRANSLATED: u64 = 1 << 62;

/// Jump `index`, leading nowhere. The interpreter asks for canonical addresses only, whose tags have bits
/// 63 and 56 alike. Translated code may ask for any; the one that would match is looked up elsewhere.
fn no_jump(index: usize) -> Jump {
    Jump {
        tag: if index == jump_index(unlike(NOWHERE)) {
            NOWHERE + 1
        } else {
            NOWHERE
        },
        packed: 0,
    }
}

const NOWHERE: u64 = 0x8000_0000_0000_0001;

/// The address whose jump, to translated 64-bit code, has `tag`.
fn unlike(tag: u64) -> u64 {
    tag ^ jump_tag(0, 2) ^ TRANSLATED
}

/// Combines a canonical linear address and a mode (below 64): the bits that the mode disturbs
/// are copies of bit 56 in any canonical address.
#[inline(always)]
pub const fn jump_tag(rip: u64, mode: u8) -> u64 {
    rip ^ (mode as u64) << 57
}

/// Blocks begin at any byte, and many pages are hot at once: only a good hash spreads them.
#[inline(always)]
pub fn jump_index(rip: u64) -> usize {
    (rip.wrapping_mul(JUMP_HASH) >> (64 - JUMPS.trailing_zeros())) as usize
}

/// What an address is multiplied by to find its jump.
pub const JUMP_HASH: u64 = 0x9e37_79b9_7f4a_7c15;

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

/// One set of caches. Translated code knows where in it the data entries and the jumps are.
#[repr(C)]
pub struct Ctx {
    entries: [Entry; ENTRIES],
    jumps: [Jump; JUMPS],
    fetches: [Fetch; FETCHES],
    key: Option<Key>,
    /// The MMU's epoch when the context was last known to agree with it.
    pub epoch: u64,
    touched: Touched,
    /// Jumps to global pages, by index.
    global: [u64; JUMPS / 64],
    /// Pages that data entries may write.
    written: Filter<128>,
    /// Gigabytes with data translations of pages larger than 4 KiB.
    large_data: Filter<1>,
    /// Gigabytes with code in pages larger than 4 KiB.
    large_code: Filter<1>,
    /// Pages that jumps lead to.
    code: Filter<16>,
    stamp: u64,
}

/// Which slots of a context may hold something, in chunks of [`CHUNK`]: a change of CR0.WP empties every
/// context, and most of the two hundred kilobytes of each are empty already.
#[derive(Clone, Copy)]
struct Touched {
    entries: Chunks<{ ENTRIES / CHUNK / 64 }>,
    jumps: Chunks<JUMP_WORDS>,
    fetches: Chunks<{ FETCHES / CHUNK / 64 }>,
}

/// Slots of a chunk.
const CHUNK: usize = 8;
/// Words that have a bit for each chunk of jumps.
const JUMP_WORDS: usize = JUMPS / CHUNK / 64;

impl Touched {
    const NOTHING: Self = Self {
        entries: Chunks::NONE,
        jumps: Chunks::NONE,
        fetches: Chunks::NONE,
    };
}

/// Chunks of an array, a bit each.
#[derive(Clone, Copy)]
struct Chunks<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Chunks<WORDS> {
    const NONE: Self = Self([0; WORDS]);

    /// Adds the chunk of slot `index`.
    #[inline(always)]
    fn touch(&mut self, index: usize) {
        let chunk = index / CHUNK;
        self.0[chunk / 64 % WORDS] |= 1 << (chunk % 64);
    }

    /// The slots of all chunks that were added.
    fn slots(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let words = self.0.into_iter().enumerate();
        let chunks = words.flat_map(|(word, bits)| {
            let rests = std::iter::successors(Some(bits), |rest| Some(rest & rest.wrapping_sub(1)));
            rests
                .take_while(|rest| *rest != 0)
                .map(move |rest| word * 64 + rest.trailing_zeros() as usize)
        });
        chunks.map(|n| n * CHUNK..(n + 1) * CHUNK)
    }
}

/// A set of numbers that may hold more than was put in: what it lacks needs no search. INVLPG is
/// most often about pages of data, and would look through thousands of jumps for nothing.
#[derive(Clone, Copy)]
struct Filter<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Filter<WORDS> {
    const EMPTY: Self = Self([0; WORDS]);

    /// Word and bit for `number`.
    #[inline(always)]
    fn place(number: u64) -> (usize, u64) {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((hash >> 6) as usize % WORDS, 1 << (hash & 63))
    }

    #[inline(always)]
    fn insert(&mut self, number: u64) {
        let (word, bit) = Self::place(number);
        self.0[word] |= bit;
    }

    fn may_have(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word] & bit != 0
    }

    /// Takes `number` out, unless one of those that are left has the same place.
    fn remove(&mut self, number: u64, mut left: impl Iterator<Item = u64>) {
        let place = Self::place(number);
        if left.all(|other| Self::place(other) != place) {
            self.0[place.0] &= !place.1;
        }
    }
}

impl Ctx {
    /// Where the jumps are, in bytes from the start; the data entries are there.
    pub const JUMPS_AT: usize = std::mem::offset_of!(Ctx, jumps);

    fn new() -> Self {
        Self {
            entries: std::array::from_fn(empty),
            jumps: std::array::from_fn(no_jump),
            fetches: [NO_FETCH; FETCHES],
            key: None,
            epoch: 0,
            touched: Touched::NOTHING,
            global: [0; JUMPS / 64],
            written: Filter::EMPTY,
            large_data: Filter::EMPTY,
            large_code: Filter::EMPTY,
            code: Filter::EMPTY,
            stamp: 0,
        }
    }

    /// Returns the entry in which a translation of `la` would be.
    #[inline(always)]
    pub fn entry(&self, la: u64) -> &Entry {
        &self.entries[slot(la)]
    }

    /// Puts a data translation in.
    pub fn fill(&mut self, la: u64, entry: Entry) {
        if entry.gpa & LARGE != 0 {
            self.large_data.insert(la >> 30);
        }
        if entry.write != 0 {
            self.written.insert(entry.gpa >> 12);
        }
        let index = slot(la);
        self.touched.entries.touch(index);
        self.entries[index] = Entry {
            read: if entry.read == 0 {
                none(index)
            } else {
                la & !0xfff
            },
            write: if entry.write == 0 {
                none(index)
            } else {
                la & !0xfff
            },
            ..entry
        };
    }

    /// Looks a fetch translation up.
    #[inline(always)]
    pub fn fetch(&self, la: u64) -> Option<Fetch> {
        let entry = &self.fetches[(la >> 12) as usize % FETCHES];
        (entry.page == la & !0xfff).then_some(*entry)
    }

    /// Puts a fetch translation in.
    pub fn fill_fetch(&mut self, la: u64, gpa: u64, host: u64) {
        if gpa & LARGE != 0 {
            self.large_code.insert(la >> 30);
        }
        let index = (la >> 12) as usize % FETCHES;
        self.touched.fetches.touch(index);
        self.fetches[index] = Fetch {
            page: la & !0xfff,
            gpa,
            host,
        };
    }

    /// Looks the block at `rip` up.
    #[inline(always)]
    pub fn jump(&self, rip: u64) -> &Jump {
        &self.jumps[jump_index(rip)]
    }

    /// Remembers the block at `rip`, on a global page or not.
    pub fn set_jump(&mut self, rip: u64, jump: Jump, global: bool) {
        self.code.insert(rip >> 12);
        let index = jump_index(rip);
        self.touched.jumps.touch(index);
        self.jumps[index] = jump;
        let (word, bit) = (&mut self.global[index / 64], 1 << (index % 64));
        if global {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        let touched = std::mem::replace(&mut self.touched, Touched::NOTHING);
        for index in touched.entries.slots().flatten() {
            self.entries[index] = empty(index);
        }
        for index in touched.jumps.slots().flatten() {
            self.jumps[index] = no_jump(index);
        }
        for slots in touched.fetches.slots() {
            self.fetches[slots].fill(NO_FETCH);
        }
        self.written = Filter::EMPTY;
        self.large_data = Filter::EMPTY;
        self.large_code = Filter::EMPTY;
        self.code = Filter::EMPTY;
    }

    /// Drops what a CR3 load drops: all but global translations.
    fn clear_non_global(&mut self) {
        for index in self.touched.entries.slots().flatten() {
            if self.entries[index].gpa & GLOBAL == 0 {
                self.entries[index] = empty(index);
            }
        }
        for index in self.touched.fetches.slots().flatten() {
            if self.fetches[index].gpa & GLOBAL == 0 {
                self.fetches[index] = NO_FETCH;
            }
        }
        for index in self.touched.jumps.slots().flatten() {
            if self.global[index / 64] >> (index % 64) & 1 == 0 {
                self.jumps[index] = no_jump(index);
            }
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
        if self.large_code.may_have(gigabyte) {
            self.drop_code(gigabyte);
        } else if self.code.may_have(la >> 12) {
            self.drop_jumps(|rip| rip >> 12 == la >> 12);
            let left = targets(&self.jumps, self.touched.jumps);
            self.code.remove(la >> 12, left.map(|rip| rip >> 12));
        }
    }

    fn drop_large_data(&mut self, gigabyte: u64) {
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.gpa & LARGE != 0 && entry.page(index) >> 30 == gigabyte {
                *entry = empty(index);
            }
        }
        let left = self.entries.iter().enumerate();
        let left = left.filter(|(_, e)| e.gpa & LARGE != 0);
        let left = left.map(|(index, e)| e.page(index) >> 30);
        self.large_data.remove(gigabyte, left);
    }

    /// Drops the code of a gigabyte, whatever its pages: a jump outlives the fetch translation that
    /// it was found by, and does not say how large its page was.
    fn drop_code(&mut self, gigabyte: u64) {
        for fetch in &mut self.fetches {
            if fetch.gpa & LARGE != 0 && fetch.page >> 30 == gigabyte {
                *fetch = NO_FETCH;
            }
        }
        self.drop_jumps(|rip| rip >> 30 == gigabyte);
        let left = self.fetches.iter().filter(|f| f.gpa & LARGE != 0);
        let left = left
            .map(|f| f.page)
            .chain(targets(&self.jumps, self.touched.jumps));
        self.large_code.remove(gigabyte, left.map(|la| la >> 30));
    }

    fn drop_jumps(&mut self, pick: impl Fn(u64) -> bool) {
        for slots in self.touched.jumps.slots() {
            for index in slots {
                let jump = &mut self.jumps[index];
                if jump.leads() && pick(jump.rip()) {
                    *jump = no_jump(index);
                }
            }
        }
    }
}

/// Where the jumps lead to.
fn targets(jumps: &[Jump], touched: Chunks<JUMP_WORDS>) -> impl Iterator<Item = u64> {
    let known = touched.slots().flat_map(|slots| &jumps[slots]);
    known.filter(|j| j.leads()).map(Jump::rip)
}

impl Entry {
    /// The host address for linear address `la`, which is on its page.
    #[inline(always)]
    pub fn at(&self, la: u64) -> u64 {
        self.host + (la & 0xfff)
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

impl Jump {
    /// A jump to `block` in the current mode.
    pub fn to(block: &Block, tag: u64) -> Self {
        let first = block.ops.as_ptr() as u64;
        debug_assert_eq!(first >> 48, 0);
        Self {
            tag,
            packed: first | u64::from(block.count) << 48,
        }
    }

    /// A jump from `rip` to translated 64-bit code.
    pub fn to_code(code: u64, rip: u64) -> Self {
        Self {
            tag: jump_tag(rip, 2) ^ TRANSLATED,
            packed: code,
        }
    }

    /// Tells whether it leads anywhere.
    fn leads(&self) -> bool {
        self.packed != 0
    }

    /// The first operation; valid while the tag matches.
    #[inline(always)]
    pub fn first(&self) -> *const Op {
        (self.packed << 16 >> 16) as *const Op
    }

    /// The number of instructions.
    #[inline(always)]
    pub fn count(&self) -> i64 {
        (self.packed >> 48) as i64
    }

    fn rip(&self) -> u64 {
        // Bit 56 tells what the bits above it were before the mode was mixed in.
        ((self.tag << 7) as i64 >> 7) as u64
    }
}

/// The contexts of one processor.
pub struct Pool {
    contexts: Box<[Ctx]>,
    clock: u64,
}

impl Pool {
    /// All empty.
    pub fn new() -> Self {
        Self {
            contexts: (0..CONTEXTS).map(|_| Ctx::new()).collect(),
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
        let at = oldest.map_or(0, |(at, _)| at);
        let ctx = &mut self.contexts[at];
        ctx.clear();
        ctx.key = Some(key);
        ctx.stamp = clock;
        (at, false)
    }

    /// Returns a context.
    pub fn get(&mut self, at: usize) -> &mut Ctx {
        &mut self.contexts[at]
    }

    /// Drops all translations of all contexts.
    pub fn clear(&mut self) {
        self.contexts
            .iter_mut()
            .filter(|c| c.key.is_some())
            .for_each(Ctx::clear);
    }

    /// INVLPG: drops the page in every context, for global pages are in many.
    pub fn drop_page(&mut self, la: u64) {
        self.contexts
            .iter_mut()
            .filter(|c| c.key.is_some())
            .for_each(|c| c.drop_page(la));
    }

    /// Drops the non-global translations of every context that `pick` chooses by its CR3.
    pub fn clear_non_global(&mut self, pick: impl Fn(u64) -> bool) {
        let chosen = |c: &&mut Ctx| c.key.is_some_and(|k| pick(k.cr3));
        self.contexts
            .iter_mut()
            .filter(chosen)
            .for_each(Ctx::clear_non_global);
    }

    /// A CR3 load that flushes: drops the non-global translations of the contexts of `cr3`,
    /// unless no shadow entry was dropped since they were last clean. Returns how many it flushed.
    pub fn load(&mut self, cr3: u64, epoch: u64) -> u64 {
        let mut flushed = 0;
        for ctx in self
            .contexts
            .iter_mut()
            .filter(|c| c.key.is_some_and(|k| k.cr3 == cr3))
        {
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
        let may = |c: &&mut Ctx| c.key.is_some() && c.written.may_have(gpa >> 12);
        for ctx in self.contexts.iter_mut().filter(may) {
            for index in ctx.touched.entries.slots().flatten() {
                if ctx.entries[index].gpa & !0xfff == gpa {
                    ctx.entries[index].write = none(index);
                }
            }
        }
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
        let index = jump_index(rip);
        for ctx in &mut self.contexts {
            if is(&ctx.jumps[index]) {
                ctx.jumps[index] = no_jump(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An access is looked up by its first byte and compared by its last one: if a page shared its
    /// slot with the next one, an access across the border would hit the next page's entry, and reach
    /// the bytes before that page in the host.
    #[test]
    fn no_page_shares_its_slot_with_the_next_one() {
        let pages = (1..52).flat_map(|bit| [(1u64 << bit) - 1, (1 << bit) - 2, !0 << bit]);
        for page in pages.chain([!0 >> 12, (!0 >> 12) - 1]) {
            let la = page << 12;
            assert_ne!(slot(la), slot(la.wrapping_add(0x1000)), "{la:#x}");
        }
    }

    #[test]
    fn an_empty_entry_matches_nothing() {
        for index in 0..ENTRIES {
            let page = none(index);
            assert_ne!(slot(page), index);
            assert_ne!(slot(page.wrapping_sub(0x1000)), index);
        }
    }

    #[test]
    fn an_empty_jump_matches_nothing() {
        for index in 0..JUMPS {
            assert_ne!(jump_index(unlike(no_jump(index).tag)), index);
        }
    }

    fn entry(gpa: u64) -> Entry {
        Entry {
            read: 1,
            write: 1,
            host: 0,
            gpa,
        }
    }

    fn key(cr3: u64) -> Key {
        Key {
            cr3,
            class: Class::Supervisor,
        }
    }

    #[test]
    fn a_cr3_load_keeps_global_pages_and_drops_the_others() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        pool.get(at).fill(0x5000, entry(0x9000 | GLOBAL));
        pool.get(at).fill(0x6000, entry(0xa000));
        pool.load(0x1000, 1);
        assert_eq!(pool.get(at).entry(0x5000).read, 0x5000);
        assert_eq!(pool.get(at).entry(0x6000).read, none(slot(0x6000)));
    }

    #[test]
    fn a_cr3_load_keeps_jumps_to_global_pages() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        let ctx = pool.get(at);
        ctx.set_jump(0x5008, jump(0x5008), true);
        ctx.set_jump(0x6010, jump(0x6010), false);
        pool.load(0x1000, 1);
        let known = |rip| pool.contexts[at].jump(rip).tag == jump_tag(rip, 2);
        assert!(known(0x5008) && !known(0x6010));
    }

    #[test]
    fn a_cr3_load_flushes_nothing_while_the_epoch_stands() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        pool.get(at).epoch = 7;
        pool.get(at).fill(0x6000, entry(0xa000));
        pool.load(0x1000, 7);
        assert_eq!(pool.get(at).entry(0x6000).read, 0x6000);
    }

    #[test]
    fn invlpg_reaches_every_context() {
        let mut pool = Pool::new();
        for cr3 in [0x1000, 0x2000] {
            let (at, _) = pool.select(key(cr3));
            pool.get(at).fill(0x6000, entry(0xa000));
        }
        pool.drop_page(0x6123);
        for cr3 in [0x1000, 0x2000] {
            let (at, known) = pool.select(key(cr3));
            assert!(known);
            assert_eq!(pool.get(at).entry(0x6000).read, none(slot(0x6000)));
        }
    }

    #[test]
    fn invlpg_drops_every_piece_of_a_large_page_and_no_other() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        pool.get(at).fill(0x20_0000, entry(0x9000 | LARGE));
        pool.get(at).fill(0x20_5000, entry(0xa000 | LARGE));
        pool.get(at).fill(0x20_6000, entry(0xb000));
        pool.drop_page(0x20_1000);
        assert_ne!(pool.get(at).entry(0x20_0000).read, 0x20_0000);
        assert_ne!(pool.get(at).entry(0x20_5000).read, 0x20_5000);
        assert_eq!(pool.get(at).entry(0x20_6000).read, 0x20_6000);
    }

    fn jump(rip: u64) -> Jump {
        Jump {
            tag: jump_tag(rip, 2),
            packed: 8,
        }
    }

    #[test]
    fn invlpg_drops_the_jumps_to_its_page_and_no_other() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        let ctx = pool.get(at);
        ctx.fill_fetch(0x4000_0000, LARGE, 0);
        for rip in [0x5008, 0x5010, 0x6008, 0x4000_5008] {
            ctx.set_jump(rip, jump(rip), false);
        }
        pool.drop_page(0x5fff);
        let known = |rip| pool.contexts[at].jump(rip).tag == jump_tag(rip, 2);
        assert!(!known(0x5008) && !known(0x5010));
        assert!(known(0x6008) && known(0x4000_5008));
    }

    #[test]
    fn invlpg_in_a_large_page_drops_jumps_that_outlived_their_fetch() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        let ctx = pool.get(at);
        ctx.fill_fetch(0x4000_5000, LARGE, 0);
        for rip in [0x4000_5008, 0x5008] {
            ctx.set_jump(rip, jump(rip), false);
        }
        ctx.fill_fetch(0x4000_5000 + 0x1000 * FETCHES as u64, 0x9000, 0);
        assert!(ctx.fetch(0x4000_5000).is_none());
        pool.drop_page(0x4010_0000);
        let known = |rip| pool.contexts[at].jump(rip).tag == jump_tag(rip, 2);
        assert!(!known(0x4000_5008));
        assert!(known(0x5008));
    }

    #[test]
    fn clearing_empties_whatever_was_filled() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        let pages = |n: u64| n * 0x1000;
        let rip = |n: u64| pages(n) + n % 0x1000;
        let known = |ctx: &Ctx, n: u64| {
            let rip = rip(n);
            let data = ctx.entry(pages(n)).read == pages(n);
            (
                data,
                ctx.fetch(rip).is_some(),
                ctx.jump(rip).tag == jump_tag(rip, 2),
            )
        };
        for n in 0..2 * ENTRIES as u64 {
            let ctx = pool.get(at);
            ctx.fill(pages(n), entry(0x9000));
            ctx.fill_fetch(pages(n), 0x9000, 0);
            ctx.set_jump(rip(n), jump(rip(n)), false);
            assert_eq!(known(ctx, n), (true, true, true));
            if n % 5 == 0 {
                pool.clear();
                assert!((0..=n).all(|n| known(&pool.contexts[at], n) == (false, false, false)));
            }
        }
    }

    #[test]
    fn a_filter_keeps_what_shares_its_place() {
        let mut filter = Filter::<1>::EMPTY;
        let place = Filter::<1>::place;
        let twin = (1..).find(|n| place(*n) == place(0)).unwrap_or(0);
        filter.insert(0);
        filter.insert(twin);
        filter.remove(0, [twin].into_iter());
        assert!(filter.may_have(twin));
        filter.remove(twin, std::iter::empty());
        assert!(!filter.may_have(twin) && !filter.may_have(0));
    }

    #[test]
    fn dropping_writers_keeps_readers() {
        let mut pool = Pool::new();
        let (at, _) = pool.select(key(0x1000));
        pool.get(at).fill(0x6000, entry(0xa000));
        pool.drop_writers(0xa000);
        assert_eq!(pool.get(at).entry(0x6000).read, 0x6000);
        assert_eq!(pool.get(at).entry(0x6000).write, none(slot(0x6000)));
    }

    #[test]
    fn a_jump_tag_gives_its_address_back() {
        for rip in [
            0,
            0xffff_ffff_8100_0042,
            0x7fff_ffff_f123,
            0xff00_0000_0000_0000,
        ] {
            let jump = Jump {
                tag: jump_tag(rip, 37),
                packed: 0,
            };
            assert_eq!(jump.rip(), rip);
        }
    }
}
