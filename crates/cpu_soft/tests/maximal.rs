//! What the maximal model has beyond the stock one: XSAVE (SDM vol. 1, chapter 13), protection keys
//! (vol. 3, 4.6.2), 57-bit addresses (vol. 3, 4.5), and instructions of their own leaves.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, End, Machine, PAGES, PML4, protected};
use umbra_cpu_soft::model;
use umbra_x86::state::CpuState;
use umbra_x86::{cr0, cr4};

/// Where XSAVE puts things, and where it is enabled from.
const AREA: u64 = 0x3_0000;
const HEADER: u64 = AREA + 512;
const X87_SSE_PKRU: u32 = 0x203;
const PML5: u64 = 0x10_0000;

const XSETBV: [u8; 3] = [0x0f, 0x01, 0xd1];
const XGETBV: [u8; 3] = [0x0f, 0x01, 0xd0];
const WRPKRU: [u8; 3] = [0x0f, 0x01, 0xef];
const RDPKRU: [u8; 3] = [0x0f, 0x01, 0xee];
/// At EDI.
const XSAVE: [u8; 3] = [0x0f, 0xae, 0x27];
const XRSTOR: [u8; 3] = [0x0f, 0xae, 0x2f];
const XSAVEOPT: [u8; 3] = [0x0f, 0xae, 0x37];
const XSAVEC: [u8; 3] = [0x0f, 0xc7, 0x27];
/// `xorps xmm0, xmm0`, `pcmpeqb xmm0, xmm0`.
const ZERO_XMM0: [u8; 3] = [0x0f, 0x57, 0xc0];
const ONES_XMM0: [u8; 4] = [0x66, 0x0f, 0x74, 0xc0];

fn machine() -> Machine {
    Machine::with_model(model::maximal(0, 1))
}

/// Protected mode with XSAVE and protection keys enabled; EDI is the area.
fn enabled() -> CpuState {
    let mut state = protected();
    state.cr4 = cr4::OSFXSR | cr4::OSXSAVE | cr4::PKE;
    state.gpr[7] = AREA;
    state
}

fn mov_eax(value: u32) -> Vec<u8> {
    [&[0xb8][..], &value.to_le_bytes()].concat()
}

/// Enables all components; EDX:EAX and ECX are then zero but for EAX.
fn enable() -> Vec<u8> {
    [&mov_eax(X87_SSE_PKRU)[..], &XSETBV].concat()
}

fn run_in(machine: &mut Machine, state: &CpuState, parts: &[&[u8]]) -> End {
    machine.write(CODE, &[&parts.concat()[..], &END].concat());
    machine.run(state)
}

fn run(parts: &[&[u8]]) -> (Machine, End) {
    let mut machine = machine();
    let end = run_in(&mut machine, &enabled(), parts);
    (machine, end)
}

#[test]
fn the_stock_model_knows_nothing_of_xsave() {
    for code in [&XSETBV, &XGETBV, &XSAVE, &XRSTOR, &XSAVEC] {
        let end = run_in(&mut Machine::new(), &enabled(), &[code]);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE), "{code:x?}");
    }
}

#[test]
fn without_osxsave_they_are_undefined() {
    let mut state = enabled();
    state.cr4 &= !cr4::OSXSAVE;
    for code in [&XSETBV, &XGETBV, &XSAVE, &XRSTOR, &XSAVEOPT, &XSAVEC] {
        let end = run_in(&mut machine(), &state, &[code]);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE), "{code:x?}");
    }
}

#[test]
fn a_task_switch_and_a_misaligned_area_are_noticed_in_this_order() {
    let mut state = enabled();
    state.gpr[7] += 16;
    for code in [&XSAVE, &XRSTOR, &XSAVEOPT, &XSAVEC] {
        let end = run_in(&mut machine(), &state, &[code]);
        assert_eq!(end.exception(), "13(0x0)", "{code:x?}");
    }
    state.cr0 |= cr0::TS;
    for code in [&XSAVE, &XRSTOR, &XSAVEOPT, &XSAVEC] {
        assert_eq!(run_in(&mut machine(), &state, &[code]).exception(), "7");
    }
}

