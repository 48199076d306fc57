//! What only translated code can get wrong: its links, its look at the clock and at others, code that it
//! overwrites, the borders of pages. With `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, IDT, Machine, PAGES, STACK, gate, long};
use umbra_cpu::Vcpu;
use umbra_x86::cr4;
use umbra_x86::rflags::IF;
use umbra_x86::state::CpuState;

/// Two pages of [`PAGES`], and the frames behind them.
const P1: u64 = 0x20_0000;
const P2: u64 = 0x20_1000;
const FRAME_1: u64 = 0x30_0000;
const FRAME_2: u64 = 0x28_0000;
const FRAME_3: u64 = 0x29_0000;
const PRESENT: u64 = 7;
const GLOBAL: u64 = 1 << 8;

fn translates() -> bool {
    std::env::var("UMBRA_PROCESSOR").as_deref() != Ok("interpreter")
}

fn count(machine: &mut Machine, name: &str) -> u64 {
    let statistics = machine.vcpu().statistics();
    let known = statistics.iter().find(|(known, _)| *known == name);
    known.expect("a counter of that name").1
}

/// Maps `page` to `frame`.
fn map(machine: &Machine, page: u64, frame: u64, flags: u64) {
    let at = PAGES + 8 * (page >> 12 & 0x1ff);
    machine.write(at, &(frame | PRESENT | flags).to_le_bytes());
}

/// 64-bit code at `at`, made of pieces.
fn place(machine: &Machine, at: u64, pieces: &[&[u8]]) {
    machine.write(at, &pieces.concat());
}

#[test]
fn a_loop_leaves_the_interpreter() {
    let mut machine = Machine::new();
    let state = long(&machine);
    // mov ecx, 1000000; add rax, rcx; dec ecx; jnz
    let code = [
        0xb9, 0x40, 0x42, 0x0f, 0x00, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9,
    ];
    place(&machine, CODE, &[&code, &END]);
    let end = machine.run(&state);
    assert_eq!(end.state.gpr[0], 500_000_500_000);
    assert_eq!(end.state.rip, CODE + 12);
    if translates() {
        assert!(count(&mut machine, "units translated") > 0);
        assert!(count(&mut machine, "instructions interpreted") < 10_000);
    }
}

/// Without shadow stacks it is a NOP, and programs look whether it leaves zero where they had put it.
#[test]
fn rdssp_leaves_its_register() {
    let mut machine = Machine::new();
    let state = long(&machine);
    // mov ecx, 1000000; xor eax, eax; rdsspq rax; rdsspd eax; dec ecx; jnz to rdsspq
    let code = [
        0xb9, 0x40, 0x42, 0x0f, 0x00, 0x31, 0xc0, 0xf3, 0x48, 0x0f, 0x1e, 0xc8, 0xf3, 0x0f, 0x1e,
        0xc8, 0xff, 0xc9, 0x75, 0xf3,
    ];
    place(&machine, CODE, &[&code, &END]);
    let end = machine.run(&state);
    assert_eq!((end.state.gpr[0], end.state.gpr[1]), (0, 0));
    assert_eq!(end.state.rip, CODE + code.len() as u64);
}

