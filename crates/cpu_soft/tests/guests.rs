//! Random guests: page tables, faults, interrupts, code that is changed, privilege levels; executed by the
//! interpreter, and by translated code with its links and with all that stays from one block to the next. Registers,
//! all memory and what their handlers have noted must be the same in the end.
//!
//! | variable | |
//! |---|---|
//! | `UMBRA_GUESTS` | how many |
//! | `UMBRA_GUEST_SECONDS` | for how long instead |
//! | `UMBRA_NATIVE_SEED` | which; fresh in every run without it |
//! | `UMBRA_NATIVE_CASE` | this one alone |
#![cfg(target_arch = "x86_64")]

mod bare;
mod random;
mod random_guest;

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bare::Machine;
use random::{seed, setting};
use random_guest::{Plan, count, difference, notes};
use umbra_cpu::Vcpu;
use umbra_cpu_soft::Processor;
use umbra_x86::state::CpuState;

/// No guest takes so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a guest ended.
struct End {
    reason: String,
    state: CpuState,
    memory: Vec<u8>,
    counts: Vec<(&'static str, u64)>,
}

fn run(plan: &Plan, processor: Processor) -> End {
    let guest = plan.guest();
    let mut machine = Machine::of_kind(processor);
    guest.load(&machine);
    let kick = machine.vcpu().kick_handle();
    let (done, ended) = mpsc::channel();
    let watch = std::thread::spawn(move || {
        if ended.recv_timeout(PATIENCE).is_err() {
            kick.kick();
        }
    });
    machine
        .vcpu()
        .set_state(&guest.state)
        .expect("a valid state");
    let end = machine.go_on(&bare::Nothing);
    let _ = done.send(());
    watch.join().expect("it does nothing");
    let (reason, state) = match end {
        Some(end) => (end.reason, end.state),
        None => ("it did not end".into(), machine.vcpu().state()),
    };
    End {
        reason,
        state,
        memory: machine.memory(),
        counts: machine.vcpu().statistics(),
    }
}

/// How the guest ends otherwise when `processor` executes it.
fn differs(plan: &Plan, expected: &End, processor: Processor) -> Option<String> {
    let found = run(plan, processor);
    let mut text = String::new();
    if expected.reason != found.reason {
        text += &format!("{}, should be {}\n", found.reason, expected.reason);
    }
    if let Some(at) = difference(&found.memory, &expected.memory) {
        let (f, e) = (found.memory[at], expected.memory[at]);
        text += &format!("memory[{at:#x}] {f:#x}, should be {e:#x}\n");
        text += &notes(&found.memory, &expected.memory);
    }
    if text.is_empty() && found.state != expected.state {
        text += &format!("{:x?}\nshould be {:x?}", found.state, expected.state);
    }
    (!text.is_empty()).then(|| format!("{processor:?}: {text}"))
}

/// A guest that differs, and is as small as it can be.
fn shrink(mut plan: Plan, mut differs: impl FnMut(&Plan) -> bool) -> Plan {
    loop {
        let before = plan.steps() + plan.scenes.len();
        let mut at = 0;
        while at < plan.scenes.len() {
            let mut smaller = plan.clone();
            smaller.scenes.remove(at);
            if differs(&smaller) {
                plan = smaller;
            } else {
                at += 1;
            }
        }
        for scene in 0..plan.scenes.len() {
            for user in [false, true] {
                let mut at = 0;
                loop {
                    let mut smaller = plan.clone();
                    let steps = match user {
                        false => &mut smaller.scenes[scene].kernel,
                        true => match &mut smaller.scenes[scene].user {
                            Some(steps) => steps,
                            None => break,
                        },
                    };
                    if at >= steps.len() {
                        break;
                    }
                    steps.remove(at);
                    if differs(&smaller) {
                        plan = smaller;
                    } else {
                        at += 1;
                    }
                }
            }
        }
        if plan.steps() + plan.scenes.len() == before {
            return plan;
        }
    }
}

/// The code of a guest.
fn describe(plan: &Plan) -> String {
    let mut text = String::new();
    for (at, bytes) in plan.guest().parts {
        let linear = match at {
            0x2_0000 => at,
            0x14_0000 => 0x21_0000,
            _ => continue,
        };
        let decoder = iced_x86::Decoder::with_ip(64, &bytes, linear, 0);
        for insn in decoder {
            if insn.code() != iced_x86::Code::Int3 {
                text += &format!("    {:#x}: {insn}\n", insn.ip());
            }
        }
    }
    text
}

#[test]
fn random_guests_end_alike() {
    let seed = seed();
    let most = setting("UMBRA_GUESTS").unwrap_or(300);
    let until = setting("UMBRA_GUEST_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let mut numbers = match (setting("UMBRA_NATIVE_CASE"), until) {
        (Some(one), _) => one..one + 1,
        (None, Some(_)) => 0..u64::MAX,
        (None, None) => 0..most,
    };
    let (mut vectors, mut ends) = (BTreeMap::new(), BTreeMap::<_, u64>::new());
    let (mut guests, mut steps, mut instructions, mut differences) = (0, 0, 0, Vec::new());
    while differences.len() < 3 && until.is_none_or(|until| Instant::now() < until) {
        let Some(number) = numbers.next() else { break };
        let plan = Plan::new(seed, number);
        let expected = run(&plan, Processor::Interpreter);
        assert_ne!(expected.reason, "it did not end", "case {number}");
        guests += 1;
        count(&expected.memory, &mut vectors);
        *ends.entry(expected.reason.clone()).or_default() += 1;
        steps += plan.steps();
        let counts = expected.counts.iter();
        instructions += counts
            .filter(|c| c.0 == "instructions interpreted")
            .map(|c| c.1)
            .sum::<u64>();
        let others = [Processor::Eager, Processor::Translator, Processor::Both];
        for processor in others.into_iter().take(if number % 4 == 0 { 3 } else { 2 }) {
            let Some(difference) = differs(&plan, &expected, processor) else {
                continue;
            };
            let small = shrink(plan.clone(), |plan| {
                differs(plan, &run(plan, Processor::Interpreter), processor).is_some()
            });
            let again = differs(&small, &run(&small, Processor::Interpreter), processor);
            differences.push(format!(
                "{}\n{}    again: UMBRA_NATIVE_SEED={seed} UMBRA_NATIVE_CASE={number} cargo test -p umbra-cpu-soft \
                 --test guests",
                again.unwrap_or(difference),
                describe(&small)
            ));
            break;
        }
    }
    println!(
        "{guests} guests, {steps} steps, {instructions} instructions, notes by vector: {vectors:?}"
    );
    println!("{ends:?}");
    // Page faults, steps, interrupts, system calls: else little was tested.
    let few = [14, 1, 0x40, 0x80]
        .iter()
        .any(|vector| !vectors.contains_key(vector));
    assert!(guests < 100 || !few, "some of it never came: {vectors:?}");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
