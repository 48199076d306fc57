//! The local APIC, the IOAPIC, and how the processor takes interrupts (SDM vol. 3, chapters 6 and 11).
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Check, claims};
use crate::apic::{self, entry, icr, reg};
use crate::cpu;
use crate::trap::{Frame, handle, vector};
use crate::{ensure, needs, same};

static COUNT: AtomicU32 = AtomicU32::new(0);
/// Vectors in the order in which they came, a byte each.
static ORDER: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);
static TMR: AtomicU32 = AtomicU32::new(0);

fn count(frame: &mut Frame) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    let order = ORDER.load(Ordering::SeqCst);
    ORDER.store(order << 8 | frame.vector, Ordering::SeqCst);
    RIP.store(frame.rip, Ordering::SeqCst);
    TMR.store(
        apic::bit(reg::TMR, frame.vector as u32).into(),
        Ordering::SeqCst,
    );
    apic::end_of_interrupt();
}

/// Lets the handlers of `vectors` count from zero.
fn watch(vectors: &[u64]) {
    for vector in vectors {
        handle(*vector, Some(count));
    }
    COUNT.store(0, Ordering::SeqCst);
    ORDER.store(0, Ordering::SeqCst);
}

fn counted() -> u32 {
    COUNT.load(Ordering::SeqCst)
}

/// Takes everything that waits.
fn take() {
    cpu::enable_interrupts();
    cpu::disable_interrupts();
}

fn to_self(vector: u32) {
    apic::send(0, icr::TO_SELF | icr::ASSERT | vector);
}

fn interrupts_wait_in_irr_and_come_by_priority() -> Check {
    watch(&[0x41, 0x52, 0x63]);
    for vector in [0x52, 0x41, 0x63, 0x63] {
        to_self(vector);
    }
    let waiting = [0x41, 0x52, 0x63].map(|v| apic::bit(reg::IRR, v));
    same!(waiting, [true; 3], "IRR");
    take();
    // The highest first; what came twice comes once.
    same!(
        (counted(), ORDER.load(Ordering::SeqCst)),
        (3, 0x63_5241),
        "the order"
    );
    same!(
        [0x41, 0x52, 0x63].map(|v| apic::bit(reg::IRR, v)),
        [false; 3],
        "IRR afterwards"
    );
    Ok(())
}

fn an_interrupt_to_itself_comes_before_the_next_instruction() -> Check {
    needs!(!cpu::is_tcg(), "TCG looks at interrupts between blocks");
    watch(&[0x44]);
    let mut label = 0u64;
    let command = icr::TO_SELF | icr::ASSERT | 0x44;
    unsafe {
        asm!("lea {t}, [rip + 2f]", "mov [{at}], {t}", "sti", "nop", "mov dword ptr [{icr}], {c:e}",
             "2: nop", "nop", "nop", "cli",
             t = out(reg) _, at = in(reg) &raw mut label, icr = in(reg) 0xfee0_0300u64, c = in(reg) command);
    }
    same!(counted(), 1, "before CLI");
    let late = RIP.load(Ordering::SeqCst).wrapping_sub(label);
    ensure!(late <= 3, "it came {late} bytes late");
    Ok(())
}

fn sti_lets_one_more_instruction_pass() -> Check {
    watch(&[0x44]);
    to_self(0x44);
    let mut label = 0u64;
    unsafe {
        asm!("lea {t}, [rip + 2f]", "mov [{at}], {t}", "sti", "2: nop", "nop", "cli",
             t = out(reg) _, at = in(reg) &raw mut label);
    }
    same!(
        (counted(), RIP.load(Ordering::SeqCst).wrapping_sub(label)),
        (1, 1),
        "behind one NOP"
    );
    // STI and CLI: the window never opens.
    to_self(0x44);
    unsafe { asm!("sti", "cli", "nop") }
    same!(counted(), 1, "STI, CLI");
    take();
    same!(counted(), 2, "it was kept");
    Ok(())
}

fn the_task_priority_holds_back_its_class_and_below() -> Check {
    watch(&[0x45, 0x51, 0x61]);
    apic::write(reg::TPR, 0x50);
    same!((apic::read(reg::PPR), cpu::cr8()), (0x50, 5), "PPR and CR8");
    for vector in [0x45, 0x51, 0x61] {
        to_self(vector);
    }
    take();
    same!(ORDER.load(Ordering::SeqCst), 0x61, "above the class");
    cpu::set_cr8(4);
    same!(apic::read(reg::TPR), 0x40, "TPR");
    take();
    same!(ORDER.load(Ordering::SeqCst), 0x6151, "one class lower");
    apic::write(reg::TPR, 0);
    take();
    same!(ORDER.load(Ordering::SeqCst), 0x61_5145, "none");
    Ok(())
}

