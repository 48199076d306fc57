//! Code that changes: a function of each processor's that all call, and one that rewrites itself.
//!
//! The former follows SDM vol. 3, 9.1.3, "cross-modifying code", for what must be seen after the handshake. That a call
//! during it finds the old or the new immediate, and nothing else, is AMD's promise for an aligned store (APM vol. 2,
//! 7.6.1).
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use super::published::Published;
use super::tables::{self, Page, index};
use super::{everybody, expect, mix, overwrite_vectors};
use crate::descriptors::CPUS;
use crate::page::bit;
use crate::trap::{Frame, handle};
use crate::{apic, cpu};

/// The first of the vectors by which a processor says that its function is another one.
const VECTOR: u64 = 0x50;
const CALLS: u64 = 8;
/// Bytes of a function for all. They are in one page: who changes one disturbs all.
const LEN: u64 = 64;
/// Where its immediate is, so that it is aligned, and where it begins.
const IMMEDIATE: u64 = 4;
const BEGIN: u64 = 3;

static FUNCTIONS: Page = Page::new();
static VERSIONS: [Published; CPUS] = [const { Published::new() }; CPUS];
static OWN: [Page; CPUS] = [const { Page::new() }; CPUS];
static MESSAGES: AtomicU64 = AtomicU64::new(0);
static OWN_SUM: AtomicU64 = AtomicU64::new(0);

/// MOV EAX, 0; RET
const FOR_ALL: [u8; 6] = [0xb8, 0, 0, 0, 0, 0xc3];
/// MOV [RIP + 3], EDI; JMP to the next; MOV EAX, 0; RET. The jump is the manual's, between a store and its code.
const FOR_ITSELF: [u8; 14] = [0x89, 0x3d, 3, 0, 0, 0, 0xeb, 0, 0xb8, 0, 0, 0, 0, 0xc3];

/// Writes all functions.
pub fn prepare() {
    tables::entry(index::FUNCTIONS).store(FUNCTIONS.address() | bit::P | bit::RW, SeqCst);
    for cpu in everybody() {
        // SAFETY: the pages are for this, and nobody executes them yet.
        unsafe {
            ((function(cpu) + BEGIN) as *mut [u8; 6]).write(FOR_ALL);
            (OWN[cpu].address() as *mut [u8; 14]).write(FOR_ITSELF);
        }
        handle(VECTOR + cpu as u64, Some(changed));
    }
}

fn function(owner: usize) -> u64 {
    FUNCTIONS.address() + LEN * owner as u64
}

pub fn round(me: usize, round: u64) {
    let replace = || {
        // Through either mapping: it is the same memory.
        let page = match round % 2 {
            0 => FUNCTIONS.address(),
            _ => tables::address(index::FUNCTIONS),
        };
        let at = (page + LEN * me as u64 + IMMEDIATE) as *const AtomicU32;
        // SAFETY: the immediate of this processor's function, aligned.
        unsafe { (*at).store(round as u32, SeqCst) }
        cpu::cpuid(0, 0);
    };
    VERSIONS[me].publish(
        "all hear of a function",
        VECTOR + me as u64,
        round,
        replace,
        call_all,
    );
    for _ in 0..CALLS {
        call_all();
    }
    rewrite_itself(me, round);
}

/// Calls everybody's function.
pub fn call_all() {
    for owner in everybody() {
        VERSIONS[owner].check("a function's result", || call(function(owner) + BEGIN, 0));
    }
}

fn call(at: u64, argument: u64) -> u64 {
    let result: u64;
    // SAFETY: `prepare` put a function there that changes nothing but RAX. It does not expect alignment of the stack, and
    // what is pushed goes below whatever the compiler keeps, as `nostack` is not claimed.
    unsafe { asm!("call {}", in(reg) at, in("rdi") argument, out("rax") result) }
    result
}

fn rewrite_itself(me: usize, round: u64) {
    for time in 0..CALLS {
        let value = mix(me, round).wrapping_add(time) & 0xffff_ffff;
        let result = call(OWN[me].address(), value);
        expect("code that rewrites itself", value..=value, result);
        OWN_SUM.fetch_add(result, SeqCst);
    }
}

/// The function of the processor that the vector names is another one.
fn changed(frame: &mut Frame) {
    overwrite_vectors();
    // Serialises.
    cpu::cpuid(0, 0);
    MESSAGES.fetch_add(1, SeqCst);
    VERSIONS[(frame.vector - VECTOR) as usize].acknowledge();
    apic::end_of_interrupt();
}

pub fn totals() -> [(&'static str, u64); 3] {
    let last = everybody()
        .map(|owner| call(function(owner) + BEGIN, 0))
        .sum();
    [
        ("function_messages", MESSAGES.load(SeqCst)),
        ("last_functions", last),
        ("own_code_sum", OWN_SUM.load(SeqCst)),
    ]
}