#[test]
fn xsetbv_takes_only_components_that_exist_and_always_x87() {
    for (value, good) in [
        (1, true),
        (3, true),
        (0x203, true),
        (0, false),
        (2, false),
        (7, false),
    ] {
        let (_, end) = run(&[&mov_eax(value), &XSETBV]);
        let expected = if good { "6" } else { "13(0x0)" };
        assert_eq!(end.exception(), expected, "{value:#x}");
    }
    // ECX names the register, and there is one.
    let (_, end) = run(&[&[0x41], &mov_eax(1), &XSETBV]);
    assert_eq!(end.exception(), "13(0x0)");
}

#[test]
fn cpuid_0dh_follows_xcr0() {
    let leaf = |sub: u8| -> Vec<u8> { vec![0xb8, 0xd, 0, 0, 0, 0xb9, sub, 0, 0, 0, 0x0f, 0xa2] };
    let (_, before) = run(&[&leaf(0)]);
    assert_eq!(before.state.gpr[..4], [0x203, 2696, 0, 576]);
    let (_, after) = run(&[&enable(), &leaf(0)]);
    assert_eq!(after.state.gpr[3], 2696);
    let (_, compact) = run(&[&enable(), &leaf(1)]);
    assert_eq!((compact.state.gpr[0], compact.state.gpr[3]), (7, 584));
    let (_, pkru) = run(&[&leaf(9)]);
    assert_eq!((pkru.state.gpr[0], pkru.state.gpr[3]), (8, 2688));
}

#[test]
fn xsave_says_what_is_in_use_and_keeps_what_was_not_asked_for() {
    // SDM vol. 1, 13.7.
    let machine_with = |code: &[&[u8]]| {
        let mut machine = machine();
        machine.write(HEADER, &0x4u64.to_le_bytes());
        run_in(&mut machine, &enabled(), code);
        machine
    };
    let all = mov_eax(X87_SSE_PKRU);
    let idle = machine_with(&[&enable(), &ZERO_XMM0, &all, &XSAVE]);
    assert_eq!(idle.read_u32(HEADER), 4);
    let busy = machine_with(&[&enable(), &ONES_XMM0, &all, &XSAVE]);
    assert_eq!(busy.read_u32(HEADER), 4 | 2);
    assert_eq!(busy.read_u32(AREA + 160), u32::MAX);
    assert_eq!(busy.read_u32(AREA + 24), 0x1f80);
    // Only x87 is asked for: XMM0 is not written.
    let some = machine_with(&[&enable(), &ONES_XMM0, &mov_eax(1), &XSAVE]);
    assert_eq!((some.read_u32(HEADER), some.read_u32(AREA + 160)), (4, 0));
}

#[test]
fn the_mask_of_mxcsr_is_this_processors_whatever_the_hosts_is() {
    // fninit; fld1; fxsave [edi]; xsave [edi + 1024]
    let code = [
        0xdb, 0xe3, 0xd9, 0xe8, 0x0f, 0xae, 0x07, 0x0f, 0xae, 0xa7, 0, 4, 0, 0,
    ];
    let (machine, _) = run(&[&enable(), &mov_eax(X87_SSE_PKRU), &code]);
    for at in [AREA, AREA + 1024] {
        assert_eq!(machine.read_u32(at + 28), 0xffff, "{at:#x}");
    }
}

#[test]
fn xsaveopt_writes_nothing_of_what_is_initial() {
    let mut machine = machine();
    machine.write(AREA + 160, &[0xaa; 4]);
    machine.write(AREA, &[0xaa; 4]);
    let all = mov_eax(X87_SSE_PKRU);
    run_in(
        &mut machine,
        &enabled(),
        &[&enable(), &ZERO_XMM0, &all, &XSAVEOPT],
    );
    assert_eq!(machine.read_u32(AREA + 160), 0xaaaa_aaaa);
    assert_eq!(machine.read_u32(AREA), 0xaaaa_aaaa);
    assert_eq!(machine.read_u32(HEADER), 0);
}