#[test]
fn an_access_over_a_border_is_two_accesses() {
    let mut machine = Machine::new();
    let mut state = long(&machine);
    map(&machine, P1, FRAME_1, 0);
    map(&machine, P2, FRAME_2, 0);
    machine.write(FRAME_1 + 0xffc, &[1, 2, 3, 4]);
    machine.write(FRAME_2, &[5, 6, 7, 8]);
    machine.write(FRAME_2 - 4, &[0xaa; 4]);
    // mov ecx, 3; mov eax, [rdi]; add rdx, [rsi]; mov [rsi], rbx; mov ebp, [rdi]; dec ecx; jnz
    let code = [
        0xb9, 3, 0, 0, 0, 0x8b, 0x07, 0x48, 0x03, 0x16, 0x48, 0x89, 0x1e, 0x8b, 0x2f, 0xff, 0xc9,
        0x75, 0xf2,
    ];
    place(&machine, CODE, &[&code, &END]);
    state.gpr[7] = P2;
    state.gpr[6] = P2 - 4;
    state.gpr[3] = 0x1817_1615_1413_1211;
    let end = machine.run(&state);
    let before = 0x0807_0605_0403_0201u64;
    let expected = before.wrapping_add(state.gpr[3].wrapping_mul(2));
    assert_eq!(end.state.gpr[2], expected, "{end:?}");
    assert_eq!(end.state.gpr[5], 0x1817_1615);
    assert_eq!(machine.read(FRAME_1 + 0xffc), [0x11, 0x12, 0x13, 0x14]);
    assert_eq!(machine.read(FRAME_2), [0x15, 0x16, 0x17, 0x18]);
    assert_eq!(machine.read(FRAME_2 - 4), [0xaa; 4]);
}

/// Two pages jump to each other a hundred times; then the second is another frame, and they do it again,
/// from the same instruction.
fn to_and_fro_before_and_after_a_change(flags: u64) {
    let mut machine = Machine::new();
    let mut state = long(&machine);
    state.cr4 |= cr4::PGE;
    map(&machine, P1, FRAME_1, flags);
    map(&machine, P2, FRAME_2, flags);
    let to = |target: u64, next: u64| (target.wrapping_sub(next) as u32).to_le_bytes();
    // jmp P2; mov [r9], r8; invlpg [rdx]; mov ecx, 100; dec esi; jnz the start
    let first = [
        &[0xe9][..],
        &to(P2, P1 + 5),
        &[0x4d, 0x89, 0x01, 0x0f, 0x01, 0x3a, 0xb9, 100, 0, 0, 0],
        &[0xff, 0xce, 0x75, 0xec],
        &END,
    ];
    place(&machine, FRAME_1, &first);
    // inc eax, or ebx; dec ecx; jnz P1; jmp behind the jump of P1
    for (frame, register) in [(FRAME_2, 0xc0), (FRAME_3, 0xc3)] {
        let second = [
            &[0xff, register, 0xff, 0xc9, 0x0f, 0x85][..],
            &to(P1, P2 + 10),
            &[0xe9],
            &to(P1 + 5, P2 + 15),
        ];
        place(&machine, frame, &second);
    }
    state.rip = P1;
    state.gpr[1] = 100;
    state.gpr[2] = P2;
    state.gpr[6] = 2;
    state.gpr[8] = FRAME_3 | PRESENT | flags;
    state.gpr[9] = PAGES + 8 * (P2 >> 12 & 0x1ff);
    let end = machine.run(&state);
    assert_eq!((end.state.gpr[0], end.state.gpr[3]), (100, 100), "{end:?}");
}

#[test]
fn invlpg_ends_what_leads_to_the_page() {
    to_and_fro_before_and_after_a_change(0);
    to_and_fro_before_and_after_a_change(GLOBAL);
}

#[test]
fn an_instruction_that_is_overwritten_is_executed_as_it_is_then() {
    let mut machine = Machine::new();
    let state = long(&machine);
    // mov ecx, 5; mov [the 0 below], cl; mov eax, 0; add ebx, eax; dec ecx; jnz
    let code = [
        0xb9, 5, 0, 0, 0, 0x88, 0x0d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0x01, 0xc3, 0xff, 0xc9, 0x75,
        0xef,
    ];
    place(&machine, CODE, &[&code, &END]);
    let end = machine.run(&state);
    assert_eq!(end.state.gpr[3], 15);
}

