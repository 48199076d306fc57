//! Pages that come when they are touched, become writable when they are written, and go: two faults each, and no more.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::tables::{self, Page, index};
use super::{expect, mix, overwrite_vectors, this};
use crate::cpu;
use crate::descriptors::CPUS;
use crate::page::bit;
use crate::trap::{Frame, handle, vector};

/// Error codes: a read of what is not there, and a write to what is read-only.
const ABSENT: u64 = 0;
const READ_ONLY: u64 = 3;

static MEMORY: [Page; CPUS] = [const { Page::new() }; CPUS];
static FAULTS: AtomicU64 = AtomicU64::new(0);

pub fn prepare() {
    handle(vector::PF, Some(fault));
}

/// The page that a processor uses in a round.
fn slot(me: usize, round: u64) -> usize {
    index::COMING + index::PER_CPU * me + round as usize % index::PER_CPU
}

pub fn round(me: usize, round: u64) {
    let index = slot(me, round);
    let (entry, at) = (tables::entry(index), tables::address(index) as *mut u64);
    let memory = &MEMORY[me];
    let number = mix(me, round);
    memory.0[0].store(number, SeqCst);
    let is = |check, rights| {
        let wanted = memory.address() | rights;
        expect(check, wanted..=wanted, entry.load(SeqCst));
    };

    // SAFETY: whatever of this is not mapped is mapped by the handler.
    let read = unsafe { at.read_volatile() };
    expect("a page that came", number..=number, read);
    is("an entry after a read", bit::P | bit::A);
    // SAFETY: the same.
    unsafe { at.write_volatile(!number) }
    is("an entry after a write", bit::P | bit::RW | bit::A | bit::D);
    expect(
        "what was written",
        !number..=!number,
        memory.0[0].load(SeqCst),
    );

    entry.store(0, SeqCst);
    match round % 2 {
        0 => cpu::invlpg(at as u64),
        _ => cpu::set_cr3(cpu::cr3()),
    }
}

fn fault(frame: &mut Frame) {
    overwrite_vectors();
    let (me, at) = (this(), cpu::cr2());
    let index = slot(me, super::ROUND[me].load(SeqCst));
    let wanted = tables::address(index);
    expect("the address of a fault", wanted..=wanted, at);
    let entry = tables::entry(index);
    let (error, rights) = match entry.load(SeqCst) {
        0 => (ABSENT, bit::P),
        _ => (READ_ONLY, bit::P | bit::RW),
    };
    expect("the error code of a fault", error..=error, frame.error);
    entry.store(MEMORY[me].address() | rights, SeqCst);
    cpu::invlpg(at);
    FAULTS.fetch_add(1, SeqCst);
}

pub fn totals() -> [(&'static str, u64); 1] {
    [("faults", FAULTS.load(SeqCst))]
}
