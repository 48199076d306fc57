//! What level 3 may not do, and what nobody may do with registers of the system
//! (SDM vol. 3, 2.5, 5.9; vol. 1, 19.5; vol. 2 under each instruction; vol. 4 for MSRs).
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, CODE_3, DATA_3, END, End, Machine, STACK};
use umbra_x86::rflags::{FIXED, IF, IOPL};
use umbra_x86::state::{CpuState, Segment, seg};
use umbra_x86::{cr0, cr4, efer, msr};

/// A place in memory; EBX is there.
const PLACE: u64 = 0x3_0000;
const GP: &str = "13(0x0)";

/// Runs straight code. Exception 6 is the end's, never one of the code's own.
fn run(machine: &mut Machine, state: &CpuState, code: &[u8]) -> End {
    let end = run_undefined(machine, state, code);
    if end.exception() == "6" {
        let behind = CODE + code.len() as u64;
        assert_eq!(end.state.rip, behind, "undefined: {code:x?}");
    }
    end
}

/// The same for code that may be undefined.
fn run_undefined(machine: &mut Machine, state: &CpuState, code: &[u8]) -> End {
    machine.write(CODE, &[code, &END].concat());
    machine.run(state)
}

fn outer(mut state: CpuState) -> CpuState {
    let code = Segment {
        selector: CODE_3,
        attr: state.seg[seg::CS].attr | 3 << 5,
        ..state.seg[seg::CS]
    };
    state.seg = [DATA_3; 6].map(bare::flat);
    state.seg[seg::CS] = code;
    state
}

/// Level 3 in 32-bit and in 64-bit code.
fn level_3(machine: &Machine) -> [CpuState; 2] {
    [bare::protected(), bare::long(machine)].map(|state| {
        let mut state = outer(state);
        state.gpr[3] = PLACE;
        // The task state ends before it says where a map of ports is.
        state.tr.limit = 0x66;
        state
    })
}