/// Looks at the chip from inside an interrupt, and lets higher ones in.
fn nesting(frame: &mut Frame) {
    let in_service = apic::bit(reg::ISR, frame.vector as u32);
    RIP.store(
        u64::from(in_service) << 8 | u64::from(apic::read(reg::PPR)),
        Ordering::SeqCst,
    );
    apic::end_of_interrupt();
    let after = apic::bit(reg::ISR, frame.vector as u32);
    TMR.store(after.into(), Ordering::SeqCst);
    COUNT.fetch_add(1, Ordering::SeqCst);
}

fn what_is_in_service_shows_in_isr_and_ppr() -> Check {
    watch(&[]);
    handle(0x71, Some(nesting));
    to_self(0x71);
    take();
    same!(counted(), 1, "it came");
    same!(
        RIP.load(Ordering::SeqCst),
        1 << 8 | 0x70,
        "ISR and PPR inside"
    );
    same!(TMR.load(Ordering::SeqCst), 0, "ISR after EOI");
    same!(apic::read(reg::PPR), 0, "PPR afterwards");
    Ok(())
}

fn a_chip_that_is_off_takes_no_vectors_but_keeps_what_waits() -> Check {
    needs!(!cpu::is_tcg(), "TCG takes vectors while the chip is off");
    watch(&[0x46, 0x47]);
    to_self(0x46);
    apic::write(reg::SVR, 0xff);
    to_self(0x47);
    let waiting = [0x46, 0x47].map(|v| apic::bit(reg::IRR, v));
    let lvt = apic::read(reg::LVT_TIMER);
    apic::write(reg::SVR, 0x1ff);
    take();
    ensure!(!waiting[1], "a vector was taken while off");
    ensure!(
        counted() == u32::from(waiting[0]),
        "{} came, {waiting:?} waited",
        counted()
    );
    ensure!(lvt >> 16 & 1 == 1, "the LVT is masked while off: {lvt:x}");
    Ok(())
}

fn illegal_vectors_are_reported_in_esr() -> Check {
    needs!(!cpu::is_tcg(), "TCG delivers illegal vectors");
    apic::write(reg::ESR, 0);
    apic::write(reg::ESR, 0);
    same!(apic::read(reg::ESR), 0, "before");
    to_self(5);
    same!(apic::read(reg::ESR), 0, "only a write shows new errors");
    apic::write(reg::ESR, 0);
    let found = apic::read(reg::ESR);
    apic::write(reg::ESR, 0);
    same!(found & 0x20, 0x20, "send illegal vector");
    same!(apic::read(reg::ESR), 0, "afterwards");
    Ok(())
}

static NMIS: AtomicU32 = AtomicU32::new(0);

fn nested_nmi(_: &mut Frame) {
    let depth = NMIS.fetch_add(1, Ordering::SeqCst);
    if depth == 0 {
        // Two more while the first is handled: one is kept, and only until IRET.
        apic::send(apic::id(), icr::NMI | icr::ASSERT);
        apic::send(apic::id(), icr::NMI | icr::ASSERT);
        for _ in 0..100 {
            cpu::pause();
        }
        if NMIS.load(Ordering::SeqCst) != 1 {
            NMIS.store(100, Ordering::SeqCst);
        }
    }
}

fn nmis_wait_for_the_end_of_one_and_are_merged() -> Check {
    NMIS.store(0, Ordering::SeqCst);
    handle(vector::NMI, Some(nested_nmi));
    apic::send(apic::id(), icr::NMI | icr::ASSERT);
    for _ in 0..1000 {
        cpu::pause();
    }
    handle(vector::NMI, None);
    same!(NMIS.load(Ordering::SeqCst), 2, "one, and the merged two");
    Ok(())
}

fn the_ioapics_registers_keep_what_they_should() -> Check {
    let version = apic::io_read(1);
    same!(
        (version & 0xff >= 0x11, version >> 16 & 0xff),
        (true, 23),
        "24 pins"
    );
    apic::io_write(1, !version);
    same!(apic::io_read(1), version, "the version is only read");
    apic::io_write(0, u32::MAX);
    same!(apic::io_read(0), 0x0f00_0000, "four bits of id");
    same!(apic::io_read(2), 0x0f00_0000, "and of arbitration");
    apic::io_write(0, 0);
    apic::io_write(
        0x10 + 2 * 14,
        entry::REMOTE_IRR | 1 << 12 | entry::MASKED | 0x33,
    );
    same!(
        apic::io_read(0x10 + 2 * 14),
        entry::MASKED | 0x33,
        "status bits are only read"
    );
    Ok(())
}

