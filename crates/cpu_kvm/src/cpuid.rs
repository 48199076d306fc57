//! What CPUID shows: what the kernel supports, and this machine's own topology in it.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Cap;
use umbra_cpu::CpuError;
use umbra_x86::cpuid::{Leaf, Table};

use crate::host::Host;
use crate::vm::failed;

/// Leaf 1, ECX.
const MONITOR: u32 = 1 << 3;
const TSC_DEADLINE: u32 = 1 << 24;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: there is more than one logical processor.
const HTT: u32 = 1 << 28;

/// Returns what KVM can show, for no processor in particular.
pub fn supported(host: &Host) -> Result<Table, CpuError> {
    let entries = host
        .kvm()
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let mut table = Table::default();
    for entry in entries.as_slice() {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        table.set(
            entry.function,
            indexed.then_some(entry.index),
            Leaf {
                eax: entry.eax,
                ebx: entry.ebx,
                ecx: entry.ecx,
                edx: entry.edx,
            },
        );
    }
    let one = table.get(1, 0);
    // KVM says so by a capability: it works with the local APIC in the kernel, which ours is.
    let deadline = if host.kvm().check_extension(Cap::TscDeadlineTimer) {
        TSC_DEADLINE
    } else {
        0
    };
    table.set(
        1,
        None,
        Leaf {
            // MONITOR and MWAIT would need a host that does not exit for them; OSXSAVE follows CR4.
            ecx: (one.ecx | HYPERVISOR | deadline) & !(MONITOR | OSXSAVE),
            ..one
        },
    );
    table.set(5, None, Leaf::default());
    // No performance counters: they would tell a guest about its neighbours.
    table.set(0xa, None, Leaf::default());
    Ok(table)
}

/// Makes the table of processor `id` of `count`: one thread a core, all cores in one package.
/// `tsc_khz` is the frequency of its time-stamp counter, if that is known.
pub fn of_processor(supported: &Table, id: u32, count: u32, tsc_khz: Option<u32>) -> Table {
    let mut table = supported.clone();
    let core_bits = u32::BITS - (count.max(1) - 1).leading_zeros();
    let one = table.get(1, 0);
    let several = if count > 1 { HTT } else { 0 };
    table.set(
        1,
        None,
        Leaf {
            ebx: one.ebx & 0xffff | count.min(255) << 16 | id << 24,
            edx: one.edx & !HTT | several,
            ..one
        },
    );
    for leaf in [4, 0x8000_001d] {
        caches(&mut table, leaf, core_bits);
    }
    for leaf in [0xb, 0x1f] {
        if has(&table, leaf) {
            topology(&mut table, leaf, id, count, core_bits);
        }
    }
    if has(&table, 0x8000_001e) {
        // Extended APIC id; one thread a core; one node.
        let extended = Leaf {
            eax: id,
            ebx: id & 0xff,
            ecx: 0,
            edx: 0,
        };
        table.set(0x8000_001e, None, extended);
    }
    if has(&table, 0x8000_0008) {
        let sizes = table.get(0x8000_0008, 0);
        let ecx = sizes.ecx & !0xf0ff | (count - 1).min(255) | core_bits << 12;
        table.set(0x8000_0008, None, Leaf { ecx, ..sizes });
    }
    if let Some(khz) = tsc_khz {
        // Frequencies of counter and local APIC in kHz, as hypervisors give them.
        let times = Leaf {
            eax: khz,
            ebx: 1_000_000,
            ecx: 0,
            edx: 0,
        };
        table.set(0x4000_0010, None, times);
        let first = table.get(0x4000_0000, 0);
        let eax = first.eax.max(0x4000_0010);
        table.set(0x4000_0000, None, Leaf { eax, ..first });
    }
    table
}

fn has(table: &Table, function: u32) -> bool {
    table.rows().iter().any(|row| row.function == function)
}

/// Private first and second levels, one third level for all.
fn caches(table: &mut Table, function: u32, core_bits: u32) {
    let rows: Vec<_> = table
        .rows()
        .iter()
        .filter(|row| row.function == function)
        .copied()
        .collect();
    for row in rows {
        let (kind, level) = (row.leaf.eax & 0x1f, row.leaf.eax >> 5 & 7);
        if kind == 0 {
            continue;
        }
        let sharing = if level < 3 { 0 } else { (1 << core_bits) - 1 };
        // AMD has no number of cores in its leaf.
        let cores = if function == 4 {
            ((1 << core_bits) - 1).min(63) << 26
        } else {
            0
        };
        let eax = row.leaf.eax & 0x3fff | sharing << 14 | cores;
        table.set(function, row.index, Leaf { eax, ..row.leaf });
    }
}

