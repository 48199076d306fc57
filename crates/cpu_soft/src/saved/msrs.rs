//! The model-specific registers as a list, and back.

use umbra_cpu::{Part, StateError};
use umbra_irqchip::ApicState;
use umbra_x86::msr;
use umbra_x86::vcpu::{Msrs as List, elsewhere};

use crate::control::{known_async_pf, known_pat};
use crate::cpu::{Cpu, Msrs};

/// What is wrong about a value.
const RESERVED: &str = "a reserved bit is set";
const NOT_CANONICAL: &str = "the address is not canonical";

impl Cpu {
    /// Every MSR of this processor that can change and is not part of anything else.
    pub fn msr_list(&self, apic: &ApicState) -> List {
        let m = &self.msrs;
        [
            (msr::APIC_BASE, apic.base),
            (msr::TSC_ADJUST, m.tsc_adjust),
            (msr::SYSENTER_CS, m.sysenter_cs),
            (msr::SYSENTER_ESP, m.sysenter_esp),
            (msr::SYSENTER_EIP, m.sysenter_eip),
            (msr::MISC_ENABLE, m.misc_enable),
            (msr::PAT, m.pat),
            (msr::TSC_DEADLINE, apic.tsc_deadline),
            (msr::KVM_WALL_CLOCK_NEW, m.kvm_wall_clock),
            (msr::KVM_SYSTEM_TIME_NEW, m.kvm_system_time),
            (msr::KVM_ASYNC_PF_EN, m.kvm_async_pf),
            (msr::STAR, m.star),
            (msr::LSTAR, m.lstar),
            (msr::CSTAR, m.cstar),
            (msr::FMASK, m.fmask),
            (msr::KERNEL_GS_BASE, m.kernel_gs_base),
            (msr::TSC_AUX, m.tsc_aux),
        ]
        .into_iter()
        .collect()
    }

    /// The registers that `list` says, beginning with those after power-up; the local APIC's two
    /// are not looked at.
    pub fn msrs_of(&self, list: &List) -> Result<Msrs, StateError> {
        let mut msrs = Msrs::at_power_up();
        for (number, value) in list.iter() {
            self.set_listed(&mut msrs, list, number, value)
                .map_err(|why| StateError {
                    what: Part::Msr(number),
                    value,
                    why,
                })?;
        }
        Ok(msrs)
    }

    fn set_listed(
        &self,
        m: &mut Msrs,
        list: &List,
        number: u32,
        value: u64,
    ) -> Result<(), &'static str> {
        let fits = |good: bool, why| if good { Ok(value) } else { Err(why) };
        let address = || fits(self.canonical_at_most(value), NOT_CANONICAL);
        let low = || fits(value >> 32 == 0, RESERVED);
        match number {
            msr::APIC_BASE | msr::TSC_DEADLINE => {}
            msr::TSC_ADJUST => m.tsc_adjust = value,
            msr::SYSENTER_CS => m.sysenter_cs = low()?,
            msr::SYSENTER_ESP => m.sysenter_esp = address()?,
            msr::SYSENTER_EIP => m.sysenter_eip = address()?,
            msr::MISC_ENABLE => m.misc_enable = value,
            msr::PAT => m.pat = fits(known_pat(value), "no memory type has this number")?,
            msr::STAR => m.star = value,
            msr::LSTAR => m.lstar = address()?,
            msr::CSTAR => m.cstar = address()?,
            msr::FMASK => m.fmask = low()?,
            msr::KERNEL_GS_BASE => m.kernel_gs_base = address()?,
            msr::TSC_AUX => m.tsc_aux = low()?,
            msr::KVM_SYSTEM_TIME_NEW => m.kvm_system_time = value,
            msr::KVM_WALL_CLOCK_NEW => m.kvm_wall_clock = value,
            msr::KVM_SYSTEM_TIME => {
                m.kvm_system_time = same(list, msr::KVM_SYSTEM_TIME_NEW, value)?
            }
            msr::KVM_WALL_CLOCK => m.kvm_wall_clock = same(list, msr::KVM_WALL_CLOCK_NEW, value)?,
            msr::KVM_ASYNC_PF_EN => m.kvm_async_pf = fits(known_async_pf(value), RESERVED)?,
            _ if elsewhere(number) => return Err("it stands elsewhere in the state"),
            _ => match self.constant_msr(number) {
                Some(constant) if constant == value => {}
                Some(_) => return Err("this processor has another value, and it cannot change"),
                None => return Err("this processor does not have it"),
            },
        }
        Ok(())
    }
}

/// An old number of a register that has a new one: both say the same.
fn same(list: &List, new: u32, value: u64) -> Result<u64, &'static str> {
    match list.get(new) {
        Some(other) if other != value => Err("the register's new number has another value"),
        _ => Ok(value),
    }
}
