//! The polling guest (`tests/guest/poll`), which needs no vector registers and no interrupts: its
//! commands on each backend. Its companion with somebody else's drivers, where it can run.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use crate::support::backend::on_each_backend;
use crate::support::guest::or_skip;
use crate::support::poll::{drivers_guest, poll_guest, tiny_guest};
use crate::support::{Ended, Input, Umbra};

/// For a backend that interprets a few million instructions a second.
const LIMIT: Duration = Duration::from_secs(60);

/// `umbra run` with one of the guests, a backend and a command.
fn umbra(image: PathBuf, backend: &str, command: &str) -> Umbra {
    let arguments = [
        "run",
        "--kernel",
        image.to_str().unwrap(),
        "--backend",
        backend,
        "--memory",
        "16M",
        "--debug-exit",
        "--cmdline",
        command,
    ];
    Umbra::new(&arguments, &Input::Empty)
}

fn run(backend: &str, command: &str) -> Ended {
    umbra(poll_guest(), backend, command).start().finish(LIMIT)
}

/// The numbers behind `words` in the only line.
fn numbers(ended: &Ended) -> Vec<u64> {
    let words = ended.stdout.split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

fn the_guest_says_hello_and_ends_with_success(backend: &str) {
    let ended = run(backend, "hello");
    assert_eq!(ended.stdout, "hello from umbra-poll\n", "{ended}");
    assert_eq!(ended.status, Some(1), "{ended}");
    assert_eq!(ended.left_behind, [""; 0], "{ended}");
}

fn the_smallest_guest_ends_with_success(backend: &str) {
    let ended = umbra(tiny_guest(), backend, "").start().finish(LIMIT);
    assert_eq!((ended.status, &ended.stdout[..]), (Some(1), ""), "{ended}");
}

fn what_the_guest_cannot_do_fails(backend: &str) {
    let table = [
        ("dance", "FAIL unknown command\n"),
        ("hell", "FAIL unknown command\n"),
        ("hello2", "FAIL unknown command\n"),
        ("", "FAIL unknown command\n"),
        ("mmio 0xd0000000", "FAIL a number is missing\n"),
        ("tsc 12f", "FAIL a number is malformed\n"),
        ("rng 0xd0000000 8", "FAIL the magic value\n"),
    ];
    for (command, told) in table {
        let ended = run(backend, command);
        assert_eq!(ended.stdout, told, "{command:?} {ended}");
        assert_eq!(ended.status, Some(3), "{command:?} {ended}");
    }
}

fn accesses_where_no_device_is_take_time_and_do_nothing(backend: &str) {
    for (command, what) in [("mmio 0xd0000000 500", "mmio"), ("port 0x80 500", "port")] {
        let ended = run(backend, command);
        assert_eq!(ended.status, Some(1), "{ended}");
        let [read, write] = numbers(&ended)[..] else {
            panic!("{ended}")
        };
        let line = format!("{what} read {read} write {write}\n");
        assert_eq!(ended.stdout, line, "{ended}");
        assert!(read > 0 && write > 0, "{ended}");
    }
}

fn the_time_stamp_counter_goes_forwards(backend: &str) {
    let ended = run(backend, "tsc 10000");
    assert_eq!(ended.status, Some(1), "{ended}");
    let [first, last] = numbers(&ended)[..] else {
        panic!("{ended}")
    };
    assert!(first < last, "{ended}");
}

fn cpuid_tells_of_a_64_bit_processor(backend: &str) {
    let ended = run(backend, "cpuid");
    assert_eq!(ended.status, Some(1), "{ended}");
    let register = |leaf: &str, register: usize| {
        let prefix = format!("cpuid {leaf} 0x0 ");
        let mut lines = ended.stdout.lines();
        let registers = lines.find_map(|line| line.strip_prefix(&prefix)).unwrap();
        let word = registers.split(' ').nth(register).unwrap();
        u32::from_str_radix(word.trim_start_matches("0x"), 16).unwrap()
    };
    let (highest, long_mode, highest_extended) = (
        register("0x0", 0),
        register("0x80000001", 3) >> 29 & 1,
        register("0x80000000", 0),
    );
    assert!(highest >= 1 && highest_extended >= 0x8000_0008, "{ended}");
    assert_eq!(long_mode, 1, "{ended}");
    let last = ended.stdout.lines().last().unwrap();
    assert!(last.starts_with("cpuid 0x80000008 "), "{ended}");
}

fn sigterm_ends_a_guest_that_never_ends(backend: &str) {
    let table = [
        ("spin", "spinning\n"),
        ("halt", "halting\n"),
        ("load 0xd0000000 0x80", "\n"),
    ];
    for (command, told) in table {
        let running = umbra(poll_guest(), backend, command).start();
        running.wait_for(told, LIMIT);
        running.signal(Signal::TERM);
        let ended = running.finish(LIMIT);
        assert_eq!(ended.status, Some(128 + 15), "{command}: {ended}");
    }
}

/// CPUID as the guest sees it: leaf, subleaf, and the four registers.
fn cpuid(backend: &str, more: &[&str]) -> Vec<(String, Vec<u32>)> {
    let image = poll_guest();
    let base = [
        "--kernel",
        image.to_str().unwrap(),
        "--backend",
        backend,
        "--memory",
        "16M",
        "--debug-exit",
        "--cmdline",
        "cpuid",
    ];
    let ended = Umbra::run(&[&base, more].concat(), Input::Empty, LIMIT);
    assert_eq!(ended.status, Some(1), "{ended}");
    let hex = |word: &str| u32::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.strip_prefix("cpuid ")?.split(' ').collect();
        let registers = words[2..].iter().map(|word| hex(word)).collect();
        Some((format!("{}.{}", words[0], words[1]), registers))
    };
    ended.stdout.lines().filter_map(line).collect()
}