#[test]
fn level_3_gets_gp_for_every_privileged_instruction() {
    let table: &[(&str, &[u8])] = &[
        ("lgdt [ebx]", &[0x0f, 0x01, 0x13]),
        ("lidt [ebx]", &[0x0f, 0x01, 0x1b]),
        ("lldt ax", &[0x0f, 0x00, 0xd0]),
        ("ltr ax", &[0x0f, 0x00, 0xd8]),
        ("lmsw ax", &[0x0f, 0x01, 0xf0]),
        ("clts", &[0x0f, 0x06]),
        ("invd", &[0x0f, 0x08]),
        ("wbinvd", &[0x0f, 0x09]),
        ("invlpg [ebx]", &[0x0f, 0x01, 0x3b]),
        ("invpcid eax, [ebx]", &[0x66, 0x0f, 0x38, 0x82, 0x03]),
        ("hlt", &[0xf4]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("rdpmc", &[0x0f, 0x33]),
        ("mov eax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr0, eax", &[0x0f, 0x22, 0xc0]),
        ("mov eax, cr2", &[0x0f, 0x20, 0xd0]),
        ("mov cr3, eax", &[0x0f, 0x22, 0xd8]),
        ("mov cr4, eax", &[0x0f, 0x22, 0xe0]),
        ("mov eax, dr0", &[0x0f, 0x21, 0xc0]),
        ("mov dr7, eax", &[0x0f, 0x23, 0xf8]),
        ("cli", &[0xfa]),
        ("sti", &[0xfb]),
        ("in al, 5", &[0xe4, 5]),
        ("in eax, dx", &[0xed]),
        ("out 5, al", &[0xe6, 5]),
        ("insb", &[0x6c]),
        ("outsd", &[0x6f]),
        ("rep insd", &[0xf3, 0x6d]),
    ];
    for (name, code) in table {
        for i in 0..2 {
            let mut machine = Machine::new();
            let state = &level_3(&machine)[i];
            let end = run(&mut machine, state, code);
            assert_eq!((end.exception(), end.state.rip), (GP, CODE), "{name}");
            // Nothing was done on the way.
            assert_eq!(end.state.gpr, state.gpr, "{name}");
            let control = |s: &CpuState| (s.cr0 | cr0::ET, s.cr3, s.cr4);
            assert_eq!(control(&end.state), control(state), "{name}");
            assert_eq!((end.state.gdtr, end.state.ldtr), (state.gdtr, state.ldtr));
        }
    }
    // Of 64-bit code only.
    for (name, code) in [
        ("swapgs", &[0x0f, 0x01, 0xf8][..]),
        ("sysretq", &[0x48, 0x0f, 0x07]),
        ("mov rax, cr8", &[0x44, 0x0f, 0x20, 0xc0]),
        ("mov cr8, rax", &[0x44, 0x0f, 0x22, 0xc0]),
    ] {
        let mut machine = Machine::new();
        let mut state = level_3(&machine)[1].clone();
        state.efer |= efer::SCE;
        let end = run(&mut machine, &state, code);
        assert_eq!((end.exception(), end.state.rip), (GP, CODE), "{name}");
    }
    // SYSEXIT, with a segment set.
    let mut machine = Machine::new();
    let state = &level_3(&machine)[0];
    assert_eq!(run(&mut machine, state, &[0x0f, 0x35]).exception(), GP);
}

#[test]
fn level_3_reads_descriptor_tables_unless_umip_forbids() {
    let table: &[(&str, &[u8])] = &[
        ("sgdt [ebx]", &[0x0f, 0x01, 0x03]),
        ("sidt [ebx]", &[0x0f, 0x01, 0x0b]),
        ("sldt eax", &[0x0f, 0x00, 0xc0]),
        ("sldt [ebx]", &[0x0f, 0x00, 0x03]),
        ("str eax", &[0x0f, 0x00, 0xc8]),
        ("str [ebx]", &[0x0f, 0x00, 0x0b]),
        ("smsw eax", &[0x0f, 0x01, 0xe0]),
        ("smsw [ebx]", &[0x0f, 0x01, 0x23]),
    ];
    for (name, code) in table {
        for i in 0..2 {
            for (bits, expected) in [(0, "6"), (cr4::UMIP, GP)] {
                let mut machine = Machine::new();
                let mut state = level_3(&machine)[i].clone();
                state.cr4 |= bits;
                let end = run(&mut machine, &state, code);
                assert_eq!(end.exception(), expected, "{name} with CR4 {bits:#x}");
                if expected == GP {
                    assert_eq!(machine.read::<10>(PLACE), [0; 10], "{name}");
                }
            }
        }
    }
}

#[test]
fn the_time_stamp_counter_is_open_until_tsd_closes_it() {
    for code in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xf9]] {
        for (bits, expected) in [(0, "6"), (cr4::TSD, GP)] {
            for i in 0..2 {
                let mut machine = Machine::new();
                let mut state = level_3(&machine)[i].clone();
                state.cr4 |= bits;
                assert_eq!(run(&mut machine, &state, code).exception(), expected);
            }
            let mut state = bare::protected();
            state.cr4 |= bits;
            assert_eq!(run(&mut Machine::new(), &state, code).exception(), "6");
        }
    }
}

#[test]
fn iopl_opens_ports_and_the_interrupt_flag_and_popf_never_opens_iopl() {
    for code in [&[0xfa][..], &[0xfb], &[0xec], &[0xee], &[0x6c]] {
        let mut machine = Machine::new();
        let mut state = level_3(&machine)[0].clone();
        state.rflags |= IOPL;
        state.gpr[7] = PLACE;
        assert_eq!(
            run(&mut machine, &state, code).exception(),
            "6",
            "{code:x?}"
        );
    }
    // POPF: IF follows IOPL, IOPL nothing but level 0 (SDM vol. 2, POPF).
    for (iopl, kept) in [(0, FIXED), (IOPL, FIXED | IOPL | IF)] {
        let mut machine = Machine::new();
        let mut state = level_3(&machine)[0].clone();
        state.rflags = FIXED | iopl;
        machine.write(STACK, &((IF | (IOPL ^ iopl)) as u32).to_le_bytes());
        let end = run(&mut machine, &state, &[0x9d]);
        assert_eq!((end.exception(), end.state.rflags), ("6", kept));
    }
}

