//! The time-stamp counter, as a point on the machine's clock.

use kvm_bindings::{Msrs as KvmMsrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use umbra_clock::Clock;
use umbra_cpu::{CpuError, Part};
use umbra_x86::msr;
use umbra_x86::vcpu::Time;

use super::refused;
use crate::raw;
use crate::vm::failed;

/// Reads counter and clock. They are read one after the other: the clock last, so that the counter never
/// seems to be ahead.
pub fn save(vcpu: &VcpuFd, clock: &Clock) -> Result<Time, CpuError> {
    Ok(Time {
        tsc: counter(vcpu)?,
        clock_ns: clock.now(),
        tsc_khz: frequency(vcpu),
    })
}

/// Tells whether the counter can run as it did, and the time is none to come.
pub fn check(vcpu: &VcpuFd, clock: &Clock, time: &Time) -> Result<(), CpuError> {
    let own = frequency(vcpu);
    if time.tsc_khz != own {
        return Err(refused(
            Part::Time("tsc_khz"),
            time.tsc_khz.into(),
            "this processor's counter runs at another frequency: make the machine with that one",
        ));
    }
    if time.clock_ns > clock.now() {
        return Err(refused(
            Part::Time("clock_ns"),
            time.clock_ns,
            "it lies ahead of the machine's clock: resume the clock first",
        ));
    }
    Ok(())
}

/// Lets the counter go on from where it would be by now.
pub fn restore(vcpu: &VcpuFd, clock: &Clock, time: &Time) -> Result<(), CpuError> {
    let Some(offset) = raw::tsc_offset(vcpu).map_err(failed("KVM_GET_DEVICE_ATTR"))? else {
        return write(vcpu, wanted(clock, time));
    };
    let ahead = wanted(clock, time).wrapping_sub(counter(vcpu)?);
    raw::set_tsc_offset(vcpu, offset.wrapping_add(ahead)).map_err(failed("KVM_SET_DEVICE_ATTR"))
}

/// What the counter reads now.
fn wanted(clock: &Clock, time: &Time) -> u64 {
    let passed = clock.now().saturating_sub(time.clock_ns);
    let ticks = u128::from(passed) * u128::from(time.tsc_khz) / 1_000_000;
    time.tsc.wrapping_add(ticks as u64)
}

fn frequency(vcpu: &VcpuFd) -> u32 {
    vcpu.get_tsc_khz().unwrap_or(0)
}

fn entry(data: u64) -> KvmMsrs {
    let entry = kvm_msr_entry {
        index: msr::TSC,
        data,
        ..Default::default()
    };
    KvmMsrs::from_entries(&[entry]).expect("one entry fits")
}

fn counter(vcpu: &VcpuFd) -> Result<u64, CpuError> {
    let mut msrs = entry(0);
    vcpu.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
    Ok(msrs.as_slice()[0].data)
}

fn write(vcpu: &VcpuFd, value: u64) -> Result<(), CpuError> {
    vcpu.set_msrs(&entry(value))
        .map(drop)
        .map_err(failed("KVM_SET_MSRS"))
}