fn registers(table: &[(String, Vec<u32>)], place: &str) -> Vec<u32> {
    let found = table.iter().find(|(name, _)| name == place);
    found.map_or(vec![0; 4], |(_, registers)| registers.clone())
}

/// A KVM without hardware help has less than the lowest level.
fn a_level_hides_what_is_beyond_it(backend: &str) {
    let plain = cpuid(backend, &[]);
    let masked = cpuid(backend, &["--cpu-template", "x86-64-v2"]);
    let (before, after) = (registers(&plain, "0x1.0x0"), registers(&masked, "0x1.0x0"));
    let beyond = 1 << 1 | 1 << 22 | 1 << 25 | 1 << 28; // PCLMULQDQ MOVBE AES AVX
    assert_ne!(before[2] & beyond, 0, "{before:x?}");
    assert_eq!(after[2] & beyond, 0, "{after:x?}");
    assert_eq!(after[0], before[0], "family, model and stepping stay");
    // All but SMEP, SMAP and their like.
    assert_eq!(registers(&masked, "0x7.0x0")[1] & 0xffef_0328, 0);
}

fn a_template_of_the_users_hides_what_it_says(backend: &str) {
    let plain = cpuid(backend, &[]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.json");
    // CMPXCHG16B, and 1-GiB pages.
    let text = r#"{"cpuid_modifiers": [
        {"leaf": "0x1", "subleaf": "0x0", "flags": 0,
         "modifiers": [{"register": "ecx", "bitmap": "0b0x_xxxx_xxxx_xxxx"}]},
        {"leaf": "0x80000001", "subleaf": "0x0", "flags": 0,
         "modifiers": [{"register": "edx", "bitmap": "0b0xx_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx"}]}]}"#;
    std::fs::write(&file, text).unwrap();
    let own = cpuid(backend, &["--cpu-template", file.to_str().unwrap()]);
    let cut = |table: &[(String, Vec<u32>)]| {
        [
            registers(table, "0x1.0x0")[2],
            registers(table, "0x80000001.0x0")[3],
        ]
    };
    let (before, after) = (cut(&plain), cut(&own));
    let masks = [1 << 13, 1 << 26];
    assert_eq!(after, [before[0] & !masks[0], before[1] & !masks[1]]);
    assert_ne!(after, before);
}

