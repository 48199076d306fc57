//! The processor that CPUID shows: an x86-64-v2 machine with nothing in it that does not work.
//!
//! Left out on purpose: MTRRs (the guest would program them), XSAVE and everything beyond SSE4.2,
//! monitor/mwait, performance counters. Put in because guests run faster: SERIALIZE (instead of an
//! IRET to self after each code patch), ERMS (REP MOVS is one host instruction a page), the KVM
//! signature with its clock (nothing to calibrate), and "not vulnerable" to what software cannot
//! suffer from, which spares the guest page-table isolation.

use umbra_x86::cpuid::{Leaf, Table};

use crate::ops::xsave::{self, component};

/// IA32_ARCH_CAPABILITIES: not vulnerable to Meltdown, L1TF, MDS, TAA, MMIO stale data, BHI and
/// their kin; no RSB underflow. True of a processor that executes nothing speculatively on the
/// guest's behalf beyond what the host does to this program anyway.
pub const ARCH_CAPABILITIES: u64 = 1 // RDCL_NO
    | 1 << 3 // SKIP_L1DFL_VMENTRY
    | 1 << 4 // SSB_NO
    | 1 << 5 // MDS_NO
    | 1 << 6 // PSCHANGE_MC_NO
    | 1 << 8 // TAA_NO
    | 1 << 13 // SBDR_SSDP_NO
    | 1 << 14 // FBSDP_NO
    | 1 << 15 // PSDP_NO
    | 1 << 20 // BHI_NO
    | 1 << 24 // PBRSB_NO
    | 1 << 26 // GDS_NO
    | 1 << 27; // RFDS_NO

/// Physical address bits.
pub const PHYS_BITS: u32 = 46;

fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}

/// Puts a string into EBX, EDX, ECX as leaf 0 has it, or EBX, ECX, EDX as hypervisors do.
fn word(text: &[u8; 12], at: usize) -> u32 {
    u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
}

/// Sum of single bits.
fn bits(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |sum, bit| sum | 1 << bit)
}

/// The table for processor `id` of `count`.
pub fn x86_64_v2(id: u32, count: u32) -> Table {
    let mut table = Table::default();
    let vendor = b"GenuineIntel";
    table.set(
        0,
        None,
        leaf(0x16, word(vendor, 0), word(vendor, 8), word(vendor, 4)),
    );
    // Family 6, model 0x6a (a server model without known quirks), stepping 6.
    let logical = count.min(255) << 16;
    let ecx = bits(&[
        0,  // SSE3
        1,  // PCLMULQDQ
        9,  // SSSE3
        13, // CMPXCHG16B
        17, // PCID
        19, // SSE4.1
        20, // SSE4.2
        21, // x2APIC
        22, // MOVBE
        23, // POPCNT
        24, // TSC deadline
        25, // AES
        31, // hypervisor
    ]);
    let edx = bits(&[
        0, 2, 3, 4, 5, 6, // FPU DE PSE TSC MSR PAE
        8, 9, 11, 13, 15, 16, 17, // CX8 APIC SEP PGE CMOV PAT PSE36
        19, 23, 24, 25, 26, 27, 28, // CLFLUSH MMX FXSR SSE SSE2 SS HTT
    ]);
    let ecx = ecx & !native_missing();
    table.set(
        1,
        None,
        leaf(0x0006_06a6, id << 24 | logical | 8 << 8, ecx, edx),
    );
    table.set(2, None, leaf(0x00fe_ff01, 0, 0, 0xf0));
    caches(&mut table, count);
    table.set(6, None, leaf(1 << 2, 0, 0, 0)); // ARAT: the timer never stops
    let seven_b = bits(&[0, 1, 7, 9, 10, 20]); // FSGSBASE TSC_ADJUST SMEP ERMS INVPCID SMAP
    let seven_c = bits(&[2]); // UMIP
    let seven_d = bits(&[14, 29]); // SERIALIZE ARCH_CAPABILITIES
    table.set(7, Some(0), leaf(0, seven_b, seven_c, seven_d));
    topology(&mut table, id, count);
    // The time-stamp counter runs at 1 GHz: crystal 25 MHz, ratio 40.
    table.set(0x15, None, leaf(1, 40, 25_000_000, 0));
    table.set(0x16, None, leaf(1000, 1000, 25, 0));
    hypervisor(&mut table);
    extended(&mut table);
    table
}

/// Everything that this processor has: for those who write systems, not for those who run them.
/// Five levels of page tables and more state to save cost a stock kernel time, and gain it nothing.
pub fn maximal(id: u32, count: u32) -> Table {
    let mut table = x86_64_v2(id, count);
    let mut add = |function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]| {
        let old = table.get(function, index.unwrap_or(0));
        let new = leaf(old.eax | eax, old.ebx | ebx, old.ecx | ecx, old.edx | edx);
        table.set(function, index, new);
    };
    add(1, None, [0, 0, bits(&[26, 30]), 0]); // XSAVE RDRAND
    let seven_b = bits(&[3, 8, 18, 19]); // BMI1 BMI2 RDSEED ADX
    let seven_c = bits(&[3, 16, 22]); // PKU LA57 RDPID
    add(7, Some(0), [0, seven_b, seven_c, 0]);
    add(0x8000_0001, None, [0, 0, bits(&[5]), 0]); // LZCNT
    let linear_bits = (57 ^ 48) << 8;
    let sizes = table.get(0x8000_0008, 0);
    table.set(
        0x8000_0008,
        None,
        Leaf {
            eax: sizes.eax ^ linear_bits,
            ..sizes
        },
    );
    // EBX of the first two follows XCR0.
    let basic = xsave::BASIC as u32;
    let all = component::ALL as u32;
    table.set(0xd, Some(0), leaf(all, basic, xsave::STANDARD as u32, 0));
    let variants = bits(&[0, 1, 2]); // XSAVEOPT XSAVEC XGETBV(1)
    table.set(0xd, Some(1), leaf(variants, basic, 0, 0));
    let pkru = component::PKRU.trailing_zeros();
    let (size, offset) = (xsave::PKRU_SIZE as u32, xsave::PKRU_OFFSET as u32);
    table.set(0xd, Some(pkru), leaf(size, offset, 0, 0));
    table
}

