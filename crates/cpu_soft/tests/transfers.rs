//! Between privilege levels and address spaces without leaving translated code: the common cases, and those
//! that are not. With `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, DATA_3, END, End, IDT, Machine, PAGES, PML4, STACK, gate};
use umbra_cpu::Vcpu;
use umbra_x86::rflags::{AC, DF, FIXED, IF, NT, RF, TF};
use umbra_x86::state::{CpuState, Segment, seg};
use umbra_x86::{cr0, cr4, efer, msr};

const LONG_0: u16 = 0x38;
const LONG_3: u16 = 0x2b;
/// SYSCALL enters 0x38 and 0x40; SYSRET returns to 0x2b and 0x23.
const STAR: u64 = 0x001b_0038 << 32;
const TASK_AT: u64 = 0x3000;
const INNER_STACK: u64 = 0x2_8000;
/// The kernel of these tests, and its handler of page faults.
const KERNEL: u64 = 0x1_8000;
const HANDLER: u64 = 0x1_9000;
const USER: u64 = 0x1_a000;
/// A page of [`PAGES`], and what may be behind it.
const PAGE: u64 = 0x20_0000;
const FRAME: u64 = 0x30_0000;
const ROUNDS: u64 = 1000;

fn translates() -> bool {
    // Else each block leaves to the loop.
    std::env::var("UMBRA_PROCESSOR").is_err()
}

fn count(machine: &mut Machine, name: &str) -> u64 {
    let statistics = machine.vcpu().statistics();
    let known = statistics.iter().find(|(known, _)| *known == name);
    known.expect("a counter of that name").1
}

/// Of what translated code was asked, nothing went through the loop but a few.
fn stayed_inside(machine: &mut Machine) {
    if translates() {
        let entries = count(machine, "entries to translated code");
        assert!(entries < ROUNDS / 10, "{entries} entries");
    }
}

/// 64-bit code of level 0, with a task state.
fn machine() -> (Machine, CpuState) {
    let machine = Machine::new();
    machine.descriptor(LONG_0, 0x00af_9b00_0000_ffff);
    machine.descriptor(LONG_3, 0x00af_fb00_0000_ffff);
    machine.write(TASK_AT + 4, &INNER_STACK.to_le_bytes());
    let mut state = bare::long(&machine);
    state.seg[seg::CS] = bare::long_code(LONG_0);
    state.tr = Segment {
        selector: 0x48,
        base: TASK_AT,
        limit: 0x67,
        attr: 0xb | Segment::P,
    };
    state.efer |= efer::SCE;
    state.gpr[6] = ROUNDS;
    (machine, state)
}

fn wrmsr(number: u32, value: u64) -> Vec<u8> {
    let [low, high] = [value as u32, (value >> 32) as u32].map(u32::to_le_bytes);
    let number = number.to_le_bytes();
    let set = [&[0xb9], &number[..], &[0xb8], &low, &[0xba], &high];
    [set.concat(), vec![0x0f, 0x30]].concat()
}

/// What IRETQ takes.
fn push_frame(machine: &Machine, state: &mut CpuState, words: [u64; 5]) {
    machine.write(STACK - 40, &words.map(u64::to_le_bytes).concat());
    state.gpr[4] = STACK - 40;
}

/// Level 0 goes to `user` code of level 3 by IRETQ, and `kernel` is behind SYSCALL.
fn with_kernel(user: &[u8], kernel: &[u8]) -> (Machine, CpuState) {
    let (machine, mut state) = machine();
    let set = [
        wrmsr(msr::STAR, STAR),
        wrmsr(msr::LSTAR, KERNEL),
        wrmsr(msr::FMASK, IF | DF | AC),
        vec![0x31, 0xc0, 0x48, 0xcf], // xor eax, eax; iretq
    ];
    machine.write(CODE, &set.concat());
    machine.write(USER, &[user, &END].concat());
    machine.write(KERNEL, kernel);
    let frame = [USER, LONG_3.into(), FIXED | IF, STACK, DATA_3.into()];
    push_frame(&machine, &mut state, frame);
    (machine, state)
}

fn ended_at(end: &End, at: u64) {
    assert_eq!((end.exception(), end.state.rip), ("6", at), "{end:?}");
}