#[test]
fn flags_that_a_check_disturbed_are_there_when_it_fails() {
    let mut machine = Machine::new();
    let mut state = long(&machine);
    // sub eax, 1 (borrows); mov rdx, [rsi], which is not mapped: the flags are those of SUB.
    place(&machine, CODE, &[&[0x83, 0xe8, 1, 0x48, 0x8b, 0x16]]);
    state.gpr[6] = 0x4000_0000;
    let end = machine.run(&state);
    assert!(end.reason.contains("#PF(0x0) at 0x40000000"), "{end:?}");
    assert_eq!(end.state.rip, CODE + 3);
    assert_eq!(end.state.rflags & 0x8d5, 0x95, "CF, PF, AF, SF");
    // shl eax, 1 leaves nothing to compute them from.
    let mut machine = Machine::new();
    let mut state = CpuState {
        gpr: state.gpr,
        ..long(&machine)
    };
    place(&machine, CODE, &[&[0xd1, 0xe0, 0x48, 0x8b, 0x16]]);
    state.gpr[0] = 0x8000_0000;
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + 2);
    assert_eq!(end.state.rflags & 0x8c5, 0x845, "OF, ZF, PF, CF");
}

#[test]
fn flags_that_die_with_a_load_are_there_when_it_fails() {
    for fails in [true, false] {
        let mut machine = Machine::new();
        let mut state = long(&machine);
        // cmp rax, rcx (5 and 6); mov rax, [rsi]; xor edx, edx: where it fails, RAX and the flags are as before.
        let code = [0x48, 0x39, 0xc8, 0x48, 0x8b, 0x06, 0x31, 0xd2];
        place(&machine, CODE, &[&code, &END]);
        (state.gpr[0], state.gpr[1], state.gpr[2]) = (5, 6, 7);
        state.gpr[6] = if fails { P1 } else { FRAME_1 };
        if !fails {
            map(&machine, FRAME_1, FRAME_1, 0);
        }
        let end = machine.run(&state);
        let (rip, rax, rdx) = if fails {
            (CODE + 3, 5, 7)
        } else {
            (CODE + 8, 0, 0)
        };
        assert_eq!(end.state.rip, rip, "{end:?}");
        assert_eq!((end.state.gpr[0], end.state.gpr[2]), (rax, rdx));
        let (known, flags) = if fails { (0x8d5, 0x95) } else { (0x8c5, 0x44) };
        assert_eq!(end.state.rflags & known, flags);
    }
}

#[test]
fn flags_outlive_what_they_are_computed_from() {
    let mut machine = Machine::new();
    let mut state = long(&machine);
    map(&machine, P1, FRAME_1, 0);
    // mov ebx, 3; mov eax, 6; cmp rax, 5; mov rax, [rsi]; mov ecx, eax; setp dl; dec ebx; jnz
    let code = [
        0xbb, 3, 0, 0, 0, 0xb8, 6, 0, 0, 0, 0x48, 0x83, 0xf8, 5, 0x48, 0x8b, 0x06, 0x89, 0xc1,
        0x0f, 0x9a, 0xc2, 0xff, 0xcb, 0x75, 0xeb,
    ];
    place(&machine, CODE, &[&code, &END]);
    // The lowest byte of its host address has two ones: what computes that sets PF.
    (state.gpr[2], state.gpr[6]) = (7, P1 + 3);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + code.len() as u64, "{end:?}");
    assert_eq!(end.state.gpr[..3], [0, 0, 0]);
}

#[test]
fn flags_that_are_yet_to_be_computed_survive_calls_and_returns() {
    let mut machine = Machine::new();
    let mut state = long(&machine);
    map(&machine, P1, FRAME_1, 0);
    // mov ebx, 3; again: push rax; sub rsp, 0x10; mov rax, [rdi]; call f; pushfq; pop r8; add rsp, 0x18; dec ebx;
    // jnz again; end
    let caller = [
        0xbb, 3, 0, 0, 0, 0x50, 0x48, 0x83, 0xec, 0x10, 0x48, 0x8b, 0x07, 0xe8, 13, 0, 0, 0, 0x9c,
        0x41, 0x58, 0x48, 0x83, 0xc4, 0x18, 0xff, 0xcb, 0x75, 0xe8, END[0], END[1],
    ];
    // f: pushfq; pop rcx; push rsi; add rdx, 5; mov rax, [rdi]; pop rsi; ret
    let callee = [
        0x9c, 0x59, 0x56, 0x48, 0x83, 0xc2, 5, 0x48, 0x8b, 0x07, 0x5e, 0xc3,
    ];
    place(&machine, CODE, &[&caller, &callee]);
    // What is computed at the last return is the address of code, so that nothing else may be there.
    (state.gpr[2], state.gpr[7]) = (CODE - 15, P1);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + caller.len() as u64 - 2, "{end:?}");
    assert_eq!(end.state.gpr[4], STACK);
    assert_eq!(end.state.gpr[1] & 0x8d5, 0x4, "0x1fff8 - 0x10: PF");
    assert_eq!(end.state.gpr[8] & 0x8d5, 0x14, "0xfffb + 5: PF, AF");
}

