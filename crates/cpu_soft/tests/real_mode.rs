//! Real-address mode, and what protected mode leaves behind in it (SDM vol. 3, 20.1, 9.9).
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, DATA_0, END, End, Machine, protected};
use umbra_x86::cr0;
use umbra_x86::rflags::{FIXED, IF};
use umbra_x86::state::{CpuState, DescriptorTable, Segment, seg};

const CODE_AT: u16 = 0x1000;
const STACK_AT: u16 = 0x2000;
const DATA_AT: u16 = 0x3000;
const TARGET: u16 = 0x8000;

fn real() -> CpuState {
    let segment = |selector: u16, kind: u16| Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        attr: kind | Segment::S | Segment::P,
    };
    let mut state = protected();
    state.cr0 &= !cr0::PE;
    state.seg = [DATA_AT, CODE_AT, STACK_AT, DATA_AT, DATA_AT, DATA_AT].map(|s| segment(s, 3));
    state.seg[seg::CS] = segment(CODE_AT, 0xb);
    state.rip = 0;
    state.gpr[4] = 0x100;
    state.idtr = DescriptorTable {
        base: 0,
        limit: 0x3ff,
    };
    state
}

/// Runs at 0x1000:0; what ends it is a vector whose handler is a shutdown: the table says 0.
fn run(machine: &mut Machine, state: &CpuState, code: &[u8]) -> End {
    machine.write(u64::from(CODE_AT) << 4, code);
    let mut state = state.clone();
    // No vector is in the table: the first exception ends it.
    state.idtr.limit = 0;
    machine.run(&state)
}

fn with_end(code: &[u8]) -> Vec<u8> {
    [code, &END].concat()
}

#[test]
fn a_segment_is_its_selector_times_16() {
    let mut machine = Machine::new();
    // mov ax, 0x3456; mov es, ax; mov byte es:[0x10], 0x77
    let code = [
        0xb8, 0x56, 0x34, 0x8e, 0xc0, 0x26, 0xc6, 0x06, 0x10, 0, 0x77,
    ];
    let end = run(&mut machine, &real(), &with_end(&code));
    assert_eq!(end.state.seg[seg::ES].base, 0x3_4560);
    assert_eq!(machine.read::<1>(0x3_4570), [0x77]);
}

#[test]
fn an_access_beyond_64_kib_of_a_segment_raises_gp_or_ss() {
    // Vectors 12 and 13 without error codes (SDM vol. 3, 20.1.4).
    for (code, vector) in [
        (&[0x8b, 0x07][..], "13"), // mov ax, [bx]
        (&[0x89, 0x07], "13"),
        (&[0x8b, 0x46, 0x00], "12"),       // mov ax, [bp]
        (&[0x66, 0x8b, 0x47, 0xfe], "13"), // mov eax, [bx - 2]
    ] {
        let mut state = real();
        state.gpr[3] = 0xffff;
        state.gpr[5] = 0xffff;
        let end = run(&mut Machine::new(), &state, &with_end(code));
        assert!(end.exception().starts_with(vector), "{code:x?}: {end:?}");
        assert_eq!(end.state.rip, 0, "{code:x?}");
    }
    // The last word is within.
    let mut state = real();
    state.gpr[3] = 0xfffe;
    let end = run(&mut Machine::new(), &state, &with_end(&[0x8b, 0x07]));
    assert_eq!(end.state.rip, 2);
}

#[test]
fn a_32_bit_address_must_stay_within_64_kib_all_the_same() {
    // mov al, [ebx] with the address-size prefix.
    let mut state = real();
    state.gpr[3] = 0x1_0000;
    let end = run(&mut Machine::new(), &state, &with_end(&[0x67, 0x8a, 0x03]));
    assert!(end.exception().starts_with("13"), "{end:?}");
}

#[test]
fn the_stack_pointer_wraps_at_64_kib() {
    let mut machine = Machine::new();
    let mut state = real();
    state.gpr[4] = 0;
    state.gpr[0] = 0x1234;
    let end = run(&mut machine, &state, &with_end(&[0x50]));
    assert_eq!(end.state.gpr[4], 0xfffe);
    assert_eq!(
        machine.read_u16((u64::from(STACK_AT) << 4) + 0xfffe),
        0x1234
    );
    // With one byte left nothing fits.
    state.gpr[4] = 1;
    let end = run(&mut Machine::new(), &state, &with_end(&[0x50]));
    assert!(end.exception().starts_with("12"), "{end:?}");
}

#[test]
fn code_does_not_run_on_behind_64_kib() {
    let mut machine = Machine::new();
    let mut state = real();
    state.rip = 0xffff;
    // NOP in the last byte.
    machine.write((u64::from(CODE_AT) << 4) + 0xffff, &[0x90]);
    let end = run(&mut machine, &state, &END);
    assert!(end.exception().starts_with("13"), "{end:?}");
}

