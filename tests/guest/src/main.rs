//! A kernel that checks, claim by claim, that its processor does what the manual says.
//!
//! ```text
//!   boot ── 64-bit mode, memory mapped one to one ──> main ── every table of `claims` ──> exit
//!                 trap: catches exceptions, calls interrupt handlers
//! ```
//! With `stress ROUNDS` on its command line it runs `stress` instead of the claims.
//!
//! There is no operating system, no heap and no floating point in here. Start reading at `claims`.
#![no_std]
#![no_main]

mod apic;
mod boot;
mod claims;
mod cpu;
mod descriptors;
mod memory;
mod page;
mod report;
mod serial;
mod smp;
mod stress;
mod trap;
mod user;

use report::{Claim, Outcome, Stop};

/// The exit port (QEMU's `isa-debug-exit`).
const EXIT: u16 = 0xf4;

/// Where the boot code arrives, in 64-bit mode.
#[unsafe(no_mangle)]
extern "C" fn kernel_main(start_info: u64) -> ! {
    descriptors::load(0);
    apic::enable();
    if let Some(rounds) = stress::rounds(boot::command_line(start_info)) {
        stress::run(rounds);
        cpu::out8(EXIT, 0);
        cpu::halt_for_ever()
    }
    let mut counts = [0u32; 3];
    for table in claims::TABLES {
        for claim in *table {
            let outcome = check(claim);
            counts[outcome as usize] += 1;
        }
    }
    let [ok, skipped, failed] = counts;
    println!("summary: {ok} ok, {skipped} skipped, {failed} failed");
    cpu::out8(EXIT, u8::from(failed != 0));
    cpu::halt_for_ever()
}

fn check(claim: &Claim) -> Outcome {
    let Claim { name, section, run } = claim;
    match run() {
        Ok(()) => {
            println!("ok {name} [{section}]");
            Outcome::Ok
        }
        Err(Stop::Skip(why)) => {
            println!("skip {name}: {why}");
            Outcome::Skipped
        }
        Err(Stop::Fail(what)) => {
            println!("FAIL {name}: {what} [{section}]");
            Outcome::Failed
        }
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("FAIL the guest itself: {info}");
    cpu::out8(EXIT, 2);
    cpu::halt_for_ever()
}