#[test]
fn registers_of_the_frame_are_what_was_computed() {
    let run = |code: &[u8]| {
        let machine = Machine::new();
        let mut state = long(&machine);
        state.gpr[10] = 0x1234_5678;
        state.gpr[11] = 0x5555_0000_5555;
        place(&machine, CODE, &[code, &END]);
        let mut machine = machine;
        machine.run(&state).state
    };
    // stc; sbb r11, r11; and r11d, 0xfd: written where it was read
    let code = [0xf9, 0x4d, 0x19, 0xdb, 0x41, 0x81, 0xe3, 0xfd, 0, 0, 0];
    assert_eq!(run(&code).gpr[11], 0xfd);
    // xadd r10, r10
    assert_eq!(run(&[0x4d, 0x0f, 0xc1, 0xd2]).gpr[10], 0x2468_acf0);
    // bts r10, r11: the bit's number is taken modulo 64
    assert_eq!(
        run(&[0x4d, 0x0f, 0xab, 0xda]).gpr[10],
        0x1234_5678 | 1 << 0x15
    );
    // mov r10d, r11d; mov r11b, 1; add r10, r11
    let code = [0x45, 0x89, 0xda, 0x41, 0xb3, 1, 0x4d, 0x01, 0xda];
    assert_eq!(run(&code).gpr[10], 0x5555_0000_5501 + 0x5555);
    // lea r10, [r10+r11*2]; neg r10; cdqe; movsx r11, r10w
    let code = [
        0x4f, 0x8d, 0x14, 0x5a, 0x49, 0xf7, 0xda, 0x48, 0x98, 0x4d, 0x0f, 0xbf, 0xda,
    ];
    let wide = 0u64.wrapping_sub(0x1234_5678 + 2 * 0x5555_0000_5555);
    let end = run(&code);
    assert_eq!((end.gpr[10], end.gpr[11]), (wide, wide as i16 as u64));
}

/// Lists whose nodes lie on pages that are far apart in the host, one of them across a border; and what comes before
/// a node that is not there.
#[test]
fn loads_of_what_is_loaded_from_next_follow_the_list() {
    const ROUNDS: u64 = 1000;
    let machine = Machine::new();
    let mut state = long(&machine);
    map(&machine, P1, FRAME_1, 0);
    map(&machine, P2, FRAME_2, 0);
    // stc; mov rdi, [rdi+12]; mov rdi, [rdi]; mov rsi, [rdx+rsi*8+8]; movzx ecx, word [rcx]; adc ebx, 0; dec ebp; jnz;
    // mov rax, [rax]: its address is that of no page
    let code = [
        0xf9, 0x48, 0x8b, 0x7f, 0x0c, 0x48, 0x8b, 0x3f, 0x48, 0x8b, 0x74, 0xf2, 0x08, 0x0f, 0xb7,
        0x09, 0x83, 0xd3, 0x00, 0xff, 0xcd, 0x75, 0xe9, 0x48, 0x8b, 0x00,
    ];
    place(&machine, CODE, &[&code, &END]);
    // The node's link is half on the first page, half on the second.
    let (node, link, low) = (P1 + 0xff0, P1 + 0x800, 0x3000u64);
    machine.write(FRAME_1 + 0xffc, &(link as u32).to_le_bytes());
    machine.write(FRAME_2, &(link >> 32).to_le_bytes()[..4]);
    machine.write(FRAME_1 + 0x800, &node.to_le_bytes());
    machine.write(low, &low.to_le_bytes());
    for n in 0..5 {
        machine.write(FRAME_2 + 0x108 + 8 * n, &((n + 1) % 5).to_le_bytes());
    }
    let gpr = &mut state.gpr;
    (gpr[0], gpr[1], gpr[2], gpr[7]) = (1 << 40, low, P2 + 0x100, node);
    gpr[5] = ROUNDS;
    let mut machine = machine;
    let end = machine.run(&state);
    let gpr = end.state.gpr;
    assert!(end.reason.contains("#PF(0x0) at 0x10000000000"), "{end:?}");
    assert_eq!((end.state.rip, gpr[0]), (CODE + 23, 1 << 40));
    assert_eq!(
        (gpr[1], gpr[3], gpr[6], gpr[7]),
        (low, ROUNDS, ROUNDS % 5, node)
    );
}