#[test]
fn xsavec_packs_components_and_names_its_format() {
    // SDM vol. 1, 13.10: XCOMP_BV is what was asked for, XSTATE_BV what of it is in use.
    let pkru = [&mov_eax(0x5550)[..], &WRPKRU].concat();
    let all = mov_eax(X87_SSE_PKRU);
    let (machine, _) = run(&[&enable(), &pkru, &all, &XSAVEC]);
    assert_eq!(machine.read_u32(HEADER), 0x200);
    assert_eq!(machine.read_u32(HEADER + 8), 0x203);
    assert_eq!(machine.read_u32(HEADER + 12), 1 << 31);
    assert_eq!(machine.read_u32(AREA + 576), 0x5550);
}

#[test]
fn xrstor_loads_what_is_there_and_initialises_the_rest() {
    let all = mov_eax(X87_SSE_PKRU);
    let store_xmm0 = [0x0f, 0x11, 0x05, 0, 0, 4, 0]; // movups [0x40000], xmm0
    let pkru = [&mov_eax(0xc)[..], &WRPKRU].concat();
    let ecx_zero = [0x31, 0xc9];
    for (present, xmm0, expected_pkru) in [(0x202u64, 0x7777_7777, 0x30), (0, 0, 0)] {
        let mut machine = machine();
        machine.write(HEADER, &present.to_le_bytes());
        machine.write(AREA + 24, &0x1f80u32.to_le_bytes());
        machine.write(AREA + 160, &[0x77; 16]);
        machine.write(AREA + 2688, &0x30u32.to_le_bytes());
        let code = [
            &enable()[..],
            &pkru,
            &ONES_XMM0,
            &all,
            &XRSTOR,
            &store_xmm0,
            &ecx_zero,
            &RDPKRU,
        ];
        let end = run_in(&mut machine, &enabled(), &code);
        assert_eq!(end.exception(), "6", "{end:?}");
        assert_eq!(machine.read_u32(0x4_0000), xmm0);
        assert_eq!(end.state.gpr[0], expected_pkru);
    }
}

#[test]
fn xrstor_refuses_headers_that_say_what_cannot_be() {
    // SDM vol. 1, 13.8.1 and 13.8.2: XSTATE_BV, XCOMP_BV, the word behind them.
    let table: [(&str, [u64; 3]); 6] = [
        ("a component that is not enabled", [1 << 2, 0, 0]),
        ("a format bit without the compacted form", [0, 1, 0]),
        ("something in the reserved bytes", [0, 0, 1]),
        (
            "a compacted component that is not enabled",
            [0, 1 << 63 | 4, 0],
        ),
        ("a component that the format has not", [2, 1 << 63 | 1, 0]),
        ("something behind a compacted header", [0, 1 << 63 | 1, 1]),
    ];
    for (what, words) in table {
        let mut machine = machine();
        machine.write(AREA + 24, &0x1f80u32.to_le_bytes());
        for (i, word) in words.iter().enumerate() {
            machine.write(HEADER + 8 * i as u64, &word.to_le_bytes());
        }
        let code = [&enable()[..], &mov_eax(X87_SSE_PKRU), &XRSTOR];
        assert_eq!(
            run_in(&mut machine, &enabled(), &code).exception(),
            "13(0x0)",
            "{what}"
        );
    }
}

#[test]
fn xrstor_refuses_reserved_bits_of_mxcsr() {
    let mut machine = machine();
    machine.write(AREA + 24, &0x0001_1f80u32.to_le_bytes());
    let code = [&enable()[..], &mov_eax(2), &XRSTOR];
    assert_eq!(
        run_in(&mut machine, &enabled(), &code).exception(),
        "13(0x0)"
    );
}

