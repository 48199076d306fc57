//! The local APIC's timer, the 8254 and the 8259 pair.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use super::{Check, claims};
use crate::apic::{self, reg};
use crate::cpu::{self, msr};
use crate::trap::{Frame, handle};
use crate::{ensure, needs, same};

const VECTOR: u64 = 0xe0;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
/// The divide configuration for one.
const BY_ONE: u32 = 0xb;

static TICKS: AtomicU32 = AtomicU32::new(0);

fn tick(_: &mut Frame) {
    TICKS.fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}

fn ticks() -> u32 {
    TICKS.load(Ordering::SeqCst)
}

fn begin(mode: u32) {
    TICKS.store(0, Ordering::SeqCst);
    handle(VECTOR, Some(tick));
    apic::write(reg::DIVIDE, BY_ONE);
    apic::write(reg::LVT_TIMER, mode | VECTOR as u32);
}

fn end() {
    apic::write(reg::INITIAL, 0);
    apic::write(reg::LVT_TIMER, MASKED);
}

/// Waits, with interrupts on, until `done` or for about ten seconds.
fn wait(done: impl Fn() -> bool) -> bool {
    let start = cpu::rdtsc();
    while !done() {
        cpu::enable_interrupts();
        cpu::disable_interrupts();
        if cpu::rdtsc() - start > 30_000_000_000 {
            return false;
        }
    }
    true
}

fn a_one_shot_fires_once_and_stays_at_zero() -> Check {
    begin(0);
    apic::write(reg::INITIAL, 1_000_000);
    let first = apic::read(reg::CURRENT);
    let second = apic::read(reg::CURRENT);
    ensure!(
        first <= 1_000_000 && second <= first,
        "counts down: {first}, {second}"
    );
    ensure!(wait(|| ticks() == 1), "it never fired");
    same!(apic::read(reg::CURRENT), 0, "the count afterwards");
    same!(apic::read(reg::INITIAL), 1_000_000, "the initial count");
    let start = cpu::rdtsc();
    wait(|| cpu::rdtsc() - start > 10_000_000);
    same!(ticks(), 1, "and no more");
    end();
    Ok(())
}

fn a_periodic_timer_goes_on_and_a_zero_stops_it() -> Check {
    begin(PERIODIC);
    apic::write(reg::INITIAL, 300_000);
    ensure!(wait(|| ticks() >= 5), "it fired {} times", ticks());
    apic::write(reg::INITIAL, 0);
    same!(apic::read(reg::CURRENT), 0, "the count");
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    let stopped = ticks();
    let start = cpu::rdtsc();
    wait(|| cpu::rdtsc() - start > 10_000_000);
    same!(ticks(), stopped, "after it was stopped");
    end();
    Ok(())
}

fn a_change_of_mode_keeps_the_count() -> Check {
    const LONG: u32 = 400_000_000;
    begin(MASKED);
    apic::write(reg::INITIAL, LONG);
    apic::write(reg::LVT_TIMER, MASKED | PERIODIC | VECTOR as u32);
    let kept = apic::read(reg::CURRENT);
    ensure!(kept != 0 && kept < LONG, "the count is {kept}");
    same!(apic::read(reg::INITIAL), LONG, "the initial count");
    end();
    Ok(())
}

fn a_masked_timer_counts_and_stays_silent() -> Check {
    begin(MASKED);
    apic::write(reg::INITIAL, 100_000);
    ensure!(
        wait(|| apic::read(reg::CURRENT) == 0),
        "it never reached zero"
    );
    apic::write(reg::LVT_TIMER, VECTOR as u32);
    cpu::enable_interrupts();
    cpu::disable_interrupts();
    same!(ticks(), 0, "nothing was kept");
    end();
    Ok(())
}