#[test]
fn an_interrupt_pushes_three_words_and_iret_takes_them() {
    let mut machine = Machine::new();
    let mut state = real();
    state.rflags = FIXED | IF;
    machine.write(0x20 * 4, &[0, 0x80, 0x00, 0x10]); // 0x1000:0x8000
    machine.write((u64::from(CODE_AT) << 4) + u64::from(TARGET), &END);
    machine.write(u64::from(CODE_AT) << 4, &[0xcd, 0x20]);
    // Vector 6 is in the table, too: its handler is at 0:0, which has no code but zeros.
    state.idtr.limit = 0x21 * 4 - 1;
    machine.write(6 * 4, &[0x00, 0x90, 0x00, 0x10]);
    // The handler of #UD: hlt with interrupts off would wait for ever; a triple fault ends it.
    let lidt = [0x0f, 0x01, 0x1e, 0x00, 0x91, 0x0f, 0x0b];
    machine.write((u64::from(CODE_AT) << 4) + 0x9000, &lidt);
    let end = machine.run(&state);
    let stack = u64::from(STACK_AT) << 4;
    assert_eq!(
        machine.read_u16(stack + 0xfe),
        (FIXED | IF) as u16,
        "{end:?}"
    );
    assert_eq!(machine.read_u16(stack + 0xfc), CODE_AT);
    assert_eq!(machine.read_u16(stack + 0xfa), 2);
}

#[test]
fn a_vector_beyond_the_limit_of_the_table_is_gp() {
    let mut state = real();
    state.idtr.limit = 0x20 * 4 - 1;
    let mut machine = Machine::new();
    machine.write(u64::from(CODE_AT) << 4, &[0xcd, 0x20]);
    // Vector 13 leads to a handler that makes the table empty.
    machine.write(13 * 4, &[0x00, 0x80, 0x00, 0x10]);
    machine.write(
        (u64::from(CODE_AT) << 4) + 0x8000,
        &[0x0f, 0x01, 0x1e, 0x00, 0x91, 0x0f, 0x0b],
    );
    let end = machine.run(&state);
    assert_eq!(
        (end.state.rip, end.state.gpr[4]),
        (0x8005, 0x100 - 6),
        "{end:?}"
    );
}

#[test]
fn instructions_of_protected_mode_are_undefined() {
    // SLDT, STR, LLDT, LTR, VERR, VERW, LAR, LSL, ARPL (SDM vol. 3, 20.1.3).
    for code in [
        &[0x0f, 0x00, 0xc0][..],
        &[0x0f, 0x00, 0xc8],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x00, 0xe0],
        &[0x0f, 0x00, 0xe8],
        &[0x0f, 0x02, 0xc0],
        &[0x0f, 0x03, 0xc0],
        &[0x63, 0xc0],
    ] {
        let end = run(&mut Machine::new(), &real(), &[code, &[0xf4]].concat());
        assert!(end.exception().starts_with('6'), "{code:x?}: {end:?}");
        assert_eq!(end.state.rip, 0, "{code:x?}");
    }
    // SYSENTER needs protected mode.
    let end = run(&mut Machine::new(), &real(), &[0x0f, 0x34]);
    assert!(end.exception().starts_with("13"), "{end:?}");
}

#[test]
fn limits_of_protected_mode_stay_in_force() {
    // "Unreal" mode: PE on, DS and ES = flat data, PE off, an access at 3 MiB, and a new selector.
    let mut machine = Machine::new();
    let mut state = real();
    state.gpr[3] = 0x30_0000;
    state.gpr[1] = DATA_0.into();
    let code = [
        &[0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0][..], // mov eax, cr0; or al, 1; mov cr0, eax
        &[0x8e, 0xd9],                                         // mov ds, cx
        &[0x24, 0xfe, 0x0f, 0x22, 0xc0],                       // and al, 0xfe; mov cr0, eax
        &[0x67, 0xc6, 0x03, 0x5a],                             // mov byte [ebx], 0x5a
        &[0x31, 0xd2, 0x8e, 0xda],                             // xor dx, dx; mov ds, dx
        &[0x67, 0xc6, 0x43, 0x01, 0x5b],                       // mov byte [ebx + 1], 0x5b
        &END,
    ];
    let end = run(&mut machine, &state, &code.concat());
    assert!(end.exception().starts_with('6'), "{end:?}");
    assert_eq!(machine.read::<2>(0x30_0000), [0x5a, 0x5b]);
    assert_eq!(end.state.seg[seg::DS].limit, u32::MAX);
    assert_eq!(end.state.seg[seg::DS].base, 0);
}

#[test]
fn a_selector_keeps_its_base_of_protected_mode_until_it_is_loaded() {
    let mut machine = Machine::new();
    let mut state = real();
    // A base that no selector of real mode has.
    state.seg[seg::DS].base = 0x20_0000;
    machine.write(0x20_0000, &[0x42]);
    let end = run(&mut machine, &state, &with_end(&[0xa0, 0, 0]));
    assert_eq!(end.state.gpr[0] & 0xff, 0x42);
}

#[test]
fn a_far_jump_ends_prefetched_protected_mode_code() {
    // In protected mode, PE off, then a far jump loads CS by the rules of real mode.
    let mut machine = Machine::new();
    let mut state = protected();
    state.seg[seg::CS].attr &= !Segment::DB;
    state.seg[seg::CS].limit = 0xf_ffff;
    // mov eax, cr0; and al, 0xfe; mov cr0, eax; jmp 0x1000:0x8000
    let code = [
        0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0, 0xea, 0x00, 0x80, 0x00, 0x10,
    ];
    machine.write(CODE, &code);
    machine.write(0x1_8000, &END);
    let end = machine.run(&state);
    assert!(end.exception().starts_with('6'), "{end:?}");
    assert_eq!(
        (end.state.rip, end.state.seg[seg::CS].base),
        (0x8000, 0x1_0000)
    );
}