/// Writes a control register at level 0; returns the exception, `6` for none.
fn write_cr(number: u8, state: &CpuState, machine: &mut Machine, value: u64) -> String {
    let mut state = state.clone();
    state.gpr[0] = value;
    let end = run(machine, &state, &[0x0f, 0x22, 0xc0 | number << 3]);
    end.exception().to_owned()
}

#[test]
fn control_registers_refuse_what_cannot_be() {
    let on = cr0::PE | cr0::NE;
    let cr0s = [
        (on, "6"),
        (cr0::PG, GP),
        (on | cr0::NW, GP),
        (on | cr0::NW | cr0::CD, "6"),
        // Reserved bits are ignored.
        (on | 1 << 10, "6"),
    ];
    for (value, expected) in cr0s {
        let mut machine = Machine::new();
        let found = write_cr(0, &bare::protected(), &mut machine, value);
        assert_eq!(found, expected, "CR0 {value:#x}");
    }
    let cr4s = [
        (cr4::PAE, "6"),
        (0, "6"),
        (cr4::PCIDE, GP), // outside IA-32e mode
        (1 << 12, GP),    // the stock model has no LA57
        (1 << 13, GP),    // nor VMX
        (1 << 15, GP),
        (1 << 31, GP),
    ];
    for (value, expected) in cr4s {
        let mut machine = Machine::new();
        let found = write_cr(4, &bare::protected(), &mut machine, value);
        assert_eq!(found, expected, "CR4 {value:#x}");
    }
    let paging = cr0::PE | cr0::NE | cr0::PG | cr0::WP;
    let in_long: [(u8, u64, &str); 12] = [
        (0, paging, "6"),
        (0, paging & !cr0::PG, GP),
        (0, paging | 1 << 32, GP),
        (4, cr4::PAE, "6"),
        (4, 0, GP),
        (4, cr4::PAE | cr4::PCIDE, "6"),
        (4, cr4::PAE | 1 << 32, GP),
        (3, bare::PML4, "6"),
        (3, bare::PML4 | 1 << 63, GP),
        (3, bare::PML4 | 1 << 60, GP),
        (3, bare::PML4 | 0x18, "6"),
        (2, 1 << 63, "6"),
    ];
    for (number, value, expected) in in_long {
        let mut machine = Machine::new();
        let state = bare::long(&machine);
        let found = write_cr(number, &state, &mut machine, value);
        assert_eq!(found, expected, "CR{number} {value:#x}");
    }
    // PCIDE needs CR3[11:0] to be zero, and paging cannot end while it is set.
    let mut machine = Machine::new();
    let mut state = bare::long(&machine);
    state.cr3 |= 8;
    assert_eq!(write_cr(4, &state, &mut machine, cr4::PAE | cr4::PCIDE), GP);
    // CR1, CR5 … are not there.
    for number in [1u8, 5, 6, 7] {
        let code = [0x0f, 0x22, 0xc0 | number << 3];
        let end = run_undefined(&mut Machine::new(), &bare::protected(), &code);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE), "CR{number}");
    }
}

#[test]
fn paging_in_long_mode_starts_only_from_a_complete_preparation() {
    // EFER.LME with CR0.PG (SDM vol. 3, 9.8.5): needs PAE, and CS.L clear.
    for (cr4, long_code, expected) in [(cr4::PAE, false, "6"), (0, false, GP), (cr4::PAE, true, GP)]
    {
        let mut machine = Machine::new();
        let mut state = bare::long(&machine);
        state.cr0 &= !cr0::PG;
        state.cr4 = cr4;
        state.efer = efer::LME;
        state.seg[seg::CS] = bare::flat(bare::CODE_0);
        if long_code {
            state.seg[seg::CS].attr = state.seg[seg::CS].attr & !Segment::DB | Segment::L;
        }
        let value = state.cr0 | cr0::PG;
        assert_eq!(write_cr(0, &state, &mut machine, value), expected);
    }
}

