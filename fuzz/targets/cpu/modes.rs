//! Registers to begin with: any that a processor could have in some mode.

use umbra_fuzz::Source;
use umbra_x86::state::{CpuState, DescriptorTable, Segment, gpr, seg};
use umbra_x86::{cr0, cr4, efer, rflags};

use crate::machine::{CODE, Machine, RAM, STACK};
use crate::tables::{self, CODE16, CODE32, CODE32_USER, CODE64, CODE64_USER, DATA, DATA_USER};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real,
    Virtual8086,
    Protected16,
    Protected32,
    Compatibility,
    Long,
}

use Mode::{Compatibility, Long, Protected16, Protected32, Real, Virtual8086};

/// Chooses a mode, prepares its tables, and returns registers.
pub fn state(source: &mut Source<'_>, machine: &mut Machine, maximal: bool) -> CpuState {
    let modes = [
        Long,
        Protected32,
        Real,
        Compatibility,
        Protected16,
        Virtual8086,
    ];
    let (mode, bits, privilege) = (source.pick(&modes), source.u16(), source.u8());
    let long = matches!(mode, Long | Compatibility);
    let user = privilege & 1 != 0 && !matches!(mode, Real);
    let (handler, code) = match mode {
        Long if user => (CODE64, CODE64_USER),
        Long => (CODE64, CODE64),
        Compatibility if user => (CODE64, CODE32_USER),
        Compatibility => (CODE64, CODE32),
        Protected16 => (CODE16, CODE16),
        Protected32 if user => (CODE32, CODE32_USER),
        _ => (CODE32, CODE32),
    };
    tables::descriptors(machine, handler, long);
    let mut state = CpuState {
        rip: CODE,
        rflags: source.u64() & rflags::DEFINED & !rflags::VM | rflags::FIXED,
        ..CpuState::default()
    };
    if mode != Real {
        protect(&mut state, code, user, long);
    }
    match mode {
        Real => real(&mut state, privilege),
        Virtual8086 => {
            real(&mut state, 0);
            state.rflags |= rflags::VM;
            for segment in &mut state.seg {
                segment.attr = 3 | Segment::S | Segment::P | 3 << 5;
            }
        }
        _ => {}
    }
    control(&mut state, bits, maximal);
    paging(&mut state, machine, bits, maximal, long);
    general(&mut state, source);
    state
}

fn protect(state: &mut CpuState, code: u16, user: bool, long: bool) {
    let data = if user { DATA_USER } else { DATA };
    state.cr0 = cr0::PE | cr0::ET;
    state.seg = [data; 6].map(flat);
    state.seg[seg::CS] = flat(code);
    state.gdtr = DescriptorTable {
        base: tables::GDT,
        limit: tables::GDT_LIMIT,
    };
    state.idtr = DescriptorTable {
        base: tables::IDT,
        limit: if long { 0xfff } else { 0x7ff },
    };
    let system = |selector, base, limit, kind| Segment {
        selector,
        base,
        limit,
        attr: kind | Segment::P,
    };
    state.tr = system(tables::TASK, tables::TSS, 0x2fff, 0xb);
    state.ldtr = system(tables::LOCAL, tables::LDT, 0xff, 2);
}

fn flat(selector: u16) -> Segment {
    let kind = match selector & !7 {
        0x08 | 0x18 => 0xb | Segment::DB,
        0x28 | 0x30 => 0xb | Segment::L,
        0x38 => 0xb,
        0x40 => 3,
        _ => 3 | Segment::DB,
    };
    let small = matches!(selector, CODE16 | tables::DATA16);
    Segment {
        selector,
        base: 0,
        limit: if small { 0x1_ffff } else { u32::MAX },
        attr: kind
            | Segment::S
            | Segment::P
            | (selector & 3) << 5
            | if small { 0 } else { Segment::G },
    }
}

