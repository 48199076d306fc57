//! A device that comes and goes all the time: whoever reads it gets what it answers, or all ones.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::differs;
use super::tables::{self, index};
use crate::cpu;
use crate::page::bit;

/// Where it is, if it is; a page.
const DEVICE: u64 = 0xd000_0000;
const READS: u64 = 32;

static ANSWERED: AtomicU64 = AtomicU64::new(0);
static MISSED: AtomicU64 = AtomicU64::new(0);

/// Maps it once more, as a page of 4 KiB.
pub fn prepare() {
    tables::entry(index::DEVICE).store(DEVICE | bit::P | bit::RW, SeqCst);
}

/// What its byte at `offset` is.
fn byte(offset: u64) -> u8 {
    (offset ^ offset >> 8 ^ 0x5a) as u8
}

pub fn round(me: usize, round: u64) {
    let page = match round % 2 {
        0 => DEVICE,
        _ => tables::address(index::DEVICE),
    };
    let mut answered = 0;
    for number in 0..READS {
        let offset = (round * READS + number + 100 * me as u64) * 8 % 0x1000;
        // SAFETY: mapped, and whatever is there may be read.
        let (found, len) = unsafe {
            match number % 2 {
                0 => (((page + offset) as *const u64).read_volatile(), 8),
                _ => (((page + offset) as *const u32).read_volatile().into(), 4),
            }
        };
        let ones = u64::MAX >> (64 - 8 * len);
        let wanted = (0..len).fold(0, |value, at| {
            value | u64::from(byte(offset + at)) << (8 * at)
        });
        // QEMU reads zeros where nothing is.
        let nobody = if cpu::is_tcg() { 0 } else { ones };
        if found == wanted {
            answered += 1;
        } else if found != nobody {
            differs("a device's answer", wanted..=wanted, found);
        }
    }
    ANSWERED.fetch_add(answered, SeqCst);
    MISSED.fetch_add(READS - answered, SeqCst);
}

pub fn totals() -> [(&'static str, u64); 2] {
    [
        ("device_answered", ANSWERED.load(SeqCst)),
        ("device_missed", MISSED.load(SeqCst)),
    ]
}