#[test]
fn system_calls_go_to_the_kernel_and_back() {
    // syscall; dec esi; jnz
    let user = [0x0f, 0x05, 0xff, 0xce, 0x75, 0xfa];
    // inc rax; sysretq
    let kernel = [0x48, 0xff, 0xc0, 0x48, 0x0f, 0x07];
    let (mut machine, state) = with_kernel(&user, &kernel);
    let end = machine.run(&state);
    ended_at(&end, USER + 6);
    assert_eq!(end.state.gpr[0], ROUNDS);
    assert_eq!(end.state.gpr[1], USER + 2);
    assert_eq!(end.state.rflags & (IF | AC | TF), IF);
    let [cs, ss] = [seg::CS, seg::SS].map(|s| end.state.seg[s].selector);
    assert_eq!((cs, ss), (LONG_3, DATA_3));
    stayed_inside(&mut machine);
}

/// A page that the kernel takes away is touched again and again; the handler gives it back.
#[test]
fn page_faults_go_to_the_handler_and_back() {
    // mov [rdi], esi; syscall; dec esi; jnz
    let user = [0x89, 0x37, 0x0f, 0x05, 0xff, 0xce, 0x75, 0xf8];
    // mov qword [r9], 0; invlpg [rdi]; sysretq
    let kernel = [
        0x49, 0xc7, 0x01, 0, 0, 0, 0, 0x0f, 0x01, 0x3f, 0x48, 0x0f, 0x07,
    ];
    let (mut machine, mut state) = with_kernel(&user, &kernel);
    // inc rbx; mov rbp, cr2; mov [r9], r8; add rsp, 8; iretq
    let handler = [
        0x48, 0xff, 0xc3, 0x0f, 0x20, 0xd5, 0x4d, 0x89, 0x01, 0x48, 0x83, 0xc4, 8, 0x48, 0xcf,
    ];
    machine.write(HANDLER, &handler);
    machine.write(IDT + 14 * 16, &gate(LONG_0, HANDLER, 0xe, 0).to_le_bytes());
    state.idtr.limit = 15 * 16 - 1;
    state.gpr[7] = PAGE + 8;
    state.gpr[8] = FRAME | 7;
    state.gpr[9] = PAGES + 8 * (PAGE >> 12 & 0x1ff);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, USER + 8, "{end:?}");
    assert_eq!((end.state.gpr[3], end.state.gpr[5]), (ROUNDS, PAGE + 8));
    assert_eq!(machine.read_u32(FRAME + 8), 1);
    assert_eq!(end.state.seg[seg::CS].selector, LONG_3);
    stayed_inside(&mut machine);
}

/// Two address spaces differ in one page.
#[test]
fn a_load_of_cr3_changes_what_is_read_behind_it() {
    const OTHER: u64 = 0x10_8000;
    let (mut machine, mut state) = machine();
    let entry = |at: u64, value: u64| machine.write(at, &value.to_le_bytes());
    entry(PAGES + 8 * (PAGE >> 12 & 0x1ff), FRAME | 7);
    entry(OTHER, OTHER + 0x1007);
    entry(OTHER + 0x1000, OTHER + 0x2007);
    entry(OTHER + 0x2000, 0x87);
    entry(OTHER + 0x2008, OTHER + 0x3007);
    entry(OTHER + 0x3000 + 8 * (PAGE >> 12 & 0x1ff), FRAME | 0x1007);
    machine.write(FRAME, &1u64.to_le_bytes());
    machine.write(FRAME + 0x1000, &1000u64.to_le_bytes());
    // mov cr3, rax; add rbx, [rdi]; xchg rax, rdx; dec esi; jnz
    let code = [
        0x0f, 0x22, 0xd8, 0x48, 0x03, 0x1f, 0x48, 0x92, 0xff, 0xce, 0x75, 0xf4,
    ];
    machine.write(CODE, &[&code[..], &END].concat());
    (state.gpr[0], state.gpr[2], state.gpr[7]) = (OTHER, PML4, PAGE);
    let end = machine.run(&state);
    ended_at(&end, CODE + code.len() as u64);
    assert_eq!(end.state.gpr[3], ROUNDS / 2 * 1001);
    stayed_inside(&mut machine);
    // Bits that do not exist.
    state.gpr[0] = 1 << 60;
    let end = machine.copy().run(&state);
    assert_eq!((end.exception(), end.state.rip), ("13(0x0)", CODE));
}

