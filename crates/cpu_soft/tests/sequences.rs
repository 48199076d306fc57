//! Random sequences of unprivileged instructions against the processor of this machine.
//!
//! Two to sixteen instructions with operands in registers and memory; branches forward, near and by
//! register, memory or stack, and astray; SIMD exceptions that are not masked; the stack; faults; code
//! that writes code. Registers, flags, x87 and SSE state, memory and the exception must agree: vector,
//! error code, address, and the instruction that raised it. A difference is made as small as it can
//! be and printed with the command that repeats it.
//!
//! | variable | |
//! |---|---|
//! | `UMBRA_NATIVE_SEQUENCES` | how many |
//! | `UMBRA_NATIVE_SEED` | which; fresh in every run without it |
//! | `UMBRA_NATIVE_CASE` | this one alone |
//! | `UMBRA_NATIVE_TRACE` | names each before it runs |
#![cfg(target_arch = "x86_64")]

mod forms;
mod image;
mod random;
mod sequence;

use random::{seed, setting};
use sequence::generate::Generator;
use sequence::guest::Guest;
use sequence::host::Host;
use sequence::shrink::shrink;
use sequence::{Case, Code, INT3, Outcome, WINDOW, WINDOW_LEN};

/// Differences after which it is enough.
const ENOUGH: usize = 20;
/// EFLAGS bits that are compared: status, DF, IOPL, NT, AC, ID.
const FLAGS: u64 = 0x24_7cd5;

/// Both processors.
struct Pair {
    host: Host,
    guest: Guest,
    /// One that interprets, if it was ever needed.
    interpreted: Option<Guest>,
    /// Sequences of which nobody can say what they do ([`Pair::made_itself`]).
    open: u64,
}

impl Pair {
    /// Runs a case on both. `None` if it is none; else the host's result and how the other differs.
    fn run(&mut self, case: &Case) -> Option<(Outcome, Option<String>)> {
        let undefined = case.undefined()?;
        let code = case.code()?;
        let mut window = [INT3; WINDOW_LEN];
        let at = (case.start - WINDOW) as usize;
        window
            .get_mut(at..at + code.bytes.len())?
            .copy_from_slice(&code.bytes);
        let expected = self.host.run(case, &window);
        let found = self.guest.run(case, &window);
        if overwrote_itself(case, &code, &expected, &found) {
            return Some((expected, None));
        }
        let difference = compare(case, &code, &undefined, &expected, &found).or_else(|| {
            let (e, f) = (self.host.memory(), self.guest.memory());
            let at = (e != f).then(|| (0..e.len()).find(|i| e[*i] != f[*i]))??;
            Some(format!(
                "memory[{at:#x}] {:#x}, should be {:#x}",
                f[at], e[at]
            ))
        });
        if difference.is_some() && self.made_itself(case, &code, &window, &found) {
            self.open += 1;
            return Some((expected, None));
        }
        Some((expected, difference))
    }

    /// What was executed is what stores have made of the code, and nobody has chosen that: it looks at flags that are
    /// undefined, or is what processors differ in (a near branch of 16 bits). Then it is enough that the interpreter
    /// finds the same.
    fn made_itself(
        &mut self,
        case: &Case,
        code: &Code,
        window: &[u8; WINDOW_LEN],
        found: &Outcome,
    ) -> bool {
        if self.guest.window() == *window {
            return false;
        }
        let interpreted = self.interpreted.get_or_insert_with(Guest::interpreted);
        let expected = interpreted.run(case, window);
        let defined = vec![0; code.at.len()];
        compare(case, code, &defined, &expected, found).is_none()
            && interpreted.memory() == self.guest.memory()
            && interpreted.window() == self.guest.window()
    }
}

/// REP MOVS or REP STOS has overwritten itself, and faulted later: the host goes on with what it was, unless an
/// interrupt comes in between, and how far it came is all that differs; ours is always as after one.
fn overwrote_itself(case: &Case, code: &Code, expected: &Outcome, found: &Outcome) -> bool {
    use iced_x86::Mnemonic::*;
    const LONGEST: u64 = 15;
    let Some(at) = code.at.iter().position(|at| *at == expected.rip) else {
        return false;
    };
    let stores = |step: &sequence::Step| {
        let repeated = step.insn.has_rep_prefix() || step.insn.has_repne_prefix();
        let mnemonic = step.insn.mnemonic();
        repeated
            && matches!(
                mnemonic,
                Movsb | Movsw | Movsd | Movsq | Stosb | Stosw | Stosd | Stosq
            )
    };
    let (one, other) = (found.gpr[7], expected.gpr[7]);
    let written = one.min(other).saturating_sub(LONGEST)..one.max(other).saturating_add(LONGEST);
    let went_on = one != other && found.rip == expected.rip && expected.vector != 3;
    went_on && case.steps.get(at).is_some_and(stores) && written.contains(&expected.rip)
}