/// Copies and fills on one page and over its border, up and down, over themselves, of nothing and of more than there is.
#[test]
fn strings_do_what_they_say_element_by_element() {
    const ROUNDS: u64 = 3;
    let cases = [
        // From, to, elements.
        (0x10u64, 0x100u64, 0x20u64),
        (0x10, 0x11, 0x40),
        (0x48, 0x40, 0x30),
        (0xff0, 0x200, 8),
        (0x300, 0xffc, 5),
        (0x1f00, 0xe00, 0x20),
        (0x20, 0x1000, 0),
        (0x0, 0x1000, 0x200),
        (0x8, 0x1008, 0x200),
    ];
    for (moves, size, down) in [true, false]
        .into_iter()
        .flat_map(|moves| [1u64, 2, 4, 8].map(|size| (moves, size)))
        .flat_map(|(moves, size)| [false, true].map(|down| (moves, size, down)))
    {
        for (from, to, count) in cases {
            // Down from the end of what goes up from there.
            let last = if down {
                count.saturating_sub(1) * size
            } else {
                0
            };
            let (from, to) = (from + last, to + last);
            if from + 8 * size > 0x1ff0 || to.max(from) + count * size > 0x1fff {
                continue;
            }
            let mut expected: Vec<u8> = (0..0x2000u64).map(|n| (n * 7 + (n >> 8)) as u8).collect();
            let machine = Machine::new();
            let mut state = long(&machine);
            map(&machine, P1, FRAME_1, 0);
            map(&machine, P2, FRAME_2, 0);
            machine.write(FRAME_1, &expected[..0x1000]);
            machine.write(FRAME_2, &expected[0x1000..]);
            let value = 0x1122_3344_5566_7788u64;
            let step = if down { size.wrapping_neg() } else { size };
            for n in (0..ROUNDS).flat_map(|_| 0..count) {
                let [from, to] =
                    [from, to].map(|at| at.wrapping_add(n.wrapping_mul(step)) as usize);
                let element = match moves {
                    true => expected[from..from + size as usize].to_vec(),
                    false => value.to_le_bytes()[..size as usize].to_vec(),
                };
                expected[to..to + size as usize].copy_from_slice(&element);
            }
            // mov rdi, r8; mov rsi, r9; mov rcx, r10; cld or std; rep …; dec r11; jnz
            let set = [0x4c, 0x89, 0xc7, 0x4c, 0x89, 0xce, 0x4c, 0x89, 0xd1];
            let direction = if down { 0xfd } else { 0xfc };
            let mut string = vec![direction];
            string.extend((size == 2).then_some(0x66));
            string.push(0xf3);
            string.extend((size == 8).then_some(0x48));
            string.push(if moves { 0xa4 } else { 0xaa } | u8::from(size > 1));
            let back = (set.len() + string.len() + 5) as u8;
            let again = [0x49, 0xff, 0xcb, 0x75, back.wrapping_neg()];
            place(&machine, CODE, &[&set, &string, &again, &END]);
            (state.gpr[0], state.gpr[8], state.gpr[9]) = (value, P1 + to, P1 + from);
            (state.gpr[10], state.gpr[11]) = (count, ROUNDS);
            let mut machine = machine;
            let end = machine.run(&state);
            let case = format!("{moves} {size} {down} {from:#x} {to:#x} {count:#x} {end:?}");
            let moved = count.wrapping_mul(step);
            let gpr = end.state.gpr;
            assert_eq!(
                (gpr[1], gpr[7]),
                (0, (P1 + to).wrapping_add(moved)),
                "{case}"
            );
            let source = if moves { moved } else { 0 };
            assert_eq!(gpr[6], (P1 + from).wrapping_add(source), "{case}");
            let found = [machine.read::<0x1000>(FRAME_1), machine.read(FRAME_2)].concat();
            assert!(found == expected, "{case}");
        }
    }
    // More than all pages have, so much that its bytes are none again: as far as there is a page.
    let machine = Machine::new();
    let mut state = long(&machine);
    map(&machine, P1, FRAME_1, 0);
    // mov rdi, r8; mov rcx, r10; rep stosq
    place(
        &machine,
        CODE,
        &[
            &[0x4c, 0x89, 0xc7, 0x4c, 0x89, 0xd1, 0xf3, 0x48, 0xab],
            &END,
        ],
    );
    (state.gpr[8], state.gpr[10]) = (P1 + 0x800, (1 << 61) + 0x100);
    let mut machine = machine;
    let end = machine.run(&state);
    assert!(end.reason.contains("#PF(0x2) at 0x201000"), "{end:?}");
    assert_eq!((end.state.gpr[1], end.state.gpr[7]), (1 << 61, P2));
}

