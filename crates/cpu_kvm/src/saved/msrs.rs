//! Model-specific registers: what differs from power-up.

use std::collections::BTreeMap;

use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use umbra_cpu::{CpuError, Part};
use umbra_x86::msr;
use umbra_x86::vcpu::{Msrs, elsewhere};

use super::refused;
use crate::host::Host;
use crate::raw;
use crate::vm::failed;

/// Numbers that the kernel may list although they say nothing about the guest: what the *hypervisor* of
/// another kind gives (Hyper-V's, and Xen's hypercall page), and performance counters, which are hidden.
fn is_foreign(number: u32) -> bool {
    matches!(
        number,
        0x4000_0000..=0x4000_ffff | 0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0x345 | 0x38d..=0x390
            | 0x3f1 | 0x4c1..=0x4c8 | 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b
            | 0xc000_0300..=0xc000_0302
    )
}

/// What every register held when the processor was made.
pub(crate) struct PowerUp {
    values: BTreeMap<u32, u64>,
    pub apic_base: u64,
}

impl PowerUp {
    /// Reads all registers of a new processor. One that does not read is none that it has.
    pub fn read(host: &Host, vcpu: &VcpuFd) -> Result<Self, CpuError> {
        let list = host
            .kvm()
            .get_msr_index_list()
            .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        let wanted = |number: &u32| !elsewhere(*number) && !is_foreign(*number);
        let numbers: Vec<u32> = list.as_slice().iter().copied().filter(wanted).collect();
        let sregs = raw::get_sregs2(vcpu).map_err(failed("KVM_GET_SREGS2"))?;
        Ok(Self {
            values: read(vcpu, &numbers)?.into_iter().collect(),
            apic_base: sregs.apic_base,
        })
    }

    /// Lists what differs.
    pub fn save(&self, vcpu: &VcpuFd) -> Result<Msrs, CpuError> {
        let numbers: Vec<u32> = self.values.keys().copied().collect();
        let now = read(vcpu, &numbers)?;
        let differs = |(number, value): &(u32, u64)| self.values.get(number) != Some(value);
        Ok(now.into_iter().filter(differs).collect())
    }

    /// Tells whether all that is listed is there.
    pub fn check(&self, msrs: &Msrs) -> Result<(), CpuError> {
        // A zero is what a register that is not there holds.
        let unknown = |(number, value): &(u32, u64)| {
            *value != 0 && *number != msr::APIC_BASE && !self.values.contains_key(number)
        };
        match msrs.iter().find(unknown) {
            Some((number, value)) => {
                Err(refused(Part::Msr(number), value, "this processor has none"))
            }
            None => Ok(()),
        }
    }

    /// Sets what is listed, and everything else to what it was at first; the deadline last, for the
    /// timer's mode has to be there.
    pub fn restore(&self, vcpu: &VcpuFd, msrs: &Msrs) -> Result<(), CpuError> {
        let now: BTreeMap<u32, u64> = self.save(vcpu)?.iter().collect();
        let wanted = self.values.iter().map(|(number, first)| {
            let value = msrs.get(*number).unwrap_or(*first);
            (*number, value)
        });
        // A register that stands as it should is left alone: not all can be written.
        let stands = |number: u32| {
            now.get(&number)
                .or_else(|| self.values.get(&number))
                .copied()
        };
        let (deadline, others): (Vec<_>, Vec<_>) = wanted
            .filter(|(number, value)| stands(*number) != Some(*value))
            .partition(|(number, _)| *number == msr::TSC_DEADLINE);
        for (number, value) in others.into_iter().chain(deadline) {
            write(vcpu, number, value)?;
        }
        Ok(())
    }
}

/// Reads what can be read of some registers. The kernel stops at the first that it does not give.
fn read(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Vec<(u32, u64)>, CpuError> {
    let (mut values, mut rest) = (Vec::new(), numbers);
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().map(|number| entry(*number, 0)).collect();
        let mut msrs = KvmMsrs::from_entries(&entries).map_err(|error| CpuError::Host {
            call: "KVM_GET_MSRS",
            source: std::io::Error::other(format!("{error:?}")),
        })?;
        let given = vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        values.extend(msrs.as_slice()[..given].iter().map(|m| (m.index, m.data)));
        // The one at which it stopped is passed over.
        rest = rest.get(given + 1..).unwrap_or(&[]);
    }
    Ok(values)
}

fn write(vcpu: &VcpuFd, number: u32, value: u64) -> Result<(), CpuError> {
    let msrs = KvmMsrs::from_entries(&[entry(number, value)]).expect("one entry fits");
    match vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))? {
        1 => Ok(()),
        _ => Err(refused(Part::Msr(number), value, "KVM refuses the value")),
    }
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}