/// Both faulted at the same instruction, and which of its operands is read first is left open.
fn faulted_at_two_strings(case: &Case, code: &Code, expected: &Outcome, found: &Outcome) -> bool {
    let Some(at) = code.at.iter().position(|at| *at == expected.rip) else {
        return false;
    };
    let step = case.steps.get(at);
    let text = step.map(|step| format!("{:?}", step.insn.code()));
    expected.rip == found.rip
        && expected.vector != 3
        && found.vector != 3
        && text.is_some_and(|text| forms::reads_two_strings(&text))
}

fn compare(
    case: &Case,
    code: &Code,
    undefined: &[u64],
    expected: &Outcome,
    found: &Outcome,
) -> Option<String> {
    let difference = |what: &str, e: u64, f: u64| Some(format!("{what} {f:#x}, should be {e:#x}"));
    // What the host's kernel has mapped is none of ours: its half, and the last page of the other.
    let foreign = |o: &Outcome| u64::from(o.cr2 >= 0x7fff_ffff_f000);
    let kind = |o: &Outcome| match o.vector {
        14 => (14, o.error & !foreign(o), o.cr2),
        vector => (vector, o.error, 0),
    };
    let (e, f) = (kind(expected), kind(found));
    if e != f && !faulted_at_two_strings(case, code, expected, found) {
        return Some(format!(
            "exception {f:x?} at {:#x}, should be {e:x?} at {:#x}",
            found.rip, expected.rip
        ));
    }
    if expected.rip != found.rip {
        return difference("rip", expected.rip, found.rip);
    }
    for i in 0..16 {
        if expected.gpr[i] != found.gpr[i] {
            return difference(&format!("r{i}"), expected.gpr[i], found.gpr[i]);
        }
    }
    // INT3 traps behind the last instruction.
    let rip = expected.rip - u64::from(expected.vector == 3);
    let open = match code.at.iter().position(|at| *at == rip) {
        // A fault in the middle of an instruction may come before or after its flags.
        Some(i) => undefined[i] | undefined.get(i + 1).copied().unwrap_or(0),
        None => u64::MAX,
    };
    let mask = FLAGS & !open;
    if (expected.flags ^ found.flags) & mask != 0 {
        return difference("flags", expected.flags & mask, found.flags & mask);
    }
    if let Some((at, e, f)) = image::difference(&expected.fx, &found.fx, expected.vector) {
        return difference(&format!("fx[{at}]"), e, f);
    }
    None
}

fn describe(case: &Case) -> String {
    let code = case.code().expect("it was run");
    let mut text = String::new();
    for (i, step) in case.steps.iter().enumerate() {
        let (from, to) = (code.at[i], code.at[i + 1]);
        let bytes = &code.bytes[(from - case.start) as usize..(to - case.start) as usize];
        let insn = iced_x86::Decoder::with_ip(64, bytes, from, 0).decode();
        text += &format!(
            "\n    {from:#x}: {bytes:02x?} {:?} {insn}",
            step.insn.code()
        );
    }
    text + &format!("\n    gpr {:x?} flags {:#x}", case.gpr, case.flags)
}

#[test]
fn sequences_of_instructions_agree_with_the_host() {
    let seed = seed();
    let count = setting("UMBRA_NATIVE_SEQUENCES").unwrap_or(20_000);
    let numbers = setting("UMBRA_NATIVE_CASE").map_or(0..count, |one| one..one + 1);
    let trace = std::env::var_os("UMBRA_NATIVE_TRACE").is_some();
    let generator = Generator::new();
    let mut pair = Pair {
        host: Host::new(),
        guest: Guest::new(),
        interpreted: None,
        open: 0,
    };
    let (mut instructions, mut faults) = (0, [0u64; 32]);
    let mut failures = Vec::new();
    for number in numbers.clone() {
        let case = generator.case(seed, number);
        if trace {
            eprintln!("case {number}:{}", describe(&case));
        }
        let Some((outcome, difference)) = pair.run(&case) else {
            panic!("case {number} of seed {seed} is none");
        };
        instructions += case.steps.len();
        faults[usize::from(outcome.vector) % 32] += 1;
        if difference.is_none() {
            continue;
        }
        let small = shrink(case, |case| {
            pair.run(case).is_some_and(|(_, d)| d.is_some())
        });
        let again = pair.run(&small).and_then(|(_, d)| d);
        failures.push(format!(
            "{}{}\n    again: UMBRA_NATIVE_SEED={seed} UMBRA_NATIVE_CASE={number} cargo test -p \
             umbra-cpu-soft --test sequences",
            again.or(difference).unwrap_or_default(),
            describe(&small)
        ));
        if failures.len() >= ENOUGH {
            break;
        }
    }
    println!("{instructions} instructions, sequences by exception: {faults:?}");
    println!("{} made code of themselves that is not defined", pair.open);
    // Three of ten millions are.
    assert!(pair.open <= 1 + count / 500_000, "too many to be that");
    let whole = faults[3];
    assert!(
        numbers.end - numbers.start < 1000 || (whole > 100 && faults[14] > 0),
        "nothing was tested"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
