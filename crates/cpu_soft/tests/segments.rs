//! Loads of segment registers and what segments allow (SDM vol. 3, chapter 5; vol. 2, MOV, POP,
//! LDS, LAR, LSL, VERR, LLDT, LTR).
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, CODE_0, CODE_3, DATA_0, DATA_3, END, End, GDT, Machine, protected, system};
use umbra_x86::state::{CpuState, Segment, seg};

/// Where tests put a descriptor of their own.
const OWN: u16 = 0x40;
/// Holds a far pointer, and EBX points there.
const POINTER: u64 = 0x3_0000;

// Types of segments with P and S set (SDM vol. 3, table 3-1).
const READ_ONLY: u64 = 0x91;
const WRITABLE: u64 = 0x93;
const EXECUTE_ONLY: u64 = 0x99;
const READABLE_CODE: u64 = 0x9b;
const CONFORMING: u64 = 0x9f;
const EXECUTE_ONLY_CONFORMING: u64 = 0x9d;
const LDT: u64 = 0x82;
const TASK: u64 = 0x89;
const BUSY_TASK: u64 = 0x8b;

/// A flat segment.
fn flat(access: u64, dpl: u64) -> u64 {
    0x00cf_0000_0000_ffff | (access | dpl << 5) << 40
}

fn absent(descriptor: u64) -> u64 {
    descriptor & !(0x80 << 40)
}

fn level(cpl: u16) -> CpuState {
    let mut state = protected();
    if cpl == 3 {
        state.seg = [DATA_3, CODE_3, DATA_3, DATA_3, DATA_3, DATA_3].map(bare::flat);
    }
    state.gpr[3] = POINTER;
    state
}

fn run(machine: &mut Machine, state: &CpuState, code: &[u8]) -> End {
    machine.write(CODE, &[code, &END].concat());
    machine.run(state)
}

/// All instructions that load segment register `index` but CS, with what loads AX, memory at EBX,
/// or the stack first.
fn loads(index: u8) -> Vec<Vec<u8>> {
    let mut all = vec![
        vec![0x8e, 0xc0 | index << 3], // mov sreg, ax
        vec![0x8e, 0x03 | index << 3], // mov sreg, [ebx]
    ];
    all.push(match index {
        0 => vec![0x07],
        2 => vec![0x17],
        3 => vec![0x1f],
        4 => vec![0x0f, 0xa1],
        _ => vec![0x0f, 0xa9],
    });
    all
}

/// The same for instructions that take a far pointer at EBX + 8 into ECX.
fn far_load(index: u8) -> Vec<u8> {
    match index {
        0 => vec![0xc4, 0x4b, 8],
        3 => vec![0xc5, 0x4b, 8],
        2 => vec![0x0f, 0xb2, 0x4b, 8],
        4 => vec![0x0f, 0xb4, 0x4b, 8],
        _ => vec![0x0f, 0xb5, 0x4b, 8],
    }
}

/// Loads `selector`, which names `descriptor`, in all ways; returns the exception, `6` for none.
fn load(index: u8, cpl: u16, selector: u16, descriptor: u64) -> String {
    let mut found: Option<String> = None;
    for code in loads(index).into_iter().chain([far_load(index)]) {
        let mut machine = Machine::new();
        let mut state = level(cpl);
        machine.descriptor(OWN, descriptor);
        state.gpr[0] = selector.into();
        machine.write(POINTER, &selector.to_le_bytes());
        machine.write(POINTER + 12, &selector.to_le_bytes());
        machine.write(state.gpr[4], &u32::from(selector).to_le_bytes());
        let end = run(&mut machine, &state, &code);
        if end.exception() != "6" {
            assert_eq!(end.state.rip, CODE, "{code:x?}");
            assert_eq!(end.state.gpr, state.gpr, "{code:x?}");
            assert_eq!(end.state.seg, state.seg, "{code:x?}");
            assert_eq!(
                machine.read::<8>(GDT + u64::from(OWN)),
                descriptor.to_le_bytes()
            );
        } else {
            assert_eq!(
                end.state.seg[usize::from(index)].selector,
                selector,
                "{code:x?}"
            );
        }
        let exception = end.exception().to_owned();
        assert_eq!(
            *found.get_or_insert(exception.clone()),
            exception,
            "{code:x?}"
        );
    }
    found.unwrap_or_default()
}