#[test]
fn profilers_find_what_code_stands_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("perf.map");
    umbra_cpu_soft::perf_map(&path).unwrap();
    let mut machine = Machine::of_kind(umbra_cpu_soft::Processor::Eager);
    let state = long(&machine);
    // inc eax
    place(&machine, CODE, &[&[0xff, 0xc0], &END]);
    machine.run(&state);
    let map = std::fs::read_to_string(&path).unwrap();
    let name = format!(" guest-kernel-{CODE:#x}");
    let line = map.lines().find(|line| line.ends_with(&name));
    let line = line.unwrap_or_else(|| panic!("{map}"));
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let (at, len) = (number(words[0]), number(words[1]));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let executable = maps.lines().any(|line| {
        let (range, rights) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        rights.starts_with("r-x") && number(from) <= at && at + len <= number(to)
    });
    assert!(executable, "{line}");
    let again = umbra_cpu_soft::perf_map(&path).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn an_endless_loop_hears_who_wants_it() {
    // jmp to itself; jmp rax; call rax and so on down the stack's page, back up by AND.
    let ways: [&[u8]; 3] = [
        &[0xeb, 0xfe],
        &[0xff, 0xe0],
        &[
            0x48, 0x81, 0xe4, 0x00, 0xf0, 0xff, 0xff, 0x48, 0x81, 0xcc, 0x00, 0x08, 0x00, 0x00,
            0xff, 0xd0,
        ],
    ];
    for code in ways {
        let mut machine = Machine::new();
        let mut state = long(&machine);
        place(&machine, CODE, &[code]);
        state.gpr[0] = CODE;
        state.gpr[4] = STACK - 0x100;
        machine.vcpu().set_state(&state).expect("a valid state");
        let kick = machine.vcpu().kick_handle();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            kick.kick();
        });
        assert!(machine.go_on(&Quiet).is_none(), "kicked");
        kicker.join().expect("it only kicks");
        assert_eq!(machine.vcpu().state().rip & !0xf, CODE, "in the loop");
    }
}

struct Quiet;

impl umbra_cpu::Io for Quiet {
    fn mmio_read(&self, _: umbra_slots::Gpa, data: &mut [u8]) -> umbra_cpu::Served {
        data.fill(0xff);
        umbra_cpu::Served::Done
    }
    fn mmio_write(&self, _: umbra_slots::Gpa, _: &[u8]) -> umbra_cpu::Served {
        umbra_cpu::Served::Done
    }
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
}

