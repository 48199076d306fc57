//! Model-specific registers: which bits they keep, and what is #GP.
#![allow(unsafe_code)]

use super::{Check, claims};
use crate::apic::{self, reg};
use crate::cpu::{self, msr, rdmsr, wrmsr};
use crate::trap::{attempt, vector};
use crate::{ensure, needs, same};

const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

fn faults(number: u32, value: u64) -> bool {
    attempt(|| wrmsr(number, value)).is_some_and(|f| (f.vector, f.error) == (vector::GP, 0))
}

fn read_faults(number: u32) -> bool {
    attempt(|| {
        let _ = rdmsr(number);
    })
    .is_some_and(|f| (f.vector, f.error) == (vector::GP, 0))
}

fn address_registers_take_canonical_addresses_only() -> Check {
    let registers = [
        msr::FS_BASE,
        msr::GS_BASE,
        msr::KERNEL_GS_BASE,
        msr::LSTAR,
        msr::CSTAR,
    ];
    for number in registers {
        let old = rdmsr(number);
        wrmsr(number, 0x1234_5678_9abc);
        let kept = rdmsr(number);
        wrmsr(number, old);
        same!(kept, 0x1234_5678_9abc, number);
        needs!(!cpu::is_tcg(), "TCG takes any address");
        ensure!(
            faults(number, 0x0100_0000_0000_0000),
            "{number:#x} takes any address"
        );
        same!(rdmsr(number), old, "what a refused write leaves");
    }
    Ok(())
}

fn sysenter_registers_keep_addresses() -> Check {
    for number in [msr::SYSENTER_ESP, msr::SYSENTER_EIP] {
        wrmsr(number, 0xffff_8000_0000_1234);
        same!(rdmsr(number), 0xffff_8000_0000_1234, number);
        wrmsr(number, 0);
    }
    wrmsr(msr::SYSENTER_CS, 0x1234);
    same!(rdmsr(msr::SYSENTER_CS), 0x1234, "CS");
    wrmsr(msr::SYSENTER_CS, 0);
    Ok(())
}

fn efer_has_reserved_bits_and_keeps_lme_while_paging() -> Check {
    let efer = rdmsr(msr::EFER);
    ensure!(efer & 1 << 10 != 0, "LMA is {efer:x}");
    needs!(!cpu::is_tcg(), "TCG ignores reserved bits");
    ensure!(faults(msr::EFER, efer | 1 << 63), "bit 63");
    ensure!(
        faults(msr::EFER, efer & !(1 << 8)),
        "LME cannot be cleared while paging"
    );
    same!(rdmsr(msr::EFER), efer, "EFER");
    Ok(())
}

fn pat_takes_memory_types_only() -> Check {
    let pat = rdmsr(msr::PAT);
    wrmsr(msr::PAT, 0x0605_0401_0007_0406);
    same!(rdmsr(msr::PAT), 0x0605_0401_0007_0406, "PAT");
    wrmsr(msr::PAT, pat);
    needs!(!cpu::is_tcg(), "TCG takes any memory type");
    ensure!(faults(msr::PAT, 2), "type 2");
    ensure!(faults(msr::PAT, 0x0300_0000_0000_0000), "type 3");
    ensure!(faults(msr::PAT, 0x08), "type 8");
    Ok(())
}

fn registers_that_do_not_exist_fault() -> Check {
    needs!(!cpu::is_tcg(), "TCG reads zero");
    ensure!(read_faults(0x1234_5678), "a read");
    ensure!(faults(0x1234_5678, 0), "a write");
    Ok(())
}

fn the_apic_changes_mode_only_as_the_figure_shows() -> Check {
    needs!(cpu::has(1, 2, 21), "no x2APIC");
    let base = rdmsr(msr::APIC_BASE) & !(ENABLE | X2APIC);
    // From xAPIC mode.
    ensure!(faults(msr::APIC_BASE, base | X2APIC), "xAPIC to invalid");
    wrmsr(msr::APIC_BASE, base | ENABLE | X2APIC);
    ensure!(faults(msr::APIC_BASE, base | ENABLE), "x2APIC to xAPIC");
    ensure!(faults(msr::APIC_BASE, base | X2APIC), "x2APIC to invalid");
    wrmsr(msr::APIC_BASE, base);
    let gone = cpu::cpuid(1, 0)[3] >> 9 & 1;
    ensure!(faults(msr::APIC_BASE, base | X2APIC), "disabled to invalid");
    ensure!(
        faults(msr::APIC_BASE, base | X2APIC | ENABLE),
        "disabled to x2APIC"
    );
    let floating = apic::read(reg::VERSION);
    wrmsr(msr::APIC_BASE, base | ENABLE);
    let svr = apic::read(reg::SVR);
    apic::enable();
    same!(gone, 0, "CPUID's APIC bit while it is off");
    same!(floating, u32::MAX, "its page while it is off");
    same!(svr, 0xff, "SVR after that");
    Ok(())
}

