//! The other processors: started by INIT and start-up messages, then they run what they are given.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::apic::{self, icr, reg};
use crate::boot::{trampoline, trampoline_end};
use crate::{cpu, descriptors};

/// Below 1 MiB, and used by nobody else.
const PAGE: u64 = 0x8000;

static ONLINE: AtomicU32 = AtomicU32::new(0);
static WORK: AtomicUsize = AtomicUsize::new(0);
/// Counts pieces of work; a processor does each once.
static ROUND: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static IDS: AtomicU32 = AtomicU32::new(0);

/// Starts them, once; returns how many came up.
pub fn start() -> u32 {
    if ONLINE.load(Ordering::SeqCst) == 0 {
        // SAFETY: the page is free, and the code is as long as its symbols say.
        unsafe {
            let (from, to) = (&raw const trampoline, &raw const trampoline_end);
            core::ptr::copy(from, PAGE as *mut u8, to as usize - from as usize);
        }
        apic::send(0, icr::TO_OTHERS | icr::INIT | icr::ASSERT);
        wait(10_000_000);
        apic::send(0, icr::TO_OTHERS | icr::START_UP | (PAGE >> 12) as u32);
        wait(100_000_000);
    }
    ONLINE.load(Ordering::SeqCst)
}

/// Lets some hundred million cycles pass, or ten times as many where they are short.
fn wait(cycles: u64) {
    let start = cpu::rdtsc();
    while cpu::rdtsc() - start < cycles {
        cpu::pause();
    }
}

/// Returns the ids of those that came up, as bits.
pub fn ids() -> u32 {
    IDS.load(Ordering::SeqCst)
}

/// Has every other processor run `work` once; returns when all have.
pub fn on_others(work: fn()) {
    begin_on_others(work);
    wait_for_others();
}

/// Has every other processor begin to run `work` once.
pub fn begin_on_others(work: fn()) {
    DONE.store(0, Ordering::SeqCst);
    WORK.store(work as usize, Ordering::SeqCst);
    ROUND.fetch_add(1, Ordering::SeqCst);
}

/// Returns when every other processor has done what it began.
pub fn wait_for_others() {
    while DONE.load(Ordering::SeqCst) != ONLINE.load(Ordering::SeqCst) {
        cpu::pause();
    }
}

/// Where the others arrive, in 64-bit mode.
#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    let id = apic::id() as usize;
    descriptors::load(id);
    apic::write(reg::SVR, 0x1ff);
    IDS.fetch_or(1 << id, Ordering::SeqCst);
    ONLINE.fetch_add(1, Ordering::SeqCst);
    cpu::enable_interrupts();
    let mut round = 0;
    loop {
        if ROUND.load(Ordering::SeqCst) == round {
            cpu::pause();
            continue;
        }
        round += 1;
        // SAFETY: only `on_others` stores here, and it stores functions.
        let work: fn() = unsafe { core::mem::transmute(WORK.load(Ordering::SeqCst)) };
        work();
        DONE.fetch_add(1, Ordering::SeqCst);
    }
}