const HANDLER: u64 = 0x1_8000;
const VECTOR: u64 = 0x44;

/// 64-bit mode with a handler for [`VECTOR`] and the local APIC at its place.
fn with_timer(machine: &Machine) -> CpuState {
    let mut state = long(machine);
    let entry = |at: u64, value: u64| machine.write(at, &value.to_le_bytes());
    entry(0x10_2018, 0x10_5007);
    entry(0x10_5000 + 8 * (0xfee0_0000 >> 21 & 0x1ff), 0xfee0_0087);
    machine.descriptor(0x28, 0x00af_9b00_0000_ffff);
    state.seg[1].selector = 0x28;
    entry(IDT + 16 * VECTOR, gate(0x28, HANDLER, 0xe, 0));
    state.idtr.limit = 16 * (VECTOR as u16 + 1) - 1;
    state.gpr[7] = 0xfee0_0000;
    state.rflags |= IF;
    state
}

/// `mov dword [rdi + register], value`
fn set(register: u32, value: u32) -> Vec<u8> {
    [
        &[0xc7, 0x87][..],
        &register.to_le_bytes(),
        &value.to_le_bytes(),
    ]
    .concat()
}

/// A loop that counts RAX, and looks at nothing.
const COUNT: [u8; 5] = [0x48, 0xff, 0xc0, 0xeb, 0xfb];

#[test]
fn a_timer_that_a_store_set_ends_a_loop() {
    let mut machine = Machine::new();
    let state = with_timer(&machine);
    machine.apic().mmio_write(0xf0, 0x1ff);
    place(&machine, HANDLER, &[&END]);
    // One shot, a nanosecond a count, a millisecond.
    let code = [
        set(0x320, VECTOR as u32),
        set(0x3e0, 0xb),
        set(0x380, 1_000_000),
        COUNT.to_vec(),
    ];
    place(&machine, CODE, &[&code.concat()]);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, HANDLER, "{end:?}");
    if std::env::var("UMBRA_PROCESSOR").is_err() {
        assert_eq!(count(&mut machine, "attention for the timer"), 1);
    }
}

#[test]
fn a_deadline_that_wrmsr_set_ends_a_loop() {
    let mut machine = Machine::new();
    let state = with_timer(&machine);
    machine.apic().mmio_write(0xf0, 0x1ff);
    place(&machine, HANDLER, &[&END]);
    // rdtsc; shl rdx, 32; or rax, rdx; add rax, 1000000; mov rdx, rax; shr rdx, 32; mov ecx, 0x6e0; wrmsr
    let deadline = [
        0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x05, 0x40, 0x42, 0x0f, 0x00,
        0x48, 0x89, 0xc2, 0x48, 0xc1, 0xea, 0x20, 0xb9, 0xe0, 0x06, 0x00, 0x00, 0x0f, 0x30,
    ];
    let code = [
        set(0x320, 0x4_0000 | VECTOR as u32),
        deadline.to_vec(),
        COUNT.to_vec(),
    ];
    place(&machine, CODE, &[&code.concat()]);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, HANDLER, "{end:?}");
}

#[test]
fn a_scan_that_finds_nothing_leaves_its_destination() {
    // bsf r13, rax; bsr r14, rax; and TZCNT, which is BSF for who has no BMI1, of r15.
    let mut machine = Machine::new();
    let mut state = long(&machine);
    let code = [
        0x4c, 0x0f, 0xbc, 0xe8, 0x4c, 0x0f, 0xbd, 0xf0, 0xf3, 0x4c, 0x0f, 0xbc, 0xf8,
    ];
    place(&machine, CODE, &[&code, &END]);
    state.gpr[13..].copy_from_slice(&[0x1313, 0x1414, 0x1515]);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + 13, "{end:?}");
    assert_eq!(end.state.gpr[13..], [0x1313, 0x1414, 0x1515]);
}