#[test]
fn stac_opens_what_clac_closes() {
    // stac; add ebx, [rdi]; add ebx, [rdi+4]; clac; dec esi; jnz; mov eax, [rdi]: what was checked for
    // the two is not good for the third.
    let code = [
        0x0f, 0x01, 0xcb, 0x03, 0x1f, 0x03, 0x5f, 0x04, 0x0f, 0x01, 0xca, 0xff, 0xce, 0x75, 0xf1,
        0x8b, 0x07,
    ];
    let run = |smap: u64, cpl: u16| {
        let (mut machine, mut state) = machine();
        if cpl == 3 {
            state.seg = [DATA_3; 6].map(bare::flat);
            state.seg[seg::CS] = bare::long_code(LONG_3);
        }
        state.cr4 |= smap;
        machine.write(KERNEL, &3u32.to_le_bytes());
        machine.write(CODE, &[&code[..], &END].concat());
        state.gpr[7] = KERNEL;
        let end = machine.run(&state);
        if smap != 0 && cpl == 0 {
            stayed_inside(&mut machine);
        }
        end
    };
    let end = run(cr4::SMAP, 0);
    assert_eq!(end.state.rip, CODE + 15, "{end:?}");
    assert!(end.reason.contains("#PF(0x1) at 0x18000"), "{end:?}");
    assert_eq!((end.state.gpr[3], end.state.rflags & AC), (3 * ROUNDS, 0));
    let end = run(0, 0);
    ended_at(&end, CODE + 17);
    assert_eq!((end.state.gpr[3], end.state.gpr[0]), (3 * ROUNDS, 3));
    ended_at(&run(cr4::SMAP, 3), CODE);
}

#[test]
fn what_was_checked_under_stac_is_checked_again_after_clac() {
    let (mut machine, mut state) = machine();
    let entry = |page: u64, to: u64| {
        machine.write(PAGES + 8 * (page >> 12 & 0x1ff), &to.to_le_bytes());
    };
    // The kernel's, and in the last round the user's.
    entry(PAGE, FRAME | 3);
    entry(PAGE + 0x1000, FRAME | 7);
    machine.write(FRAME, &3u32.to_le_bytes());
    // cmp esi, 1; cmove rdi, rdx; stac; add ebp, [rdx]; add ebx, [rdi]; add ebx, [rdi+4]; clac; mov eax, [rdi];
    // dec esi; jnz
    let code = [
        0x83, 0xfe, 0x01, 0x48, 0x0f, 0x44, 0xfa, 0x0f, 0x01, 0xcb, 0x03, 0x2a, 0x03, 0x1f, 0x03,
        0x5f, 0x04, 0x0f, 0x01, 0xca, 0x8b, 0x07, 0xff, 0xce, 0x75, 0xe6,
    ];
    machine.write(CODE, &[&code[..], &END].concat());
    (state.gpr[7], state.gpr[2]) = (PAGE, PAGE + 0x1000);
    state.cr4 |= cr4::SMAP;
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + 20, "{end:?}");
    assert!(end.reason.contains("#PF(0x1) at 0x201000"), "{end:?}");
    assert_eq!((end.state.gpr[3], end.state.gpr[6]), (3 * ROUNDS, 1));
    stayed_inside(&mut machine);
}

/// A loop walks from a page of the kernel's to one of the user's.
#[test]
fn a_page_that_was_accessed_under_stac_is_not_after_clac() {
    let (mut machine, mut state) = machine();
    for (page, to) in [(PAGE, FRAME | 3), (PAGE + 0x1000, (FRAME + 0x1000) | 7)] {
        machine.write(PAGES + 8 * (page >> 12 & 0x1ff), &to.to_le_bytes());
    }
    machine.write(FRAME, &[1; 0x1000]);
    machine.write(FRAME + 0x1000, &[2; 0x1000]);
    // stac; mov ebx, [rdx]; clac, so that the page is known; stac; mov ebx, [rdi]; clac; mov eax, [rdi]; add rdi, 4;
    // dec esi; jnz
    let code = [
        0x0f, 0x01, 0xcb, 0x8b, 0x1a, 0x0f, 0x01, 0xca, 0x0f, 0x01, 0xcb, 0x8b, 0x1f, 0x0f, 0x01,
        0xca, 0x8b, 0x07, 0x48, 0x83, 0xc7, 0x04, 0xff, 0xce, 0x75, 0xee,
    ];
    machine.write(CODE, &[&code[..], &END].concat());
    (state.gpr[6], state.gpr[7], state.gpr[2]) = (2000, PAGE, PAGE + 0x1000);
    state.cr4 |= cr4::SMAP;
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + 16, "{end:?}");
    assert!(end.reason.contains("#PF(0x1) at 0x201000"), "{end:?}");
    assert_eq!(
        (end.state.gpr[3], end.state.gpr[0]),
        (0x0202_0202, 0x0101_0101)
    );
    stayed_inside(&mut machine);
}

