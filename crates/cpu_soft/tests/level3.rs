//! Code of 16, 32 and 64 bits against the processor of this machine, at privilege level 3.
//!
//! Every encoding of the four opcode maps, in flat, small, expand-down and read-only segments, with
//! selectors good and bad and addresses that are not canonical. What faults must fault alike: vector,
//! error code, address, and everything else untouched. `UMBRA_NATIVE_ROUNDS` sets how often, and
//! `UMBRA_NATIVE_SEED` with which random numbers (fresh ones without it); `UMBRA_NATIVE_TRACE` names each case before it runs.
#![cfg(target_arch = "x86_64")]

mod forms;
mod image;
mod random;
mod side_by_side;

use random::{seed, setting};
use side_by_side::generate::{Generator, encodings};
use side_by_side::guest::Guest;
use side_by_side::host::Host;
use side_by_side::tables::USER_CODE_64;
use side_by_side::{AREA, Case, HOLE, HOLE_LEN, Outcome, SIZE};

/// What is behind the hole, to the end of the area.
const BEHIND: u64 = HOLE + HOLE_LEN;
const END: u64 = AREA + SIZE as u64;

/// EFLAGS bits that are compared: status, DF, IOPL, NT, AC, ID.
const FLAGS: u32 = 0x24_7cd5;

fn compare(case: &Case, expected: &Outcome, found: &Outcome) -> Option<String> {
    let difference = |what: &str, e: u64, f: u64| Some(format!("{what} {f:#x}, should be {e:#x}"));
    // What the host's kernel has mapped in its half is none of ours, and neither is what the harness
    // keeps behind the hole in the guest.
    let foreign = |address: u64| address >> 63 != 0 || (BEHIND..END).contains(&address);
    let present = |o: &Outcome| u32::from(o.vector == 14 && foreign(o.cr2));
    let kind = |o: &Outcome| (o.vector, o.error & !present(o), o.cr2);
    let faulted = expected.vector != 3 && found.vector != 3;
    let named = |names: &[&str]| names.iter().any(|name| case.text.starts_with(name));
    if faulted && named(&["Fld_m80", "Fbld_m80", "Fstp_m80", "Fbstp_m80"]) {
        // Some processors access ten bytes in two pieces, so that the page of the first is asked for
        // before the limit of the second is looked at.
        return None;
    }
    if faulted && forms::reads_two_strings(&case.text) && expected.rip == found.rip {
        return None;
    }
    if named(&["Verr_", "Verw_"]) && case.offset + case.bytes.len() > 0x1000 {
        // Some processors execute them though their last bytes are behind the segment's limit.
        return None;
    }
    if kind(expected) != kind(found) {
        return Some(format!(
            "exception {:x?}, should be {:x?}",
            kind(found),
            kind(expected)
        ));
    }
    // Traps are taken behind their instruction; the guest, which can take none, stays in front.
    let behind = match expected.vector {
        3 | 4 if found.rip == case.rip() => case.bytes.len() as u64,
        3 => 1,
        _ => 0,
    };
    let after = expected.rip.wrapping_sub(behind);
    if after != found.rip {
        return difference("eip", after, found.rip);
    }
    // Outside 64-bit code upper halves are undefined, and a 16-bit stack leaves the kernel's own
    // address in that of RSP.
    let wide = case.cs == USER_CODE_64 && expected.selectors[0] == USER_CODE_64;
    let (count, mask) = if wide {
        (16, u64::MAX)
    } else {
        (8, 0xffff_ffff)
    };
    for i in 0..count {
        let (e, f) = (expected.gpr[i] & mask, found.gpr[i] & mask);
        if e != f {
            return difference(&format!("r{i}"), e, f);
        }
    }
    if expected.selectors != found.selectors {
        return Some(format!(
            "CS SS DS ES {:x?}, should be {:x?}",
            found.selectors, expected.selectors
        ));
    }
    let flags = FLAGS & !case.undefined;
    if (expected.flags ^ found.flags) & flags != 0 {
        let (e, f) = (expected.flags & flags, found.flags & flags);
        return difference("flags", e.into(), f.into());
    }
    if let Some((at, e, f)) = image::difference(&expected.fx, &found.fx, expected.vector) {
        return difference(&format!("fx[{at}]"), e, f);
    }
    if case.text.starts_with("Enter") && expected.vector != 3 {
        // How far it came before a fault is left open.
        return None;
    }
    let at = (0..expected.memory.len()).find(|i| expected.memory[*i] != found.memory[*i])?;
    let what = format!("memory[{at:#x}]");
    difference(&what, expected.memory[at].into(), found.memory[at].into())
}

#[test]
fn code_at_level_3_agrees_with_the_host() {
    let rounds = setting("UMBRA_NATIVE_ROUNDS").unwrap_or(2);
    let seed = seed();
    let trace = std::env::var_os("UMBRA_NATIVE_TRACE").is_some();
    let mut host = match Host::new() {
        Ok(host) => host,
        Err(reason) => {
            eprintln!("SKIPPED: this kernel gives no local descriptor table: {reason}");
            return;
        }
    };
    let mut guest = Guest::new();
    let mut generator = Generator::new(seed);
    let (mut cases, mut exceptions) = (0, 0);
    let mut failures: Vec<String> = Vec::new();
    for encoding in (0..rounds).flat_map(|_| encodings()) {
        let Some(case) = generator.case(encoding) else {
            continue;
        };
        if trace {
            eprintln!("{} {:x?}", case.text, case.bytes);
        }
        let expected = host.run(&case);
        let found = guest.run(&case);
        cases += 1;
        exceptions += u64::from(expected.vector != 3);
        if let Some(difference) = compare(&case, &expected, &found) {
            failures.push(format!(
                "{}: {difference}; {:x?} at {:x}:{:x} ss {:x} ds {:x} es {:x} gpr {:x?} flags {:x}",
                case.text,
                case.bytes,
                case.cs,
                case.rip(),
                case.ss,
                case.ds,
                case.es,
                case.gpr,
                case.flags
            ));
        }
    }
    println!(
        "{cases} cases, {exceptions} of them exceptions, {} differ",
        failures.len()
    );
    assert!(
        exceptions > 100 && cases > 2 * exceptions,
        "nothing was tested"
    );
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}
