//! Which linear address leads to which code: what the loop and translated code look up first.
//!
//! ```text
//!   level 3           a table in each context: another address space has other code
//!   levels 0 to 2     one table of the processor: the kernel is the same everywhere
//! ```
//! A jump is as good as the fetch translation that it was found by, and goes when that would go: with its
//! page, or with everything that is not global, when CR3 is loaded.
//!
//! An address has one place for its translated code, one for its block, and a spare one, where its code goes when that
//! of another address takes its place. Of a thousand addresses that are hot at once seven pairs share a place: without
//! a spare one they would take it from each other with every jump.

use crate::code::Block;
use crate::op::Op;
use crate::sets::{CHUNK, Chunks, Filter};
use crate::translator::LONG;

/// Jumps of a table. A compiler has 57,000 units; with a table for a quarter of them it took a fifth longer.
pub const JUMPS: usize = 65536;

/// Where the code at a linear address was decoded to. It has all that the loop needs, so that the
/// block's own header is not touched.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Jump {
    /// Linear address and mode, see [`jump_tag`]; where it leads to host code, see [`translated_tag`].
    pub tag: u64,
    /// The first operation, and the number of instructions in the upper 16 bits, which no user-space
    /// address needs. Or the host code.
    pub packed: u64,
}

/// In a tag: the jump leads to translated code. The modes leave that bit free.
pub const TRANSLATED: u64 = 1 << 62;

/// The tag of a jump from `rip` to translated code, which is 64-bit code and has no other mode: the address itself,
/// so that translated code need not make it.
///
/// Translated code asks for any address, one that is not canonical, too, and must not take another tag for it. The tag
/// of a block is its address with other bits 57 to 62. Who asks for the address that this tag is looks where code of
/// the block's address would be ([`code_index`] knows the lower bits only), and there blocks of that address never are.
#[inline(always)]
pub const fn translated_tag(rip: u64) -> u64 {
    jump_tag(rip, LONG) ^ TRANSLATED
}

/// Jump `index`, leading nowhere. The interpreter asks for canonical addresses only, whose tags have bits
/// 63 and 56 alike. Translated code may ask for any; the one that would match is looked up elsewhere.
fn no_jump(index: usize) -> Jump {
    Jump {
        tag: if index == code_index(NOWHERE) || index == spare_index(NOWHERE) {
            NOWHERE + 1
        } else {
            NOWHERE
        },
        packed: 0,
    }
}

const NOWHERE: u64 = 0x8000_0000_0000_0001;

/// Combines a canonical linear address and a mode (below 32): the bits that the mode disturbs
/// are copies of bit 56 in any canonical address. It disturbs at least one.
#[inline(always)]
pub const fn jump_tag(rip: u64, mode: u8) -> u64 {
    rip ^ ((mode ^ LONG) as u64) << 57 ^ TRANSLATED
}

/// Where the jump from `rip` to translated code is. Code begins at any byte, and many pages are hot at once: only a
/// good hash spreads it. The lower 20 bits count, and of 40,000 addresses in a row no two that are sixteen apart or
/// more have the same place: the factor is their number by the golden ratio. (All 32 bits are no better: gcc misses as
/// often.)
#[inline(always)]
pub const fn code_index(rip: u64) -> usize {
    ((rip as u32).wrapping_mul(JUMP_FACTOR) as usize / PER_JUMP) % JUMPS
}

/// Where the jump from `rip` to a block is: beside that to translated code.
#[inline(always)]
pub const fn block_index(rip: u64) -> usize {
    code_index(rip) ^ 1
}

/// Where the jump from `rip` to translated code is if another one has taken its place: at the place's address with this
/// bit changed.
pub const SPARE: usize = 2 * size_of::<Jump>();

#[inline(always)]
const fn spare_index(rip: u64) -> usize {
    code_index(rip) ^ (SPARE / PER_JUMP)
}

/// What an address is multiplied by to find its jump.
pub const JUMP_FACTOR: u32 = 0x9_e377;

/// Addresses for each jump: with so many the product, less its lower bits, is a distance in bytes.
const PER_JUMP: usize = size_of::<Jump>();

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
            tag: translated_tag(rip),
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