#[test]
fn swapgs_exchanges_what_gs_leads_to() {
    let (mut machine, mut state) = machine();
    machine.write(KERNEL + 8, &1u32.to_le_bytes());
    machine.write(HANDLER + 8, &1000u32.to_le_bytes());
    // swapgs; add ebx, gs:[rdi]; dec esi; jnz; swapgs
    let code = [
        0x0f, 0x01, 0xf8, 0x65, 0x03, 0x1f, 0xff, 0xce, 0x75, 0xf6, 0x0f, 0x01, 0xf8,
    ];
    let set = [
        wrmsr(msr::GS_BASE, KERNEL),
        wrmsr(msr::KERNEL_GS_BASE, HANDLER),
    ];
    machine.write(CODE, &[&set.concat()[..], &code, &END].concat());
    state.gpr[7] = 8;
    let end = machine.run(&state);
    ended_at(&end, CODE + (set.concat().len() + code.len()) as u64);
    assert_eq!(end.state.gpr[3], ROUNDS as u32 as u64 / 2 * 1001);
    assert_eq!(end.state.seg[seg::GS].base, HANDLER);
    stayed_inside(&mut machine);
    state.seg = [DATA_3; 6].map(bare::flat);
    state.seg[seg::CS] = bare::long_code(LONG_3);
    machine.write(CODE, &code);
    let end = machine.copy().run(&state);
    assert_eq!((end.exception(), end.state.rip), ("13(0x0)", CODE));
}

/// IRETQ at level 0 with `frame`.
fn iretq(frame: [u64; 5], prepare: impl FnOnce(&Machine, &mut CpuState)) -> (Machine, End) {
    let (mut machine, mut state) = machine();
    push_frame(&machine, &mut state, frame);
    machine.write(CODE, &[0x48, 0xcf]);
    machine.write(USER, &[&[0x90, 0x90][..], &END].concat());
    prepare(&machine, &mut state);
    let end = machine.run(&state);
    (machine, end)
}

#[test]
fn iretq_of_what_is_not_common_is_what_it_always_was() {
    let frame = |cs: u16, flags, ss: u16| [USER, cs.into(), FIXED | flags, STACK, ss.into()];
    let plain = |_: &Machine, _: &mut CpuState| {};
    // To the same level, with a stack segment and without.
    for ss in [bare::DATA_0, 0] {
        let (_, end) = iretq(frame(LONG_0, IF | DF, ss), plain);
        ended_at(&end, USER + 2);
        assert_eq!(end.state.rflags & (IF | DF), IF | DF);
        assert_eq!(
            (end.state.seg[seg::SS].selector, end.state.gpr[4]),
            (ss, STACK)
        );
    }
    // RF is about one instruction.
    let (_, end) = iretq(frame(LONG_3, RF, DATA_3), plain);
    ended_at(&end, USER + 2);
    assert_eq!(end.state.rflags & RF, 0);
    // Data segments of level 0 are not for level 3.
    for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
        assert_eq!(end.state.seg[index].selector, 0);
    }
    // A step behind the first instruction.
    let (_, end) = iretq(frame(LONG_3, TF, DATA_3), plain);
    assert_eq!((end.exception(), end.state.rip), ("1", USER + 1), "{end:?}");
    // Descriptors that were never used are marked.
    let (machine, end) = iretq(frame(LONG_3, 0, DATA_3), |machine, _| {
        machine.descriptor(LONG_3, 0x00af_fa00_0000_ffff);
    });
    ended_at(&end, USER + 2);
    assert_eq!(machine.read::<1>(bare::GDT + 0x28 + 5), [0xfb]);
    // Level 3 under alignment checks.
    let (_, end) = iretq(frame(LONG_3, AC, DATA_3), |machine, state| {
        // mov eax, [rdi]
        machine.write(USER, &[0x8b, 0x07]);
        state.cr0 |= cr0::AM;
        state.gpr[7] = USER + 1;
    });
    assert_eq!(
        (end.exception(), end.state.rip),
        ("17(0x0)", USER),
        "{end:?}"
    );
    for (what, cs, ss, nt, expected) in [
        ("a nested task", LONG_3, DATA_3, NT, "13(0x0)"),
        ("no code", DATA_3, DATA_3, 0, "13(0x20)"),
        ("code of another level", LONG_0 | 3, DATA_3, 0, "13(0x38)"),
        ("behind the table", 0xff8 | 3, DATA_3, 0, "13(0xff8)"),
        (
            "a stack of another level",
            LONG_3,
            bare::DATA_0,
            0,
            "13(0x10)",
        ),
        ("no stack", LONG_3, 0, 0, "13(0x0)"),
    ] {
        let (_, end) = iretq(frame(cs, 0, ss), |_, state| state.rflags |= nt);
        assert_eq!((end.exception(), end.state.rip), (expected, CODE), "{what}");
        assert_eq!(end.state.gpr[4], STACK - 40, "{what}");
    }
}

