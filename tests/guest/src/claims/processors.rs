//! Several processors: how they start, how they interrupt each other, what they see of each other.
#![allow(unsafe_code)]

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Check, claims};
use crate::apic::{self, icr};
use crate::cpu;
use crate::page::{self, AT, DATA, bit};
use crate::trap::{Frame, handle, vector};
use crate::{needs, same, smp};

static COUNT: AtomicU32 = AtomicU32::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);
static WHO: AtomicU32 = AtomicU32::new(0);

fn count(frame: &mut Frame) {
    // Counted last: who waits for the count looks at the rest.
    WHO.fetch_or(1 << apic::id(), Ordering::SeqCst);
    COUNT.fetch_add(1, Ordering::SeqCst);
    if frame.vector != vector::NMI {
        apic::end_of_interrupt();
    }
}

fn begin(vector: u64) {
    handle(vector, Some(count));
    COUNT.store(0, Ordering::SeqCst);
    WHO.store(0, Ordering::SeqCst);
}

/// Waits until `done` or for some seconds.
fn wait(done: impl Fn() -> bool) {
    let start = cpu::rdtsc();
    while !done() && cpu::rdtsc() - start < 10_000_000_000 {
        cpu::enable_interrupts();
        cpu::disable_interrupts();
    }
}

fn others_start_in_real_mode_at_the_page_of_the_message() -> Check {
    let others = smp::start();
    needs!(others != 0, "one processor");
    // Every processor read its own id, in 64-bit mode.
    same!(smp::ids().count_ones(), others, "ids");
    same!(smp::ids() & 1, 0, "number 0 is this one");
    Ok(())
}

fn a_start_up_message_to_a_running_processor_is_ignored() -> Check {
    needs!(smp::start() != 0, "one processor");
    apic::send(1, icr::START_UP | 0xf0);
    COUNT.store(0, Ordering::SeqCst);
    smp::on_others(|| {
        COUNT.fetch_add(1, Ordering::SeqCst);
    });
    same!(COUNT.load(Ordering::SeqCst), smp::start(), "all still work");
    Ok(())
}

fn destinations_and_shorthands_reach_whom_they_name() -> Check {
    let others = smp::start();
    needs!(others != 0, "one processor");
    let all = smp::ids() | 1;
    let table = [
        (1, 0, 2, "physical"),
        (0xff, 0, all, "physical, everybody"),
        (0, icr::TO_ALL, all, "all"),
        (0, icr::TO_OTHERS, all & !1, "all but itself"),
        (0, icr::TO_SELF, 1, "itself"),
    ];
    for (destination, shorthand, who, name) in table {
        begin(0x60);
        apic::send(destination, shorthand | icr::ASSERT | 0x60);
        wait(|| COUNT.load(Ordering::SeqCst) >= who.count_ones());
        let seen = (WHO.load(Ordering::SeqCst), COUNT.load(Ordering::SeqCst));
        same!(seen, (who, who.count_ones()), name);
    }
    Ok(())
}

fn logical_destinations_follow_ldr_and_dfr() -> Check {
    needs!(smp::start() != 0, "one processor");
    const FLAT: u32 = u32::MAX;
    const CLUSTER: u32 = 0x0fff_ffff;
    fn set_flat() {
        apic::write(apic::reg::DFR, FLAT);
        apic::write(apic::reg::LDR, 1 << (24 + apic::id()));
    }
    fn set_cluster() {
        apic::write(apic::reg::DFR, CLUSTER);
        apic::write(
            apic::reg::LDR,
            (1 + apic::id() / 4) << 28 | 1 << (24 + apic::id() % 4),
        );
    }
    for (set, mask, name) in [
        (set_flat as fn(), 0x02, "flat"),
        (set_cluster as fn(), 0x12, "cluster"),
    ] {
        set();
        smp::on_others(set);
        begin(0x61);
        apic::send(mask, icr::LOGICAL | icr::ASSERT | 0x61);
        wait(|| COUNT.load(Ordering::SeqCst) != 0);
        same!(WHO.load(Ordering::SeqCst), 2, name);
        begin(0x61);
        apic::send(mask | 1, icr::LOGICAL | icr::ASSERT | 0x61);
        wait(|| COUNT.load(Ordering::SeqCst) >= 2);
        same!(WHO.load(Ordering::SeqCst), 3, name);
    }
    Ok(())
}