#[test]
fn ds_es_fs_and_gs_take_what_can_be_read_at_this_privilege() {
    let beyond = 0x1000;
    let table = [
        ("writable data", 0, OWN, flat(WRITABLE, 0), "6"),
        ("data", 0, OWN, flat(READ_ONLY, 0), "6"),
        ("data of an outer level", 0, OWN, flat(WRITABLE, 3), "6"),
        ("with an outer RPL", 0, OWN | 3, flat(WRITABLE, 3), "6"),
        ("RPL beyond DPL", 0, OWN | 3, flat(WRITABLE, 0), "13(0x40)"),
        ("RPL 1, DPL 0", 0, OWN | 1, flat(READ_ONLY, 0), "13(0x40)"),
        ("of level 0 from 3", 3, OWN, flat(WRITABLE, 0), "13(0x40)"),
        (
            "of level 2 from 3",
            3,
            OWN | 3,
            flat(WRITABLE, 2),
            "13(0x40)",
        ),
        ("readable code", 0, OWN, flat(READABLE_CODE, 0), "6"),
        (
            "code of level 0 from 3",
            3,
            OWN | 3,
            flat(READABLE_CODE, 0),
            "13(0x40)",
        ),
        (
            "conforming code of level 0 from 3",
            3,
            OWN | 3,
            flat(CONFORMING, 0),
            "6",
        ),
        (
            "execute-only code",
            0,
            OWN,
            flat(EXECUTE_ONLY, 0),
            "13(0x40)",
        ),
        (
            "the same, conforming",
            3,
            OWN | 3,
            flat(EXECUTE_ONLY_CONFORMING, 0),
            "13(0x40)",
        ),
        (
            "a local table",
            0,
            OWN,
            system(0, 0xff, LDT & 0xf, 0),
            "13(0x40)",
        ),
        (
            "a task state",
            0,
            OWN,
            system(0, 0xff, TASK & 0xf, 0),
            "13(0x40)",
        ),
        ("absent", 0, OWN, absent(flat(WRITABLE, 0)), "11(0x40)"),
        (
            "absent and of level 0 from 3",
            3,
            OWN,
            absent(flat(WRITABLE, 0)),
            "13(0x40)",
        ),
        ("beyond the limit", 0, beyond, 0, "13(0x1000)"),
        (
            "in a local table that is not there",
            0,
            OWN | 4,
            flat(WRITABLE, 0),
            "13(0x44)",
        ),
        ("null", 0, 0, 0, "6"),
        ("null with RPL 3", 3, 3, 0, "6"),
    ];
    for (what, cpl, selector, descriptor, expected) in table {
        for index in [0, 3, 4, 5] {
            let found = load(index, cpl, selector, descriptor);
            assert_eq!(found, expected, "{what}, register {index}");
        }
    }
}

#[test]
fn ss_takes_writable_data_of_exactly_this_level() {
    let table = [
        ("writable data", 0, OWN, flat(WRITABLE, 0), "6"),
        ("at level 3", 3, OWN | 3, flat(WRITABLE, 3), "6"),
        ("null", 0, 0, 0, "13(0x0)"),
        ("null with RPL 3", 3, 3, 0, "13(0x0)"),
        ("read-only data", 0, OWN, flat(READ_ONLY, 0), "13(0x40)"),
        ("code", 0, OWN, flat(READABLE_CODE, 0), "13(0x40)"),
        ("of an outer level", 0, OWN, flat(WRITABLE, 3), "13(0x40)"),
        (
            "with an outer RPL",
            0,
            OWN | 3,
            flat(WRITABLE, 0),
            "13(0x40)",
        ),
        (
            "of an inner level",
            3,
            OWN | 3,
            flat(WRITABLE, 0),
            "13(0x40)",
        ),
        ("with an inner RPL", 3, OWN, flat(WRITABLE, 3), "13(0x40)"),
        (
            "a system segment",
            0,
            OWN,
            system(0, 0xff, TASK & 0xf, 0),
            "13(0x40)",
        ),
        ("absent", 0, OWN, absent(flat(WRITABLE, 0)), "12(0x40)"),
        (
            "absent and read-only",
            0,
            OWN,
            absent(flat(READ_ONLY, 0)),
            "13(0x40)",
        ),
        ("beyond the limit", 0, 0x1000, 0, "13(0x1000)"),
    ];
    for (what, cpl, selector, descriptor, expected) in table {
        assert_eq!(load(2, cpl, selector, descriptor), expected, "{what}");
    }
}

