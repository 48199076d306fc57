//! A page of each processor's that moves in physical memory while all read and write it. When all have acknowledged,
//! nobody may see or change what it was before.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::published::Published;
use super::tables::{self, Page, index};
use super::{code, everybody, expect, overwrite_vectors};
use crate::descriptors::CPUS;
use crate::page::bit;
use crate::trap::{Frame, handle};
use crate::{apic, cpu};

/// The first of the vectors by which a processor says that its page has moved.
const VECTOR: u64 = 0x40;
const TOUCHES: u64 = 8;
/// Pages of memory that each moves between.
const FRAMES: usize = 4;

/// Words of a page: its version, a counter for all, and one of each processor's.
const VERSION: usize = 0;
const FOR_ALL: usize = 1;
const OWN: usize = 8;

static MEMORY: [[Page; FRAMES]; CPUS] = [const { [const { Page::new() }; FRAMES] }; CPUS];
/// What a page's counter was when the page had moved away from there.
static QUIET: [[AtomicU64; FRAMES]; CPUS] = [const { [const { AtomicU64::new(0) }; FRAMES] }; CPUS];
static VERSIONS: [Published; CPUS] = [const { Published::new() }; CPUS];
static MESSAGES: AtomicU64 = AtomicU64::new(0);

/// Maps everybody's page.
pub fn prepare() {
    for owner in everybody() {
        let entry = MEMORY[owner][0].address() | bit::P | bit::RW;
        tables::entry(index::SHARED + owner).store(entry, SeqCst);
        handle(VECTOR + owner as u64, Some(moved));
    }
}

fn at(owner: usize) -> u64 {
    tables::address(index::SHARED + owner)
}

pub fn round(me: usize, round: u64) {
    let (old, new) = ((round - 1) as usize % FRAMES, round as usize % FRAMES);
    let page = &MEMORY[me][new];
    let quiet = QUIET[me][new].load(SeqCst);
    expect(
        "writes to a page that had moved",
        quiet..=quiet,
        page.0[FOR_ALL].load(SeqCst),
    );
    page.0[VERSION].store(round, SeqCst);

    let entry = tables::entry(index::SHARED + me);
    let wanted = page.address() | bit::P | bit::RW;
    let replace = || {
        entry.store(wanted, SeqCst);
        cpu::invlpg(at(me));
    };
    let meanwhile = || {
        look_at_all();
        code::call_all();
    };
    VERSIONS[me].publish(
        "all hear of a page",
        VECTOR + me as u64,
        round,
        replace,
        meanwhile,
    );

    QUIET[me][old].store(MEMORY[me][old].0[FOR_ALL].load(SeqCst), SeqCst);
    let found = entry.load(SeqCst) & !(bit::A | bit::D);
    expect("the entry of a page that has moved", wanted..=wanted, found);
    for _ in 0..TOUCHES {
        look_at_all();
        write_to_all(me);
    }
}

fn look_at_all() {
    for owner in everybody() {
        // SAFETY: everybody's page is always mapped.
        let look = || unsafe { (at(owner) as *const u64).read_volatile() };
        VERSIONS[owner].check("a page's version", look);
    }
}

/// Counts in everybody's page: by a locked instruction, and by a plain one where nobody else does.
fn write_to_all(me: usize) {
    for owner in everybody() {
        let page = at(owner);
        // SAFETY: everybody's page is always mapped, and these words are for counting.
        unsafe {
            asm!("lock inc qword ptr [{}]", in(reg) page + 8 * FOR_ALL as u64);
            asm!("inc qword ptr [{}]", in(reg) page + 8 * (OWN + me) as u64);
        }
    }
}

/// The page of the processor that the vector names has moved.
fn moved(frame: &mut Frame) {
    overwrite_vectors();
    let owner = (frame.vector - VECTOR) as usize;
    cpu::invlpg(at(owner));
    MESSAGES.fetch_add(1, SeqCst);
    VERSIONS[owner].acknowledge();
    apic::end_of_interrupt();
}

pub fn totals() -> [(&'static str, u64); 4] {
    let sum = |words: core::ops::Range<usize>| {
        let pages = MEMORY.iter().flatten();
        pages
            .flat_map(|page| &page.0[words.clone()])
            .map(|word| word.load(SeqCst))
            .sum()
    };
    // SAFETY: everybody's page is always mapped.
    let last = everybody().map(|owner| unsafe { (at(owner) as *const u64).read_volatile() });
    [
        ("page_messages", MESSAGES.load(SeqCst)),
        ("last_pages", last.sum()),
        ("locked_writes", sum(FOR_ALL..FOR_ALL + 1)),
        ("plain_writes", sum(OWN..OWN + CPUS)),
    ]
}