/// Jumps that lie together: all places of an address.
#[repr(C, align(64))]
struct Line([Jump; PER_LINE]);

const PER_LINE: usize = 4;
const _: () = assert!(SPARE < size_of::<Line>() && SPARE.is_power_of_two());

/// A table of jumps.
pub struct Jumps {
    /// Beside the rest, for no stack has room to make them on it. Translated code looks here.
    lines: Box<[Line; JUMPS / PER_LINE]>,
    touched: Chunks<{ JUMPS / CHUNK / 64 }>,
    /// Those to global pages, by index.
    global: [u64; JUMPS / 64],
    /// Whether any is not.
    some_local: bool,
    /// Pages that are led to.
    pages: Filter<64>,
    /// Gigabytes with code in pages larger than 4 KiB.
    large: Filter<1>,
    /// Something that may be global was forgotten.
    forgot: bool,
}

impl Jumps {
    /// Leads nowhere.
    pub fn new() -> Box<Self> {
        let line = |n| Line(std::array::from_fn(|i| no_jump(n * PER_LINE + i)));
        let lines: Vec<Line> = (0..JUMPS / PER_LINE).map(line).collect();
        let Ok(lines) = lines.into_boxed_slice().try_into() else {
            unreachable!("there are so many")
        };
        Box::new(Self {
            lines,
            touched: Chunks::NONE,
            global: [0; JUMPS / 64],
            some_local: false,
            pages: Filter::EMPTY,
            large: Filter::EMPTY,
            forgot: false,
        })
    }

    /// Where the first one is.
    pub fn first(&self) -> *const Jump {
        self.lines.as_ptr().cast()
    }

    #[inline(always)]
    fn at(&self, index: usize) -> &Jump {
        &self.lines[index / PER_LINE].0[index % PER_LINE]
    }

    #[inline(always)]
    fn at_mut(&mut self, index: usize) -> &mut Jump {
        &mut self.lines[index / PER_LINE].0[index % PER_LINE]
    }

    fn forget(&mut self, index: usize) {
        *self.at_mut(index) = no_jump(index);
    }

    /// Looks up the translated code that `rip` leads to.
    #[inline(always)]
    pub fn code(&self, rip: u64) -> &Jump {
        let jump = self.at(code_index(rip));
        if jump.tag == translated_tag(rip) {
            return jump;
        }
        self.at(spare_index(rip))
    }

    /// Looks up the block that `rip` leads to.
    #[inline(always)]
    pub fn block(&self, rip: u64) -> &Jump {
        self.at(block_index(rip))
    }

    /// Remembers where `rip` leads to, on a global page or not, a large one or not.
    pub fn set(&mut self, rip: u64, jump: Jump, global: bool, large: bool) {
        self.pages.insert(rip >> 12);
        if large {
            self.large.insert(rip >> 30);
        }
        let index = if jump.tag == translated_tag(rip) {
            // Who does not find the code is to ask for it, and not to find the block that it was made of.
            let beside = block_index(rip);
            if self.at(beside).tag == jump_tag(rip, LONG) {
                self.forget(beside);
            }
            self.make_room(rip);
            code_index(rip)
        } else {
            block_index(rip)
        };
        self.touched.touch(index);
        self.some_local |= !global;
        self.put(index, jump, global);
    }