/// Two interrupts wait; what sets IF lets both in before the next instruction.
#[test]
fn interrupts_that_wait_come_when_a_return_sets_if() {
    const LOW: u64 = 0x44;
    const HIGH: u64 = 0x54;
    // By IRETQ to either level, by SYSRET, by POPFQ.
    let sysret = [
        &[0xb9][..],
        &(USER as u32).to_le_bytes(),
        &[0x48, 0x0f, 0x07],
    ]
    .concat();
    let popf = [
        &[0x9d, 0xb8][..],
        &(USER as u32).to_le_bytes(),
        &[0xff, 0xe0],
    ]
    .concat();
    for (code, cs) in [
        (vec![0x48, 0xcf], LONG_0),
        (vec![0x48, 0xcf], LONG_3),
        (sysret, LONG_3),
        (popf, LONG_0),
    ] {
        let (mut machine, mut state) = machine();
        machine.apic().mmio_write(0xf0, 0x1ff);
        let entry = |at: u64, value: u64| machine.write(at, &value.to_le_bytes());
        entry(0x10_2018, 0x10_5007);
        entry(0x10_5000 + 8 * (0xfee0_0000 >> 21 & 0x1ff), 0xfee0_0087);
        for (vector, handler, digit) in [(LOW, HANDLER, 1), (HIGH, HANDLER + 0x80, 2)] {
            entry(IDT + 16 * vector, gate(LONG_0, handler, 0xe, 0));
            // imul ebx, ebx, 10; add ebx, digit; mov dword [rdi + 0xb0], 0; iretq
            let handler_code = [
                0x6b, 0xdb, 10, 0x83, 0xc3, digit, 0xc7, 0x87, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0x48,
                0xcf,
            ];
            machine.write(handler, &handler_code);
        }
        state.idtr.limit = 16 * (HIGH as u16 + 1) - 1;
        state.gpr[7] = 0xfee0_0000;
        // mov dword [rdi + 0x300], to itself
        let send = |vector: u64| {
            let command = (0x4_0000 | vector as u32).to_le_bytes();
            [&[0xc7, 0x87, 0, 3, 0, 0][..], &command].concat()
        };
        let prepare = [
            wrmsr(msr::STAR, STAR),
            vec![0x41, 0xbb],
            vec![0x02, 0x02, 0, 0],
        ];
        machine.write(
            CODE,
            &[&prepare.concat()[..], &send(LOW), &send(HIGH), &code].concat(),
        );
        // inc ebp
        machine.write(USER, &[&[0xff, 0xc5][..], &END].concat());
        let frame = [
            USER,
            cs.into(),
            FIXED | IF,
            STACK,
            (cs & 3 | if cs == LONG_3 { DATA_3 } else { 0 }).into(),
        ];
        push_frame(&machine, &mut state, frame);
        if code[0] == 0x9d {
            machine.write(STACK - 40, &(FIXED | IF).to_le_bytes());
        }
        let end = machine.run(&state);
        ended_at(&end, USER + 2);
        assert_eq!(end.state.gpr[3], 21, "{code:x?}: {end:?}");
    }
}