fn the_apics_page_moves_within_the_address_space() -> Check {
    let base = rdmsr(msr::APIC_BASE);
    let bits = cpu::cpuid(0x8000_0008, 0)[0] & 0xff;
    needs!(!cpu::is_tcg(), "TCG takes any address and any bit");
    ensure!(faults(msr::APIC_BASE, base | 1), "a reserved bit");
    ensure!(
        faults(msr::APIC_BASE, base | 1 << bits),
        "beyond MAXPHYADDR"
    );
    let version = apic::read(reg::VERSION);
    wrmsr(msr::APIC_BASE, 0xfed4_0000 | base & 0xfff);
    let moved = unsafe { ((0xfed4_0000 + reg::VERSION) as *const u32).read_volatile() };
    wrmsr(msr::APIC_BASE, base);
    same!(moved, version, "the version at the new place");
    Ok(())
}

fn x2apic_registers_check_every_access() -> Check {
    needs!(cpu::has(1, 2, 21), "no x2APIC");
    wrmsr(msr::APIC_BASE, rdmsr(msr::APIC_BASE) | X2APIC);
    let result = x2apic();
    apic::enable();
    result
}

fn x2apic() -> Check {
    let id = cpu::cpuid(0xb, 0)[3];
    same!(rdmsr(0x802) as u32, id, "ID");
    same!(rdmsr(0x80d) as u32, (id >> 4) << 16 | 1 << (id & 15), "LDR");
    for number in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x839] {
        ensure!(
            faults(number, 0),
            "a write to {number:#x}, which is only read"
        );
    }
    for number in [0x80b, 0x83f, 0x80e, 0x831, 0x801] {
        ensure!(read_faults(number), "a read of {number:#x}");
    }
    ensure!(faults(0x80b, 1), "EOI takes zero only");
    ensure!(faults(0x828, 1), "ESR takes zero only");
    ensure!(faults(0x808, 0x100), "TPR has eight bits");
    ensure!(faults(0x832, 1 << 8), "reserved bits of the LVT");
    ensure!(faults(0x830, 1 << 13), "reserved bits of the ICR");
    ensure!(faults(0x83f, 0x100), "a vector has eight bits");
    wrmsr(0x808, 0x50);
    same!(cpu::cr8(), 5, "CR8 is TPR");
    cpu::set_cr8(0);
    Ok(())
}

fn the_time_stamp_counter_is_adjusted_both_ways() -> Check {
    needs!(cpu::has(7, 1, 1), "no TSC_ADJUST");
    let near = |a: u64, b: u64| a.wrapping_sub(b) < 1 << 32;
    wrmsr(msr::TSC_ADJUST, 0);
    let before = cpu::rdtsc();
    wrmsr(msr::TSC_ADJUST, 1 << 40);
    ensure!(
        near(cpu::rdtsc(), before + (1 << 40)),
        "the counter follows"
    );
    wrmsr(msr::TSC, 1 << 20);
    ensure!(near(cpu::rdtsc(), 1 << 20), "the counter was written");
    let moved = rdmsr(msr::TSC_ADJUST).wrapping_sub(1 << 40) as i64;
    ensure!(moved < 0, "and the adjustment followed: {moved}");
    wrmsr(msr::TSC_ADJUST, 0);
    ensure!(near(cpu::rdtsc(), before), "and back");
    Ok(())
}

claims! {
    address_registers_take_canonical_addresses_only: "SDM vol. 3, 2.8.7 and vol. 2, WRMSR",
    sysenter_registers_keep_addresses: "SDM vol. 3, 5.8.7",
    efer_has_reserved_bits_and_keeps_lme_while_paging: "SDM vol. 3, 2.2.1",
    pat_takes_memory_types_only: "SDM vol. 3, 12.12.2",
    registers_that_do_not_exist_fault: "SDM vol. 2, RDMSR and WRMSR",
    the_apic_changes_mode_only_as_the_figure_shows: "SDM vol. 3, 11.12.5, figure 11-27",
    the_apics_page_moves_within_the_address_space: "SDM vol. 3, 11.4.4",
    x2apic_registers_check_every_access: "SDM vol. 3, 11.12.1",
    the_time_stamp_counter_is_adjusted_both_ways: "SDM vol. 3, 18.17.3",
}