/// Features that need host instructions and are absent on this host (bits of leaf 1 ECX).
fn native_missing() -> u32 {
    let mut missing = 0;
    for (bit, present) in [
        (0, std::is_x86_feature_detected!("sse3")),
        (1, std::is_x86_feature_detected!("pclmulqdq")),
        (9, std::is_x86_feature_detected!("ssse3")),
        (19, std::is_x86_feature_detected!("sse4.1")),
        (20, std::is_x86_feature_detected!("sse4.2")),
        (25, std::is_x86_feature_detected!("aes")),
    ] {
        if !present {
            missing |= 1 << bit;
        }
    }
    missing
}

/// Leaf 4: 32 KiB L1 data and code, 2 MiB L2, private to each processor.
fn caches(table: &mut Table, count: u32) {
    let cores = (count.max(1) - 1).min(63) << 26;
    let row = |kind: u32, level: u32, ways: u32, sets: u32| {
        leaf(
            kind | level << 5 | 1 << 8 | cores,
            63 | (ways - 1) << 22,
            sets - 1,
            0,
        )
    };
    table.set(4, Some(0), row(1, 1, 8, 64));
    table.set(4, Some(1), row(2, 1, 8, 64));
    table.set(4, Some(2), row(3, 2, 16, 2048));
}

/// Leaf 0xb: one thread a core, all cores in one package.
fn topology(table: &mut Table, id: u32, count: u32) {
    let core_bits = u32::BITS - (count.max(1) - 1).leading_zeros();
    table.set(0xb, Some(0), leaf(0, 1, 1 << 8, id));
    table.set(0xb, Some(1), leaf(core_bits, count, 2 << 8 | 1, id));
    table.set(0xb, Some(2), leaf(0, 0, 2, id));
}

/// KVM's signature and the features of its paravirtual interface that exist here.
fn hypervisor(table: &mut Table) {
    let name = b"KVMKVMKVM\0\0\0";
    table.set(
        0x4000_0000,
        None,
        leaf(0x4000_0001, word(name, 0), word(name, 4), word(name, 8)),
    );
    // CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, ASYNC_PF, PV_SEND_IPI, CLOCKSOURCE_STABLE.
    let features = bits(&[0, 1, 3, 4, 11, 24]);
    table.set(0x4000_0001, None, leaf(features, 0, 0, 0));
}

fn extended(table: &mut Table) {
    table.set(0x8000_0000, None, leaf(0x8000_0008, 0, 0, 0));
    // LAHF in long mode; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    table.set(
        0x8000_0001,
        None,
        leaf(0, 0, 1, bits(&[11, 20, 26, 27, 29])),
    );
    let brand = b"Umbra software processor\0";
    let mut name = [0; 48];
    name[..brand.len()].copy_from_slice(brand);
    for (i, part) in name.chunks_exact(16).enumerate() {
        let at = |n: usize| u32::from_le_bytes([part[n], part[n + 1], part[n + 2], part[n + 3]]);
        table.set(
            0x8000_0002 + i as u32,
            None,
            leaf(at(0), at(4), at(8), at(12)),
        );
    }
    table.set(0x8000_0006, None, leaf(0, 0, 2048 << 16 | 8 << 12 | 64, 0));
    table.set(0x8000_0007, None, leaf(0, 0, 0, 1 << 8)); // invariant TSC
    table.set(0x8000_0008, None, leaf(48 << 8 | PHYS_BITS, 0, 0, 0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_x86_64_v2() {
        let table = x86_64_v2(0, 1);
        let (one, extended) = (table.get(1, 0), table.get(0x8000_0001, 0));
        let v2 = bits(&[0, 9, 13, 19, 20, 23]);
        assert_eq!(one.ecx & v2, v2 & !native_missing());
        assert_eq!(extended.ecx & 1, 1, "LAHF");
        assert_eq!(extended.edx & bits(&[11, 20, 29]), bits(&[11, 20, 29]));
    }

    #[test]
    fn nothing_beyond_sse_is_claimed() {
        let one = x86_64_v2(0, 1).get(1, 0);
        assert_eq!(
            one.ecx & bits(&[12, 26, 27, 28, 29]),
            0,
            "FMA XSAVE OSXSAVE AVX F16C"
        );
    }

    #[test]
    fn every_processor_has_its_own_apic_id() {
        for id in 0..4 {
            assert_eq!(x86_64_v2(id, 4).get(0xb, 1).edx, id);
        }
    }
}