fn nmis_reach_a_processor_that_does_not_listen() -> Check {
    needs!(smp::start() != 0, "one processor");
    begin(vector::NMI);
    apic::send(1, icr::NMI | icr::ASSERT);
    wait(|| COUNT.load(Ordering::SeqCst) != 0);
    handle(vector::NMI, None);
    same!(WHO.load(Ordering::SeqCst), 2, "processor 1");
    Ok(())
}

fn locked_instructions_are_atomic_among_processors() -> Check {
    let others = smp::start();
    needs!(others != 0, "one processor");
    const ROUNDS: u64 = 50_000;
    static mut PLACE: [u8; 64] = [0; 64];
    fn add() {
        let at = &raw mut PLACE as u64;
        for _ in 0..ROUNDS {
            unsafe {
                asm!("lock inc qword ptr [{0}]", in(reg) at);
                // Across a border of 4 bytes, inside one of 64.
                asm!("lock add dword ptr [{0}], 1", in(reg) at + 17);
            }
        }
        SUM.fetch_add(1, Ordering::SeqCst);
    }
    SUM.store(0, Ordering::SeqCst);
    smp::on_others(add);
    let at = &raw const PLACE as u64;
    let found = unsafe {
        (
            (at as *const u64).read_volatile(),
            ((at + 17) as *const u32).read_unaligned(),
        )
    };
    let wanted = ROUNDS * u64::from(others);
    same!(found, (wanted, wanted as u32), "the sums");
    Ok(())
}

static ROUND: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);

/// Invalidates the address and tells so.
fn shoot_down(_: &mut Frame) {
    cpu::invlpg(AT);
    COUNT.fetch_add(1, Ordering::SeqCst);
    apic::end_of_interrupt();
}

fn a_shoot_down_is_seen_by_every_processor() -> Check {
    let others = smp::start();
    needs!(others != 0, "one processor");
    page::prepare();
    for n in 0..2u64 {
        unsafe { ((DATA + 0x1000 * n + 128) as *mut u64).write_volatile(n) }
    }
    handle(0x62, Some(shoot_down));
    for round in 0..200u64 {
        COUNT.store(0, Ordering::SeqCst);
        page::set(1, (DATA + 0x1000 * (round & 1)) | bit::TABLE);
        apic::send(0, icr::TO_OTHERS | icr::ASSERT | 0x62);
        wait(|| COUNT.load(Ordering::SeqCst) == others);
        ROUND.store(round, Ordering::SeqCst);
        smp::on_others(|| {
            let seen = unsafe { ((AT + 128) as *const u64).read_volatile() };
            if seen != ROUND.load(Ordering::SeqCst) & 1 {
                WRONG.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    same!(WRONG.load(Ordering::SeqCst), 0, "stale translations used");
    Ok(())
}

fn code_written_by_one_runs_on_another() -> Check {
    needs!(smp::start() != 0, "one processor");
    let code = (DATA + 0x3000) as *mut u8;
    for value in 0..50u8 {
        // mov eax, value; ret
        unsafe {
            code.cast::<[u8; 6]>()
                .write_volatile([0xb8, value, 0, 0, 0, 0xc3]);
        }
        SUM.store(0, Ordering::SeqCst);
        smp::on_others(|| {
            let _serialise = cpu::cpuid(0, 0);
            // SAFETY: the bytes are a function.
            let function: extern "C" fn() -> u32 = unsafe { core::mem::transmute(DATA + 0x3000) };
            SUM.fetch_add(function().into(), Ordering::SeqCst);
        });
        let wanted = u64::from(value) * u64::from(smp::start());
        same!(SUM.load(Ordering::SeqCst), wanted, "what the code returned");
    }
    Ok(())
}

claims! {
    others_start_in_real_mode_at_the_page_of_the_message: "SDM vol. 3, 9.4.4",
    a_start_up_message_to_a_running_processor_is_ignored: "SDM vol. 3, 11.6.1",
    destinations_and_shorthands_reach_whom_they_name: "SDM vol. 3, 11.6.1 and 11.6.2",
    logical_destinations_follow_ldr_and_dfr: "SDM vol. 3, 11.6.2.2",
    nmis_reach_a_processor_that_does_not_listen: "SDM vol. 3, 6.7",
    locked_instructions_are_atomic_among_processors: "SDM vol. 3, 8.1.2",
    a_shoot_down_is_seen_by_every_processor: "SDM vol. 3, 4.10.5",
    code_written_by_one_runs_on_another: "SDM vol. 3, 8.1.3",
}
