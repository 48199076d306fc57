//! Everything at once, on all processors: what is hard for one that keeps translations of pages and of code.
//!
//! ```text
//!   each processor, each round   locks · its function for all is rewritten · its own is · its page for all
//!                                moves · pages come and go under it · a device is read · registers run on
//!   between any two instructions the others' messages about functions and pages, its own, its timer
//! ```
//! What must come out is known: values are checked on the spot, and totals are printed at the end for the
//! host, which computes them from the number of processors and rounds. The first difference ends the guest.
//!
//! Rounds are not in step: who waits for answers answers meanwhile, and calls and reads what the others change.
#![allow(unsafe_code)]

mod code;
mod device;
mod faults;
mod locks;
mod published;
mod registers;
mod shared_page;
mod tables;
mod timer;

use core::arch::asm;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::descriptors::CPUS;
use crate::{apic, cpu, println, smp};

/// Status of the exit port when something differed.
const DIFFERS: u8 = 1;
/// Nothing that is waited for takes longer, in nanoseconds (the frequency of the time stamp counter is 1 GHz or more).
const PATIENCE: u64 = 60_000_000_000;

/// How many processors take part, and for how long.
static PROCESSORS: AtomicU64 = AtomicU64::new(1);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
/// The round that each is in.
static ROUND: [AtomicU64; CPUS] = [const { AtomicU64::new(0) }; CPUS];

/// What each module counted, under a name.
type Totals<'a> = &'a [(&'static str, u64)];

/// Returns for how many rounds the command line asks, if it asks for this at all.
pub fn rounds(command_line: &str) -> Option<u64> {
    let mut words = command_line.split_ascii_whitespace();
    words.find(|word| *word == "stress")?;
    words.next()?.parse().ok()
}

/// Runs all processors for some rounds, and prints what was counted.
pub fn run(rounds: u64) {
    PROCESSORS.store(1 + u64::from(smp::start()), SeqCst);
    ROUNDS.store(rounds, SeqCst);
    tables::prepare();
    code::prepare();
    shared_page::prepare();
    device::prepare();
    registers::prepare();
    faults::prepare();
    smp::begin_on_others(work);
    work();
    smp::wait_for_others();
    print(&[("processors", PROCESSORS.load(SeqCst)), ("rounds", rounds)]);
    print(&locks::totals());
    print(&code::totals());
    print(&shared_page::totals());
    print(&faults::totals());
    print(&device::totals());
    print(&registers::totals());
    print(&timer::totals());
    println!("summary: stress done");
}

fn print(totals: Totals<'_>) {
    for (name, value) in totals {
        println!("stress {name} {value}");
    }
}

fn work() {
    let me = this();
    cpu::enable_interrupts();
    timer::start();
    for round in 1..=ROUNDS.load(SeqCst) {
        ROUND[me].store(round, SeqCst);
        locks::round(me, round);
        code::round(me, round);
        shared_page::round(me, round);
        faults::round(me, round);
        device::round(me, round);
        registers::round(me, round);
    }
    timer::stop();
}

/// This processor, as an index.
fn this() -> usize {
    apic::id() as usize
}

/// All that take part.
fn everybody() -> core::ops::Range<usize> {
    0..PROCESSORS.load(SeqCst) as usize
}

/// A number of a processor and a round that no other pair has near it.
fn mix(me: usize, round: u64) -> u64 {
    let number = (me as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (number ^ round.wrapping_mul(0xbf58_476d_1ce4_e5b9)).rotate_left(29)
}

/// Ends the guest unless `found` is what it must be.
fn expect(check: &str, wanted: RangeInclusive<u64>, found: u64) {
    if !wanted.contains(&found) {
        differs(check, wanted, found);
    }
}

/// Says which check found what; ends the guest.
#[cold]
fn differs(check: &str, wanted: RangeInclusive<u64>, found: u64) -> ! {
    static SAID: AtomicBool = AtomicBool::new(false);
    cpu::disable_interrupts();
    if SAID.swap(true, SeqCst) {
        cpu::halt_for_ever();
    }
    let me = this();
    let (round, low, high) = (ROUND[me].load(SeqCst), wanted.start(), wanted.end());
    println!(
        "FAIL stress: {check}: cpu {me} round {round} expected {low:#x}..={high:#x} found {found:#x}"
    );
    cpu::out8(super::EXIT, DIFFERS);
    cpu::halt_for_ever()
}

/// Waits for a condition, doing something meanwhile.
fn wait(check: &str, done: impl Fn() -> bool, meanwhile: impl Fn()) {
    let start = cpu::rdtsc();
    while !done() {
        meanwhile();
        cpu::pause();
        if cpu::rdtsc() - start > PATIENCE {
            differs(check, 1..=1, 0);
        }
    }
}

/// Overwrites all vector registers: what a handler does so that whoever was interrupted needs its own back.
fn overwrite_vectors() {
    // SAFETY: nothing but the registers that it names.
    unsafe {
        asm!(
            "pcmpeqd xmm0, xmm0", "pcmpeqd xmm1, xmm1", "pcmpeqd xmm2, xmm2", "pcmpeqd xmm3, xmm3",
            "pcmpeqd xmm4, xmm4", "pcmpeqd xmm5, xmm5", "pcmpeqd xmm6, xmm6", "pcmpeqd xmm7, xmm7",
            "pcmpeqd xmm8, xmm8", "pcmpeqd xmm9, xmm9", "pcmpeqd xmm10, xmm10", "pcmpeqd xmm11, xmm11",
            "pcmpeqd xmm12, xmm12", "pcmpeqd xmm13, xmm13", "pcmpeqd xmm14, xmm14", "pcmpeqd xmm15, xmm15",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
        );
    }
}