fn the_deadline_fires_when_the_counter_gets_there() -> Check {
    needs!(cpu::has(1, 2, 24), "no TSC deadline");
    begin(DEADLINE);
    cpu::wrmsr(msr::TSC_DEADLINE, cpu::rdtsc() + 2_000_000);
    ensure!(cpu::rdmsr(msr::TSC_DEADLINE) != 0, "armed");
    ensure!(wait(|| ticks() == 1), "it never fired");
    same!(cpu::rdmsr(msr::TSC_DEADLINE), 0, "it is disarmed");
    apic::write(reg::INITIAL, 1000);
    same!(apic::read(reg::CURRENT), 0, "the initial count is ignored");
    // A deadline that has passed is due at once.
    unsafe {
        core::arch::asm!("sti", "nop", "wrmsr", "nop", "cli",
             in("ecx") msr::TSC_DEADLINE, in("eax") 1, in("edx") 0);
    }
    same!(ticks(), 2, "the past");
    cpu::wrmsr(msr::TSC_DEADLINE, u64::MAX);
    apic::write(reg::LVT_TIMER, VECTOR as u32);
    same!(cpu::rdmsr(msr::TSC_DEADLINE), 0, "another mode disarms");
    end();
    Ok(())
}

fn halt_ends_by_a_timer() -> Check {
    begin(0);
    apic::write(reg::INITIAL, 3_000_000);
    cpu::wait_for_interrupt();
    same!(ticks(), 1, "one tick");
    end();
    Ok(())
}

fn the_8254_counts_through_the_8259_pair() -> Check {
    const LINT0_EXT_INT: u32 = 7 << 8;
    TICKS.store(0, Ordering::SeqCst);
    fn pic_tick(_: &mut Frame) {
        TICKS.fetch_add(1, Ordering::SeqCst);
        cpu::out8(0x20, 0x20);
    }
    handle(0x30, Some(pic_tick));
    // ICW1 to ICW4: vectors from 0x30, cascade on input 2, 8086 mode. Only the timer is open.
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x30),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe),
    ] {
        cpu::out8(port, value);
    }
    // Counter 0, mode 2, both bytes: a thousand times a second.
    for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
        cpu::out8(port, value);
    }
    apic::write(reg::LVT_LINT0, LINT0_EXT_INT);
    let came = wait(|| ticks() >= 3);
    apic::write(reg::LVT_LINT0, MASKED);
    cpu::out8(0x21, 0xff);
    // Mode 0 and no count: silent.
    cpu::out8(0x43, 0x30);
    ensure!(came, "{} ticks came", ticks());
    Ok(())
}

fn the_third_counter_is_gated_by_port_61() -> Check {
    let gate = cpu::in8(0x61) & !3;
    cpu::out8(0x61, gate);
    // Counter 2, mode 0, both bytes: 11,932 clocks are ten milliseconds.
    for (port, value) in [(0x43, 0xb0), (0x42, 0x9c), (0x42, 0x2e)] {
        cpu::out8(port, value);
    }
    same!(cpu::in8(0x61) & 0x20, 0, "low before the count is over");
    cpu::out8(0x61, gate | 1);
    let start = cpu::rdtsc();
    ensure!(wait(|| cpu::in8(0x61) & 0x20 != 0), "the output never rose");
    let cycles = cpu::rdtsc() - start;
    ensure!(cycles > 1_000_000, "ten milliseconds are {cycles} cycles");
    // Read-back of the status: output high, mode 0, both bytes.
    cpu::out8(0x43, 0xe8);
    same!(cpu::in8(0x42) & 0xbf, 0xb0, "the status");
    cpu::out8(0x61, gate);
    Ok(())
}

claims! {
    a_one_shot_fires_once_and_stays_at_zero: "SDM vol. 3, 11.5.4",
    a_periodic_timer_goes_on_and_a_zero_stops_it: "SDM vol. 3, 11.5.4",
    a_change_of_mode_keeps_the_count: "SDM vol. 3, 11.5.4",
    a_masked_timer_counts_and_stays_silent: "SDM vol. 3, 11.5.1",
    the_deadline_fires_when_the_counter_gets_there: "SDM vol. 3, 11.5.4.1",
    halt_ends_by_a_timer: "SDM vol. 2, HLT",
    the_8254_counts_through_the_8259_pair: "SDM vol. 3, 11.5.1, ExtINT",
    the_third_counter_is_gated_by_port_61: "8254 data sheet",
}