#[test]
fn a_load_sets_the_accessed_bit() {
    let mut machine = Machine::new();
    let descriptor = flat(WRITABLE & !1, 0);
    machine.descriptor(OWN, descriptor);
    let mut state = level(0);
    state.gpr[0] = OWN.into();
    let end = run(&mut machine, &state, &[0x8e, 0xc0]);
    let found = u64::from_le_bytes(machine.read(GDT + u64::from(OWN)));
    assert_eq!((end.exception(), found), ("6", descriptor | 1 << 40));
}

#[test]
fn cs_is_not_loaded_by_mov() {
    for code in [&[0x8e, 0xc8], &[0x8e, 0x0b]] {
        let mut machine = Machine::new();
        let mut state = level(0);
        state.gpr[0] = CODE_0.into();
        let end = run(&mut machine, &state, code);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE));
    }
}

#[test]
fn a_null_segment_is_of_no_use() {
    // xor eax, eax; mov ds, ax; then reads and a write.
    for access in [&[0x8b, 0x03], &[0x89, 0x03], &[0x3b, 0x03]] {
        let code = [&[0x31, 0xc0, 0x8e, 0xd8][..], access].concat();
        let end = run(&mut Machine::new(), &level(0), &code);
        assert_eq!((end.exception(), end.state.rip), ("13(0x0)", CODE + 4));
    }
}

/// Runs `mov al, [seg: ebx]` or its store, at `offset` of a segment.
fn access(index: u8, write: bool, descriptor: u64, offset: u64) -> (String, u64) {
    let mut machine = Machine::new();
    machine.descriptor(OWN, descriptor);
    let mut state = level(0);
    state.gpr[0] = OWN.into();
    state.gpr[3] = offset;
    let prefix = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65][usize::from(index)];
    let opcode = if write { 0x89 } else { 0x8b };
    let code = [0x8e, 0xc0 | index << 3, prefix, opcode, 0x0b];
    let end = run(&mut machine, &state, &code);
    (end.exception().to_owned(), end.state.rip - CODE)
}

#[test]
fn limits_hold_for_every_byte_of_an_access() {
    // Limit 0x2fff, byte-granular; limit 2 pages.
    let up = 0x0040_9300_0000_2fff;
    let pages = 0x00c0_9300_0000_0001;
    // Expand-down: above the limit, to 64 KiB or 4 GiB (SDM vol. 3, 5.3).
    let down = 0x0040_9700_0000_2fff;
    let down_16 = 0x0000_9700_0000_2fff;
    let table = [
        (up, 0x2ffc, "6"),
        (up, 0x2ffd, "13(0x0)"),
        (up, 0xffff_fffe, "13(0x0)"),
        (pages, 0x1ffc, "6"),
        (pages, 0x1ffd, "13(0x0)"),
        (down, 0x3000, "6"),
        (down, 0x2fff, "13(0x0)"),
        (down, 0x0, "13(0x0)"),
        (down, 0x2_0000, "6"),
        (down, 0xffff_fffe, "13(0x0)"),
        (down_16, 0xfffc, "6"),
        (down_16, 0xfffd, "13(0x0)"),
        (down_16, 0x1_0000, "13(0x0)"),
    ];
    for (descriptor, offset, expected) in table {
        for write in [false, true] {
            for index in [0, 2, 3, 4, 5] {
                let (found, rip) = access(index, write, descriptor, offset);
                // The stack segment has a vector of its own.
                let expected = match (index, expected) {
                    (2, "13(0x0)") => "12(0x0)",
                    _ => expected,
                };
                let what = format!("{descriptor:#x}:{offset:#x}, {index}, write {write}");
                assert_eq!(found, expected, "{what}");
                assert_eq!(rip, if found == "6" { 5 } else { 2 }, "{what}");
            }
        }
    }
}