#[test]
fn osxsave_and_ospke_show_in_cpuid() {
    let (_, end) = run(&[&[0xb8, 1, 0, 0, 0, 0x0f, 0xa2]]);
    assert_eq!(end.state.gpr[1] >> 26 & 3, 3);
    let (_, end) = run(&[&[0xb8, 7, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2]]);
    assert_eq!(end.state.gpr[1] >> 3 & 3, 3);
}

#[test]
fn random_numbers_come_with_carry_and_differ() {
    // rdrand eax; rdseed ebx
    let (_, end) = run(&[&[0x0f, 0xc7, 0xf0, 0x0f, 0xc7, 0xfb]]);
    assert_eq!(end.state.rflags & 0x8d5, 1);
    assert_ne!(end.state.gpr[0], end.state.gpr[3]);
}

#[test]
fn rdpid_reads_tsc_aux() {
    // mov ecx, IA32_TSC_AUX; mov eax, 7; wrmsr; rdpid ebx
    let wrmsr = [0xb9, 3, 1, 0, 0xc0, 0xb8, 7, 0, 0, 0, 0x0f, 0x30];
    let (_, end) = run(&[&wrmsr, &[0xf3, 0x0f, 0xc7, 0xfb]]);
    assert_eq!(end.state.gpr[3], 7, "{end:?}");
}

/// 64-bit mode with protection keys; with five levels, 2^48 is mapped as zero is.
fn long(machine: &Machine, five_levels: bool) -> CpuState {
    let mut state = bare::long(machine);
    state.cr4 |= cr4::PKE;
    if five_levels {
        let entry = (PML4 | 7).to_le_bytes();
        machine.write(PML5, &[entry, entry].concat());
        state.cr4 |= cr4::LA57;
        state.cr3 = PML5;
    }
    state
}

#[test]
fn a_protection_key_refuses_data_accesses_to_user_pages() {
    // Key 1: PKRU bit 2 refuses accesses, bit 3 writes (SDM vol. 3, 4.6.2).
    let read = [0x8b, 0x07]; // mov eax, [rdi]
    let write = [0x89, 0x07];
    let table = [
        (0, true, &read, "6"),
        (1 << 2, true, &read, "#PF(0x21) at 0x200000"),
        (1 << 3, true, &read, "6"),
        (1 << 3, true, &write, "#PF(0x23) at 0x200000"),
        (1 << 2, false, &read, "6"),
    ];
    for (pkru, user, access, expected) in table {
        let mut machine = machine();
        let mut state = long(&machine, false);
        let page = 0x5003 | u64::from(user) << 2 | 1 << 59;
        machine.write(PAGES, &page.to_le_bytes());
        state.gpr[7] = 0x20_0000;
        let end = run_in(&mut machine, &state, &[&mov_eax(pkru), &WRPKRU, access]);
        assert_eq!(end.exception(), expected, "PKRU {pkru:#x}, user {user}");
    }
}

#[test]
fn five_levels_translate_57_bits() {
    let mut machine = machine();
    let mut state = long(&machine, true);
    machine.write(0x5_0000, &0xfeed_f00du32.to_le_bytes());
    state.gpr[7] = 1 << 48 | 0x5_0000;
    let end = run_in(&mut machine, &state, &[&[0x8b, 0x07]]);
    assert_eq!(
        (end.exception(), end.state.gpr[0]),
        ("6", 0xfeed_f00d),
        "{end:?}"
    );
}

#[test]
fn what_is_canonical_depends_on_the_levels() {
    for (five, address, expected) in [
        (false, 1 << 48, "13(0x0)"),
        (true, 1 << 48, "6"),
        (true, 1 << 57, "13(0x0)"),
        (true, 1u64 << 56, "13(0x0)"),
    ] {
        let mut machine = machine();
        let mut state = long(&machine, five);
        state.gpr[7] = address;
        let end = run_in(&mut machine, &state, &[&[0x8b, 0x07]]);
        assert_eq!(
            end.exception(),
            expected,
            "{address:#x} with five levels: {five}"
        );
    }
}