#[test]
fn lmsw_sets_pe_and_never_clears_it() {
    let mut state = bare::protected();
    state.gpr[0] = 0xe;
    let end = run(&mut Machine::new(), &state, &[0x0f, 0x01, 0xf0]);
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    assert_eq!((end.exception(), end.state.cr0 & 0xf), ("6", low));
}

#[test]
fn model_specific_registers_refuse_what_they_cannot_hold() {
    const NOT_CANONICAL: u64 = 0x8000_0000_0000;
    let table = [
        (
            msr::EFER,
            efer::SCE | efer::LME | efer::LMA | efer::NXE,
            "6",
        ),
        (msr::EFER, 1 << 1, GP),
        (msr::EFER, efer::LMA | efer::LME | 1 << 32, GP),
        // LME cannot change under paging.
        (msr::EFER, efer::LMA, GP),
        (msr::STAR, u64::MAX, "6"),
        (msr::LSTAR, 0xffff_8000_0000_0000, "6"),
        (msr::LSTAR, NOT_CANONICAL, GP),
        (msr::CSTAR, NOT_CANONICAL, GP),
        (msr::FS_BASE, NOT_CANONICAL, GP),
        (msr::GS_BASE, NOT_CANONICAL, GP),
        (msr::KERNEL_GS_BASE, NOT_CANONICAL, GP),
        (msr::SYSENTER_ESP, NOT_CANONICAL, GP),
        (msr::SYSENTER_EIP, NOT_CANONICAL, GP),
        (msr::SYSENTER_EIP, 0xffff_8000_0000_0000, "6"),
        (msr::PAT, 0x0007_0406_0007_0406, "6"),
        (msr::PAT, 0x0007_0406_0007_0402, GP),
        (msr::PAT, 0x0307_0406_0007_0406, GP),
        (msr::PAT, 0x0807_0406_0007_0406, GP),
        (msr::TSC_AUX, 0xffff_ffff, "6"),
        (msr::TSC_AUX, 1 << 32, GP),
        (msr::APIC_BASE, 1 << 63, GP),
        // x2APIC mode with the APIC off (SDM vol. 3, 10.12.1).
        (msr::APIC_BASE, 0xfee0_0400, GP),
        // Registers of x2APIC mode while it is off.
        (0x802, 0, GP),
        (0x80b, 0, GP),
        // Nobody's.
        (0x1234_5678, 0, GP),
        (0xc000_1234, 0, GP),
    ];
    for (number, value, expected) in table {
        let mut machine = Machine::new();
        let mut state = bare::long(&machine);
        state.gpr[1] = number.into();
        state.gpr[0] = value & 0xffff_ffff;
        state.gpr[2] = value >> 32;
        let end = run(&mut machine, &state, &[0x0f, 0x30]);
        let rip = if expected == GP { CODE } else { CODE + 2 };
        let what = format!("{number:#x} = {value:#x}");
        assert_eq!((end.exception(), end.state.rip), (expected, rip), "{what}");
    }
    let mut machine = Machine::new();
    let mut state = bare::long(&machine);
    state.gpr[1] = 0x1234_5678;
    assert_eq!(run(&mut machine, &state, &[0x0f, 0x32]).exception(), GP);
}

#[test]
fn the_upper_halves_of_debug_registers_6_and_7_stay_clear() {
    for (number, expected) in [(0u8, "6"), (6, GP), (7, GP)] {
        let mut machine = Machine::new();
        let mut state = bare::long(&machine);
        state.gpr[0] = 1 << 32;
        let end = run(&mut machine, &state, &[0x0f, 0x23, 0xc0 | number << 3]);
        assert_eq!(end.exception(), expected, "DR{number}");
    }
}