#[test]
fn read_only_data_and_code_are_not_written_and_execute_only_code_is_not_read() {
    for (descriptor, write, expected) in [
        (flat(READ_ONLY, 0), true, "13(0x0)"),
        (flat(READ_ONLY, 0), false, "6"),
        (flat(READABLE_CODE, 0), true, "13(0x0)"),
        (flat(READABLE_CODE, 0), false, "6"),
    ] {
        let (found, _) = access(3, write, descriptor, POINTER);
        assert_eq!(found, expected, "{descriptor:#x}, write {write}");
    }
    // Through CS itself.
    for (kind, write, expected) in [
        (0xbu16, false, "6"),
        (0xb, true, "13(0x0)"),
        (0x9, false, "13(0x0)"),
    ] {
        let mut state = level(0);
        state.seg[seg::CS].attr = state.seg[seg::CS].attr & !0xf | kind;
        let opcode = if write { 0x89 } else { 0x8b };
        let end = run(&mut Machine::new(), &state, &[0x2e, opcode, 0x0b]);
        assert_eq!(end.exception(), expected, "{kind:#x}, write {write}");
    }
}

/// `lar`, `lsl`, `verr`, `verw` for a descriptor, as in `lar lsl verr -` for those that set ZF.
fn seen(cpl: u16, selector: u16, descriptor: u64) -> String {
    let verify = |code: u8| vec![0x0f, 0x00, 0xc0 | code << 3];
    let all = [
        ("lar", vec![0x0f, 0x02, 0xc8]),
        ("lsl", vec![0x0f, 0x03, 0xc8]),
        ("verr", verify(4)),
        ("verw", verify(5)),
    ];
    let mut found = Vec::new();
    for (name, code) in all {
        let mut machine = Machine::new();
        machine.descriptor(OWN, descriptor);
        let mut state = level(cpl);
        state.gpr[0] = selector.into();
        state.gpr[1] = 0x1234_5678;
        let end = run(&mut machine, &state, &code);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE + 3), "{name}");
        let good = end.state.rflags >> 6 & 1 != 0;
        let expected = match (name, good) {
            ("lar", true) => descriptor >> 32 & 0x00ff_ff00,
            ("lsl", true) => {
                let limit = descriptor & 0xffff | descriptor >> 32 & 0xf_0000;
                let pages = descriptor >> 55 & 1 != 0;
                if pages { limit << 12 | 0xfff } else { limit }
            }
            _ => 0x1234_5678,
        };
        assert_eq!(end.state.gpr[1], expected, "{name} of {descriptor:#x}");
        found.push(if good { name } else { "-" });
    }
    found.join(" ")
}

#[test]
fn lar_lsl_verr_and_verw_tell_what_this_privilege_may_see() {
    let table = [
        (0, OWN, flat(WRITABLE, 0), "lar lsl verr verw"),
        (0, OWN, flat(READ_ONLY, 0), "lar lsl verr -"),
        (0, OWN, flat(READABLE_CODE, 0), "lar lsl verr -"),
        (0, OWN, flat(EXECUTE_ONLY, 0), "lar lsl - -"),
        (0, OWN, absent(flat(WRITABLE, 0)), "lar lsl verr verw"),
        (0, OWN | 3, flat(WRITABLE, 0), "- - - -"),
        (3, OWN, flat(WRITABLE, 0), "- - - -"),
        (3, OWN | 3, flat(WRITABLE, 3), "lar lsl verr verw"),
        (3, OWN | 3, flat(CONFORMING, 0), "lar lsl verr -"),
        (0, 0, 0, "- - - -"),
        (0, 0x1000, 0, "- - - -"),
        (0, OWN | 4, flat(WRITABLE, 0), "- - - -"),
    ];
    for (cpl, selector, descriptor, expected) in table {
        let found = seen(cpl, selector, descriptor);
        assert_eq!(found, expected, "{descriptor:#x} as {selector:#x} at {cpl}");
    }
    // System descriptors by type (SDM vol. 2, tables of LAR and LSL).
    for kind in 0..16 {
        let expected = match kind {
            1 | 2 | 3 | 9 | 0xb => "lar lsl - -",
            4 | 5 | 0xc => "lar - - -",
            _ => "- - - -",
        };
        assert_eq!(
            seen(0, OWN, system(0x1234, 0x67, kind, 0)),
            expected,
            "{kind:#x}"
        );
    }
}