#[test]
fn registers_that_hold_addresses_are_as_wide_as_the_processor_can_page() {
    // SDM vol. 1, 3.3.7.1: whatever CR4.LA57 says, and without five levels 48 bits.
    // wrmsr; wrgsbase rax; lgdt [rdi]; lidt [rdi]; invpcid rsi, [rdi - 6]
    let codes: [&[u8]; 5] = [
        &[0x0f, 0x30],
        &[0xf3, 0x48, 0x0f, 0xae, 0xd8],
        &[0x0f, 0x01, 0x17],
        &[0x0f, 0x01, 0x1f],
        &[0x66, 0x0f, 0x38, 0x82, 0x77, 0xfa],
    ];
    let wide = model::maximal(0, 1);
    let narrow = model::x86_64_v2(0, 1);
    for (table, address, good) in [
        (&wide, 0x00aa_aaaa_aaaa_aaaa_u64, true),
        (&wide, 0x01aa_aaaa_aaaa_aaaa, false),
        (&narrow, 0x0000_7aaa_aaaa_aaaa, true),
        (&narrow, 0x00aa_aaaa_aaaa_aaaa, false),
    ] {
        for code in codes {
            let mut machine = Machine::with_model(table.clone());
            let mut state = long(&machine, false);
            state.cr4 = cr4::PAE | cr4::FSGSBASE;
            // For WRMSR, LSTAR. In memory the address ends a table, and INVPCID's descriptor.
            state.gpr[1] = 0xc000_0082;
            state.gpr[0] = address;
            state.gpr[2] = address >> 32;
            state.gpr[7] = AREA;
            machine.write(AREA + 2, &address.to_le_bytes());
            let end = run_in(&mut machine, &state, &[code]);
            let expected = if good { "6" } else { "13(0x0)" };
            assert_eq!(end.exception(), expected, "{code:x?} with {address:#x}");
        }
    }
}

#[test]
fn invpcid_refuses_reserved_bits_of_its_descriptor_whatever_its_type() {
    // SDM vol. 2, INVPCID: bits 12 to 63.
    for kind in 0..4 {
        for (pcid, good) in [(0u64, true), (1 << 12, false), (1 << 63, false)] {
            let mut machine = machine();
            let mut state = long(&machine, false);
            state.gpr[6] = kind;
            state.gpr[7] = AREA;
            machine.write(AREA, &pcid.to_le_bytes());
            // invpcid rsi, [rdi]
            let end = run_in(&mut machine, &state, &[&[0x66, 0x0f, 0x38, 0x82, 0x37]]);
            let expected = if good { "6" } else { "13(0x0)" };
            assert_eq!(end.exception(), expected, "type {kind}, {pcid:#x}");
        }
    }
}

#[test]
fn the_second_half_of_a_system_descriptor_is_checked() {
    // SDM vol. 3, 3.5.2: bits 8 to 12 of its second word are zero, and the base is canonical.
    let table = [
        (0u64, "6"),
        (0x00aa_aaaa, "6"),
        (0x01aa_aaaa, "13(0x40)"),
        (1 << 40, "13(0x40)"),
    ];
    for (second, expected) in table {
        for (kind, code) in [(2u64, [0x0f, 0x00, 0xd0]), (9, [0x0f, 0x00, 0xd8])] {
            let mut machine = machine(); // lldt ax; ltr ax
            let mut state = long(&machine, false);
            machine.descriptor(0x40, bare::system(0, 0x67, kind, 0));
            machine.descriptor(0x48, second);
            state.gpr[0] = 0x40;
            let end = run_in(&mut machine, &state, &[&code]);
            assert_eq!(end.exception(), expected, "type {kind}, {second:#x}");
        }
    }
}

#[test]
fn la57_cannot_change_in_ia_32e_mode() {
    let mut machine = machine();
    let state = long(&machine, false);
    // mov rax, cr4; bts eax, 12; mov cr4, rax
    let toggle = [0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xe8, 12, 0x0f, 0x22, 0xe0];
    let end = run_in(&mut machine, &state, &[&toggle]);
    assert_eq!((end.exception(), end.state.rip), ("13(0x0)", CODE + 7));
}