fn topology(table: &mut Table, function: u32, id: u32, count: u32, core_bits: u32) {
    let rows = [
        (0, 0, 1, 1 << 8),
        (1, core_bits, count, 2 << 8 | 1),
        (2, 0, 0, 2),
    ];
    for (index, eax, ebx, ecx) in rows {
        let leaf = Leaf {
            eax,
            ebx,
            ecx,
            edx: id,
        };
        table.set(function, Some(index), leaf);
    }
}

/// The form that `KVM_SET_CPUID2` takes.
pub fn to_kvm(table: &Table) -> Result<CpuId, CpuError> {
    let entries: Vec<_> = table
        .rows()
        .iter()
        .map(|row| kvm_cpuid_entry2 {
            function: row.function,
            index: row.index.unwrap_or(0),
            flags: row.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax: row.leaf.eax,
            ebx: row.leaf.ebx,
            ecx: row.leaf.ecx,
            edx: row.leaf.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|error| CpuError::Unsupported {
        backend: "KVM",
        reason: format!("{} leaves of CPUID are too many: {error:?}", entries.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
        Leaf { eax, ebx, ecx, edx }
    }

    fn host() -> Table {
        let mut table = Table::default();
        table.set(1, None, leaf(0xa20f10, 0x0510_0800, 0, HTT));
        table.set(4, Some(0), leaf(0x1c00_4121, 0, 0, 0));
        table.set(4, Some(1), leaf(0x1c03_c163, 0, 0, 0));
        table.set(4, Some(2), leaf(0, 0, 0, 0));
        table.set(0xb, Some(0), leaf(1, 2, 0x100, 7));
        table.set(0xb, Some(1), leaf(5, 32, 0x201, 7));
        table.set(0x4000_0000, None, leaf(0x4000_0001, 0, 0, 0));
        table.set(0x8000_0008, None, leaf(0x3030, 0, 0x501f, 0));
        table.set(0x8000_001e, None, leaf(7, 0x103, 1, 0));
        table
    }

    #[test]
    fn the_hosts_topology_is_replaced_by_the_machines() {
        let table = of_processor(&host(), 2, 4, Some(2_000_000));
        assert_eq!(table.get(1, 0).ebx, 0x0204_0800);
        assert_eq!(table.get(4, 0).eax, 3 << 26 | 0x121, "private");
        assert_eq!(table.get(4, 1).eax, 3 << 26 | 3 << 14 | 0x163, "shared");
        assert_eq!(table.get(4, 2), Leaf::default());
        assert_eq!(table.get(0xb, 0), leaf(0, 1, 0x100, 2));
        assert_eq!(table.get(0xb, 1), leaf(2, 4, 0x201, 2));
        assert_eq!(table.get(0xb, 2), leaf(0, 0, 2, 2));
        assert_eq!(table.get(0x8000_0008, 0).ecx, 0x2003);
        assert_eq!(table.get(0x8000_001e, 0), leaf(2, 2, 0, 0));
        assert_eq!(table.get(0x4000_0010, 0).eax, 2_000_000);
        assert_eq!(table.get(0x4000_0000, 0).eax, 0x4000_0010);
    }

    #[test]
    fn one_processor_has_no_siblings() {
        let table = of_processor(&host(), 0, 1, None);
        assert_eq!(table.get(1, 0).edx & HTT, 0);
        assert_eq!(table.get(0xb, 1), leaf(0, 1, 0x201, 0));
        assert_eq!(table.get(0x4000_0010, 0), Leaf::default());
    }

    #[test]
    fn a_table_survives_the_way_to_kvm() {
        let table = host();
        let entries = to_kvm(&table).unwrap();
        let found: Vec<_> = entries
            .as_slice()
            .iter()
            .map(|e| (e.function, e.eax))
            .collect();
        let wanted: Vec<_> = table
            .rows()
            .iter()
            .map(|r| (r.function, r.leaf.eax))
            .collect();
        assert_eq!(found, wanted);
        assert_eq!(entries.as_slice()[1].flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        assert_eq!(entries.as_slice()[0].flags, 0);
    }
}