#[test]
fn lldt_takes_present_local_tables_of_the_global_one() {
    let table = [
        (
            "a local table",
            OWN,
            system(0x5000, 0xff, LDT & 0xf, 0),
            "6",
        ),
        ("null", 0, 0, "6"),
        ("data", OWN, flat(WRITABLE, 0), "13(0x40)"),
        (
            "a task state",
            OWN,
            system(0, 0xff, TASK & 0xf, 0),
            "13(0x40)",
        ),
        (
            "absent",
            OWN,
            absent(system(0, 0xff, LDT & 0xf, 0)),
            "11(0x40)",
        ),
        (
            "in the local table",
            OWN | 4,
            system(0, 0xff, LDT & 0xf, 0),
            "13(0x44)",
        ),
        ("beyond the limit", 0x1000, 0, "13(0x1000)"),
    ];
    for (what, selector, descriptor, expected) in table {
        let mut machine = Machine::new();
        machine.descriptor(OWN, descriptor);
        let mut state = level(0);
        state.gpr[0] = selector.into();
        let end = run(&mut machine, &state, &[0x0f, 0x00, 0xd0]);
        assert_eq!(end.exception(), expected, "{what}");
        let loaded = end.state.rip == CODE + 3;
        assert_eq!(loaded, expected == "6", "{what}");
    }
}

#[test]
fn segments_of_a_local_table_are_loaded_and_its_limit_holds() {
    let mut machine = Machine::new();
    machine.descriptor(OWN, system(0x5000, 15, LDT & 0xf, 0));
    machine.write(0x5008, &flat(WRITABLE, 0).to_le_bytes());
    let mut state = level(0);
    state.gpr[0] = OWN.into();
    state.gpr[1] = 0xc;
    state.gpr[2] = 0x14;
    // lldt ax; mov es, cx; mov ds, dx
    let code = [0x0f, 0x00, 0xd0, 0x8e, 0xc1, 0x8e, 0xda];
    let end = run(&mut machine, &state, &code);
    assert_eq!((end.exception(), end.state.rip), ("13(0x14)", CODE + 5));
    assert_eq!(end.state.seg[seg::ES].selector, 0xc);
}

#[test]
fn ltr_takes_an_available_task_state_and_makes_it_busy() {
    let table = [
        ("available", OWN, system(0x5000, 0x67, TASK & 0xf, 0), "6"),
        (
            "busy",
            OWN,
            system(0x5000, 0x67, BUSY_TASK & 0xf, 0),
            "13(0x40)",
        ),
        ("of 16 bits", OWN, system(0x5000, 0x2b, 1, 0), "6"),
        (
            "a local table",
            OWN,
            system(0, 0xff, LDT & 0xf, 0),
            "13(0x40)",
        ),
        ("null", 0, 0, "13(0x0)"),
        (
            "absent",
            OWN,
            absent(system(0, 0x67, TASK & 0xf, 0)),
            "11(0x40)",
        ),
        (
            "in the local table",
            OWN | 4,
            system(0, 0x67, TASK & 0xf, 0),
            "13(0x44)",
        ),
    ];
    for (what, selector, descriptor, expected) in table {
        let mut machine = Machine::new();
        machine.descriptor(OWN, descriptor);
        let mut state = level(0);
        state.gpr[0] = selector.into();
        let end = run(&mut machine, &state, &[0x0f, 0x00, 0xd8]);
        assert_eq!(end.exception(), expected, "{what}");
        let loaded = end.state.rip == CODE + 3;
        assert_eq!(loaded, expected == "6", "{what}");
        let busy = u64::from_le_bytes(machine.read(GDT + u64::from(OWN)));
        let marked = if expected == "6" { 2 << 40 } else { 0 };
        assert_eq!(busy, descriptor | marked, "{what}");
    }
}

