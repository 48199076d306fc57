//! An interrupt of each processor's own, at moments that do not repeat: some ten thousand a second.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::{mix, overwrite_vectors, this};
use crate::apic::{self, reg};
use crate::trap::{Frame, handle};

const VECTOR: u64 = 0x70;
/// Ticks until the next one: at least, and by how much it varies. One shot each, so that whatever is interrupted gets on.
const LEAST: u32 = 10_000;
const VARIES: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0xb;
const MASKED: u32 = 1 << 16;

static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

pub fn start() {
    handle(VECTOR, Some(interrupt));
    apic::write(reg::DIVIDE, DIVIDE_BY_1);
    apic::write(reg::LVT_TIMER, VECTOR as u32);
    again(0);
}

pub fn stop() {
    apic::write(reg::LVT_TIMER, MASKED);
    apic::write(reg::INITIAL, 0);
}

fn again(number: u64) {
    apic::write(reg::INITIAL, LEAST + mix(this(), number) as u32 % VARIES);
}

fn interrupt(_: &mut Frame) {
    overwrite_vectors();
    let number = INTERRUPTS.fetch_add(1, SeqCst);
    apic::end_of_interrupt();
    again(number);
}

pub fn totals() -> [(&'static str, u64); 1] {
    [("timer_interrupts", INTERRUPTS.load(SeqCst))]
}