/// Ends a level-triggered interrupt after its device has been served.
fn served(frame: &mut Frame) {
    apic::set_line(14, false);
    count(frame);
}

/// Tells whether the test device drives line 14.
fn line_works() -> bool {
    handle(0x78, Some(served));
    apic::route(14, 0x78);
    COUNT.store(0, Ordering::SeqCst);
    apic::set_line(14, true);
    apic::set_line(14, false);
    take();
    apic::route(14, entry::MASKED);
    counted() == 1
}

fn an_edge_is_one_interrupt_and_lost_while_masked() -> Check {
    needs!(line_works(), "no test device");
    watch(&[0x76]);
    apic::route(14, 0x76);
    apic::set_line(14, true);
    apic::set_line(14, true);
    take();
    same!(
        (counted(), TMR.load(Ordering::SeqCst)),
        (1, 0),
        "one edge; TMR is clear"
    );
    apic::set_line(14, false);
    take();
    same!(counted(), 1, "a falling edge is none");
    apic::route(14, 0x76 | entry::MASKED);
    apic::set_line(14, true);
    apic::set_line(14, false);
    apic::route(14, 0x76);
    take();
    same!(counted(), 1, "an edge while masked");
    apic::route(14, entry::MASKED);
    Ok(())
}

fn a_level_stays_in_remote_irr_until_its_end() -> Check {
    needs!(line_works(), "no test device");
    watch(&[]);
    handle(0x77, Some(served));
    apic::route(14, 0x77 | entry::LEVEL);
    apic::set_line(14, true);
    let waiting = apic::io_read(0x10 + 28) & entry::REMOTE_IRR;
    take();
    let ended = apic::io_read(0x10 + 28) & entry::REMOTE_IRR;
    same!(
        (counted(), TMR.load(Ordering::SeqCst)),
        (1, 1),
        "once; TMR is set"
    );
    same!((waiting, ended), (entry::REMOTE_IRR, 0), "remote IRR");
    apic::route(14, entry::MASKED);
    Ok(())
}

/// Serves the device the second time only.
fn served_late(frame: &mut Frame) {
    if counted() == 1 {
        apic::set_line(14, false);
    }
    count(frame);
}

fn a_level_that_is_still_asserted_comes_again() -> Check {
    needs!(line_works(), "no test device");
    watch(&[]);
    handle(0x79, Some(served_late));
    apic::route(14, 0x79 | entry::LEVEL);
    apic::set_line(14, true);
    for _ in 0..10 {
        take();
    }
    same!(counted(), 2, "until it is served");
    apic::route(14, 0x79 | entry::LEVEL | entry::MASKED);
    apic::set_line(14, true);
    take();
    same!(counted(), 2, "masked");
    handle(0x79, Some(served));
    apic::route(14, 0x79 | entry::LEVEL);
    take();
    same!(counted(), 3, "a level that waited for the mask");
    apic::route(14, entry::MASKED);
    Ok(())
}

claims! {
    interrupts_wait_in_irr_and_come_by_priority: "SDM vol. 3, 11.8.3 and 11.8.4",
    an_interrupt_to_itself_comes_before_the_next_instruction: "SDM vol. 3, 11.6.1",
    sti_lets_one_more_instruction_pass: "SDM vol. 3, 6.8.1",
    the_task_priority_holds_back_its_class_and_below: "SDM vol. 3, 11.8.3.1 and 11.8.6",
    what_is_in_service_shows_in_isr_and_ppr: "SDM vol. 3, 11.8.4 and 11.8.5",
    a_chip_that_is_off_takes_no_vectors_but_keeps_what_waits: "SDM vol. 3, 11.4.7.2",
    illegal_vectors_are_reported_in_esr: "SDM vol. 3, 11.5.3",
    nmis_wait_for_the_end_of_one_and_are_merged: "SDM vol. 3, 6.7.1",
    the_ioapics_registers_keep_what_they_should: "82093AA, 3.2",
    an_edge_is_one_interrupt_and_lost_while_masked: "82093AA, 3.2.4",
    a_level_stays_in_remote_irr_until_its_end: "82093AA, 3.2.4",
    a_level_that_is_still_asserted_comes_again: "SDM vol. 3, 11.8.5",
}