#[test]
fn in_ia_32e_mode_system_descriptors_have_16_bytes() {
    const FAR: u64 = 0xffff_8000_0000_0000;
    let table = [
        ("a local table far up", 2, FAR >> 32, "6"),
        ("a task state far up", 9, FAR >> 32, "6"),
        ("a base that is not canonical", 2, 0x8000, "13(0x40)"),
        ("the same for a task", 9, 0x8000, "13(0x40)"),
        ("a type in the upper half", 2, 2 << 40, "13(0x40)"),
        ("the same for a task", 9, 9 << 40, "13(0x40)"),
        ("a task of 16 bits", 1, 0, "13(0x40)"),
    ];
    for (what, kind, upper, expected) in table {
        let mut machine = Machine::new();
        let mut state = bare::long(&machine);
        machine.descriptor(OWN, system(0x5000, 0x67, kind, 0));
        machine.descriptor(OWN + 8, upper);
        state.gpr[0] = OWN.into();
        let modrm = if kind == 2 { 0xd0 } else { 0xd8 };
        let end = run(&mut machine, &state, &[0x0f, 0x00, modrm]);
        assert_eq!(end.exception(), expected, "{what}");
        if expected == "6" {
            let segment = if kind == 2 {
                end.state.ldtr
            } else {
                end.state.tr
            };
            assert_eq!(segment.base, upper << 32 | 0x5000, "{what}");
        }
    }
    // Half of it beyond the limit of the table.
    let mut machine = Machine::new();
    let mut state = bare::long(&machine);
    machine.descriptor(OWN, system(0x5000, 0x67, 9, 0));
    state.gdtr.limit = OWN + 7;
    state.gpr[0] = OWN.into();
    assert_eq!(
        run(&mut machine, &state, &[0x0f, 0x00, 0xd8]).exception(),
        "13(0x40)"
    );
}

#[test]
fn in_64_bit_mode_ss_may_be_null_but_not_at_level_3() {
    for (cpl, selector, expected) in [(0u16, 0u16, "6"), (0, 3, "13(0x0)"), (3, 3, "13(0x0)")] {
        let mut machine = Machine::new();
        let mut state = bare::long(&machine);
        state.gpr[0] = selector.into();
        state.seg[seg::CS].attr |= cpl << 5;
        state.seg[seg::CS].selector |= cpl;
        state.seg[seg::SS].attr |= cpl << 5;
        state.seg[seg::SS].selector |= cpl;
        let end = run(&mut machine, &state, &[0x8e, 0xd0]);
        assert_eq!(end.exception(), expected, "{selector} at {cpl}");
    }
}

#[test]
fn in_64_bit_mode_limits_and_types_of_data_segments_do_not_count() {
    let mut machine = Machine::new();
    let mut state = bare::long(&machine);
    let tiny = Segment {
        selector: OWN,
        base: 0x1000,
        limit: 0,
        attr: 1 | Segment::S | Segment::P,
    };
    state.seg[seg::DS] = tiny;
    state.seg[seg::ES] = Segment::default();
    state.gpr[3] = POINTER;
    machine.write(POINTER, &[0x5a]);
    // mov al, [rbx]; mov es:[rbx + 1], al
    let end = run(&mut machine, &state, &[0x8a, 0x03, 0x26, 0x88, 0x43, 1]);
    assert_eq!(end.exception(), "6");
    assert_eq!(machine.read::<2>(POINTER), [0x5a, 0x5a]);
}

#[test]
fn a_descriptor_table_beyond_memory_that_is_mapped_is_a_page_fault() {
    let mut machine = Machine::new();
    let mut state = bare::long(&machine);
    state.gdtr.base = 0x4000_0000;
    state.gpr[0] = DATA_0.into();
    let end = run(&mut machine, &state, &[0x8e, 0xd8]);
    assert_eq!(end.exception(), "#PF(0x0) at 0x40000010");
}