fn a_template_that_promises_too_much_is_refused(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.json");
    // VMX: neither backend has it.
    let text = r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
        "modifiers": [{"register": "ecx", "bitmap": "0b1xxxxx"}]}]}"#;
    std::fs::write(&file, text).unwrap();
    let image = poll_guest();
    for (template, facts) in [
        (file.to_str().unwrap(), "VMX (leaf 0x1.0 ECX bit 5)"),
        ("T2", "there is no CPU template \"T2\""),
    ] {
        let arguments = [
            "--kernel",
            image.to_str().unwrap(),
            "--backend",
            backend,
            "--cpu-template",
            template,
        ];
        let ended = Umbra::run(&arguments, Input::Empty, LIMIT);
        assert_eq!(ended.status, Some(2), "{ended}");
        assert!(ended.stderr.contains(facts), "{ended}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    }
}

fn an_undefined_instruction_without_handlers_is_a_triple_fault(backend: &str) {
    let ended = run(backend, "triple");
    assert_eq!(ended.status, Some(4), "{ended}");
    assert!(ended.stderr.contains("triple fault"), "{ended}");
}

/// Only the software processor, and a KVM with hardware help, knows the instruction.
#[test]
fn the_software_processor_survives_a_vector_instruction() {
    let ended = run("soft", "emulate");
    assert_eq!(ended.stdout, "next comes SSE\nsurvived\n", "{ended}");
    assert_eq!(ended.status, Some(1), "{ended}");
}

/// It uses vector registers: never on every backend.
#[test]
fn the_drivers_guest_boots_and_finds_no_device_where_none_is() {
    let table = [
        ("dance", "FAIL unknown command\n"),
        (
            "rng",
            "FAIL a place is missing: an address, or pci:NUMBER\n",
        ),
        ("vsock 0xd0000000", "FAIL a number is missing\n"),
        ("rng 0xd0000000", "FAIL no virtio-mmio device is there\n"),
    ];
    for (command, told) in table {
        let ended = umbra(drivers_guest(), "soft", command)
            .start()
            .finish(LIMIT);
        assert!(ended.stdout.ends_with(told), "{command}: {ended}");
        assert_eq!(ended.status, Some(3), "{command}: {ended}");
    }
}

/// Tells whether an instruction, or a register in it, is none that an interpreter for general
/// registers knows.
fn is_foreign(instruction: &str) -> bool {
    let name = instruction.split_whitespace().next().unwrap_or_default();
    // All x87 instructions begin with an f, and none of the others.
    name.starts_with('f')
        || ["ldmxcsr", "stmxcsr", "emms", "vzero", "xsave", "xrstor"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        || ["lfence", "mfence", "sfence"].contains(&name)
        || ["%mm", "%xmm", "%ymm", "%zmm", "%st", "%k"]
            .iter()
            .any(|register| instruction.contains(register))
}

#[test]
fn the_guest_contains_no_vector_and_no_floating_point_instruction() {
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn"])
        .arg(poll_guest())
        .output()
        .context("cannot run objdump (apt-get install binutils)");
    let Some(output) = or_skip(output) else {
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let (mut function, mut instructions, mut foreign) = ("", 0, Vec::new());
    for line in text.lines() {
        if let Some((_, instruction)) = line.split_once(":\t") {
            instructions += 1;
            if is_foreign(instruction) {
                foreign.push((function, instruction.trim()));
            }
        } else if line.ends_with(">:") {
            function = line.split(['<', '>']).nth(1).unwrap();
        }
    }
    assert!(instructions > 500, "{text}");
    let [(function, instruction)] = foreign[..] else {
        panic!("{foreign:?}")
    };
    assert_eq!(function, "execute_sse");
    assert!(instruction.starts_with("xorps"), "{instruction}");
}

mod levels {
    use super::a_level_hides_what_is_beyond_it;
    use crate::support::backend::on_each_stock_backend;

    on_each_stock_backend! {
        a_level_hides_what_is_beyond_it,
    }
}

on_each_backend! {
    a_template_of_the_users_hides_what_it_says,
    a_template_that_promises_too_much_is_refused,
    the_guest_says_hello_and_ends_with_success,
    the_smallest_guest_ends_with_success,
    accesses_where_no_device_is_take_time_and_do_nothing,
    the_time_stamp_counter_goes_forwards,
    cpuid_tells_of_a_64_bit_processor,
    an_undefined_instruction_without_handlers_is_a_triple_fault,
    what_the_guest_cannot_do_fails,
    sigterm_ends_a_guest_that_never_ends,
}
