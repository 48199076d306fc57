//! Every implemented unprivileged instruction against the processor of this machine.
//!
//! The same bytes run natively and on the software processor, at the same linear addresses: load
//! all registers, one instruction, store all registers. Registers, x87 and SSE state, memory and
//! the flags that the manual defines must agree. `UMBRA_NATIVE_ROUNDS` sets how many random
//! operands each form of each instruction gets, `UMBRA_NATIVE_SEED` which; they are fresh in every run
//! without it.
//! `UMBRA_NATIVE_TRACE` names each case before it runs: an instruction that kills the process is the
//! last one named.
#![cfg(target_arch = "x86_64")]

mod forms;
mod harness;
mod random;

use forms::{forms, status_flags};
use harness::generate::Generator;
use harness::{Case, Guest, Host, Outcome};
use iced_x86::Code;
use random::{seed, setting};

/// Runs every form that `pick` chooses on both processors and compares.
fn agree(pick: impl Fn(Code) -> bool) {
    let rounds = setting("UMBRA_NATIVE_ROUNDS").unwrap_or(12);
    let seed = seed();
    let trace = std::env::var_os("UMBRA_NATIVE_TRACE").is_some();
    let host = Host::new();
    let mut guest = Guest::new();
    let mut failures = Vec::new();
    let mut cases = 0;
    for code in forms().filter(|code| pick(*code)) {
        let mut generator = Generator::new(seed ^ (code as u64) << 32);
        let mut bad = 0;
        for round in 0..rounds {
            let Some(case) = generator.case(code, round) else {
                continue;
            };
            cases += 1;
            if trace {
                eprintln!("{code:?} round {round}: {}", case.insn);
            }
            let expected = host.run(&case);
            let found = guest.run(&case);
            if let Some(difference) = compare(&case, &expected, &found) {
                bad += 1;
                if bad == 1 {
                    failures.push(format!("{code:?}: {} {difference}", case.insn));
                }
            }
        }
    }
    assert!(cases > 0, "nothing was tested");
    println!("{cases} cases, {} forms differ", failures.len());
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}

fn compare(case: &Case, expected: &Outcome, found: &Outcome) -> Option<String> {
    if let Some(crash) = &found.crash {
        return Some(crash.clone());
    }
    for i in 0..16 {
        let (e, f) = (expected.gpr[i], found.gpr[i]);
        if e != f {
            return Some(format!("r{i}: {f:#x}, should be {e:#x}; {}", inputs(case)));
        }
    }
    let defined = 0x8d5 & !status_flags(case.insn.rflags_undefined());
    let (e, f) = (expected.flags & defined, found.flags & defined);
    if e != f {
        return Some(format!("flags {f:#x}, should be {e:#x}; {}", inputs(case)));
    }
    for at in 0..512 {
        // Instruction, data and opcode pointers differ between makes; MXCSR_MASK too.
        if matches!(at, 6..24 | 28..32 | 464..512) {
            continue;
        }
        let (e, f) = (expected.fx[at], found.fx[at]);
        if e != f {
            return Some(format!(
                "fx[{at}]: {f:#x}, should be {e:#x}; {}",
                inputs(case)
            ));
        }
    }
    let at = (0..expected.memory.len()).find(|i| expected.memory[*i] != found.memory[*i])?;
    Some(format!(
        "memory[{at:#x}]: {:#x}, should be {:#x}; {}",
        found.memory[at],
        expected.memory[at],
        inputs(case)
    ))
}

fn inputs(case: &Case) -> String {
    format!("gpr {:x?} flags {:#x}", case.gpr, case.flags)
}

fn feature(code: Code, names: &[&str]) -> bool {
    code.cpuid_features()
        .iter()
        .any(|f| names.contains(&format!("{f:?}").as_str()))
}

#[test]
fn integer_instructions_agree_with_the_host() {
    let other = [
        "SSE",
        "SSE2",
        "SSE3",
        "SSSE3",
        "SSE4_1",
        "SSE4_2",
        "MMX",
        "FPU",
        "FPU287",
        "FPU387",
        "AES",
        "PCLMULQDQ",
    ];
    agree(|code| !feature(code, &other));
}

#[test]
fn sse_instructions_agree_with_the_host() {
    agree(|code| feature(code, &["SSE", "SSE2"]) && !feature(code, &["MMX"]));
}

#[test]
fn sse3_to_sse42_instructions_agree_with_the_host() {
    agree(|code| {
        feature(
            code,
            &["SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AES", "PCLMULQDQ"],
        )
    });
}

#[test]
fn x87_and_mmx_instructions_agree_with_the_host() {
    agree(|code| feature(code, &["FPU", "FPU287", "FPU387", "MMX"]));
}