    fn put(&mut self, index: usize, jump: Jump, global: bool) {
        *self.at_mut(index) = jump;
        let (word, bit) = (&mut self.global[index / 64], 1 << (index % 64));
        if global {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    fn is_global(&self, index: usize) -> bool {
        self.global[index / 64] >> (index % 64) & 1 != 0
    }

    /// Makes the code that is in the place of that of `rip` go to its spare place.
    fn make_room(&mut self, rip: u64) {
        let (index, spare) = (code_index(rip), spare_index(rip));
        if self.at(spare).tag == translated_tag(rip) {
            self.forget(spare);
        }
        let there = *self.at(index);
        let other = there.rip();
        let is_code = there.leads() && there.tag == translated_tag(other);
        if is_code && other != rip && code_index(other) == index {
            self.put(spare, there, self.is_global(index));
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let touched = std::mem::replace(&mut self.touched, Chunks::NONE);
        touched.each(|index| self.forget(index));
        self.some_local = false;
        self.forgot = true;
        self.pages = Filter::EMPTY;
        self.large = Filter::EMPTY;
    }

    /// Forgets what a CR3 load makes stale.
    pub fn clear_non_global(&mut self) {
        if !std::mem::take(&mut self.some_local) {
            return;
        }
        self.touched.each(|index| {
            if !self.is_global(index) {
                self.forget(index);
            }
        });
    }

    /// Forgets what INVLPG of `la` makes stale. A jump does not say how large its page is, so where there
    /// are large ones, all of their gigabyte go.
    pub fn drop_page(&mut self, la: u64) {
        if self.large.may_have(la >> 30) {
            self.forgot = true;
            self.drop(|rip| rip >> 30 == la >> 30);
            let left: Vec<u64> = self.targets().map(|rip| rip >> 30).collect();
            self.large.remove(la >> 30, left.into_iter());
        } else if self.pages.may_have(la >> 12) {
            self.forgot = true;
            self.drop(|rip| rip >> 12 == la >> 12);
            let left: Vec<u64> = self.targets().map(|rip| rip >> 12).collect();
            self.pages.remove(la >> 12, left.into_iter());
        }
    }

    /// Tells whether anything was forgotten, that may be global, since the last call.
    pub fn take_forgot(&mut self) -> bool {
        std::mem::take(&mut self.forgot)
    }

    fn targets(&self) -> impl Iterator<Item = u64> {
        let known = self.touched.slots().flatten().map(|index| self.at(index));
        known.filter(|jump| jump.leads()).map(Jump::rip)
    }

    fn drop(&mut self, pick: impl Fn(u64) -> bool) {
        self.touched.each(|index| {
            let jump = self.at(index);
            if jump.leads() && pick(jump.rip()) {
                self.forget(index);
            }
        });
    }

    /// Forgets a jump of `rip` if it is that one.
    pub fn drop_jump(&mut self, rip: u64, is: impl Fn(&Jump) -> bool) {
        for index in [code_index(rip), spare_index(rip), block_index(rip)] {
            if is(self.at(index)) {
                self.forget(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_jump_matches_nothing() {
        for index in 0..JUMPS {
            let tag = no_jump(index).tag;
            assert!(![code_index(tag), spare_index(tag)].contains(&index));
        }
    }

    #[test]
    fn a_jump_tag_gives_its_address_back() {
        for rip in [
            0,
            0xffff_ffff_8100_0042,
            0x7fff_ffff_f123,
            0xff00_0000_0000_0000,
        ] {
            let tag = jump_tag(rip, 21);
            assert_eq!(Jump { tag, packed: 0 }.rip(), rip);
            assert_eq!(Jump::to_code(8, rip).rip(), rip);
        }
    }

    /// Else a guest that returns to an address that is not canonical would have a block's data executed.
    #[test]
    fn the_address_that_a_blocks_tag_is_has_another_place() {
        for rip in [0, 0x40_1000, 0x7fff_ffff_f123, 0xffff_ffff_8100_0042] {
            for mode in 0..32 {
                let tag = jump_tag(rip, mode);
                assert_ne!(tag, translated_tag(rip));
                let places = [code_index(tag), spare_index(tag)];
                assert!(!places.contains(&block_index(rip)), "{rip:#x} {mode}");
            }
        }
    }

    #[test]
    fn code_of_neighbours_has_places_of_its_own() {
        for from in [0x40_1000, 0xffff_ffff_8100_0000] {
            let mut places: Vec<usize> = (0..2500).map(|n| code_index(from + 16 * n)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 2500);
        }
    }

    fn table(rips: &[u64], global: bool, large: bool) -> Box<Jumps> {
        let mut jumps = Jumps::new();
        for rip in rips {
            jumps.set(*rip, Jump::to_code(8, *rip), global, large);
        }
        jumps
    }

    fn knows(jumps: &Jumps, rip: u64) -> bool {
        jumps.code(rip).tag == Jump::to_code(8, rip).tag
    }

    #[test]
    fn all_places_of_an_address_are_in_a_line() {
        for rip in (0..0x10_0000).chain([NOWHERE]) {
            let line = code_index(rip) / PER_LINE;
            assert_eq!(spare_index(rip) / PER_LINE, line);
            assert_eq!(block_index(rip) / PER_LINE, line);
        }
        let jumps = Jumps::new();
        assert_eq!(jumps.first() as usize % size_of::<Line>(), 0);
        assert_eq!(size_of::<Line>(), PER_LINE * size_of::<Jump>());
    }

    /// Addresses of one place.
    const PAIR: [u64; 2] = [0x40_5008, 0x70_5008];

    #[test]
    fn two_addresses_of_a_place_are_both_known() {
        assert_eq!(code_index(PAIR[0]), code_index(PAIR[1]));
        let mut jumps = table(&PAIR, true, false);
        assert!(PAIR.iter().all(|rip| knows(&jumps, *rip)));
        // A third one takes the place of one of them.
        let third = 0x90_5008;
        jumps.set(third, Jump::to_code(8, third), true, false);
        assert!(knows(&jumps, third) && knows(&jumps, PAIR[1]) && !knows(&jumps, PAIR[0]));
        // Whose code is new is known by that only.
        jumps.set(PAIR[1], Jump::to_code(16, PAIR[1]), true, false);
        assert_eq!(jumps.code(PAIR[1]).packed, 16);
        jumps.drop_jump(PAIR[1], |jump| jump.packed == 16);
        assert!(knows(&jumps, third) && !knows(&jumps, PAIR[1]));
    }

    #[test]
    fn what_is_in_a_spare_place_goes_when_it_should() {
        for global in [true, false] {
            let mut jumps = Jumps::new();
            jumps.set(PAIR[0], Jump::to_code(8, PAIR[0]), global, false);
            jumps.set(PAIR[1], Jump::to_code(8, PAIR[1]), !global, false);
            jumps.clear_non_global();
            assert_eq!(knows(&jumps, PAIR[0]), global);
            assert_eq!(knows(&jumps, PAIR[1]), !global);
        }
        let mut jumps = table(&PAIR, true, false);
        jumps.drop_page(PAIR[0]);
        assert!(!knows(&jumps, PAIR[0]) && knows(&jumps, PAIR[1]));
        let mut jumps = table(&PAIR, true, false);
        jumps.drop_jump(PAIR[0], |_| true);
        assert!(!knows(&jumps, PAIR[0]));
    }

    #[test]
    fn a_cr3_load_keeps_jumps_to_global_pages() {
        let mut jumps = table(&[0x5008], true, false);
        jumps.set(0x6010, Jump::to_code(8, 0x6010), false, false);
        jumps.clear_non_global();
        assert!(knows(&jumps, 0x5008) && !knows(&jumps, 0x6010));
    }

    #[test]
    fn invlpg_drops_the_jumps_to_its_page_and_no_other() {
        let mut jumps = table(&[0x5008, 0x5010, 0x6008], true, false);
        jumps.drop_page(0x5fff);
        assert!(!knows(&jumps, 0x5008) && !knows(&jumps, 0x5010));
        assert!(knows(&jumps, 0x6008));
    }

    #[test]
    fn invlpg_in_a_large_page_drops_all_of_its_gigabyte() {
        let mut jumps = table(&[0x4000_5008, 0x4020_0000], true, true);
        jumps.set(0x5008, Jump::to_code(8, 0x5008), true, false);
        jumps.drop_page(0x4010_0000);
        assert!(!knows(&jumps, 0x4000_5008) && !knows(&jumps, 0x4020_0000));
        assert!(knows(&jumps, 0x5008));
    }

    #[test]
    fn clearing_forgets_all() {
        let rips: Vec<u64> = (0..2000).map(|n| 0x1000 + 37 * n).collect();
        let mut jumps = table(&rips, true, true);
        jumps.clear();
        assert!(rips.iter().all(|rip| !knows(&jumps, *rip)));
    }
}