/// Segments of real mode, or of what programs leave in it.
fn real(state: &mut CpuState, choice: u8) {
    let segment = (CODE >> 4) as u16;
    state.seg = [Segment::real_mode(segment, 3); 6];
    state.seg[seg::CS] = Segment::real_mode(segment, 0xb);
    state.seg[seg::SS] = Segment::real_mode((STACK >> 4) as u16 - 0x400, 3);
    if choice & 2 != 0 {
        state.seg[seg::DS].limit = u32::MAX;
    }
    state.rip = 0;
}

fn control(state: &mut CpuState, bits: u16, maximal: bool) {
    let has = |bit: u32, value: u64| if bits >> bit & 1 != 0 { value } else { 0 };
    state.cr0 |= has(0, cr0::WP) | has(1, cr0::AM) | has(2, cr0::NE) | has(3, cr0::MP);
    state.cr0 &= !(cr0::CD | cr0::NW);
    // Rare: with them every x87 or SSE instruction only raises.
    state.cr0 |= if bits & 0x30 == 0x30 { cr0::TS } else { 0 };
    state.cr4 |= has(6, cr4::DE) | has(7, cr4::PGE) | has(8, cr4::FSGSBASE) | has(9, cr4::UMIP);
    state.cr4 |= cr4::OSFXSR | has(10, cr4::OSXMMEXCPT) | has(5, cr4::TSD);
    state.cr4 |= has(11, cr4::SMAP);
    if maximal {
        state.cr4 |= has(12, cr4::OSXSAVE) | has(13, cr4::PKE);
    }
    state.efer |= has(4, efer::SCE);
}

fn paging(state: &mut CpuState, machine: &mut Machine, bits: u16, maximal: bool, long: bool) {
    let choice = bits >> 14;
    if long {
        let five = maximal && choice & 1 != 0;
        state.cr4 |= cr4::PAE | if five { cr4::LA57 } else { 0 };
        state.cr4 |= if choice & 2 != 0 { cr4::PCIDE } else { 0 };
        state.efer |= efer::LME | efer::LMA | efer::NXE;
        state.cr0 |= cr0::PG;
        state.cr3 = tables::wide(machine, if five { 5 } else { 4 });
        return;
    }
    state.cr4 &= !cr4::PKE;
    if state.cr0 & cr0::PE == 0 {
        return;
    }
    match choice {
        1 => {
            state.cr4 |= cr4::PSE;
            state.cr3 = tables::bits32(machine);
            state.cr0 |= cr0::PG;
        }
        2 => {
            // The four registers are loaded when paging is turned on: the code begins with that.
            state.cr4 |= cr4::PAE;
            state.cr3 = tables::wide(machine, 3);
            let with_paging = (state.cr0 | cr0::PG) as u32;
            let load = [
                &[0x66, 0xb8][..],
                &with_paging.to_le_bytes(),
                &[0x0f, 0x22, 0xc0],
            ];
            let wide = state.seg[seg::CS].attr & Segment::DB != 0;
            let skip = usize::from(wide); // the prefix for 32 bits
            let load = &load.concat()[skip..];
            machine.write(machine.code_at, load);
            machine.code_at += load.len() as u64;
        }
        _ => {}
    }
}

/// General registers: likely addresses, small and large numbers, or anything.
fn general(state: &mut CpuState, source: &mut Source<'_>) {
    for register in 0..16 {
        let choice = source.u8();
        let number = u64::from(choice >> 3);
        state.gpr[register] = match choice & 7 {
            0 => number,
            1 => CODE + number * 0x10,
            2 => STACK + 0x2000 + number * 0x1001,
            3 => RAM - number,
            4 => 0u64.wrapping_sub(number),
            5 => 1 << (number * 2),
            6 => tables::PAGING + number * 8,
            _ => source.u64(),
        };
    }
    state.gpr[gpr::RSP] = STACK - 8 * (state.gpr[gpr::RSP] & 7);
    if state.rip == 0 {
        state.gpr[gpr::RSP] = 0x3ff0;
    }
    if state.efer & efer::LMA == 0 {
        state.gpr = state.gpr.map(|value| value & 0xffff_ffff);
    }
}
