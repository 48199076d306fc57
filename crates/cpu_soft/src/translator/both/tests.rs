//! Differences that are planted are found, and what is no difference is not.

use std::sync::atomic::{AtomicBool, Ordering};

use umbra_cpu::{Exit, Vcpu};
use umbra_slots::Gpa;
use umbra_x86::cr4;
use umbra_x86::state::CpuState;

use crate::Processor;
use crate::translator::tests::bare::{CODE, END, Machine, PAGES, STACK, long};

/// A page of [`PAGES`].
const PAGE: u64 = 0x20_0000;
/// The directory that the code is mapped by.
const DIRECTORY: u64 = 0x10_3000;
/// Where data is.
const DATA: u64 = 0x3_0000;

/// Has every place in `code` that holds the first of `planted` hold the second.
pub fn plant(mut code: Vec<u8>, planted: Option<&(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    if let Some((from, to)) = planted {
        while let Some(at) = code.windows(from.len()).position(|bytes| bytes == from) {
            code[at..at + to.len()].copy_from_slice(to);
        }
    }
    code
}

struct Bench {
    machine: Machine,
    state: CpuState,
}

impl Bench {
    fn new(code: &[u8]) -> Self {
        let machine = Machine::of_kind(Processor::Both);
        let mut state = long(&machine);
        state.cr4 |= cr4::OSFXSR;
        state.gpr = std::array::from_fn(|i| 0x1111 * (i as u64 + 1));
        state.gpr[4] = STACK;
        state.gpr[7] = DATA;
        machine.write(CODE, &[code, &END].concat());
        Self { machine, state }
    }

    fn plant(mut self, from: &[u8], to: &[u8]) -> Self {
        let works = self.machine.vcpu().cpu.translator.works.as_mut();
        works.unwrap().planted = Some((from.to_vec(), to.to_vec()));
        self
    }

    fn run(&mut self) -> Exit {
        self.machine.run_once(&self.state)
    }

    /// Runs to the end.
    fn agrees(mut self) -> Self {
        let exit = self.run();
        let ended = matches!(&exit, Exit::Shutdown(crash) if crash.reason.contains("vector 6"));
        assert!(ended, "{exit:?}");
        assert_eq!(self.count("blocks that differ"), 0);
        self
    }

    fn count(&mut self, name: &str) -> u64 {
        let statistics = self.machine.vcpu().statistics();
        let known = statistics.iter().find(|(known, _)| *known == name);
        known.expect("a counter of that name").1
    }
}

/// Has `from` in the host code of `code` be `to`: the machine ends, and names `what` alone.
fn differs(code: &[u8], from: &[u8], to: &[u8], what: &str) {
    let mut bench = Bench::new(code).agrees();
    assert!(bench.count("blocks compared") > 0);
    let mut bench = Bench::new(code).plant(from, to);
    let exit = bench.run();
    let Exit::Stuck(crash) = exit else {
        panic!("nothing was found: {exit:?}");
    };
    let expected = format!("differ in {what} after the block at {CODE:#x}:");
    assert!(crash.reason.contains(&expected), "{}", crash.reason);
    assert_eq!(crash.state.rip, CODE);
    assert_eq!(bench.count("blocks that differ"), 1);
    assert_eq!(bench.count("blocks that raced with others"), 0);
}

#[test]
fn a_wrong_register_is_found() {
    // mov rbx, rcx becomes mov rbx, rdx
    differs(
        &[0x48, 0x89, 0xcb],
        &[0x48, 0x89, 0xcb],
        &[0x48, 0x89, 0xd3],
        "rbx",
    );
}

#[test]
fn a_wrong_flag_is_found() {
    // cmp rcx, rcx becomes test rcx, rcx
    differs(
        &[0x48, 0x39, 0xc9],
        &[0x48, 0x39, 0xc9],
        &[0x48, 0x85, 0xc9],
        "flags 0x40",
    );
}

#[test]
fn a_wrong_byte_in_memory_is_found() {
    // mov [rdi], bl, which misses; mov [rdi], cl becomes mov [rdi], dl
    let code = [0x88, 0x1f, 0x88, 0x0f];
    differs(&code, &[0x88, 0x08], &[0x88, 0x10], "0x30000");
}

#[test]
fn a_wrong_xmm_register_is_found() {
    // pcmpeqd xmm1, xmm1 becomes pxor xmm1, xmm1
    differs(
        &[0x66, 0x0f, 0x76, 0xc9],
        &[0x66, 0x0f, 0x76, 0xc9],
        &[0x66, 0x0f, 0xef, 0xc9],
        "xmm1",
    );
}

#[test]
fn a_wrong_branch_is_found() {
    // cmp rcx, rdx; je over ud2 becomes jne
    let code = [0x48, 0x39, 0xd1, 0x74, 0x02, 0x0f, 0x0b];
    differs(&code, &[0x0f, 0x84], &[0x0f, 0x85], "rip");
}

#[test]
fn a_wrong_way_after_a_miss_is_found() {
    // mov eax, 7; mov rbx, [rdi]; mov rdx, rax: the page is not known yet, so the interpreter loads.
    let code = [0xb8, 7, 0, 0, 0, 0x48, 0x8b, 0x1f, 0x48, 0x89, 0xc2];
    // mov rdx, r11 becomes mov rbx, r11
    differs(&code, &[0x4c, 0x89, 0xda], &[0x4c, 0x89, 0xdb], "rdx, rbx");
}

#[test]
fn what_others_write_meanwhile_is_no_difference() {
    // mov ecx, 1000000; add rax, [rdi]; lock xadd [rdi], rbx; dec ecx; jnz
    let code = [
        0xb9, 0x40, 0x42, 0x0f, 0, 0x48, 0x03, 0x07, 0xf0, 0x48, 0x0f, 0xc1, 0x1f, 0xff, 0xc9,
        0x75, 0xf4,
    ];
    let bench = Bench::new(&code);
    let space = bench.machine.space();
    let over = AtomicBool::new(false);
    let mut bench = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0u64;
            while !over.load(Ordering::Relaxed) {
                value += 0x0101_0101;
                space.load().write(Gpa(DATA), &value.to_le_bytes()).unwrap();
            }
        });
        let bench = bench.agrees();
        over.store(true, Ordering::Relaxed);
        bench
    });
    assert!(bench.count("blocks that raced with others") > 0);
    assert!(bench.count("blocks compared") > 100_000);
}

