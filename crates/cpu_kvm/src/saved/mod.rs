//! The whole state of a processor, to and from KVM.
//!
//! Each call is read in the light of those before it, so they come in this order:
//!
//! ```text
//!   save      mp_state first: KVM takes a start-up message that waits; everything else afterwards
//!   restore   SREGS2      modes, IA32_APIC_BASE: how the local APIC's page is read
//!             REGS, XCRS, XSAVE, DEBUGREGS
//!             the counter a deadline and kvmclock are counted by it
//!             LAPIC       its timer goes on from here
//!             MSRS        the deadline after the timer's mode
//!             EVENTS, MP_STATE   last: a processor that is to be interrupted, or to sleep
//! ```
//! A state that KVM refuses half-way is taken back: the processor is then as it was.
//!
//! **MSRs.** Those that the kernel lists (`KVM_GET_MSR_INDEX_LIST`) and that read are compared with what
//! they held when the processor was made; what differs is saved, and what is not listed in a state is set
//! back to that. So a state has no MSR that its guest did not touch, and another backend can take it.
//!
//! **Time.** The counter is set by its offset where the kernel has that attribute: written as an MSR, KVM
//! takes values that are near another processor's for an attempt to synchronise, and rounds them.
//!
//! Source: KVM API, and arch/x86/kvm/x86.c for what the calls depend on.

mod events;
mod lapic;
mod msrs;
mod time;
mod xsave;

use kvm_bindings::kvm_debugregs;
use kvm_ioctls::VcpuFd;
use umbra_clock::Clock;
use umbra_cpu::{CpuError, Part, StateError};
use umbra_x86::cpuid::Table;
use umbra_x86::msr;
use umbra_x86::vcpu::{DebugRegisters, VcpuState};

use crate::convert;
use crate::raw;
use crate::vm::failed;

pub(crate) use msrs::PowerUp;

/// What a processor's state is read and written with.
pub(crate) struct Saver {
    pub clock: Clock,
    pub cpuid: Table,
    pub power_up: PowerUp,
}

/// A part that KVM does not take.
fn refused(what: Part, value: u64, why: &'static str) -> CpuError {
    CpuError::State(StateError { what, value, why })
}

/// Makes an error of a call by which KVM judges values: EINVAL is about the state, all else the host's.
fn judged<E: Into<std::io::Error>>(call: &'static str, value: u64) -> impl FnOnce(E) -> CpuError {
    move |error| {
        let error = error.into();
        match error.raw_os_error() {
            Some(libc::EINVAL) => refused(Part::Other(call), value, "KVM refuses the values"),
            _ => failed(call)(error),
        }
    }
}

impl Saver {
    /// Reads everything. No access may be half done.
    pub fn save(&self, vcpu: &VcpuFd) -> Result<VcpuState, CpuError> {
        let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        let regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
        let sregs = raw::get_sregs2(vcpu).map_err(failed("KVM_GET_SREGS2"))?;
        let debug = vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
        let kvm_events = vcpu
            .get_vcpu_events()
            .map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        let mut msrs = self.power_up.save(vcpu)?;
        msrs.set(msr::APIC_BASE, sregs.apic_base);
        Ok(VcpuState {
            registers: convert::from_kvm2(&regs, &sregs),
            pdptes: convert::pdptes(&sregs),
            debug: DebugRegisters {
                address: debug.db,
                dr6: debug.dr6,
                dr7: debug.dr7,
            },
            xcr0: xsave::xcr0(vcpu, &self.cpuid)?,
            xsave: xsave::save(vcpu, &self.cpuid)?,
            msrs,
            lapic: lapic::from_kvm(&lapic, sregs.apic_base),
            events: events::from_kvm(&kvm_events),
            activity: events::activity(&mp_state, &kvm_events),
            time: time::save(vcpu, &self.clock)?,
        })
    }

    /// Writes everything, or nothing.
    pub fn restore(&self, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), CpuError> {
        self.power_up.check(&state.msrs)?;
        xsave::check(&state.xsave, &self.cpuid)?;
        time::check(vcpu, &self.clock, &state.time)?;
        let before = self.save(vcpu)?;
        self.apply(vcpu, state).inspect_err(|_| {
            // What was read a moment ago is taken again.
            if let Err(error) = self.apply(vcpu, &before) {
                tracing::error!(%error, "a state that was refused could not be taken back");
            }
        })
    }

    fn apply(&self, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), CpuError> {
        let registers = &state.registers;
        let power_up_base = self.power_up.apic_base;
        let apic_base = state.msrs.get(msr::APIC_BASE).unwrap_or(power_up_base);
        let (noted, dr6) = events::noted(&state.events, registers.cr2, state.debug.dr6);
        let mut sregs = convert::to_sregs2(registers, apic_base, state.pdptes);
        sregs.cr2 = noted;
        raw::set_sregs2(vcpu, &sregs).map_err(judged("KVM_SET_SREGS2", registers.cr0))?;
        vcpu.set_regs(&convert::to_regs(registers))
            .map_err(judged("KVM_SET_REGS", registers.rip))?;
        xsave::restore(vcpu, &self.cpuid, state.xcr0, &state.xsave)?;
        let debug = kvm_debugregs {
            db: state.debug.address,
            dr6,
            dr7: state.debug.dr7,
            ..Default::default()
        };
        vcpu.set_debug_regs(&debug)
            .map_err(judged("KVM_SET_DEBUGREGS", state.debug.dr7))?;
        time::restore(vcpu, &self.clock, &state.time)?;
        let lapic = lapic::to_kvm(&state.lapic, apic_base);
        vcpu.set_lapic(&lapic)
            .map_err(judged("KVM_SET_LAPIC", apic_base))?;
        self.power_up.restore(vcpu, &state.msrs)?;
        vcpu.set_vcpu_events(&events::to_kvm(&state.events, &state.activity))
            .map_err(judged("KVM_SET_VCPU_EVENTS", 0))?;
        vcpu.set_mp_state(events::mp_state(&state.activity))
            .map_err(judged("KVM_SET_MP_STATE", 0))?;
        Ok(())
    }
}