#[test]
fn what_cannot_be_rehearsed_is_counted_by_reason() {
    let store = |at: u64| {
        // mov [at], al
        let mut code = vec![0x88, 0x04, 0x25];
        code.extend_from_slice(&(at as u32).to_le_bytes());
        code
    };
    let counts = |code: &[u8], reason: &str| {
        let mut bench = Bench::new(code);
        let at = PAGES + 8;
        bench.machine.write(at, &(0x4000_0000u64 | 7).to_le_bytes());
        let _ = bench.run();
        assert_eq!(bench.count("blocks that differ"), 0);
        bench.count(&format!("blocks not compared: {reason}"))
    };
    assert_eq!(counts(&store(DATA), "exception"), 0);
    assert_eq!(counts(&store(PAGE), "exception"), 1, "not mapped");
    assert_eq!(counts(&store(PAGE + 0x1000), "device"), 1, "no memory");
    assert_eq!(counts(&store(DIRECTORY + 0x80), "page table"), 1);
    assert_eq!(counts(&store(CODE + 0x800), "page with code"), 1);
}

#[test]
fn nothing_is_stored_twice() {
    // inc dword [rdi]; lock inc dword [rdi]; push rax; push rax
    let code = [0xff, 0x07, 0xf0, 0xff, 0x07, 0x50, 0x50];
    let mut bench = Bench::new(&code).agrees();
    assert_eq!(bench.machine.read_u32(DATA), 2);
    assert_eq!(bench.machine.vcpu().state().gpr[4], STACK - 16);
    assert_eq!(bench.count("blocks compared"), 1);
    assert_eq!(bench.count("instructions compared"), 4);
}
